"""What `make run` says before it starts the service: each trouble with its cure."""

import errno
import hashlib
import importlib.util
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import dev
from app.version import VERSION
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


BY_PIP = """#!{python}
# -*- coding: utf-8 -*-
import re
import sys
from flask.cli import main
if __name__ == '__main__':
    sys.argv[0] = re.sub(r'(-script\\.pyw|\\.exe)?$', '', sys.argv[0])
    sys.exit(main())
"""
BY_UV = """#!{python}
# -*- coding: utf-8 -*-
import sys
from flask.cli import main
if __name__ == "__main__":
    if sys.argv[0].endswith("-script.pyw"):
        sys.argv[0] = sys.argv[0][:-11]
    sys.exit(main())
"""


@pytest.mark.parametrize("written", [BY_PIP, BY_UV], ids=["pip", "uv"])
def test_flask_tells_the_services_version_first(written: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "bin" / "flask"
    program.parent.mkdir()
    program.write_text(written.format(python=sys.executable))
    program.chmod(0o755)
    monkeypatch.setattr(dev, "VENV", tmp_path)

    def told(*words: str) -> list[str]:
        done = subprocess.run([program, *words], cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.splitlines()

    of_flask, commands = told("--version"), told("--help")
    for _ in range(2):  # as often as one likes
        dev.extend_flask()
        assert told("--version") == [f"Orders {VERSION}", *of_flask]
        assert told("--help") == commands


def test_an_env_file_that_flask_cant_read_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the cure, where Flask itself ends with a traceback."""
    program, file = tmp_path / "bin" / "flask", tmp_path / ".env"
    program.parent.mkdir()
    program.write_text(BY_PIP.format(python=sys.executable))
    program.chmod(0o755)
    monkeypatch.setattr(dev, "VENV", tmp_path)
    monkeypatch.delenv("FLASK_SKIP_DOTENV", raising=False)
    dev.extend_flask()

    def told() -> str:
        return subprocess.run([program, "--version"], cwd=tmp_path, capture_output=True, text=True, check=False).stderr

    file.write_bytes("MAIL_SERVER=é".encode("latin-1"))
    assert told() == f"{file} is not UTF-8; write it in that encoding\n"
    file.unlink()
    file.symlink_to("/proc/self/mem")  # which nobody can read from its beginning, root included
    assert told().startswith(f"{file} can't be read: Input/output error; let the user read it that this process runs")
    assert len(told().splitlines()) == 1
    monkeypatch.setenv("FLASK_SKIP_DOTENV", "1")
    assert not told()


def test_an_environment_that_was_complete_before_tells_it_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "bin" / "flask"
    program.parent.mkdir()
    program.write_text(BY_PIP)
    pins = hashlib.sha256((dev.ROOT / "requirements.txt").read_bytes()).hexdigest()
    stamp = tmp_path / ".installed"
    stamp.write_text(f"{platform.python_version()} {sys.base_prefix} {tmp_path}\nrequirements.txt {pins}")
    for name, value in {"VENV": tmp_path, "STAMP": stamp, "PYTHON": sys.executable}.items():
        monkeypatch.setattr(dev, name, value)
    monkeypatch.setattr(dev, "install", lambda *_: pytest.fail("it installed"))

    dev.prepare("requirements.txt")
    assert dev.VERSION_FIRST in program.read_text()
    assert dev.READABLE_ENV in program.read_text()


# .env


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with config.py, whose .env is read."""
    shutil.copy(dev.ROOT / "config.py", tmp_path)
    monkeypatch.setattr(dev, "ROOT", tmp_path)
    monkeypatch.setattr(dev, "PYTHON", sys.executable)
    monkeypatch.delenv("FLASK_SKIP_DOTENV")
    return tmp_path


def test_the_address_is_the_one_that_the_service_takes_from_env(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (checkout / ".env").write_text("PORT=8123\nWEB_HOST=[::1]\n")
    assert dev.address() == ["::1", "8123"]
    monkeypatch.setenv("PORT", "8124")
    assert dev.address() == ["::1", "8124"], "as given to make"


@pytest.mark.parametrize("text, told", [("PORT\n", "line 1, is not NAME=value"), ("PORT=http\n", "PORT is 'http'")])
def test_what_is_wrong_in_env_is_said_in_one_line(checkout: Path, text: str, told: str) -> None:
    (checkout / ".env").write_text(text)
    with pytest.raises(SystemExit) as ended:
        dev.address()
    assert str(ended.value).startswith("dev.py: ")
    assert told in str(ended.value)
    assert "\n" not in str(ended.value)
