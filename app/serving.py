"""gunicorn's hooks, and the worker class that spreads connections between processes.

Leader lock: of the processes that gunicorn forks, one holds the lock and dispatches; the others serve. The kernel frees
the lock of a process that died.
"""

import errno
import fcntl
import gc
import json
import os
import select
import shlex
import socket
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from gunicorn import util  # type: ignore[import-untyped]
from gunicorn.workers.gthread import PollableMethodQueue, ThreadWorker  # type: ignore[import-untyped]
from sqlalchemy import make_url

from app import affinity
from app.db import Database, pin_file
from app.db.schema import prepare
from app.engine import Engine
from app.errors import AppError, DatabaseUnavailable, NoTemporaryFolder
from app.http import SECURITY_HEADERS
from app.observe import logs
from app.streams import Streams
from app.text import printable
from config import CHECKOUT, Settings

DISPATCHER_NICENESS = 15
"""On PostgreSQL requests come first when the processor is busy, and deliveries catch up later. Not on SQLite: there a
process that has to wait for the processor may hold the write lock."""

VACANT_SECONDS = 5
"""How long the leader lock may lie free before a serving process takes it. gunicorn replaces a dead process sooner."""

ACCEPT_DELAY_SECONDS = 0.0001
"""For each connection that a process has, up to the next number of them."""

MOST_DELAYING_CONNECTIONS = 20

NEXT_REQUEST_SECONDS = 0.005
"""How long a thread waits for the next request of the connection that it has just served."""

GREETING = """
The service is ready (Ctrl-C stops it). Open {url}/ in a browser: it shows what happens when an order comes in.
Or place an order here{whose}:

  curl -i {url}/api/create_order{token} -H 'Content-Type: application/json' -d '{order}'

and look at what followed from it:

  curl {url}/api/orders/{order_id}{token}
{looks}"""

ORDER = '{"order_id": "1001", "user_id": "42", "total_price": 19.99}'
MAILED_ORDER = '{"order_id": "2001", "user_id": "42", "total_price": 19.99, "email": "you@example.com"}'
"""Another order_id: 1001 may be stored already, without an address."""


class LastingQueue(PollableMethodQueue):  # type: ignore[misc]
    """gthread's queue by which its threads tell that a request has ended, each with a byte through a pipe. This one's
    pipe stays open for as long as the process lives.

    gthread closes it at a stop, though requests that outlast the grace period still run. Their bytes would go to
    whatever was opened since under the pipe's number: over the beginning of SQLite's WAL, which nobody could read then.
    """

    def close(self) -> None:
        """Nothing."""


class SpreadingWorker(ThreadWorker):  # type: ignore[misc]
    """gunicorn's gthread, but a process is the slower to accept, the more connections it has, and a thread stays with a
    connection whose next request comes at once.

    All processes wait for the same listening socket. Without the delay the first to run accepts a burst as a whole, and
    keeps it for as long as the clients stay connected. gthread itself hands each request from its main thread to one of
    the pool, and the connection back, which is a tenth of the processor time of a POST.
    """

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.method_queue = LastingQueue()

    def accept(self, listener: Any) -> None:
        connections = min(max(self.nr_conns, 0), MOST_DELAYING_CONNECTIONS)
        time.sleep(connections * ACCEPT_DELAY_SECONDS)
        super().accept(listener)

    def handle(self, conn: Any) -> Any:
        """Serve the connection's requests for as long as each comes at once, and no other waits for a thread."""
        while True:
            keeps_connection = super().handle(conn)
            if keeps_connection is not True or not (self.alive and self._nobody_waits() and _more_comes(conn.sock)):
                return keeps_connection

    def is_parent_alive(self) -> bool:
        """Where the master has died, gthread only leaves its loop: its threads, and streams, look at ``alive``."""
        is_alive = bool(super().is_parent_alive())
        if not is_alive:
            self.alive = False
        return is_alive

    def _nobody_waits(self) -> bool:
        """A connection is with the main thread, which watches it, or with a thread of the pool, or waits for one."""
        watched = len(self.keepalived_conns) + len(self.pending_conns)
        return bool(self.nr_conns - watched <= self.cfg.threads)

    def handle_request(self, req: Any, conn: Any) -> Any:
        try:
            keeps_connection = super().handle_request(req, conn)
        except TimeoutError:  # the client of a stream does not read: as if it had gone away
            with suppress(OSError):
                conn.sock.shutdown(socket.SHUT_RDWR)
            raise ConnectionResetError(errno.ECONNRESET, "the client of a stream does not read") from None
        req.is_answered = True
        return keeps_connection

    def handle_error(self, req: Any, client: Any, addr: Any, exc: Exception) -> None:
        """One answer for each request: gunicorn's would send a second one, when it discards a body that the application
        did not read, and finds it malformed."""
        if not getattr(req, "is_answered", False):
            super().handle_error(req, client, addr, exc)


def _more_comes(client: socket.socket) -> bool:
    """Whether anything comes within NEXT_REQUEST_SECONDS."""
    poll = select.poll()
    poll.register(client, select.POLLIN)
    return bool(poll.poll(NEXT_REQUEST_SECONDS * 1000))


def write_problem(client: Any, status: int, reason: str, detail: str) -> None:
    """In place of gunicorn's ``write_error``, which sends HTML: problem details (RFC 9457), as the API's own."""
    problem = {"type": "about:blank", "title": reason, "status": status, "detail": printable(detail) or reason}
    body = json.dumps(problem)  # in ASCII
    fields = [
        ("Connection", "close"),
        ("Content-Type", "application/problem+json"),
        ("Content-Length", str(len(body))),
        ("Cache-Control", "no-store"),
        *SECURITY_HEADERS.values(),
    ]
    head = "".join(f"{name}: {value}\r\n" for name, value in fields)
    util.write_nonblock(client, f"HTTP/1.1 {status} {reason}\r\n{head}\r\n{body}".encode("ascii"))


def temporary_folder(instance_path: Path) -> Path:
    """Where gunicorn's processes have their unnamed files: in memory, because a slow disk would hold up the heartbeats
    that they are; else where it can be. Raises NoTemporaryFolder."""
    for folder in (Path("/dev/shm"), None, instance_path):  # noqa: S108 - of unnamed files
        with suppress(OSError):  # read-only, or not there
            tempfile.TemporaryFile(dir=folder).close()
            return folder or Path(tempfile.gettempdir())
    raise NoTemporaryFolder


class LeaderLock:
    """A lock on an unnamed file, which all processes inherit from the master."""

    def __init__(self, folder: Path) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - open for as long as gunicorn runs

    def acquire(self) -> bool:
        """Take it if it lies free; it is held until this process ends."""
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    def wait_until_free(self) -> None:
        fcntl.lockf(self._file, fcntl.LOCK_EX)
        fcntl.lockf(self._file, fcntl.LOCK_UN)


class Serving:
    """The hooks of one gunicorn. A reload executes gunicorn.conf.py again, which makes a new one for the new processes;
    so they have a leader of their own while the old ones end."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        """``folder`` is where an unnamed file can be made."""
        self.settings = settings
        self.leader_lock = LeaderLock(folder)
        self.is_prepared = False
        self._engine: Engine | None = None
        """The application's, once a worker has loaded it."""

    # The hooks, by gunicorn's names

    def on_starting(self, server: Any) -> None:
        """Bring the schema up to date, or say why not, once and before any worker."""
        try:
            database = Database(self.settings.database_url, timeout=self.settings.database_timeout)
            try:
                prepare(database)
                if database.dialect.file is not None:
                    pin_file(database.dialect.file)
            finally:
                database.close()
            self.is_prepared = True
        except DatabaseUnavailable as error:
            why = error.reason
            server.log.warning("PostgreSQL can't be reached; requests are answered 503 until it can: %s", why)
        except AppError as error:
            logs.fail(error)
        gc.collect()
        gc.freeze()  # a collection in a forked process would copy the pages that it shares with the master

    def post_worker_init(self, worker: Any) -> None:
        """The application is loaded, after the fork. The first process that comes here dispatches and serves nobody."""
        gc.freeze()  # spares the collector what stays anyway
        affinity.keep_to_a_core(self.settings.web_concurrency)
        util.write_error = write_problem  # what gunicorn itself refuses; it has no setting for that
        engine = self._engine = worker.wsgi.extensions["engine"]
        with suppress(DatabaseUnavailable):  # requests are answered 503, and try again
            engine.bus.database.hold_file()
        worker.wsgi = Streams(worker.wsgi, lambda: not worker.alive)
        if self.settings.dispatch_in_web:
            self._choose_leader(worker, engine)
        if self.settings.greeting and self.is_prepared and worker.age == worker.cfg.workers:  # the last one is ready
            sys.stdout.write(greeting(self.settings))
            sys.stdout.flush()

    def worker_exit(self, server: Any, worker: Any) -> None:
        """Requests are answered; let running receivers end, and give back what was not begun."""
        if self._engine is not None:
            self._engine.stop()

    # The leader

    def _choose_leader(self, worker: Any, engine: Engine) -> None:
        if not self.leader_lock.acquire():
            threading.Thread(target=self._stand_by, args=[worker, engine], name="stand-by", daemon=True).start()
            return
        if worker.cfg.workers > 1:
            for listener in worker.sockets:  # it serves nobody: without any of these it only waits for its end
                listener.close()
            worker.sockets = []
            if not self.settings.is_sqlite:
                os.nice(DISPATCHER_NICENESS)
        engine.start()

    def _stand_by(self, worker: Any, engine: Engine) -> None:
        """Dispatch here as well when no leader is left, for example because SIGTTOU took that process away."""
        while worker.alive:
            self.leader_lock.wait_until_free()
            time.sleep(VACANT_SECONDS)
            if worker.alive and self.leader_lock.acquire():
                engine.start()
                return


def processes(settings: Settings) -> int:
    """One more than serve, so that requests and deliveries don't wait for one interpreter; but a lone process does
    both."""
    serving = settings.web_concurrency
    return serving + (settings.dispatch_in_web and serving > 1)


def greeting(settings: Settings) -> str:
    """First commands to try, ready to paste."""
    token = ' -H "Authorization: Bearer $API_TOKEN"' if settings.api_token else ""
    by_smtp = settings.mail_backend == "smtp"
    return GREETING.format(
        url=url(settings),
        token=token,
        whose=", with your own address in it" if by_smtp else "",
        order=MAILED_ORDER if by_smtp else ORDER,
        order_id="2001" if by_smtp else "1001",
        looks="".join(f"  {look}\n" for look in looks(settings)),
    )


def url(settings: Settings) -> str:
    """Where this machine reaches what listens at WEB_HOST."""
    host = settings.web_host.strip("[]")
    near = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - nothing is bound
    return f"http://[{near}]:{settings.port}" if ":" in near else f"http://{near}:{settings.port}"


def looks(settings: Settings) -> list[str]:
    """Commands that show what followed from an order, for a terminal in the checkout."""
    found = []
    if settings.is_sqlite:
        file = _from_checkout(Path(str(make_url(settings.database_url).database)))
        found.append(f"sqlite3 {shlex.quote(file)} 'select * from orders'")  # noqa: S608 - for a person to paste
    if settings.mail_backend == "file":
        found.append(f"cat {shlex.quote(_from_checkout(settings.instance_path))}/mail/new/*")
    return found


def _from_checkout(path: Path) -> str:
    return str(path.relative_to(CHECKOUT) if path.is_relative_to(CHECKOUT) else path)
