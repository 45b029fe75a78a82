"""A private PostgreSQL server for the tests, in a temporary folder, gone when they end."""

import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from enum import Enum
from pathlib import Path
from socket import SHUT_RDWR, create_connection, create_server, socket
from typing import Any, Self
from uuid import uuid4

import psycopg
from sqlalchemy import create_engine, make_url, text

from tests.support.service import wait_until


def binaries() -> Path | None:
    """The folder that holds initdb and pg_ctl: on the PATH, or where Debian keeps it."""
    if found := shutil.which("initdb"):
        return Path(found).resolve().parent
    versions = Path("/usr/lib/postgresql")
    folders = sorted(versions.glob("*/bin"), key=lambda folder: int(folder.parent.name)) if versions.is_dir() else []
    return next((folder for folder in reversed(folders) if (folder / "initdb").exists()), None)


class Server:
    """A server in a folder, which a test may stop, start and promote. It is started with the ``with`` block."""

    def __init__(self, folder: Path, port: int | None = None, host: str = "127.0.0.1") -> None:
        self.folder, self.host, self.port = folder, host, port or _free_port()
        self.within: list[str] = []
        """A command that runs its programs, such as ``ip netns exec NAME``."""

    @property
    def url(self) -> str:
        return f"postgresql+psycopg://postgres@{self.host}:{self.port}/postgres"

    def initialise(self) -> None:
        self._run("initdb", "-D", self._data, "-A", "trust", "-U", "postgres", "--no-sync", "-E", "UTF8", "--locale=C")

    def follow(self, primary: "Server", name: str = "walreceiver") -> None:
        """Become a hot standby of the primary, known to it by that name."""
        at = f"host={primary.host} port={primary.port} user=postgres application_name={name}"
        self._run("pg_basebackup", "-d", at, "-D", self._data, "-R", "-X", "stream", "-c", "fast", "--no-sync")

    def start(self, **settings: object) -> Self:
        """``settings`` are the server's own, for this start."""
        chosen: dict[str, object] = {
            "listen_addresses": self.host,
            "fsync": "off",
            "synchronous_commit": "off",
            "full_page_writes": "off",
            "max_connections": 200,
            "shared_buffers": "32MB",
            **settings,
        }
        given = " ".join(f"-c {name}={value}" for name, value in chosen.items())
        options = f"-p {self.port} -k {self.folder} {given}"
        self._run("pg_ctl", "-D", self._data, "-o", options, "-l", str(self.folder / "log"), "-w", "start")
        return self

    def stop(self, mode: str = "immediate") -> None:
        """``immediate`` is a crash: clients are cut off, nothing is finished."""
        self._run("pg_ctl", "-D", self._data, "-m", mode, "-w", "stop")

    def promote(self) -> None:
        """A standby becomes a primary, and answers when it takes writes."""
        self._run("pg_ctl", "-D", self._data, "-w", "promote")

    def execute(self, statement: str) -> list[Any]:
        """Run it by itself; returns its rows."""
        engine = create_engine(self.url, isolation_level="AUTOCOMMIT")
        try:
            with engine.connect() as connection:
                found = connection.execute(text(statement))
                return [tuple(row) for row in found] if found.returns_rows else []
        finally:
            engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(subprocess.CalledProcessError):  # it was stopped, or never started
            self.stop()

    @property
    def _data(self) -> str:
        return str(self.folder / "data")

    def _run(self, program: str, *arguments: str) -> None:
        _run(program, *arguments, within=self.within)


@contextmanager
def new_server() -> Iterator[Server]:
    """Initialised and not started."""
    with _folder("pg-") as folder, Server(folder) as server:
        server.initialise()
        yield server


@contextmanager
def server_folder() -> Iterator[Path]:
    """For a server that a test makes itself."""
    with _folder("pg-") as folder:
        yield folder


@contextmanager
def private_server() -> Iterator[str]:
    """Start a server; yields the URL of an empty database."""
    with new_server() as server:
        yield server.start().url


@contextmanager
def another_database(server: str, encoding: str = "UTF8", **settings: str) -> Iterator[str]:
    """An empty database on the server, with the settings that its administrator chose; yields its URL."""
    name = f"own_{uuid4().hex}"
    engine = create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        how = f"ENCODING '{encoding}' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'"
        connection.execute(text(f"CREATE DATABASE {name} {how}"))
        for setting, value in settings.items():
            connection.execute(text(f"ALTER DATABASE {name} SET {setting} = '{value}'"))
        try:
            yield make_url(server).set(database=name).render_as_string(hide_password=False)
        finally:
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    engine.dispose()


@contextmanager
def standby(url: str) -> Iterator[str]:
    """Start a hot standby of the server; yields its URL for the same database."""
    primary = make_url(url)
    with _folder("pg-standby-") as folder, Server(folder) as server:
        server.follow(Server(Path(), primary.port, str(primary.host)))
        yield primary.set(port=server.start().port).render_as_string(hide_password=False)


class PgBouncer:
    """PgBouncer before a server, with fewer connections than clients. It is started with the ``with`` block."""

    def __init__(self, folder: Path, url: str, pool_mode: str) -> None:
        self._folder, self._behind, self._port = folder, make_url(url), _free_port()
        self._process: subprocess.Popen[bytes] | None = None
        behind = f"host={self._behind.host} port={self._behind.port} user={self._behind.username}"
        (folder / "pgbouncer.ini").write_text(
            f"[databases]\n{self._behind.database} = {behind}\n"
            "[pgbouncer]\n"
            f"listen_addr = 127.0.0.1\nlisten_port = {self._port}\nunix_socket_dir =\nauth_type = any\n"
            f"pool_mode = {pool_mode}\ndefault_pool_size = {4 if pool_mode == 'transaction' else 50}\n"
            "max_client_conn = 500\nserver_login_retry = 1\nadmin_users = postgres\n"
        )

    @property
    def url(self) -> str:
        """Leads through it."""
        return self._behind.set(host="127.0.0.1", port=self._port).render_as_string(hide_password=False)

    def start(self) -> None:
        command = [str(pooler()), str(self._folder / "pgbouncer.ini")]
        with (self._folder / "log").open("ab") as log:
            self._process = process = subprocess.Popen(command, stdout=log, stderr=log, user=_user())
        wait_until(lambda: _listens(self._port) or process.poll() is not None, "PgBouncer")
        assert process.poll() is None, (self._folder / "log").read_text()

    def stop(self) -> None:
        """At once: all clients are cut off."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(30)

    def reconnect(self) -> None:
        """As a failover's manager does: give up all connections to the server, each once its transaction has ended."""
        where = f"host=127.0.0.1 port={self._port} user={self._behind.username} dbname=pgbouncer"
        with closing(psycopg.connect(where, autocommit=True)) as console:
            console.execute("RECONNECT")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


@contextmanager
def pgbouncer(url: str, pool_mode: str) -> Iterator[PgBouncer]:
    """Start PgBouncer before the server."""
    with _folder("pgbouncer-") as folder, PgBouncer(folder, url, pool_mode) as started:
        yield started


def pooler() -> str | None:
    """PgBouncer's program, where it is installed."""
    return shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")


@contextmanager
def _folder(prefix: str) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    if user := _user():
        shutil.chown(folder, user)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run(program: str, *arguments: str, within: Sequence[str] = ()) -> None:
    """``within`` is the beginning of a command line that needs root. Raises CalledProcessError."""
    folder, user = binaries(), _user()
    assert folder is not None
    command = [str(folder / program), *arguments]
    if within:
        command = [*within, *(["setpriv", "--reuid", user, "--regid", user, "--init-groups"] if user else []), *command]
        user = None
    subprocess.run(command, check=True, capture_output=True, cwd="/", user=user)


def _user() -> str | None:
    """As root PostgreSQL's programs run as the user postgres, as they must."""
    return "postgres" if os.getuid() == 0 else None


def _listens(port: int) -> bool:
    with suppress(OSError), create_connection(("127.0.0.1", port)):
        return True
    return False


def _free_port() -> int:
    with socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Direction(Enum):
    THERE = "to the server"
    BACK = "to the client"


class Door:
    """A way to a PostgreSQL server, shut at first: nobody listens. ``open()`` lets everybody through; ``shut()`` cuts
    whoever is in it off, as a server does that is restarted. ``stall()`` leaves all connections open, and lets new ones
    in, but passes nothing on: as a pooler does, or a balancer, before a server that is gone. ``lead_to()`` makes new
    connections end at another server, as a name does that is given to it."""

    def __init__(self, database_url: str) -> None:
        self._behind = make_url(database_url)
        with create_server(("127.0.0.1", 0)) as chosen:
            self._port = chosen.getsockname()[1]
        self._sockets = ExitStack()
        self._passes = {direction: threading.Event() for direction in Direction}
        self.resume()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.resume()
        self.shut()

    @property
    def url(self) -> str:
        return self._behind.set(host="127.0.0.1", port=self._port).render_as_string(hide_password=False)

    def lead_to(self, database_url: str) -> None:
        self._behind = make_url(database_url)

    def open(self) -> None:
        listener = create_server(("127.0.0.1", self._port))
        self._sockets.callback(_close, listener)
        threading.Thread(target=self._welcome, args=[listener], daemon=True).start()

    def shut(self) -> None:
        self._sockets.close()

    def stall(self, *directions: "Direction") -> None:
        """Pass nothing on in these directions, or in both, until ``resume()``."""
        for direction in directions or Direction:
            self._passes[direction].clear()

    def stall_those_inside(self) -> None:
        """Pass nothing on, for ever, on connections that are open now; others pass."""
        self.stall()
        self._passes = {direction: threading.Event() for direction in Direction}
        self.resume()

    def resume(self) -> None:
        """Pass on what was held back, and all that comes."""
        for passes in self._passes.values():
            passes.set()

    def _welcome(self, listener: socket) -> None:
        with suppress(OSError):  # closed
            while True:
                front, _ = listener.accept()
                try:
                    back = create_connection((self._behind.host or "127.0.0.1", self._behind.port or 5432))
                except OSError:  # the server is away
                    front.close()
                    continue
                for one, other, direction in ((front, back, Direction.THERE), (back, front, Direction.BACK)):
                    self._sockets.callback(_close, one)
                    threading.Thread(target=_carry, args=(one, other, self._passes[direction]), daemon=True).start()


def _close(end: socket) -> None:
    with suppress(OSError):  # a thread that waits for it must notice
        end.shutdown(SHUT_RDWR)
    end.close()


def _carry(one: socket, other: socket, passes: threading.Event) -> None:
    with suppress(OSError):
        while content := one.recv(65536):
            passes.wait()
            other.sendall(content)
    for end in (one, other):
        _close(end)
