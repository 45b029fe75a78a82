"""A private PostgreSQL server for the tests, in a temporary folder, gone when they end."""

import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from enum import Enum
from pathlib import Path
from socket import SHUT_RDWR, create_connection, create_server, socket
from typing import Self
from uuid import uuid4

from sqlalchemy import create_engine, make_url, text

from tests.support.service import wait_until


def binaries() -> Path | None:
    """The folder that holds initdb and pg_ctl: on the PATH, or where Debian keeps it."""
    if found := shutil.which("initdb"):
        return Path(found).resolve().parent
    versions = Path("/usr/lib/postgresql")
    folders = sorted(versions.glob("*/bin"), key=lambda folder: int(folder.parent.name)) if versions.is_dir() else []
    return next((folder for folder in reversed(folders) if (folder / "initdb").exists()), None)


@contextmanager
def private_server() -> Iterator[str]:
    """Start a server; yields the URL of an empty database."""
    with _folder("pg-") as folder:
        data = str(folder / "data")
        _run("initdb", "-D", data, "-A", "trust", "-U", "postgres", "--no-sync", "-E", "UTF8", "--locale=C")
        with _started(folder) as port:
            yield f"postgresql+psycopg://postgres@127.0.0.1:{port}/postgres"


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
    with _folder("pg-standby-") as folder:
        at = ["-h", str(primary.host), "-p", str(primary.port), "-U", "postgres"]
        _run("pg_basebackup", *at, "-D", str(folder / "data"), "-R", "-X", "stream", "-c", "fast", "--no-sync")
        with _started(folder) as port:
            yield primary.set(port=port).render_as_string(hide_password=False)


@contextmanager
def pgbouncer(url: str, pool_mode: str) -> Iterator[str]:
    """Start PgBouncer before the server; yields the URL that leads through it. With fewer connections than clients."""
    behind, port = make_url(url), _free_port()
    with _folder("pgbouncer-") as folder:
        (folder / "pgbouncer.ini").write_text(
            "[databases]\n"
            f"{behind.database} = host={behind.host} port={behind.port} user={behind.username}\n"
            "[pgbouncer]\n"
            f"listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n"
            f"pool_mode = {pool_mode}\ndefault_pool_size = {4 if pool_mode == 'transaction' else 50}\n"
        )
        command = [str(pooler()), str(folder / "pgbouncer.ini")]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, user=_user())
        try:
            wait_until(lambda: _listens(port) or process.poll() is not None, "PgBouncer")
            assert process.poll() is None, (folder / "log").read_text()
            yield behind.set(port=port).render_as_string(hide_password=False)
        finally:
            process.terminate()
            process.wait(30)


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


@contextmanager
def _started(folder: Path) -> Iterator[int]:
    """Start the server whose data lies in the folder; yields its port."""
    port = _free_port()
    options = (
        f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off -c synchronous_commit=off "
        "-c full_page_writes=off -c max_connections=200 -c shared_buffers=32MB"
    )
    data = str(folder / "data")
    _run("pg_ctl", "-D", data, "-o", options, "-l", str(folder / "log"), "-w", "start")
    try:
        yield port
    finally:
        _run("pg_ctl", "-D", data, "-m", "immediate", "stop")


def _run(program: str, *arguments: str) -> None:
    folder = binaries()
    assert folder is not None
    subprocess.run([str(folder / program), *arguments], check=True, capture_output=True, user=_user())


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
    in, but passes nothing on: as a pooler does, or a balancer, before a server that is gone."""

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
                back = create_connection((self._behind.host or "127.0.0.1", self._behind.port or 5432))
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
