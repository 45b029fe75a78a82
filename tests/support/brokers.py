"""Private brokers for the tests, in temporary folders: RabbitMQ and Redis. Gone when they end."""

import os
import shutil
import signal
import subprocess
import tempfile
from base64 import b64encode
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from socket import create_connection
from typing import Any, Self
from uuid import uuid4

from tests.support.service import free_port, wait_until

START_SECONDS = 60
"""RabbitMQ takes six, on a machine that has nothing else to do."""

ELSEWHERE = f"{os.environ['PATH']}:/usr/lib/rabbitmq/bin:/usr/sbin"
"""RabbitMQ's own scripts first: Debian's in /usr/sbin change to its user and its folder."""


class Rabbit:
    """A RabbitMQ server of its own, that a test stops, kills and purges."""

    def __init__(self, host: str = "127.0.0.1", within: Sequence[str] = (), *, manages: bool = False) -> None:
        """``within`` is the beginning of a command line that needs root, such as ``ip netns exec NAME``. One that
        ``manages`` has ``virtual_hosts``."""
        self.host, self._within = host, within
        self.folder = Path(tempfile.mkdtemp(prefix="rabbit-"))
        self.port = free_port()
        self._user = _user("rabbitmq", self.folder)
        self._epmd_port, dist_port = free_port(), free_port()
        self._environment = {
            "PATH": ELSEWHERE,
            "HOME": str(self.folder),
            "LANG": "C.UTF-8",
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": f"test{self.port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": host,
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(dist_port),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "data"),
            "RABBITMQ_LOG_BASE": str(self.folder),
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "plugins"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1",
        }
        lines = ["loopback_users = none"]  # guest may come from other hosts
        self.virtual_hosts = VirtualHosts(host, self.port, free_port())
        if manages:
            (self.folder / "plugins").write_text("[rabbitmq_management].\n")
            lines += [f"management.tcp.ip = {host}", f"management.tcp.port = {self.virtual_hosts.management_port}"]
            lines.append("management_agent.disable_metrics_collector = true")
        (self.folder / "rabbitmq.conf").write_text("\n".join([*lines, ""]))
        self._epmd = self._launch("epmd", "-port", str(self._epmd_port), "-address", "127.0.0.1")
        self._server: subprocess.Popen[bytes] | None = None

    @staticmethod
    def is_installed() -> bool:
        return bool(shutil.which("rabbitmq-server", path=ELSEWHERE) and shutil.which("epmd", path=ELSEWHERE))

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@{self.host}:{self.port}//"

    def start(self) -> Self:
        self.launch()
        return self.wait()

    def launch(self) -> None:
        """Start it without waiting for anything."""
        self._server = self._launch("rabbitmq-server")

    def wait(self) -> Self:
        """Until it answers."""
        wait_until(self._answers, "RabbitMQ", START_SECONDS, pause=0.1)
        return self

    def kill(self) -> None:
        """SIGKILL. ``start()`` starts it again on the same files."""
        assert self._server is not None
        os.killpg(self._server.pid, signal.SIGKILL)
        self._server.wait(30)
        wait_until(lambda: not _listens(self.port, self.host), "RabbitMQ's end")
        self._server = None

    def close(self) -> None:
        if self._server is not None:
            self.kill()
        self._epmd.kill()
        self._epmd.wait(30)
        shutil.rmtree(self.folder, ignore_errors=True)

    def purge(self, *queues: str) -> int:
        """Empty the queues. Returns how many messages that lost."""
        return _purge(self.url, queues)

    def _answers(self) -> bool:
        assert self._server is not None
        assert self._server.poll() is None, (self.folder / "rabbitmq-server.txt").read_text()
        if not _listens(self.port, self.host):
            return False
        from kombu import Connection

        with suppress(OSError), Connection(self.url, connect_timeout=2) as connection:
            connection.connect()
            return True
        return False

    def _launch(self, program: str, *words: str) -> "subprocess.Popen[bytes]":
        found = shutil.which(program, path=ELSEWHERE)
        assert found is not None
        user, command = self._user, [found, *words]
        if self._within:
            as_user = ["setpriv", "--reuid", user, "--regid", user, "--init-groups"] if user else []
            user, command = None, [*self._within, *as_user, *command]
        with (self.folder / f"{program}.txt").open("ab") as log:
            return subprocess.Popen(
                command,
                cwd=self.folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                user=user,
                start_new_session=True,
            )


@dataclass(frozen=True)
class VirtualHosts:
    """Brokers within one RabbitMQ that ``manages``: what a test leaves there goes with its own."""

    host: str
    port: int
    management_port: int

    @contextmanager
    def new(self) -> Iterator[str]:
        """Yields its URL. The first of them waits until the server has started."""
        name = f"test-{uuid4().hex}"
        wait_until(lambda: _listens(self.management_port, self.host), "RabbitMQ", START_SECONDS, pause=0.1)
        self._ask("PUT", name)
        yield f"amqp://guest:guest@{self.host}:{self.port}/{name}"
        self._ask("DELETE", name)

    def _ask(self, method: str, name: str) -> None:
        headers = {"Authorization": f"Basic {b64encode(b'guest:guest').decode()}", "Content-Type": "application/json"}
        with closing(HTTPConnection(self.host, self.management_port, timeout=START_SECONDS)) as connection:
            connection.request(method, f"/api/vhosts/{name}", "{}", headers)
            assert connection.getresponse().status in (201, 204)


class Redis:
    """A Redis server of its own."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="redis-"))
        self.port = free_port()
        command = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        with (self.folder / "log").open("wb") as log:
            self._server = subprocess.Popen([*command, "--dir", str(self.folder)], stdout=log, stderr=log)
        wait_until(lambda: _listens(self.port), "Redis")

    @staticmethod
    def is_installed() -> bool:
        return shutil.which("redis-server") is not None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def purge(self, *queues: str) -> int:
        return _purge(self.url, queues)

    def close(self) -> None:
        self._server.kill()
        self._server.wait(30)
        shutil.rmtree(self.folder, ignore_errors=True)


def _purge(url: str, queues: tuple[str, ...]) -> int:
    from kombu import Connection  # here: who starts no broker needs no client

    with Connection(url) as connection:
        channel: Any = connection.channel()
        return sum(channel.queue_purge(queue) for queue in queues)


def _listens(port: int, host: str = "127.0.0.1") -> bool:
    with suppress(OSError), create_connection((host, port)):
        return True
    return False


def _user(name: str, folder: Path) -> str | None:
    """As root a server runs as its own user, where there is one: who owns its files."""
    if os.getuid() != 0:
        return None
    with suppress(LookupError):
        shutil.chown(folder, name)
        return name
    return None
