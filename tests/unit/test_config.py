"""Settings: defaults that work, and for each wrong value one line that names the setting and the cure."""

import inspect
import os
import re
import sys
from pathlib import Path

import flask_mail
import pytest

import config
from config import CHECKOUT, WITHOUT_EFFECT, ConfigError, Settings, without_effect


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


@pytest.mark.parametrize(
    "sender",
    ["orders@localhost", "Shop <shop@example.com>", "订单 <orders@localhost>", "👨‍👩‍👧 北京\u3000公司 <a@b.example>"],
)
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
        ({"TRUSTED_HOSTS": "https://orders.example"}, ["TRUSTED_HOSTS", "without a scheme and without a port"]),
        ({"TRUSTED_HOSTS": "orders.example:443"}, ["TRUSTED_HOSTS", "without a port"]),
        ({"TRUSTED_HOSTS": ","}, ["TRUSTED_HOSTS", "orders.example"]),
        ({"TRUSTED_PROXIES": "-1"}, ["TRUSTED_PROXIES is '-1'", "0 to 16"]),
        ({"TRUSTED_PROXY_HEADERS": "for,scheme"}, ["TRUSTED_PROXY_HEADERS", "for, proto, host, port, prefix"]),
        ({"USER_EMAIL_DOMAIN": "not a domain"}, ["USER_EMAIL_DOMAIN is 'not a domain'", "users.example"]),
        ({"USER_EMAIL_DOMAIN": "@users.example"}, ["USER_EMAIL_DOMAIN"]),
        ({"MAIL_CA_FILE": "/nowhere.pem"}, ["MAIL_CA_FILE", "no such file"]),
        ({"MAIL_LOCALE": "fr"}, ["MAIL_LOCALE", "zh or en"]),
        ({"MAIL_MAX_COPIES": "0"}, ["MAIL_MAX_COPIES is '0'", "fate is unknown", "1 to 100"]),
        ({"MAIL_EHLO_NAME": "two words"}, ["MAIL_EHLO_NAME is 'two words'", "such as shop.example.com"]),
        ({"MAIL_EHLO_NAME": "bücher.example"}, ["MAIL_EHLO_NAME", "in ASCII"]),
        ({"MAIL_EHLO_NAME": "x\r\nMAIL"}, ["MAIL_EHLO_NAME"]),
        ({"MAIL_EHLO_NAME": "10.0.0.1"}, ["MAIL_EHLO_NAME", "in brackets"]),
        ({"MAIL_EHLO_NAME": "[10.0.0.256]"}, ["MAIL_EHLO_NAME", "[192.0.2.1]"]),
        ({"MAIL_EHLO_NAME": "[127.0.0.1]"}, ["MAIL_EHLO_NAME", "loopback"]),
        ({"MAIL_EHLO_NAME": "[IPv6:::1]"}, ["MAIL_EHLO_NAME", "loopback"]),
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
        ({"RETRY_POLICY": "celery"}, ["RETRY_POLICY", "learned, exponential"]),
        ({"RETRY_ATTEMPT_COST": "0"}, ["RETRY_ATTEMPT_COST", "minutes"]),
        ({"RETRY_ATTEMPT_COST": "20"}, ["RETRY_ATTEMPT_COST", "at most RETRY_COPY_COST"]),
        ({"RETRY_LOSS_COST": "5"}, ["RETRY_COPY_COST less than RETRY_LOSS_COST"]),
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


@pytest.mark.parametrize(
    "name",
    ["shop.example.com", "web-1", "xn--bcher-kva.example", "mail.corp.local", "[192.0.2.1]", "[IPv6:2001:db8::1]"],
)
def test_a_mail_server_may_be_told_a_name_or_an_address(name: str) -> None:
    assert Settings.load({"MAIL_EHLO_NAME": name}).mail_ehlo_name == name


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "localhost", "[::]", "[::1]"])  # noqa: S104 - nothing is bound
def test_gunicorn_may_listen_at_a_name_or_an_address(host: str) -> None:
    assert Settings.load({"WEB_HOST": host}).web_host == host


def test_postgresql_without_its_driver_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not among the packages that a start on SQLite needs."""
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigError, match=r"DATABASE_URL .* 'pip install -r requirements-scale.txt'"):
        Settings.load({"DATABASE_URL": "postgresql+psycopg://somebody@db.example/orders"})
    assert Settings.load({}).is_sqlite


@pytest.mark.parametrize(
    "url",
    [
        "amqp://guest:guest@127.0.0.1:5672//",
        "amqps://u:p@broker.example/orders",
        "redis://:p@[::1]:6379/0",
        "rediss://r",
    ],
)
def test_a_broker_may_be_rabbitmq_or_redis(url: str) -> None:
    assert Settings.load({"BUS_ENGINE": "celery", "CELERY_BROKER_URL": url}).celery_broker_url == url


@pytest.mark.parametrize(
    "url", ["", "x", "sqs://secret@x", "amqp:///", "redis://:secret@h:port", "amqp://u:secret@h:0/"]
)
def test_a_broker_that_can_not_be_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match=r"CELERY_BROKER_URL is .*; set it to amqp://user:") as caught:
        Settings.load({"BUS_ENGINE": "celery", "CELERY_BROKER_URL": url})
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("missing, scheme", [("celery", "amqp"), ("redis", "redis")])
def test_a_broker_without_its_client_says_what_to_install(
    missing: str, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ConfigError, match=r"BUS_ENGINE .* 'pip install -r requirements-celery.txt'"):
        Settings.load({"BUS_ENGINE": "celery", "CELERY_BROKER_URL": f"{scheme}://h"})


def test_a_broker_is_another_programs_where_the_engine_is_inprocess() -> None:
    assert Settings.load({"CELERY_BROKER_URL": "sqs://"}).bus_engine == "inprocess"


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


def test_a_home_that_is_not_there_is_told() -> None:
    """As in a container, whose user has neither HOME nor a name."""
    with pytest.raises(ConfigError, match=r"INSTANCE_PATH is '~nobody-of-this-name/x': its ~ stands for"):
        Settings.load({"INSTANCE_PATH": "~nobody-of-this-name/x"})


@pytest.mark.parametrize(
    "name, setting",
    [
        ("MAIL_SEVER", "MAIL_SERVER"),
        ("MAIL_SERVR", "MAIL_SERVER"),
        ("MAIL_SERVERR", "MAIL_SERVER"),
        ("MAIL_SERVES", "MAIL_SERVER"),
        ("MIAL_SERVER", "MAIL_SERVER"),
        ("AMIL_SERVER", "MAIL_SERVER"),
        ("AIL_SERVER", "MAIL_SERVER"),
        ("MAILSERVER", "MAIL_SERVER"),
        ("MAIL__SERVER", "MAIL_SERVER"),
        ("MAIL-SERVER", "MAIL_SERVER"),
        ("mail_server", "MAIL_SERVER"),
        ("Mail_Sever", "MAIL_SERVER"),
        ("DATABSE_URL", "DATABASE_URL"),
        ("DATABASE_URI", "DATABASE_URL"),
        ("DATABASE_ULR", "DATABASE_URL"),
        ("DATABSE_ULR", "DATABASE_URL"),
        ("DATABASEURL", "DATABASE_URL"),
        ("DATABASE_TIMOUT", "DATABASE_TIMEOUT"),
        ("MAIL_PASWORD", "MAIL_PASSWORD"),
        ("MAIL_PASWRD", "MAIL_PASSWORD"),
        ("MAIL_USER_NAME", "MAIL_USERNAME"),
        ("MAIL_PROT", "MAIL_PORT"),
        ("MAIL_BACKED", "MAIL_BACKEND"),
        ("MAIL_USE_TSL", "MAIL_USE_TLS"),
        ("MAIL_DEFAULT_SENDR", "MAIL_DEFAULT_SENDER"),
        ("USER_MAIL_DOMAIN", "USER_EMAIL_DOMAIN"),
        ("API_TOKN", "API_TOKEN"),
        ("CONSOLE_PASSWROD", "CONSOLE_PASSWORD"),
        ("TRUSTED_HOST", "TRUSTED_HOSTS"),
        ("WEB_HOTS", "WEB_HOST"),
        ("WEB_CONCURENCY", "WEB_CONCURRENCY"),
        ("DISPATCH_INWEB", "DISPATCH_IN_WEB"),
        ("RETENTION_DAY", "RETENTION_DAYS"),
        ("RETRY_MAX_ATTEMPT", "RETRY_MAX_ATTEMPTS"),
        ("LOGLEVEL", "LOG_LEVEL"),
        ("LOG_FROMAT", "LOG_FORMAT"),
    ],
)
def test_a_misspelt_setting_is_one_line_with_the_name_that_was_meant(name: str, setting: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Settings.load({name: "s3cret"})
    told = str(caught.value)
    assert told == f"{name} is no setting, but {setting} is: rename it, or unset it if it is another program's"


def test_a_misspelt_setting_is_named_beside_wrong_ones_and_an_empty_one_is_not() -> None:
    with pytest.raises(ConfigError, match=r"^API_TOKN is .*; MAIL_SEVER is .*; MAIL_PORT is 'x'"):
        Settings.load({"MAIL_SEVER": "m", "API_TOKN": "x", "MAIL_PORT": "x", "MAIL_LOCAL": " "})


OTHERS = """
    PATH HOME LANG LANGUAGE LC_ALL SHELL TERM PWD OLDPWD USER USERNAME LOGNAME SHLVL EDITOR VISUAL PAGER LESS
    DISPLAY MAIL MAILTO MAILCHECK MAILPATH MANPATH HOSTNAME HOST TZ TMPDIR PS1 POST PORTS SPORT PROT port
    XDG_RUNTIME_DIR SSH_AUTH_SOCK COLORTERM LS_COLORS DBUS_SESSION_BUS_ADDRESS VIRTUAL_ENV PYTHONPATH
    PYTHONUNBUFFERED PYTHONDONTWRITEBYTECODE PIP_INDEX_URL HTTP_PROXY HTTPS_PROXY NO_PROXY http_proxy no_proxy
    SSL_CERT_FILE REQUESTS_CA_BUNDLE MAKEFLAGS MAKELEVEL MFLAGS CI GITHUB_ACTIONS GITHUB_TOKEN GITHUB_SERVER_URL
    GITHUB_API_URL RUNNER_TEMP GITLAB_CI CI_JOB_TOKEN CI_SERVER_HOST CI_API_V4_URL BUILD_NUMBER JENKINS_URL TRAVIS
    CIRCLECI TF_BUILD SYSTEM_ACCESSTOKEN KUBERNETES_SERVICE_HOST KUBERNETES_SERVICE_PORT
    KUBERNETES_SERVICE_PORT_HTTPS KUBERNETES_PORT KUBERNETES_PORT_443_TCP_ADDR ORDERS_SERVICE_HOST
    ORDERS_SERVICE_PORT ORDERS_SERVICE_PORT_HTTP ORDERS_PORT_8000_TCP_ADDR ORDERS_PORT_8000_TCP_PROTO
    MAIL_SERVICE_HOST MAIL_SERVICE_PORT MAIL_PORT_25_TCP MAIL_PORT_25_TCP_ADDR MAIL_PORT_25_TCP_PORT
    MAIL_PORT_25_TCP_PROTO MAIL_SERVER_SERVICE_HOST MAIL_SERVER_SERVICE_PORT MAIL_SERVER_PORT WEB_SERVICE_HOST
    WEB_PORT WEB_PORT_80_TCP INVOCATION_ID JOURNAL_STREAM NOTIFY_SOCKET LISTEN_FDS LISTEN_PID MAINPID MANAGERPID
    STATE_DIRECTORY RUNTIME_DIRECTORY LOGS_DIRECTORY CONFIGURATION_DIRECTORY CREDENTIALS_DIRECTORY SYSTEMD_EXEC_PID
    WATCHDOG_USEC DOCKER_HOST DOCKER_CONFIG COMPOSE_PROJECT_NAME COMPOSE_FILE container GPG_KEY PYTHON_VERSION
    PYTHON_SHA256 PGHOST PGPORT PGUSER PGPASSWORD PGPASSFILE PGDATABASE PGSSLMODE PGAPPNAME POSTGRES_USER
    POSTGRES_PASSWORD POSTGRES_DB PGDATA SERVER_SOFTWARE GUNICORN_CMD_ARGS GUNICORN_PID GRANIAN_PORT GRANIAN_HOST
    FLASK_APP FLASK_ENV FLASK_DEBUG FLASK_RUN_PORT FLASK_RUN_HOST FLASK_SKIP_DOTENV FLASK_MAIL_SERVER
    FLASK_DATABASE_URL WERKZEUG_RUN_MAIN WERKZEUG_SERVER_FD SQLALCHEMY_DATABASE_URI SQLALCHEMY_WARN_20
    SENTRY_DSN SENTRY_RELEASE OTEL_SERVICE_NAME OTEL_EXPORTER_OTLP_ENDPOINT OTEL_EXPORTER_OTLP_TIMEOUT
    OTEL_LOG_LEVEL OTEL_LOGS_EXPORTER MAIL_MAX_EMAILS MAIL_SUPPRESS_SEND MAIL_DEBUG MAIL_ASCII_ATTACHMENTS
    EMAIL_HOST EMAIL_PORT EMAIL_USE_TLS EMAIL_USE_SSL EMAIL_BACKEND EMAIL_TIMEOUT EMAIL_HOST_PASSWORD
    DEFAULT_FROM_EMAIL DATABASE_HOST DATABASE_PORT DATABASE_NAME DATABASE_USER DATABASE_PASSWORD DATABASE_SSL
    DATABASE_URL_2 TEST_DATABASE_URL APP_TOKEN CSRF_TOKEN API_KEY API_URL API_HOST GLOG_LEVEL BLOG_LEVEL LOG_FILE
    LOG_DIR LOG_COLOR WEB_URL WEBHOOK_URL AWS_MAX_ATTEMPTS AWS_RETRY_MODE AWS_REGION REDIS_URL REDIS_HOST
    CELERY_RESULT_BACKEND CELERY_APP ALLOWED_HOSTS DYNO HEROKU_APP_NAME RENDER RAILWAY_ENVIRONMENT
    TEST_POSTGRES_URL SIMULATION_SEEDS
    """  # one name a line would fill four screens


@pytest.mark.parametrize("name", OTHERS.split())
def test_a_variable_of_another_program_is_left_alone(name: str) -> None:
    assert Settings.load({name: "x"}) == Settings.load({})


def test_what_kubernetes_says_of_services_is_no_setting() -> None:
    """It names them NAME_PORT, so the port of a service that is named "mail" has our setting's name."""
    of_services = dict.fromkeys(("MAIL_PORT", "MAILS_PORT", "ORDERS_PORT", "WEB_PORT"), "tcp://10.96.0.7:25")
    assert Settings.load(of_services | {"MAIL_SERVER": "mail"}).mail_port == 25
    assert Settings.load({"MAIL_PORT": "tcp://[fd00::7]:25", "MAIL_SERVER": "mail"}).mail_port == 25
    with pytest.raises(ConfigError, match=r"MAIL_PORT is 'tcp://mail:587'"):
        Settings.load({"MAIL_PORT": "tcp://mail:587"})


@pytest.mark.parametrize("name", Settings.model_fields)
def test_no_setting_is_taken_for_another(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Settings.load({name.upper(): "x", "MAIL_PORT": "x"})
    assert "is no setting" not in str(caught.value)


def test_settings_of_flask_mail_that_are_not_read_are_told() -> None:
    assert without_effect({}) == without_effect({"MAIL_DEBUG": "", "MAIL_SERVER": "m"}) == []
    assert without_effect({"MAIL_SUPPRESS_SEND": "true"}) == [
        "MAIL_SUPPRESS_SEND has no effect here: mail goes out all the same; to send none, set MAIL_BACKEND to file"
    ]
    for name in WITHOUT_EFFECT:
        assert f'"{name}"' in inspect.getsource(flask_mail), "Flask-Mail has it"
        assert name.lower() not in Settings.model_fields


# .env


@pytest.fixture
def env_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where .env is looked for; and nothing of it stays in the environment after the test."""
    file = tmp_path / "checkout" / ".env"
    file.parent.mkdir()
    monkeypatch.setattr(config, "ENV_FILE", file)
    monkeypatch.setattr(os, "environ", {"PATH": os.environ["PATH"]})
    monkeypatch.chdir(file.parent)
    return file


def test_settings_come_from_the_file_beside_config(env_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the process was started."""
    env_file.write_text("# the shop's\nexport MAIL_SERVER='mail.example'\n\nMAIL_PORT=2525  # submission\n")
    monkeypatch.chdir("/")
    settings = Settings.load()
    assert (settings.mail_server, settings.mail_port) == ("mail.example", 2525)


def test_a_value_in_the_environment_wins_over_the_file(env_file: Path) -> None:
    """An empty one too, which unsets it."""
    env_file.write_text("MAIL_SERVER=mail.example\nMAIL_PORT=2525\n")
    os.environ["MAIL_PORT"] = "26"
    assert Settings.load().mail_port == 26
    os.environ["MAIL_SERVER"] = ""
    assert Settings.load().mail_backend == "file"


def test_other_names_in_the_file_are_the_processs_too(env_file: Path) -> None:
    """As in Flask's own commands: PGPASSWORD, say."""
    env_file.write_text("PGPASSWORD=s3cret\nPATH=/nowhere\n")
    Settings.load()
    assert os.environ["PGPASSWORD"] == "s3cret"
    assert os.environ["PATH"] != "/nowhere"


def test_without_the_file_or_where_it_is_to_be_skipped_nothing_is_read(env_file: Path) -> None:
    assert Settings.load() == Settings.load({})
    env_file.write_text("MAIL_PORT=2525\n")
    os.environ["FLASK_SKIP_DOTENV"] = "1"
    assert Settings.load().mail_port == 25


@pytest.mark.parametrize("text, line", [("MAIL_PORT=2525\nMAIL SERVER\n", 2), ("MAIL_SERVER\n", 1), ("='x'\n", 1)])
def test_a_line_that_gives_nothing_is_one_line_with_the_cure(env_file: Path, text: str, line: int) -> None:
    env_file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        Settings.load()
    assert f"{caught.value}" == f"{env_file}, line {line}, is not NAME=value; correct it, or begin it with #"
    assert Settings.for_logs().log_format == "text", "the log is there to tell it"


def test_a_file_that_can_not_be_read_is_one_line_with_the_cure(env_file: Path) -> None:
    env_file.write_bytes(b"MAIL_PASSWORD=\xff\n")
    with pytest.raises(ConfigError, match="is not UTF-8; write it in that encoding"):
        Settings.load()
    env_file.unlink()
    env_file.mkdir()
    with pytest.raises(ConfigError, match="can't be read: Is a directory; let the user read it"):
        Settings.load()


@pytest.mark.parametrize("name", [".env", ".flaskenv"])
def test_a_setting_that_only_flask_found_stops_the_start(
    env_file: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """In another folder, or under another name: gunicorn would know nothing of it."""
    folder = env_file.parent / "below"
    folder.mkdir()
    (folder / name).write_text("MAIL_PORT=2525\nFLASK_DEBUG=1\n")
    monkeypatch.chdir(folder)
    assert Settings.load().mail_port == 25, "no command of Flask's"

    os.environ |= {"FLASK_RUN_FROM_CLI": "true", "MAIL_PORT": "2525"}
    with pytest.raises(ConfigError) as caught:
        Settings.load()
    assert f"MAIL_PORT comes from {folder / name}, which only 'flask' reads" in f"{caught.value}"
    assert f"move it to {env_file}" in f"{caught.value}"

    os.environ["MAIL_PORT"] = "26"
    assert Settings.load().mail_port == 26, "it came from the environment"
    os.environ["MAIL_PORT"] = "2525"
    env_file.write_text("MAIL_PORT=2525\n")
    assert Settings.load().mail_port == 2525, "the value is the same for all"
