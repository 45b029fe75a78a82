#!/usr/bin/env python3
"""Development commands for a checkout; they need nothing but Python 3.11 or newer.

    make run       start the service on http://127.0.0.1:8000; make run PORT=8001 takes another port, and
                   whatever else the README lists as a setting can be given the same way, by the environment, or
                   in the file .env
    make test      run the tests; make test ARGS="-k mail" hands further words to pytest
    make lint      check style and types
    make format    put the code into the agreed style
    make words     bring the console's translations up to date with its words; then translate what is new, and repeat
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
FLASK_IMPORT = "from flask.cli import main\n"
VERSION_FIRST = f"""
if sys.argv[1:] == ["--version"]:  # written by dev.py
    import runpy
    print("Orders", runpy.run_path({str(ROOT / "app" / "version.py")!r})["VERSION"], flush=True)

"""
READABLE_ENV = """
import os  # to the next empty line: written by dev.py
from dotenv import find_dotenv
reads = os.environ.get("FLASK_SKIP_DOTENV", "").lower() in ("", "0", "false", "no")
for name in (".flaskenv", ".env") if reads else ():
    file = find_dotenv(name, usecwd=True)
    try:
        open(file if os.path.isfile(file) else os.devnull, encoding="utf-8").read()  # of a pipe Flask reads what it has
    except UnicodeDecodeError:
        sys.exit(f"{file} is not UTF-8; write it in that encoding")
    except OSError as error:
        cure = "let the user read it that this process runs as, or remove it; FLASK_SKIP_DOTENV=1 goes without it"
        sys.exit(f"{file} can't be read: {error.strerror}; {cure}")

"""
COMPILE = "uv --no-config pip compile -q --universal --python-version 3.11 --custom-compile-command 'make lock'"
PYBABEL = "babel.messages.frontend -q"
POT = VENV / "console.pot"
STEPS = {
    "lint": ["ruff check", "ruff format --check", "mypy"],
    "format": ["ruff check --fix-only", "ruff format"],
    "words": [
        f"{PYBABEL} extract -F app/console/babel.cfg -k N_ -k Translatable --no-location --sort-output --omit-header "
        f"-o {POT} app",
        f"{PYBABEL} update -i {POT} -d app/console/translations -l zh --no-fuzzy-matching --no-wrap",
        f"{PYBABEL} compile -d app/console/translations",
    ],
    "lock": [  # In this order: the later files keep to the versions of the earlier ones.
        f"{COMPILE} requirements.in -o requirements.txt",
        f"{COMPILE} requirements-scale.in -o requirements-scale.txt",
        f"{COMPILE} requirements-traces.in -o requirements-traces.txt",
        f"{COMPILE} requirements-celery.in -o requirements-celery.txt",
        f"{COMPILE} requirements-dev.in -o requirements-dev.txt",
        f"{COMPILE} requirements.txt requirements-scale.txt requirements-celery.txt -o requirements.lock "
        "--generate-hashes --no-annotate",
    ],
}


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
    """gunicorn has a process group of its own: Ctrl-C reaches only us, and we ask it to stop gracefully."""
    has_file = (ROOT / ".env").exists()  # which only an installed library can read
    if not has_file:
        host, port = setting("WEB_HOST", "127.0.0.1").strip("[]"), setting("PORT", "8000")
        listen(host, port).close()  # A port that is taken is said before a slow installation, not after it.
    prepare("requirements.txt")
    if has_file:
        listen(*address()).close()
    service, stopping = None, False

    def stop(*_: object) -> None:
        nonlocal stopping
        stopping = True
        if service:
            service.terminate()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    service = subprocess.Popen(
        [PYTHON, "-m", "gunicorn", "wsgi:app"],
        cwd=ROOT,
        env=os.environ | {"GREETING": "true"},  # It says on stdout when it is ready, and what to try.
        process_group=0,
        stdin=subprocess.DEVNULL,
    )
    if stopping:  # A signal came while the service was being started.
        stop()
    code = service.wait()
    return 0 if stopping else code


def address() -> list:
    """The host and the port by config.py, which reads .env too, and says what is wrong."""
    words = "import config; s = config.Settings.load(); print(s.web_host.strip('[]'), s.port)"
    asked = subprocess.run([PYTHON, "-c", words], cwd=ROOT, capture_output=True, text=True)
    if asked.returncode:
        fail(asked.stderr.strip().splitlines()[-1].partition("ConfigError: ")[2] or asked.stderr)
    return asked.stdout.split()


def setting(name: str, default: str) -> str:
    """As config.py takes it: an empty one is none."""
    return os.environ.get(name, "").strip() or default


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
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # Each process that a test starts would compile the service again.
    shared = ["--numprocesses=5", "--dist=worksteal"]  # Many tests wait for a process or a server, not for a processor.
    os.execv(PYTHON, [PYTHON, "-m", "pytest", *shared, *arguments])  # Its signals and its exit code are its own.


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
            extend_flask()
            return
        if python not in installed and VENV.is_symlink():
            fail(".venv is a link, and to make it anew would empty the folder it leads to; remove the link first")
        STAMP.unlink(missing_ok=True)
        if python not in installed:
            create_environment()
            installed = []
        problem = install(requirements)
        STAMP.write_text("\n".join(installed if problem else [python, *pins]))
        if problem:
            fail(problem)
        extend_flask()


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


def extend_flask() -> None:
    """Flask's program reads .env, and ends `flask --version`, before it loads any code of ours. So what is to be said
    before is written into it here: the service's version, and in one line that .env can't be read."""
    program = VENV / "bin" / "flask"
    text = program.read_text()
    for words in (VERSION_FIRST, READABLE_ENV):
        if words not in text:
            text = text.replace(FLASK_IMPORT, FLASK_IMPORT + words)
    if text != program.read_text():
        program.write_text(text)


def fail(text: str) -> NoReturn:
    sys.exit(f"dev.py: {text}")


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
