"""Settings, from environment variables and the file ``.env``. No other module reads them.

The defaults make a fresh checkout work with nothing else installed. Every setting is checked when the service starts:
a wrong one stops the start with one line, which names the setting and the cure.
"""

import importlib.util
import io
import ipaddress
import os
import re
import unicodedata
from collections.abc import Mapping
from contextlib import suppress
from email.utils import parseaddr
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from dotenv import dotenv_values, find_dotenv
from dotenv.parser import parse_stream
from email_validator import EmailNotValidError, validate_email
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

CHECKOUT = Path(__file__).resolve().parent

ENV_FILE = CHECKOUT / ".env"

HOST = re.compile(r"[^\s/:@]+|\[?[0-9A-Fa-f.]*:[0-9A-Fa-f.]*:[0-9A-Fa-f.:]*\]?")
"""A host's name or an IP address, without a scheme and without a port."""

_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
DNS_NAME = re.compile(rf"(?=.{{1,253}}\Z)(?!(?:[0-9]+\.)*[0-9]+\Z){_LABEL}(?:\.{_LABEL})*")
"""A host's name in ASCII; no IP address."""

ADDRESS_LITERAL = re.compile(r"\[(?:IPv6:([0-9A-Fa-f:.]+)|([0-9.]+))\]")


ADDRESS_OF_A_SERVICE = re.compile(r"(tcp|udp|sctp)://(\[[0-9a-f:]+\]|[0-9.]+):[0-9]+")
"""The value that Kubernetes and Docker's links put into NAME_PORT for a service of that name."""

BROKERS = ("amqp", "amqps", "redis", "rediss")
"""Schemes of CELERY_BROKER_URL."""

WITHOUT_EFFECT = {
    "MAIL_SUPPRESS_SEND": "mail goes out all the same; to send none, set MAIL_BACKEND to file",
    "MAIL_DEBUG": "LOG_LEVEL=DEBUG tells more",
    "MAIL_MAX_EMAILS": "how long a connection is used is not for you to set",
    "MAIL_ASCII_ATTACHMENTS": "no mail has attachments",
}
"""Settings of Flask-Mail's that this service does not read, and what to know then."""


def gunicorn_serves() -> bool:
    """Whether this is a process of gunicorn's, which says so in the environment."""
    return os.environ.get("SERVER_SOFTWARE", "").startswith("gunicorn/")


def exports_traces(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether OpenTelemetry's own variables ask for traces to be exported, by OTLP."""
    if environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    if exporter := environ.get("OTEL_TRACES_EXPORTER", "").strip():
        return exporter == "otlp"
    return any(environ.get(name) for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"))


def environment() -> Mapping[str, str]:
    """The environment, once it has what ``.env`` beside this module gives and it did not have. Raises ConfigError.

    Flask's own commands read the nearest such file above the working folder, and no other program does. So each process
    reads this one, wherever it was started, as Flask reads it; and a command stops where Flask took a setting from
    another. FLASK_SKIP_DOTENV keeps all of them from reading any.
    """
    if os.environ.get("FLASK_SKIP_DOTENV", "").lower() in ("", "0", "false", "no"):
        given = _read_env_file()
        if os.environ.get("FLASK_RUN_FROM_CLI") == "true":
            _refuse_other_files(given)
        for name, value in given.items():
            os.environ.setdefault(name, value)
    return os.environ


def _read_env_file() -> dict[str, str]:
    try:
        text = ENV_FILE.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except UnicodeDecodeError:
        raise ConfigError(f"{ENV_FILE} is not UTF-8; write it in that encoding") from None
    except OSError as error:
        cure = "let the user read it that this process runs as, or remove it"
        raise ConfigError(f"{ENV_FILE} can't be read: {error.strerror}; {cure}") from None
    for line in parse_stream(io.StringIO(text)):
        if line.error or (line.key is not None and line.value is None):
            raise ConfigError(
                f"{ENV_FILE}, line {line.original.line}, is not NAME=value; correct it, or begin it with #"
            )
    return {name: value for name, value in dotenv_values(stream=io.StringIO(text)).items() if value is not None}


def _refuse_other_files(given: Mapping[str, str]) -> None:
    """Raises ConfigError where a setting came from a file that Flask found, and is not ``given`` by ours."""
    for found in filter(None, (find_dotenv(name, usecwd=True) for name in (".flaskenv", ".env"))):
        if Path(found).resolve() == ENV_FILE:
            continue
        for name, value in dotenv_values(found).items():
            if name.lower() in Settings.model_fields and os.environ.get(name) == value != given.get(name):
                raise ConfigError(
                    f"{name} comes from {found}, which only 'flask' reads, and only there; move it to {ENV_FILE}, "
                    "which all processes read"
                )


def _split(words: Any) -> Any:
    """A list is given as one text, its words between commas."""
    return tuple(word.strip() for word in words.split(",") if word.strip()) if isinstance(words, str) else words


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
    database_pool_size: int = Field(
        20, ge=4, le=500, description="how many connections to PostgreSQL one process opens at most, 4 to 500"
    )

    mail_backend: Literal["smtp", "file", "console", "memory"] = Field(
        "file", description="one of smtp, file, console, memory"
    )
    mail_server: str | None = Field(None, description="the host name of an SMTP server; its port is MAIL_PORT")
    mail_port: int = Field(25, ge=1, le=65535, description="a port number, 1 to 65535")
    mail_instead_of: str | None = Field(
        None, description="what dispatchers delivered mail by before: host:port, file, console or memory"
    )
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
    console_read_password: str | None = Field(None, repr=False)
    secret_key: str | None = Field(None, repr=False, min_length=16, description="at least 16 random characters")
    metrics_token: str | None = Field(None, repr=False)

    web_host: str = Field("127.0.0.1", description="the address that gunicorn binds, 0.0.0.0 for all")
    port: int = Field(8000, ge=1, le=65535, description="a port number, 1 to 65535")
    web_concurrency: int = Field(2, ge=1, le=256, description="how many processes serve, 1 to 256")
    web_threads: int = Field(16, ge=1, le=256, description="how many requests a process serves at once, 1 to 256")
    trusted_hosts: Annotated[tuple[str, ...] | None, BeforeValidator(_split)] = Field(
        None, description="names of hosts between commas, such as orders.example, or .example for all beneath it"
    )
    trusted_proxies: int = Field(0, ge=0, le=16, description="how many proxies stand before the service, 0 to 16")
    trusted_proxy_headers: Annotated[
        tuple[Literal["for", "proto", "host", "port", "prefix"], ...], BeforeValidator(_split)
    ] = Field(("for", "proto"), description="some of for, proto, host, port, prefix, between commas")
    greeting: bool = Field(False, description="true or false; whether gunicorn says on stdout when it is ready")

    bus_engine: Literal["inprocess", "celery"] = Field("inprocess", description="one of inprocess, celery")
    celery_broker_url: str | None = Field(
        None, repr=False, description="amqp://user:password@host:5672/vhost or redis://:password@host:6379/0"
    )
    dispatch_in_web: bool = Field(True, description="true, or false where 'flask bus run' dispatches instead")
    lease_seconds: float = Field(30, ge=0.5, le=3600, description="0.5 to 3600; extended while a receiver runs")
    poll_seconds: float = Field(5, ge=0.05, le=300, description="0.05 to 300; the safety net beneath the wake-up")
    shutdown_seconds: float = Field(10, ge=0, le=300, description="0 to 300; how long a stop waits for receivers")
    receiver_timeout: float = Field(60, ge=1, le=86400, description="1 to 86400; how many seconds a receiver may take")
    ready_lag_seconds: float = Field(60, ge=1, description="at least 1; how late a delivery may be for /readyz")
    missing_receiver_seconds: float = Field(86400, ge=1, description="at least 1; then its deliveries go dead")
    retry_policy: Literal["learned", "exponential"] = Field("learned", description="one of learned, exponential")
    retry_attempt_cost: float = Field(
        0.2, gt=0, le=1e6, description="minutes of one delivery's delay that an attempt is worth, above 0 to 1000000"
    )
    retry_copy_cost: float = Field(
        10, gt=0, le=1e6, description="minutes of delay that the risk of a copy is worth, at least RETRY_ATTEMPT_COST"
    )
    retry_loss_cost: float = Field(
        3000, gt=0, le=1e9, description="minutes of delay that a lost delivery is worth, more than RETRY_COPY_COST"
    )
    retry_base_seconds: float = Field(5, ge=0.01, le=3600, description="0.01 to 3600; bounds the first wait")
    retry_max_seconds: float = Field(3600, ge=0.01, le=604800, description="0.01 to 604800; bounds every wait")
    retry_max_attempts: int = Field(20, ge=1, le=1000, description="1 to 1000; then the delivery is dead")

    retention_days: float = Field(90, ge=0.001, description="how long finished events are kept, in days")

    log_format: Literal["text", "json"] = Field("text", description="text or json")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="DEBUG, INFO, WARNING or ERROR")

    @classmethod
    def load(cls, environ: Mapping[str, str] | None = None) -> Self:
        """Read ``environ``, or else environment variables and ``.env``; an empty one counts as unset.

        Raises ConfigError for wrong values, and for variables whose name is nearly a setting's.
        """
        environ = environment() if environ is None else environ
        given = {name: environ[name.upper()] for name in cls.model_fields if environ.get(name.upper(), "").strip()}
        if ADDRESS_OF_A_SERVICE.fullmatch(given.get("mail_port", "")):  # of one that is named "mail"
            del given["mail_port"]
        problems = _misspelt(environ)
        try:
            settings = cls.of(**given)
        except ConfigError as error:
            problems.append(str(error))
        if problems:
            raise ConfigError("; ".join(problems))
        return settings

    @classmethod
    def for_logs(cls) -> Self:
        """LOG_FORMAT and LOG_LEVEL alone, so that a start which other settings stop is told of as was asked for."""
        with suppress(ConfigError):
            environment()
        chosen: dict[str, Any] = {}
        for name in ("log_format", "log_level"):
            with suppress(ConfigError):
                chosen |= cls.load({name.upper(): os.environ.get(name.upper(), "")}).model_dump(include={name})
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
        return _expanded(path)

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

    @field_validator("trusted_hosts")
    @classmethod
    def _names(cls, names: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if names is not None and not (names and all(HOST.fullmatch(name.removeprefix(".")) for name in names)):
            raise ValueError("these are not names of hosts, without a scheme and without a port")
        return names

    @field_validator("mail_ehlo_name")
    @classmethod
    def _says_who(cls, name: str | None) -> str | None:
        """A name, or an address literal (RFC 5321, section 4.1.3)."""
        if name is None or DNS_NAME.fullmatch(name):
            return name
        literal = ADDRESS_LITERAL.fullmatch(name)
        try:
            address = ipaddress.ip_address(literal[1] or literal[2]) if literal else None
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
        web_host = given.get("web_host") or cls.model_fields["web_host"].default
        if not given.get("api_token") and _is_loopback(web_host):
            given.setdefault("trusted_hosts", (web_host,))
        if not given.get("database_url"):
            with suppress(ValueError):  # INSTANCE_PATH is checked by itself
                folder = _expanded(Path(given.get("instance_path") or CHECKOUT / "instance"))
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
        if not self.retry_attempt_cost <= self.retry_copy_cost < self.retry_loss_cost:
            raise ValueError(
                "the costs of retries are out of order; let RETRY_ATTEMPT_COST be at most RETRY_COPY_COST, and "
                "RETRY_COPY_COST less than RETRY_LOSS_COST"
            )
        if bool(self.mail_username) != bool(self.mail_password):
            raise ValueError("MAIL_USERNAME and MAIL_PASSWORD belong together; set both or neither")
        if self.console_read_password and not self.console_password:
            raise ValueError("CONSOLE_READ_PASSWORD is set, but CONSOLE_PASSWORD is not; set both")
        if self.console_read_password and self.console_read_password == self.console_password:
            raise ValueError("CONSOLE_READ_PASSWORD and CONSOLE_PASSWORD are the same; set two passwords")
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

    @model_validator(mode="after")
    def _usable_broker(self) -> Self:
        if self.bus_engine != "celery":
            return self
        cure = f"set it to {type(self).model_fields['celery_broker_url'].description}"
        if not self.celery_broker_url:
            raise ValueError(f"BUS_ENGINE is celery, but CELERY_BROKER_URL is not set; {cure}")
        try:
            url = urlsplit(self.celery_broker_url)
            found = url.scheme if url.hostname and url.port != 0 else ""
        except ValueError:  # the exception's text may hold the password
            found = ""
        if found not in BROKERS:
            raise ValueError(
                f"CELERY_BROKER_URL is none of a broker that is supported, which are {', '.join(BROKERS)}; {cure}"
            )
        needed = ("celery", "redis") if found.startswith("redis") else ("celery",)
        if any(importlib.util.find_spec(name) is None for name in needed):
            raise ValueError("BUS_ENGINE needs Celery; run 'pip install -r requirements-celery.txt'")
        return self

    @property
    def is_sqlite(self) -> bool:
        return self.database_url.startswith("sqlite:")


def without_effect(environ: Mapping[str, str] = os.environ) -> list[str]:
    """A line for each setting of Flask-Mail's that is given and not read."""
    return [f"{name} has no effect here: {fact}" for name, fact in WITHOUT_EFFECT.items() if environ.get(name)]


def _misspelt(environ: Mapping[str, str]) -> list[str]:
    """A line for each variable that is no setting, but whose name is nearly one's."""
    settings = [name.upper() for name in Settings.model_fields]
    return [
        f"{name} is no setting, but {nearest} is: rename it, or unset it if it is another program's"
        for name in sorted(environ.keys() - set(settings))
        if environ[name].strip() and not ADDRESS_OF_A_SERVICE.fullmatch(environ[name])
        if (nearest := _nearest(name.upper(), settings))
    ]


def _nearest(name: str, settings: list[str]) -> str | None:
    """The setting that ``name`` is a misspelling of, where it is one.

    Not of a short setting, nor many typos: PORT has POST for a neighbour, and WEB_HOST has WEB_PORT. A name that begins
    otherwise (EMAIL_PORT) or has a number (DATABASE_URL_2) is another's.
    """
    if re.search("[0-9]", name):
        return None
    typos = {
        setting: _typos(name, setting)
        for setting in settings
        if len(setting) >= 8 and name[0] in setting[:2] and abs(len(name) - len(setting)) <= 2
        if len(set(name) ^ set(setting)) <= 2  # no pair within two typos differs in more letters, and this is quick
    }
    nearest = min(typos, key=typos.__getitem__, default="")
    most = 1 if len(nearest) < 10 else 1.5 if len(nearest) < 12 else 2
    return nearest if nearest and typos[nearest] <= most else None


def _typos(name: str, setting: str) -> float:
    """The edit distance of Damerau and Levenshtein: letters left out, added, or exchanged with their neighbour.

    One that is replaced counts half as much again: that makes other words (APP_TOKEN, DATABASE_SSL) sooner than typos.
    """
    rows: list[list[float]] = [list(range(len(setting) + 1))]
    for i, letter in enumerate(name, 1):
        row: list[float] = [i]
        for j, wanted in enumerate(setting, 1):
            replaced = rows[-1][j - 1] + (0 if letter == wanted else 1.5)
            least = min(rows[-1][j] + 1, row[-1] + 1, replaced)
            if i > 1 and j > 1 and name[i - 2 : i] == setting[j - 1] + setting[j - 2]:
                least = min(least, rows[-2][j - 2] + 1)
            row.append(least)
        rows.append(row)
    return rows[-1][-1]


def _expanded(path: Path) -> Path:
    try:
        return path.expanduser().absolute()
    except RuntimeError:
        raise ValueError("its ~ stands for the home of a user who has none here; write the path out") from None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


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
