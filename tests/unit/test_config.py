"""Settings: defaults that work, and for each wrong value one line that names the setting and the cure."""

import re
import sys
from pathlib import Path

import pytest

from config import CHECKOUT, ConfigError, Settings


def test_a_fresh_checkout_needs_no_setting() -> None:
    settings = Settings.load({})
    assert settings.database_url == f"sqlite:///{CHECKOUT}/instance/orders.db"
    assert (settings.mail_backend, settings.user_email_domain, settings.dispatch_in_web) == (
        "file",
        "users.example",
        True,
    )


def test_a_mail_server_makes_it_smtp_and_guesses_no_addresses() -> None:
    settings = Settings.load({"MAIL_SERVER": "mail.example"})
    assert (settings.mail_backend, settings.mail_port, settings.user_email_domain) == ("smtp", 25, None)
    assert Settings.load({"MAIL_SERVER": "m", "USER_EMAIL_DOMAIN": "a.example"}).user_email_domain == "a.example"
    assert Settings.load({"MAIL_SERVER": "m", "MAIL_BACKEND": "file"}).mail_backend == "file"


@pytest.mark.parametrize("sender", ["orders@localhost", "Shop <shop@example.com>", "订单 <orders@localhost>"])
def test_a_sender_may_have_a_name(sender: str) -> None:
    assert Settings.load({"MAIL_DEFAULT_SENDER": sender}).mail_default_sender == sender


def test_an_empty_variable_is_an_unset_one() -> None:
    assert Settings.load({"MAIL_SERVER": "", "MAIL_PORT": " ", "API_TOKEN": ""}) == Settings.load({})


def test_the_database_lies_in_the_instance_folder() -> None:
    assert Settings.load({"INSTANCE_PATH": "/srv/x"}).database_url == "sqlite:////srv/x/orders.db"
    assert Settings.load({"INSTANCE_PATH": "rel"}).instance_path == Path.cwd() / "rel"


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"MAIL_PORT": "abc"}, ["MAIL_PORT is 'abc'", "set it to a port number, 1 to 65535"]),
        ({"MAIL_PORT": "0"}, ["MAIL_PORT", "1 to 65535"]),
        ({"MAIL_PORT": "65536"}, ["MAIL_PORT", "1 to 65535"]),
        ({"MAIL_BACKEND": "pigeon"}, ["MAIL_BACKEND", "one of smtp, file, console, memory"]),
        ({"MAIL_BACKEND": "smtp"}, ["MAIL_BACKEND is smtp", "MAIL_SERVER is not set"]),
        ({"MAIL_USE_TLS": "maybe"}, ["MAIL_USE_TLS", "true or false"]),
        ({"MAIL_USE_TLS": "1", "MAIL_USE_SSL": "1"}, ["MAIL_USE_TLS and MAIL_USE_SSL are both true"]),
        ({"MAIL_USERNAME": "me"}, ["MAIL_USERNAME and MAIL_PASSWORD belong together"]),
        ({"MAIL_DEFAULT_SENDER": "no address"}, ["MAIL_DEFAULT_SENDER", "an e-mail address"]),
        ({"MAIL_DEFAULT_SENDER": "a@b.example\nBcc: x@y.example"}, ["MAIL_DEFAULT_SENDER"]),
        ({"MAIL_DEFAULT_SENDER": "x\r\nBcc: a@localhost"}, ["MAIL_DEFAULT_SENDER"]),
        ({"MAIL_SERVER": "mail.example:587"}, ["MAIL_SERVER is 'mail.example:587'", "its port is MAIL_PORT"]),
        ({"MAIL_SERVER": "smtp://mail.example"}, ["MAIL_SERVER", "neither a host's name nor an IP address"]),
        ({"WEB_HOST": "0.0.0.0:80"}, ["WEB_HOST is '0.0.0.0:80'", "0.0.0.0 for all"]),
        ({"USER_EMAIL_DOMAIN": "not a domain"}, ["USER_EMAIL_DOMAIN is 'not a domain'", "users.example"]),
        ({"USER_EMAIL_DOMAIN": "@users.example"}, ["USER_EMAIL_DOMAIN"]),
        ({"MAIL_CA_FILE": "/nowhere.pem"}, ["MAIL_CA_FILE", "no such file"]),
        ({"MAIL_LOCALE": "fr"}, ["MAIL_LOCALE", "zh or en"]),
        ({"MAIL_TIMEOUT": "0"}, ["MAIL_TIMEOUT", "0.1 to 300"]),
        ({"DATABASE_URL": "mysql://x/y"}, ["DATABASE_URL", "postgresql+psycopg://"]),
        ({"DATABASE_URL": "nonsense"}, ["DATABASE_URL", "sqlite:////absolute/path.db"]),
        ({"DATABASE_URL": "sqlite://"}, ["DATABASE_URL", "in memory"]),
        ({"DATABASE_URL": "sqlite:///:memory:?timeout=1"}, ["DATABASE_URL", "in memory"]),
        (
            {"DATABASE_URL": "sqlite:///x.db?timeout=abc"},
            ["DATABASE_URL", "after its '?'", "sqlite:////absolute/path.db"],
        ),
        ({"DATABASE_URL": "sqlite://host/x.db"}, ["DATABASE_URL has a wrong host"]),
        ({"DATABASE_URL": "postgresql://db/orders?port=http"}, ["DATABASE_URL has a wrong host or port"]),
        ({"RETRY_BASE_SECONDS": "9", "RETRY_MAX_SECONDS": "8"}, ["RETRY_BASE_SECONDS is more than"]),
        ({"RETRY_MAX_ATTEMPTS": "0"}, ["RETRY_MAX_ATTEMPTS", "1 to 1000"]),
        ({"LEASE_SECONDS": "nan"}, ["LEASE_SECONDS", "0.5 to 3600"]),
        ({"RECEIVER_TIMEOUT": "0"}, ["RECEIVER_TIMEOUT is '0'", "1 to 86400; how many seconds a receiver may take"]),
        ({"LOG_FORMAT": "xml"}, ["LOG_FORMAT", "text or json"]),
        ({"PORT": "http"}, ["PORT", "1 to 65535"]),
    ],
)
def test_a_wrong_setting_is_one_line_with_its_name_and_the_cure(environ: dict[str, str], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        Settings.load(environ)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize("host", ["mail.example", "localhost", "10.0.0.1", "::1", "fe80::1:2", "邮件.example"])
def test_a_mail_server_may_be_a_name_or_an_address(host: str) -> None:
    assert Settings.load({"MAIL_SERVER": host}).mail_server == host


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "localhost", "[::]", "[::1]"])  # noqa: S104 - nothing is bound
def test_gunicorn_may_listen_at_a_name_or_an_address(host: str) -> None:
    assert Settings.load({"WEB_HOST": host}).web_host == host


def test_postgresql_without_its_driver_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not among the packages that a start on SQLite needs."""
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigError, match=r"DATABASE_URL .* 'pip install -r requirements-scale.txt'"):
        Settings.load({"DATABASE_URL": "postgresql+psycopg://somebody@db.example/orders"})
    assert Settings.load({}).is_sqlite


def test_every_wrong_setting_is_named_at_once() -> None:
    with pytest.raises(ConfigError, match=r"MAIL_PORT.*; MAIL_LOCALE"):
        Settings.load({"MAIL_PORT": "x", "MAIL_LOCALE": "x"})


def test_every_setting_stands_in_the_readme_in_both_languages() -> None:
    for readme in ("README.md", "README.zh.md"):
        text = (CHECKOUT / readme).read_text()
        assert [name for name in Settings.model_fields if f"`{name.upper()}`" not in text] == [], readme


@pytest.mark.parametrize("readme", ["README.md", "README.zh.md"])
def test_the_defaults_in_the_readme_are_those_of_the_code(readme: str) -> None:
    rows = re.findall(r"^\| (`[A-Z_`,、 ]+`) \| ([^|]+) \|", (CHECKOUT / readme).read_text(), re.MULTILINE)
    shown = {}
    for names, defaults in rows:
        values = re.split(", |、", defaults.replace("`", ""))
        shown |= dict(zip(re.findall("[A-Z_]+", names), values, strict=False))
    code = Settings.load({})
    simple = {name: value for name, value in code if isinstance(value, int | float) and not name.startswith("mail_use")}
    assert {name: shown.get(name.upper()) for name in simple if name != "mail_port"} == {
        name: str(value).lower() if isinstance(value, bool) else f"{value:g}"
        for name, value in simple.items()
        if name != "mail_port"
    }
    assert {
        name: shown[name] for name in ("MAIL_LOCALE", "MAIL_ON_UNKNOWN", "WEB_HOST", "LOG_FORMAT", "LOG_LEVEL")
    } == {
        "MAIL_LOCALE": code.mail_locale,
        "MAIL_ON_UNKNOWN": code.mail_on_unknown,
        "WEB_HOST": code.web_host,
        "LOG_FORMAT": code.log_format,
        "LOG_LEVEL": code.log_level,
    }
