"""What `make run` says before it starts the service: each trouble with its cure."""

import errno
import importlib.util
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import dev
from tests.support.service import free_port


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


def test_an_environment_that_is_a_link_is_left_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """venv --clear would follow it, and empty the environment of another checkout."""
    others = tmp_path / "others"
    others.mkdir()
    (others / ".installed").write_text("another Python\n")
    link = tmp_path / ".venv"
    link.symlink_to(others)
    monkeypatch.setattr(dev, "VENV", link)
    monkeypatch.setattr(dev, "STAMP", link / ".installed")
    monkeypatch.setattr(subprocess, "call", lambda *_: pytest.fail("it went on"))

    with pytest.raises(SystemExit, match=r"\.venv is a link"):
        dev.prepare("requirements.txt")
    assert (others / ".installed").exists()
