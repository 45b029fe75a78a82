"""Start processes, see what they cost, and end them: each has a session of its own, and only those are ever ended."""

import contextlib
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parent
WAIT_SECONDS = 60.0
"""Seconds that a start is waited for at most."""


class Missing(Exception):
    """A program that is not installed: its name."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def program(name: str, *folders: str) -> str:
    """The path of a program, from these folders (the last that has it) or the PATH. Raises Missing."""
    found = [path for pattern in folders for path in sorted(Path("/").glob(pattern + "/" + name))]
    path = str(found[-1]) if found else shutil.which(name)
    if path is None:
        raise Missing(name)
    return path


def wait_until(condition: Callable[[], object], what: str, limit: float = WAIT_SECONDS, pause: float = 0.02) -> None:
    deadline = time.monotonic() + limit
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {limit:g} s in vain for {what}")
        time.sleep(pause)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def when_root(user: str) -> str | None:
    """The user that a server which refuses to be root runs as."""
    if os.getuid() != 0:
        return None
    try:
        return pwd.getpwnam(user).pw_name
    except KeyError:
        raise Missing(f"user {user}") from None


@contextlib.contextmanager
def process(
    *command: str,
    log: Path,
    env: dict[str, str] | None = None,
    cwd: Path = HERE,
    user: str | None = None,
    end_by: signal.Signals = signal.SIGTERM,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command in the background; at the end of the block nothing of its session's group is left."""
    with log.open("ab") as output:
        started = subprocess.Popen(
            command,
            cwd=cwd,
            env=env,
            user=user,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield started
    finally:
        if started.poll() is None:
            started.send_signal(end_by)
            with contextlib.suppress(subprocess.TimeoutExpired):
                started.wait(15)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)
        started.wait()


def run(*command: str, env: dict[str, str] | None = None, cwd: Path = HERE, user: str | None = None) -> str:
    """Run a command to its end, and return what it printed. Raises RuntimeError with that when it fails."""
    done = subprocess.run(
        command,
        cwd=cwd,
        env=env,
        user=user,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}")
    return done.stdout


def environment(**added: object) -> dict[str, str]:
    """A plain environment: nothing that is set for this shell decides what is measured."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TZ", "TMPDIR") if name in os.environ}
    return kept | {name: str(value) for name, value in added.items()}


# What processes cost


def family(*roots: int) -> list[int]:
    """The processes, and all that descend from them."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            children.setdefault(int(_stat(stat)[1]), []).append(int(stat.parent.name))
    found = list(roots)
    for pid in found:
        found += children.get(pid, [])
    return found


def cpu_seconds(pids: list[int]) -> float:
    """User and system time of the processes, and of their children that have ended."""
    ticks = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            ticks += sum(int(field) for field in _stat(Path(f"/proc/{pid}/stat"))[11:15])
    return ticks / os.sysconf("SC_CLK_TCK")


def busy_seconds() -> float:
    """For how long the machine's cores have not been idle, all together; a virtual one's stolen time counts, too."""
    user, nice, system, _, _, *others = Path("/proc/stat").read_text().split()[1:9]
    return sum(map(int, (user, nice, system, *others))) / os.sysconf("SC_CLK_TCK")


def memory(pids: list[int]) -> dict[str, float]:
    """MiB: ``pss``, where shared pages are shared out, and ``rss``, where each process counts them.

    ``pss_anon`` is the part of PSS that is no file's: nobody else on the machine shares it.
    """
    total = {"Pss": 0, "Pss_Anon": 0, "Rss": 0}
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
                name, _, value = line.partition(":")
                if name in total:
                    total[name] += int(value.split()[0])
    return {name.lower(): total[name] / 1024 for name in total}


def _stat(path: Path) -> list[str]:
    return path.read_text().rpartition(")")[2].split()


# Servers: each yields its address and the process


@contextlib.contextmanager
def redis(folder: Path, *options: str) -> Iterator[tuple[str, int]]:
    port = free_port()
    command = (program("redis-server"), "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), *options)
    with process(*command, log=folder / "redis.log") as server:
        wait_until(lambda: listens(port), "Redis")
        yield f"redis://127.0.0.1:{port}/0", server.pid


@contextlib.contextmanager
def rabbitmq(folder: Path) -> Iterator[tuple[str, int]]:
    server_program = program("rabbitmq-server", "usr/lib/rabbitmq/bin", "usr/lib/rabbitmq/lib/*/sbin")
    epmd_program = program("epmd", "usr/lib/erlang/erts-*/bin")
    user = when_root("rabbitmq")
    folder = folder / "rabbitmq"
    folder.mkdir()
    (folder / "plugins").write_text("[].\n")
    for name in ("env.conf", "rabbitmq.conf"):
        (folder / name).touch()
    if user:
        for path in (folder, *folder.iterdir()):
            shutil.chown(path, user)
    port, names_port = free_port(), free_port()
    env = environment(
        RABBITMQ_NODENAME=f"bench{port}@localhost",
        RABBITMQ_NODE_IP_ADDRESS="127.0.0.1",
        RABBITMQ_NODE_PORT=port,
        RABBITMQ_DIST_PORT=free_port(),
        RABBITMQ_MNESIA_BASE=folder / "data",
        RABBITMQ_LOG_BASE=folder / "log",
        RABBITMQ_PID_FILE=folder / "pid",
        RABBITMQ_ENABLED_PLUGINS_FILE=folder / "plugins",
        RABBITMQ_CONF_ENV_FILE=folder / "env.conf",
        RABBITMQ_CONFIG_FILE=folder / "rabbitmq.conf",
        ERL_EPMD_PORT=names_port,
        ERL_EPMD_ADDRESS="127.0.0.1",
    ) | {"HOME": str(folder)}
    with (
        process(epmd_program, "-port", str(names_port), log=folder / "epmd.log", env=env, cwd=folder, user=user),
        process(server_program, log=folder / "server.log", env=env, cwd=folder, user=user) as server,
    ):
        wait_until(lambda: listens(port), "RabbitMQ")
        yield f"amqp://guest:guest@127.0.0.1:{port}//", server.pid


@contextlib.contextmanager
def postgresql(folder: Path) -> Iterator[tuple[str, int]]:
    """With its own defaults: fsync, synchronous_commit."""
    places = ("usr/lib/postgresql/*/bin",)
    initdb, server_program = program("initdb", *places), program("postgres", *places)
    user = when_root("postgres")
    folder = folder / "postgresql"
    folder.mkdir()
    if user:
        shutil.chown(folder, user)
    port, data = free_port(), folder / "data"
    run(initdb, "-D", str(data), "-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C", cwd=folder, user=user)
    command = (server_program, "-D", str(data), "-p", str(port), "-k", str(folder), "-c", "listen_addresses=127.0.0.1")
    log = folder / "server.log"
    log.touch()
    with process(*command, log=log, cwd=folder, user=user, end_by=signal.SIGINT) as server:
        wait_until(lambda: "ready to accept connections" in log.read_text(), "PostgreSQL")
        yield f"postgres@127.0.0.1:{port}/postgres", server.pid


SERVERS = {
    "redis": redis,
    "redis, fsync": lambda folder: redis(folder, "--appendonly", "yes", "--appendfsync", "always"),
    "rabbitmq": rabbitmq,
    "postgresql": postgresql,
}


class Sink:
    """Our SMTP server, asked from here."""

    def __init__(self, port: int, control: int, pid: int) -> None:
        self.port, self.pid = port, pid
        self._connection = socket.create_connection(("127.0.0.1", control))
        self._file = self._connection.makefile("rwb")

    def ask(self, words: str):
        self._file.write(words.encode() + b"\n")
        self._file.flush()
        return json.loads(self._file.readline())

    def close(self) -> None:
        self._file.close()
        self._connection.close()


@contextlib.contextmanager
def sink(folder: Path) -> Iterator[Sink]:
    log = folder / "sink.log"
    with process(sys.executable, str(HERE / "sink.py"), log=log) as started:
        wait_until(lambda: log.read_text().endswith("\n"), "the sink")
        asked = Sink(*map(int, log.read_text().split()), started.pid)
        try:
            yield asked
        finally:
            asked.close()
