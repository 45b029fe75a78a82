"""Settings, from environment variables. No other module reads the environment.

The defaults make a fresh checkout work with nothing else installed. Every setting is checked when the service starts:
a wrong one stops the start with one line, which names the setting and the cure.
"""

import importlib.util
import os
import re
import unicodedata
from collections.abc import Mapping
from contextlib import suppress
from email.utils import parseaddr
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Literal, Self

from email_validator import EmailNotValidError, validate_email
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

CHECKOUT = Path(__file__).resolve().parent

HOST = re.compile(r"[^\s/:@]+|\[?[0-9A-Fa-f.]*:[0-9A-Fa-f.]*:[0-9A-Fa-f.:]*\]?")
"""A host's name or an IP address, without a scheme and without a port."""

_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
DNS_NAME = re.compile(rf"(?=.{{1,253}}\Z)(?!(?:[0-9]+\.)*[0-9]+\Z){_LABEL}(?:\.{_LABEL})*")
"""A host's name in ASCII; no IP address."""

ADDRESS_LITERAL = re.compile(r"\[(?:IPv6:([0-9A-Fa-f:.]+)|([0-9.]+))\]")


def gunicorn_serves(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether this is a process of gunicorn's, which says so in the environment."""
    return environ.get("SERVER_SOFTWARE", "").startswith("gunicorn/")


class ConfigError(ValueError):
    """A setting is wrong. The message is one line: the setting's name, the reason and the cure."""


class Settings(BaseModel):
    """The settings of one application. Each is an environment variable of the same name in capitals.

    A field's description is the cure that a wrong value is answered with. Times are in seconds.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", str_strip_whitespace=True)

    instance_path: Path = Field(CHECKOUT / "instance", description="a folder for the database file and the Maildir")
    database_url: str = Field(
        "", repr=False, description="sqlite:////absolute/path.db or postgresql+psycopg://user@host/name"
    )
    database_timeout: float = Field(10, ge=0.1, le=300, description="seconds to wait for a busy database, 0.1 to 300")

    mail_backend: Literal["smtp", "file", "console", "memory"] = Field(
        "file", description="one of smtp, file, console, memory"
    )
    mail_server: str | None = Field(None, description="the host name of an SMTP server; its port is MAIL_PORT")
    mail_port: int = Field(25, ge=1, le=65535, description="a port number, 1 to 65535")
    mail_username: str | None = None
    mail_password: str | None = Field(None, repr=False)
    mail_use_tls: bool = Field(False, description="true or false (STARTTLS)")
    mail_use_ssl: bool = Field(False, description="true or false (TLS from the first byte)")
    mail_ca_file: Path | None = Field(None, description="a PEM file with the authority that signed the server's key")
    mail_default_sender: str = Field("orders@localhost", description="an e-mail address")
    mail_ehlo_name: str | None = Field(
        None, description="the name that this host has in DNS, such as shop.example.com, or its address as [192.0.2.1]"
    )
    mail_timeout: float = Field(
        10, ge=0.1, le=300, description="seconds to wait for each answer of the mail server, 0.1 to 300"
    )
    mail_locale: Literal["zh", "en"] = Field("zh", description="zh or en")
    mail_on_unknown: Literal["resend", "hold"] = Field("resend", description="resend, or hold for a person to decide")
    mail_max_copies: int = Field(
        3, ge=1, le=100, description="how many copies of a mail whose fate is unknown are sent in all, 1 to 100"
    )
    mail_threads: int = Field(2, ge=1, le=64, description="how many mails one process sends at once, 1 to 64")
    user_email_domain: str | None = Field(None, description="a domain such as users.example")

    api_token: str | None = Field(None, repr=False)
    console_password: str | None = Field(None, repr=False)

    web_host: str = Field("127.0.0.1", description="the address that gunicorn binds, 0.0.0.0 for all")
    port: int = Field(8000, ge=1, le=65535, description="a port number, 1 to 65535")
    web_concurrency: int = Field(2, ge=1, le=256, description="how many processes serve, 1 to 256")
    web_threads: int = Field(8, ge=1, le=256, description="how many requests a process serves at once, 1 to 256")
    greeting: bool = Field(False, description="true or false; whether gunicorn says on stdout when it is ready")

    dispatch_in_web: bool = Field(True, description="true, or false where 'flask bus run' dispatches instead")
    lease_seconds: float = Field(30, ge=0.5, le=3600, description="0.5 to 3600; extended while a receiver runs")
    poll_seconds: float = Field(5, ge=0.05, le=300, description="0.05 to 300; the safety net beneath the wake-up")
    shutdown_seconds: float = Field(10, ge=0, le=300, description="0 to 300; how long a stop waits for receivers")
    ready_lag_seconds: float = Field(60, ge=1, description="at least 1; how overdue a delivery may be for /readyz")
    missing_receiver_seconds: float = Field(86400, ge=1, description="at least 1; then its deliveries go dead")
    retry_base_seconds: float = Field(5, ge=0.01, le=3600, description="0.01 to 3600; bounds the first wait")
    retry_max_seconds: float = Field(3600, ge=0.01, le=604800, description="0.01 to 604800; bounds every wait")
    retry_max_attempts: int = Field(20, ge=1, le=1000, description="1 to 1000; then the delivery is dead")

    retention_days: float = Field(90, ge=0.001, description="how long finished events are kept, in days")

    log_format: Literal["text", "json"] = Field("text", description="text or json")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="DEBUG, INFO, WARNING or ERROR")

    @classmethod
    def load(cls, environ: Mapping[str, str] = os.environ) -> Self:
        """Read environment variables; an empty one counts as unset. Raises ConfigError."""
        given = {name: environ[name.upper()] for name in cls.model_fields if environ.get(name.upper(), "").strip()}
        return cls.of(**given)

    @classmethod
    def for_logs(cls, environ: Mapping[str, str] = os.environ) -> Self:
        """LOG_FORMAT and LOG_LEVEL alone, so that a start which other settings stop is told of as was asked for."""
        chosen: dict[str, Any] = {}
        for name in ("log_format", "log_level"):
            with suppress(ConfigError):
                chosen |= cls.load({name.upper(): environ.get(name.upper(), "")}).model_dump(include={name})
        return cls.of(**chosen)

    @classmethod
    def of(cls, **given: Any) -> Self:
        """Check keyword arguments as if they were read. Raises ConfigError."""
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            raise ConfigError("; ".join(_cure(problem) for problem in error.errors())) from None

    @field_validator("instance_path")
    @classmethod
    def _absolute(cls, path: Path) -> Path:
        return path.expanduser().absolute()

    @field_validator("mail_default_sender")
    @classmethod
    def _address(cls, address: str) -> str:
        """An address, or a name with one: ``Shop <shop@example.com>``. The default ``orders@localhost`` is allowed."""
        if any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in address):
            raise ValueError("it holds control characters")
        bare = parseaddr(address)[1]
        checked = f"{bare}.example" if bare.endswith("@localhost") else bare
        _check_address(checked)
        return address

    @field_validator("mail_server", "web_host")
    @classmethod
    def _host(cls, host: str | None) -> str | None:
        if host is not None and not HOST.fullmatch(host):
            raise ValueError("it is neither a host's name nor an IP address")
        return host

    @field_validator("mail_ehlo_name")
    @classmethod
    def _says_who(cls, name: str | None) -> str | None:
        """A name, or an address literal (RFC 5321, section 4.1.3)."""
        if name is None or DNS_NAME.fullmatch(name):
            return name
        literal = ADDRESS_LITERAL.fullmatch(name)
        try:
            address = ip_address(literal[1] or literal[2]) if literal else None
        except ValueError:
            address = None
        if address is None:
            raise ValueError("it is neither a host's name in ASCII nor an IP address in brackets")
        if address.is_loopback:
            raise ValueError("it is a loopback address, which says nothing to a server")
        return name

    @field_validator("user_email_domain")
    @classmethod
    def _domain(cls, domain: str | None) -> str | None:
        if domain is not None:
            _check_address(f"user@{domain}")
        return domain

    @field_validator("mail_ca_file")
    @classmethod
    def _readable(cls, file: Path | None) -> Path | None:
        if file is not None and not file.is_file():
            raise ValueError("there is no such file")
        return file

    @model_validator(mode="before")
    @classmethod
    def _derive(cls, given: dict[str, Any]) -> dict[str, Any]:
        """Fill in defaults that depend on other settings."""
        given = dict(given)
        given.setdefault("mail_backend", "smtp" if given.get("mail_server") else "file")
        if given["mail_backend"] != "smtp":
            given.setdefault("user_email_domain", "users.example")
        if not given.get("database_url"):
            folder = Path(given.get("instance_path") or CHECKOUT / "instance").expanduser().absolute()
            given["database_url"] = f"sqlite:///{folder / 'orders.db'}"
        return given

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.mail_backend == "smtp" and not self.mail_server:
            raise ValueError("MAIL_BACKEND is smtp, but MAIL_SERVER is not set; set it to the server's host name")
        if self.mail_use_tls and self.mail_use_ssl:
            raise ValueError("MAIL_USE_TLS and MAIL_USE_SSL are both true; set one (usually TLS on 587, SSL on 465)")
        if self.retry_base_seconds > self.retry_max_seconds:
            raise ValueError("RETRY_BASE_SECONDS is more than RETRY_MAX_SECONDS; lower the one or raise the other")
        if bool(self.mail_username) != bool(self.mail_password):
            raise ValueError("MAIL_USERNAME and MAIL_PASSWORD belong together; set both or neither")
        return self

    @model_validator(mode="after")
    def _usable_database_url(self) -> Self:
        cure = f"set it to {type(self).model_fields['database_url'].description}"
        try:
            url = make_url(self.database_url)
            scheme = url.drivername
        except (ArgumentError, ValueError):  # the exception's text may hold the password
            scheme = ""
        if scheme not in ("sqlite", "postgresql", "postgresql+psycopg"):
            raise ValueError(f"DATABASE_URL begins with {scheme!r}; {cure}")
        if scheme == "sqlite" and url.database in (None, "", ":memory:"):
            raise ValueError("DATABASE_URL names a database in memory, which loses orders; name a file")
        if scheme != "sqlite" and importlib.util.find_spec("psycopg") is None:
            raise ValueError("DATABASE_URL needs PostgreSQL's driver; run 'pip install -r requirements-scale.txt'")
        try:
            url.get_dialect()().create_connect_args(url)
        except (ArgumentError, ValueError):
            raise ValueError(f"DATABASE_URL has a wrong host or port, or a wrong value after its '?'; {cure}") from None
        return self

    @property
    def is_sqlite(self) -> bool:
        return self.database_url.startswith("sqlite:")


def _check_address(address: str) -> None:
    try:
        validate_email(  # as app.addresses does, which can't be imported before this module
            address, strict=True, allow_smtputf8=False, check_deliverability=False, test_environment=True
        )
    except EmailNotValidError as problem:
        raise ValueError(f"{problem}".rstrip(".")) from None


def _cure(problem: Any) -> str:
    """A clause for one wrong setting: its name, the reason and the cure. A secret value is not repeated."""
    reason = problem["msg"].removeprefix("Value error, ")
    if not problem["loc"]:
        return str(reason)
    name = str(problem["loc"][0])
    secret = Settings.model_fields[name].repr is False
    shown = "" if secret else f" is {str(problem['input'])[:80]!r}:"
    cure = Settings.model_fields[name].description
    return f"{name.upper()}{shown} {reason[0].lower()}{reason[1:]}" + (f"; set it to {cure}" if cure else "")
