#!/usr/bin/env python3
"""What one does in a checkout; nothing but Python 3.11 or newer needs to be there.

    make run       start the service on http://127.0.0.1:8000; make run PORT=8001 takes another port, and
                   whatever else the README lists as a setting can be given the same way, or by the environment
    make test      run the tests; make test ARGS="-k mail" hands further words to pytest
    make lint      check style and types
    make format    put the code into the agreed style
    make lock      compile requirements*.in into exact pins; make lock ARGS=--upgrade takes newer versions
    make clean     remove .venv and caches; orders and mails in instance/ stay

Without make: python3 dev.py run, python3 dev.py test -k mail, and so on.
"""

import errno
import fcntl
import hashlib
import importlib.util
import os
import platform
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import NoReturn

if sys.version_info < (3, 11):  # An older Python must be able to read this file, so its syntax is plain throughout.
    for name in ("python3.14", "python3.13", "python3.12", "python3.11"):
        python = shutil.which(name)
        # A version manager puts names on PATH that don't start: only one that runs counts.
        if python and subprocess.call([python, "-c", ""], stderr=subprocess.DEVNULL) == 0:
            os.execv(python, [python, *sys.argv])
    sys.exit("dev.py: this needs Python 3.11 or newer; install one, or name it: make run PYTHON=/path/to/python3")

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
STAMP = VENV / ".installed"
PYTHON = str(VENV / "bin" / "python")
DEVELOPMENT = ("requirements.txt", "requirements-dev.txt")
READY_SECONDS = 60
COMPILE = "uv --no-config pip compile -q --universal --python-version 3.11 --custom-compile-command 'make lock'"
STEPS = {
    "lint": ["ruff check", "ruff format --check", "mypy"],
    "format": ["ruff check --fix-only", "ruff format"],
    "lock": [  # In this order: the later files keep to the versions of the earlier ones.
        f"{COMPILE} requirements.in -o requirements.txt",
        f"{COMPILE} requirements-scale.in -o requirements-scale.txt",
        f"{COMPILE} requirements-dev.in -o requirements-dev.txt",
        f"{COMPILE} requirements.txt requirements-scale.txt -o requirements.lock --generate-hashes --no-annotate",
    ],
}
WELCOME = """
The service is ready at {url} (Ctrl-C stops it). Place an order:

  curl -i {url}/api/create_order{token} -H 'Content-Type: application/json' -d '{{"order_id": "1001", "user_id": "42", "total_price": 19.99}}'

and look at what followed from it:

  curl {url}/api/orders/1001{token}
{looks}"""  # noqa: E501 - the curl is pasted as one line


def main(command: str = "help", *arguments: str) -> int | None:
    sys.stdout.reconfigure(line_buffering=True)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends an installation without a traceback.
    actions = {"run": run, "test": test, "clean": clean}
    if command in actions:
        return actions[command](*arguments)
    if command in STEPS:
        prepare(*DEVELOPMENT)
        results = [subprocess.call([PYTHON, "-m", *shlex.split(step), *arguments], cwd=ROOT) for step in STEPS[command]]
        return int(any(results))
    print(__doc__)
    return 0 if command == "help" else 2


def run() -> int:
    host, port = setting("WEB_HOST", "127.0.0.1").strip("[]"), setting("PORT", "8000")
    listen(host, port).close()  # A port that is taken is said before a slow installation, not after it.
    prepare("requirements.txt")
    service, stopping = None, False

    def stop(*_: object) -> None:
        nonlocal stopping
        stopping = True
        if service:
            service.terminate()  # gunicorn understands: finish what you have begun, then stop.

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    with listen(host, port) as listener:
        service = start_service(listener.fileno())
    if stopping:  # A signal came while the service was being started.
        stop()
    try:
        welcome(service, url_of(host, port))
    except OSError:  # Nobody reads this terminal any more.
        stop()
    code = service.wait()
    return 0 if stopping else code


def start_service(listener: int) -> subprocess.Popen:
    """gunicorn is handed the listening socket, so that no other service on this port can be taken for ours. It has a
    process group of its own: Ctrl-C reaches only us, and we ask it to stop gracefully."""
    command = [PYTHON, "-m", "gunicorn", "wsgi:app", "--bind", f"fd://{listener}"]
    return subprocess.Popen(command, cwd=ROOT, pass_fds=[listener], process_group=0, stdin=subprocess.DEVNULL)


def welcome(service: subprocess.Popen, url: str) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while service.poll() is None and not is_ready(url):
        if time.monotonic() > deadline:
            print(f"dev.py: not ready after {READY_SECONDS} seconds; this tells why: curl -i {url}/readyz")
            return
        time.sleep(0.2)
    if service.poll() is None:
        print(greeting(url))


def greeting(url: str) -> str:
    """What to try next. All of it works when it is pasted, whatever is set."""
    token = ' -H "Authorization: Bearer $API_TOKEN"' if setting("API_TOKEN") else ""
    return WELCOME.format(url=url, token=token, looks="".join(f"  {look}\n" for look in looks()))


def looks() -> list:
    folder = str(Path(setting("INSTANCE_PATH", "instance")).expanduser())
    database = setting("DATABASE_URL", f"sqlite:///{folder}/orders.db")
    backend = setting("MAIL_BACKEND", "smtp" if setting("MAIL_SERVER") else "file")
    found = []
    if database.startswith("sqlite:"):
        file = database.partition("///")[2].partition("?")[0]
        found.append(f"sqlite3 {shlex.quote(file)} 'select * from orders'")  # noqa: S608 - for a person to paste
    if backend == "file":
        found.append(f"cat {shlex.quote(folder)}/mail/new/*")
    return found


def setting(name: str, default: str = "") -> str:
    """As config.py takes it: an empty one is none."""
    return os.environ.get(name, "").strip() or default


def url_of(host: str, port: str) -> str:
    """Where this machine reaches what listens there."""
    near = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - nothing is bound
    return f"http://[{near}]:{port}" if ":" in near else f"http://{near}:{port}"


def is_ready(url: str) -> bool:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # Never through the proxy of http_proxy.
    try:
        return direct.open(f"{url}/readyz", timeout=5).status == 200
    except OSError:
        return False


def listen(host: str, port: str) -> socket.socket:
    if not port.isdecimal() or not 1 <= int(port) <= 65535:  # 0 would be any port: of no use here.
        fail(f"PORT={port} is not a port; give a number, as in: make run PORT=8001")
    try:
        return socket.create_server((host, int(port)), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        reason = error.strerror.partition(" (while")[0]
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            another = 8002 if port == "8001" else 8001
            fail(f"cannot listen on port {port} ({reason}); take another one: make run PORT={another}")
        fail(f"cannot listen at WEB_HOST={host} ({reason}); give an address of this machine's, or leave it out")


def test(*arguments: str) -> None:
    prepare(*DEVELOPMENT)
    os.chdir(ROOT)
    os.execv(PYTHON, [PYTHON, "-m", "pytest", *arguments])  # Its signals and its exit code are its own.


def clean() -> None:
    for pattern in (".venv", ".pytest_cache", ".mypy_cache", ".ruff_cache", ".hypothesis", "**/__pycache__"):
        for leftover in ROOT.glob(pattern):
            shutil.rmtree(leftover)


def prepare(*requirements: str) -> None:
    """Make .venv hold these pins. The stamp is written last: what was cut short has none and is redone from scratch."""
    python = f"{platform.python_version()} {sys.base_prefix} {VENV}"
    pins = [f"{name} {hashlib.sha256((ROOT / name).read_bytes()).hexdigest()}" for name in requirements]
    with Path(__file__).open("rb+") as turn:  # `make run` and `make test` at once: one installs, the other waits.
        fcntl.flock(turn, fcntl.LOCK_EX)
        installed = STAMP.read_text().splitlines() if STAMP.exists() and Path(PYTHON).exists() else []
        if {python, *pins} <= set(installed):
            return
        STAMP.unlink(missing_ok=True)
        if python not in installed:
            create_environment()
            installed = []
        problem = install(requirements)
        STAMP.write_text("\n".join(installed if problem else [python, *pins]))
        if problem:
            fail(problem)


def create_environment() -> None:
    if not (importlib.util.find_spec("venv") and importlib.util.find_spec("ensurepip")):
        package = "python{}.{}-venv".format(*sys.version_info)
        fail(f"Python's venv module is missing; on Debian and Ubuntu: apt-get install python3-venv (or {package})")
    print(f"Creating the environment .venv with Python {platform.python_version()} ...")
    if subprocess.call([sys.executable, "-m", "venv", "--clear", str(VENV)]):
        fail("could not create the environment .venv; the reason is above")


def install(requirements: tuple) -> str:
    print(f"Installing {' and '.join(requirements)}; this takes a while, but only when they change ...")
    files = [f"--requirement={name}" for name in requirements]
    command = [PYTHON, "-m", "pip", "install", "-q", "--disable-pip-version-check", *files]
    pip = subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    if "connection broken" in pip.stderr and pip.returncode:
        return "the package index cannot be reached; is there a network connection? Try again with one"
    return f"pip could not install the packages:\n{pip.stderr}" if pip.returncode else ""


def fail(text: str) -> NoReturn:
    sys.exit(f"dev.py: {text}")


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
