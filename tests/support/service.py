"""The service as an operator runs it: real processes, that a test starts, asks, signals and kills.

    service = Service(folder, *GUNICORN, mail_server="127.0.0.1", mail_port=2525)
    service.start()
    service.post(order_id="1001", user_id="42", total_price="19.99")
    service.kill()
    service.start()      # on the same files

Every Service has a process group of its own. ``close()`` leaves nothing of it alive, and if the test process itself
dies, so does whatever it started.
"""

import contextlib
import http.client
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

from config import Settings

T = TypeVar("T")

CHECKOUT = Path(__file__).resolve().parents[2]

LIMIT = 30.0
"""Seconds that anything here is waited for at most. Generous: the machine may be busy."""

LONGEST_PAUSE = 0.05
"""Seconds between two looks."""

NAMES = "orders.example, a, x"
"""The names under which tests ask that write their requests as bytes."""

GUNICORN = ("gunicorn", "wsgi:app")
PRELOADED = ("gunicorn", "--preload", "-w", "4", "wsgi:app")
FLASK = ("flask", "run")
GRANIAN = ("granian", "--interface", "wsgi", "--workers-kill-timeout", "15", "wsgi:app")
"""At a stop its workers hang now and then: docs/serving.md."""
DISPATCHER = ("flask", "bus", "run")
CELERY_WORKER = ("celery", "-A", "celery_app", "worker")

WITH_US = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
"""What is started dies with the thread that started it: start services from a test's main thread."""


def wait_until(condition: Callable[[], T | None], what: str, limit: float = LIMIT, pause: float = 0.01) -> T:
    """What ``condition`` returns, as soon as that is true.

    It is asked again after a tenth of the time that was waited so far, LONGEST_PAUSE at most, and ``pause`` seconds at
    least: others need the processor.
    """
    began = time.monotonic()
    while not (found := condition()):
        waited = time.monotonic() - began
        assert waited < limit, f"waited {limit:g} s in vain for {what}"
        time.sleep(max(pause, min(waited / 10, LONGEST_PAUSE)))
    return found


@dataclass(frozen=True)
class Answer:
    status: int
    headers: http.client.HTTPMessage
    body: Any
    """Decoded from JSON."""


class Client:
    """HTTP over one connection, which is kept open. For one thread."""

    def __init__(self, port: int, timeout: float = LIMIT, host: str = "127.0.0.1") -> None:
        self.port = port
        self._connection = http.client.HTTPConnection(host, port, timeout=timeout)

    def connect(self) -> None:
        """Connect where that is not done; a request does it by itself. Raises OSError: nobody listens."""
        if self._connection.sock is None:
            try:
                self._connection.connect()
            except OSError:
                self.close()
                raise

    def get(self, path: str) -> Answer:
        return self._request("GET", path, None, {})

    def post(self, path: str = "/api/create_order", **order: Any) -> Answer:
        return self._request("POST", path, json.dumps(order), {"Content-Type": "application/json"})

    def close(self) -> None:
        self._connection.close()

    def _request(self, method: str, path: str, body: str | None, headers: dict[str, str]) -> Answer:
        """Raises OSError or HTTPException when the connection dies: then nobody knows what became of the request."""
        try:
            self._connection.request(method, path, body, headers)
            response = self._connection.getresponse()
            content = response.read()
        except BaseException:
            self.close()
            raise
        return Answer(response.status, response.headers, json.loads(content))


class Service:
    """The processes of one command. ``settings`` go into the environment; instance folder and port are its own."""

    def __init__(self, folder: Path, *command: str, port: int | None = None, **settings: Any) -> None:
        self.folder = folder
        self.command = command or GUNICORN
        self.port = port or free_port()
        self.host = "127.0.0.1"
        """Where it is asked; WEB_HOST is a setting."""
        self.settings = {"instance_path": folder / "instance", "port": self.port, "trusted_hosts": NAMES} | settings
        self.cwd = CHECKOUT
        self.read_env_file = False
        """Whether its processes read the .env of the checkout that they are started in."""
        self.within: list[str] = []
        """A command that runs the service's, such as one that makes a container for it."""
        self.log_file = folder / f"log-of-{self.port}.txt"
        self._process: subprocess.Popen[bytes] | None = None
        self._log_begin = 0

    @property
    def database_url(self) -> str:
        return str(self.settings.get("database_url") or f"sqlite:///{self.settings['instance_path']}/orders.db")

    @property
    def on_celery(self) -> bool:
        return self.settings.get("bus_engine") == "celery"

    # Starting

    def start(self, ready: str | None = None) -> Self:
        """Start it, and return when it is ready: when the address ``ready`` answers 200, or a dispatcher is at work."""
        self.launch()
        if "bus" in self.command:
            self.wait_for_log("dispatcher started")
        else:
            self.wait_for_answer(ready or "/readyz")
        return self

    def launch(self, output: int | None = None, **settings: Any) -> Self:
        """Start it without waiting for anything. Settings given here are for this start only.

        What it prints goes to the descriptor ``output`` in place of ``log``, where one is given.
        """
        assert self.ended, "it runs already"
        self._log_begin = len(self.log)
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                [*WITH_US, *self.within, sys.executable, "-m", *self.command],
                cwd=self.cwd,
                env=self._environment(**settings),
                stdin=subprocess.DEVNULL,
                stdout=log if output is None else output,
                stderr=log if output is None else output,
                start_new_session=True,
            )
        return self

    def run(self, *command: str, **settings: Any) -> "subprocess.CompletedProcess[str]":
        """Another command with the same settings, such as ``flask db upgrade``, to its end."""
        return subprocess.run(
            [*self.within, sys.executable, "-m", *command],
            cwd=self.cwd,
            env=self._environment(**settings),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=2 * LIMIT,
            check=False,
        )

    def _environment(self, **settings: Any) -> dict[str, str]:
        """With the settings given here before its own."""
        given = environment(**(self.settings | settings))
        return given | {"FLASK_SKIP_DOTENV": "" if self.read_env_file else "1"}

    # Asking

    def post(self, **order: Any) -> Answer:
        with contextlib.closing(Client(self.port, host=self.host)) as client:
            return client.post(**order)

    def get(self, path: str) -> Answer:
        with contextlib.closing(Client(self.port, host=self.host)) as client:
            return client.get(path)

    def wait_for_answer(self, path: str, status: int = 200) -> Answer:
        def answer() -> Answer | None:
            assert not self.ended, f"it ended with {self.exit_code()}:\n{self.log}"
            with contextlib.suppress(OSError, http.client.HTTPException):
                found = self.get(path)
                return found if found.status == status else None
            return None

        return wait_until(answer, f"{status} from {path}")

    # Seeing what it does

    @property
    def log(self) -> str:
        """All that it printed, from its first start on."""
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    @property
    def log_since_start(self) -> str:
        return self.log[self._log_begin :]

    def wait_for_log(self, words: str, limit: float = LIMIT) -> None:
        """Wait until it has printed ``words`` since the last start."""

        def printed() -> bool:
            found = words in self.log_since_start
            assert found or not self.ended, f"it ended with {self.exit_code()} and not a word of {words!r}:\n{self.log}"
            return found

        wait_until(printed, f"{words!r} in the log", limit)

    @property
    def pid(self) -> int:
        """Of the process that was started: gunicorn's master."""
        assert self._process is not None
        return self._process.pid

    @property
    def ended(self) -> bool:
        """Whether none of its processes lives, or none was started yet."""
        return self._process is None or (self._process.poll() is not None and not self.pids())

    def pids(self) -> list[int]:
        """Its living processes."""
        return [] if self._process is None else [process.pid for process in _processes() if process.group == self.pid]

    def workers(self) -> list[int]:
        return [process.pid for process in _processes() if process.parent == self.pid and process.group == self.pid]

    def wait_for_end(self, limit: float = LIMIT) -> int:
        """Wait until all its processes have ended. Returns the exit code of the first."""
        wait_until(lambda: self.ended, f"the end of {' '.join(self.command)}", limit)
        return self.exit_code()

    def exit_code(self) -> int:
        """Of the process that was started; minus the number of the signal that killed it."""
        assert self._process is not None
        return self._process.wait(LIMIT)

    # Stopping and killing

    def signal(self, number: int, *pids: int) -> None:
        """Send a signal to some of its processes; without any, to the one that was started."""
        for pid in pids or (self.pid,):
            assert pid in self.pids(), f"{pid} is no process of this service"
            os.kill(pid, number)

    def stop(self, limit: float = LIMIT) -> float:
        """Ask it by SIGTERM to end, and wait until it has. Returns the seconds that took."""
        began = time.monotonic()
        self.signal(signal.SIGTERM)
        code = self.wait_for_end(limit)
        assert code == 0, f"it ended with {code}:\n{self.log}"
        return time.monotonic() - began

    def kill(self, *pids: int) -> None:
        """SIGKILL some of its processes, or all of them at once; returns when they are dead, and has seen it."""
        victims = list(pids) or self.pids()
        assert victims, "there is nothing to kill"
        if pids:
            self.signal(signal.SIGKILL, *pids)
        else:
            os.killpg(self.pid, signal.SIGKILL)
        wait_until(lambda: not set(victims) & set(self.pids()), f"the death of {victims}")
        if self.pid in victims:
            assert self.exit_code() == -signal.SIGKILL
        elif pids:
            for pid in victims:
                self.wait_for_log(f"Worker (pid:{pid}) was sent SIGKILL!")

    def close(self) -> None:
        """Leave nothing alive, whatever state it is in."""
        if not self.ended:
            os.killpg(self.pid, signal.SIGKILL)
            wait_until(lambda: self.ended, "the death of all")


@dataclass(frozen=True)
class _Process:
    pid: int
    parent: int
    group: int


def _processes() -> Iterator[_Process]:
    """All that live on this machine; what has died and was not yet buried doesn't live."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended
            state, parent, group = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
            if state not in "ZX":
                yield _Process(int(folder.name), int(parent), int(group))


def environment(**settings: Any) -> dict[str, str]:
    """This process's environment with exactly these settings of the service; None leaves one unset."""
    names = {name.upper() for name in Settings.model_fields}
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name not in names and not name.startswith(("FLASK_", "GRANIAN_"))
    }
    given = {name.upper(): _word(value) for name, value in settings.items() if value is not None}
    ports = {"FLASK_RUN_PORT": given["PORT"], "GRANIAN_PORT": given["PORT"]}
    return inherited | given | ports | {"PYTHONUNBUFFERED": "1", "FLASK_SKIP_DOTENV": "1"}


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def free_port() -> int:
    """A port that nobody listens on, below those that outgoing connections take."""
    while True:
        port = random.randint(20_000, 32_000)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return port
