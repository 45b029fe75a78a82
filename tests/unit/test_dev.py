"""What `make run` says before and after it starts the service: each trouble with its cure, and hints that hold."""

import errno
import importlib.util
import socket
import subprocess
from collections.abc import Iterator

import pytest

import dev
from config import CHECKOUT
from tests.support.service import free_port

CURL = "curl -i http://127.0.0.1:8000/api/create_order"


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that somebody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def told_by_listening(host: str, port: str) -> str:
    with pytest.raises(SystemExit) as ended:
        dev.listen(host, port)
    return str(ended.value)


def test_a_port_that_is_taken_is_said_with_another_to_take(taken: int) -> None:
    told = told_by_listening("127.0.0.1", str(taken))
    assert told == (
        f"dev.py: cannot listen on port {taken} (Address already in use); take another one: make run PORT=8001"
    )


def test_the_port_to_take_instead_is_another_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def taken(*_: object, **__: object) -> None:
        raise OSError(errno.EADDRINUSE, "Address already in use")

    monkeypatch.setattr(socket, "create_server", taken)
    assert told_by_listening("127.0.0.1", "8001").endswith("make run PORT=8002")


@pytest.mark.parametrize("port", ["http", "0", "-1", "65536", "8000.0"])
def test_what_is_no_port_is_said(port: str) -> None:
    assert told_by_listening("127.0.0.1", port) == (
        f"dev.py: PORT={port} is not a port; give a number, as in: make run PORT=8001"
    )


def test_an_address_of_another_machine_is_said() -> None:
    told = told_by_listening("192.0.2.1", str(free_port()))  # RFC 5737: nobody's
    assert told.startswith("dev.py: cannot listen at WEB_HOST=192.0.2.1 (Cannot assign requested address); give an ")


@pytest.mark.parametrize("module", ["venv", "ensurepip"])
def test_pythons_missing_venv_module_is_said_with_the_package_that_has_it(
    module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Debian's python3 comes without it; nothing is made then."""
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == module else find_spec(name))
    monkeypatch.setattr(subprocess, "call", lambda *_: pytest.fail("it went on"))

    with pytest.raises(SystemExit, match=r"venv module is missing; .* apt-get install python3-venv"):
        dev.create_environment()


@pytest.mark.parametrize(
    "host, url",
    [
        ("127.0.0.1", "http://127.0.0.1:8000"),
        ("0.0.0.0", "http://127.0.0.1:8000"),  # noqa: S104 - nothing is bound
        ("::", "http://[::1]:8000"),
        ("::1", "http://[::1]:8000"),
        ("shop.example", "http://shop.example:8000"),
    ],
)
def test_the_url_is_where_this_machine_reaches_the_service(host: str, url: str) -> None:
    assert dev.url_of(host, "8000") == url


@pytest.mark.parametrize(
    "given, looks",
    [
        ({}, ["sqlite3 instance/orders.db 'select * from orders'", "cat instance/mail/new/*"]),
        (
            {"INSTANCE_PATH": "/srv/my shop"},
            ["sqlite3 '/srv/my shop/orders.db' 'select * from orders'", "cat '/srv/my shop'/mail/new/*"],
        ),
        (
            {"DATABASE_URL": "sqlite:////srv/x.db?timeout=5"},
            ["sqlite3 /srv/x.db 'select * from orders'", "cat instance/mail/new/*"],
        ),
        ({"DATABASE_URL": "postgresql+psycopg://me:secret@db/orders"}, ["cat instance/mail/new/*"]),
        ({"MAIL_SERVER": "mail.example"}, ["sqlite3 instance/orders.db 'select * from orders'"]),
        ({"MAIL_BACKEND": "console"}, ["sqlite3 instance/orders.db 'select * from orders'"]),
        (
            {"MAIL_SERVER": "mail.example", "MAIL_BACKEND": "file"},
            ["sqlite3 instance/orders.db 'select * from orders'", "cat instance/mail/new/*"],
        ),
        ({"MAIL_SERVER": " "}, ["sqlite3 instance/orders.db 'select * from orders'", "cat instance/mail/new/*"]),
    ],
    ids=str,
)
def test_what_is_shown_to_look_at_is_there(
    given: dict[str, str], looks: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert dev.looks() == looks


def test_the_curl_sends_the_token_where_one_is_demanded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert f"{CURL} -H 'Content-Type" in dev.greeting("http://127.0.0.1:8000")
    monkeypatch.setenv("API_TOKEN", "s3cret")
    greeting = dev.greeting("http://127.0.0.1:8000")
    assert f'{CURL} -H "Authorization: Bearer $API_TOKEN" -H \'Content-Type' in greeting
    assert '/api/orders/1001 -H "Authorization: Bearer $API_TOKEN"' in greeting
    assert "s3cret" not in greeting


@pytest.mark.parametrize("readme", ["README.md", "README.zh.md"])
def test_the_readme_shows_what_is_printed(readme: str) -> None:
    shown = dev.greeting("http://127.0.0.1:8000").strip()
    assert f"$ make run\n{shown}\n" in (CHECKOUT / readme).read_text()
