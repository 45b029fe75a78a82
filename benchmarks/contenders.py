"""Who is compared: what each runs, and what it promises."""

import contextlib
import http.client
import json
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp

from processes import (
    CHECKOUT,
    HERE,
    SERVERS,
    Sink,
    environment,
    family,
    free_port,
    process,
    program,
    run,
    wait_until,
)

PEERS = HERE / ".venv" / "bin"
WEB = ("--workers", "2", "--threads", "4", "--no-control-socket")
AT_ONCE = "4"  # as in peers/shop.py
DEFAULTS, EQUAL = "defaults", "equal durability"


@dataclass(frozen=True)
class Contender:
    name: str
    module: str
    """The WSGI module among the peers; empty for the service itself."""
    durability: str
    web: tuple[str, ...] = ("gunicorn", *WEB, "--bind", "127.0.0.1:{port}", "{module}:app")
    """The command of its web server."""
    worker: tuple[str, ...] = ()
    """The command of its worker."""
    workers: int = 1
    """How many workers run."""
    servers: tuple[str, ...] = ()
    """The servers that it needs."""
    database: str = "sqlite"
    schema: tuple[tuple[str, ...], ...] = (("python", "-m", "peers.shop"),)
    """The commands that make its tables."""
    tables: tuple[str, ...] = (DEFAULTS, EQUAL)
    """In which comparisons it stands. In EQUAL alone: it runs with settings that make it as durable as it can be."""
    mails: bool = True
    stores: bool = True

    @property
    def is_service(self) -> bool:
        return not self.module


BEFORE = "this service, before"
"""From another checkout: only where run.py is given one."""
GUNICORN = ("gunicorn", "wsgi:app")
GRANIAN = ("granian", "--interface", "wsgi", "--port", "{port}", "--workers", "2", "--blocking-threads", "16")
GRANIAN += ("--workers-kill-timeout", "15", "wsgi:app")
SHOP = ("python", "-m", "peers.shop")
CELERY = ("celery", "-A", "peers.celery_tasks:celery", "worker", "--loglevel", "INFO", "--concurrency", AT_ONCE)
HUEY = ("huey_consumer", "peers.huey_sqlite.huey", "--workers", AT_ONCE)
GAP = "an order whose process dies between commit and enqueueing never gets its mail"
SAFE = "orders and all that follows are safe, also from power loss; mails at least once"
STEPS = "a step under way when the worker dies runs again, so an order may be counted twice"
CONTENDERS = (
    Contender("empty", "peers.empty", "stores nothing", schema=(), mails=False, stores=False),
    Contender("orm insert", "peers.insert", "orders are safe; nothing follows", mails=False),
    Contender(
        "blinker, in the request",
        "peers.blinker_request",
        "what is answered is done; a crash before the answer, or a failed mail, is final",
    ),
    Contender(
        "blinker, in a thread",
        "peers.blinker_thread",
        "orders are safe; what waits in memory dies with the process",
        tables=(DEFAULTS,),
    ),
    Contender(
        "huey (sqlite)",
        "peers.huey_sqlite",
        f"{GAP}; a running task dies with its consumer; power loss as SQLite's build has it, here FULL",
        worker=HUEY,
        tables=(DEFAULTS,),
    ),
    Contender(
        "huey (sqlite, fsync)",
        "peers.huey_sqlite",
        f"{GAP}; a running task dies with its consumer",
        worker=HUEY,
        tables=(EQUAL,),
    ),
    Contender(
        "unhinged (sqlite)",
        "peers.unhinged_tasks",
        f"{GAP}; {STEPS}",
        worker=("python", "-m", "peers.unhinged_tasks"),
    ),
    Contender(
        "dbos (sqlite)",
        "peers.dbos_workflows",
        f"workflows are stored with the order; {STEPS}",
        worker=("python", "-m", "peers.dbos_workflows"),
        schema=(SHOP, ("dbos", "migrate", "--sys-db-url", "{url}")),
    ),
    Contender(
        "celery (rabbitmq)",
        "peers.celery_tasks",
        f"{GAP}; so for publishes unconfirmed when the broker dies; a running task dies with its worker",
        worker=CELERY,
        servers=("rabbitmq",),
        tables=(DEFAULTS,),
    ),
    Contender(
        "celery (rabbitmq, confirmed)",
        "peers.celery_tasks",
        f"{GAP}; a task under way when its worker dies runs again, so an order may be counted twice",
        worker=CELERY,
        servers=("rabbitmq",),
        tables=(EQUAL,),
    ),
    Contender(
        "celery (redis)",
        "peers.celery_tasks",
        f"{GAP}; Redis' death loses what came since its last snapshot; a running task dies with its worker",
        worker=CELERY,
        servers=("redis",),
        tables=(DEFAULTS,),
    ),
    Contender(
        "celery (redis, fsync)",
        "peers.celery_tasks",
        f"{GAP}; a task under way when its worker dies runs again after an hour, so an order may be counted twice",
        worker=CELERY,
        servers=("redis, fsync",),
        tables=(EQUAL,),
    ),
    Contender(
        "procrastinate (postgresql)",
        "peers.procrastinate_jobs",
        "jobs are stored with the order; a running job stalls with its worker until a task of one's own retries it",
        worker=("procrastinate", "--app", "peers.procrastinate_jobs.jobs", "worker", "--concurrency", AT_ONCE),
        servers=("postgresql",),
        database="postgresql",
        schema=(SHOP, ("procrastinate", "--app", "peers.procrastinate_jobs.jobs", "schema", "--apply")),
    ),
    Contender(
        "django-domain-events (postgresql)",
        "peers.django_shop.wsgi",
        "events are stored with the order; effects in the database once, mails at least once",
        worker=("django-admin", "deliver_events"),
        workers=int(AT_ONCE),
        servers=("postgresql",),
        database="postgresql",
        schema=(("django-admin", "migrate", "--run-syncdb"),),
    ),
    Contender("this service", "", SAFE, GUNICORN),
    Contender("this service (granian)", "", SAFE, GRANIAN, ("flask", "--app", "wsgi.py", "bus", "run")),
    Contender("this service (postgresql)", "", SAFE, GUNICORN, servers=("postgresql",), database="postgresql"),
    Contender(BEFORE, "", SAFE, GUNICORN),
)


class Running:
    """A contender at work. ``pids`` are its own processes, ``server_pids`` those of the server that it needs."""

    def __init__(self, contender: Contender, folder: Path, sink: Sink, python: str, checkout: Path) -> None:
        self.contender, self.folder, self.sink, self.python = contender, folder, sink, python
        self.checkout = checkout if contender.is_service else HERE
        self.port = free_port()
        self.database = str(folder / "orders.db")
        self.roots: list[int] = []
        self.server_roots: list[int] = []
        self.start_seconds = 0.0

    @property
    def pids(self) -> list[int]:
        return family(*self.roots)

    @property
    def server_pids(self) -> list[int]:
        return family(*self.server_roots)

    def prepare(self, addresses: dict[str, str]) -> None:
        """Make the tables, and say in the environment where everything is."""
        on_postgresql = self.contender.database == "postgresql"
        address = addresses.pop("postgresql", "")
        broker = next(iter(addresses.values()), "")
        if on_postgresql:
            self.database = f"postgresql://{address}"
        url = f"postgresql+psycopg://{address}" if on_postgresql else f"sqlite:///{self.database}"
        if self.contender.is_service:
            self.env = environment(
                PORT=self.port,
                INSTANCE_PATH=self.folder,
                MAIL_SERVER="127.0.0.1",
                MAIL_PORT=self.sink.port,
                USER_EMAIL_DOMAIN="users.example",
                DISPATCH_IN_WEB=str(not self.contender.worker).lower(),
                **({"DATABASE_URL": url} if on_postgresql else {}),
                **({"BUS_ENGINE": "celery", "CELERY_BROKER_URL": broker} if broker else {}),
            )
            run(self.python, "-m", "flask", "--app", "wsgi.py", "db", "upgrade", env=self.env, cwd=self.checkout)
            return
        self.env = environment(
            DATABASE_URL=url,
            MAIL_PORT=self.sink.port,
            BROKER_URL=broker or (self.database if on_postgresql else self.folder / "queue.db"),
            DURABLE="" if DEFAULTS in self.contender.tables else "yes",
            DJANGO_SETTINGS_MODULE="peers.django_shop.settings",
            PYTHONPATH=HERE,
        )
        for name, *arguments in self.contender.schema:
            run(str(PEERS / name), *(each.format(url=url) for each in arguments), env=self.env)

    @contextlib.contextmanager
    def started(self) -> Iterator[None]:
        """The web server, and the worker where there is one. The block begins with the answer to a first order."""
        contender, self.roots = self.contender, []
        with contextlib.ExitStack() as stack:
            began = time.monotonic()
            serving = self._start(stack, contender.web, "web.log")
            wait_until(lambda: self.place("first") or serving.poll() is not None, "a first answer", pause=0.005)
            if serving.poll() is not None:
                raise RuntimeError(f"{contender.name} ended:\n{self.last_words()}")
            self.start_seconds = time.monotonic() - began
            for _ in range(contender.workers if contender.worker else 0):
                self._start(stack, contender.worker, "worker.log")
            if contender.mails and len(set(self.drain(10).values())) > 1:
                raise RuntimeError(
                    f"{contender.name}: what follows from an order does not happen:\n{self.last_words()}"
                )
            yield

    def _start(self, stack: contextlib.ExitStack, command: tuple[str, ...], log: str) -> subprocess.Popen[bytes]:
        name, *arguments = (each.format(port=self.port, module=self.contender.module) for each in command)
        program = (self.python, "-m", name) if self.contender.is_service else (str(PEERS / name),)
        begun = process(*program, *arguments, log=self.folder / log, env=self.env, cwd=self.checkout)
        started = stack.enter_context(begun)
        self.roots.append(started.pid)
        return started

    def last_words(self) -> str:
        """The ends of all its logs."""
        logs = sorted(self.folder.glob("**/*.log"))
        return "\n".join(f"{log.name}: {log.read_text(errors='replace')[-1500:]}" for log in logs)

    def place(self, order_id: str) -> bool:
        """Place one order; whether it was taken."""
        body = json.dumps({"order_id": order_id, "user_id": order_id, "total_price": 19.99})
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("POST", "/api/create_order", body, {"Content-Type": "application/json"})
            return connection.getresponse().status in (200, 201)
        except OSError:
            return False
        finally:
            connection.close()

    def counts(self) -> dict[str, int]:
        """What the database says has been done."""
        query = (
            "SELECT count(*), sum(CASE status WHEN 'confirmed' THEN 1 ELSE 0 END), "
            "sum(CASE notification WHEN 'sent' THEN 1 ELSE 0 END), (SELECT sum(orders_count) FROM users) FROM orders"
        )
        row = self.ask(query)
        return dict(zip(("stored", "confirmed", "sent", "counted"), (int(each or 0) for each in row), strict=True))

    def ask(self, query: str) -> list[str]:
        """The first row of what the database answers."""
        if self.contender.database == "postgresql":
            return run(program("psql"), "-X", "-A", "-t", "-c", query, self.database).strip().split("|")
        with contextlib.closing(sqlite3.connect(self.database, timeout=30)) as connection:
            return list(connection.execute(query).fetchone())

    def drain(self, quiet_seconds: float = 20.0) -> dict[str, int]:
        """Wait until every stored order has its mail and all of its records, or nothing has moved for a while."""
        if not self.contender.stores:
            return {}
        time.sleep(0.2)  # requests that were under way when the load ended
        found = self.counts()
        before, since = None, time.monotonic()
        while self.contender.mails and time.monotonic() - since < quiet_seconds:
            mails = self.sink.ask("count")["mails"]
            if mails >= found["stored"]:
                found = self.counts()
                if len(set(found.values())) == 1:
                    break
            if (mails, found) != before:
                before, since = (mails, found), time.monotonic()
            time.sleep(0.05)
        return found


@contextlib.contextmanager
def prepared(contender: Contender, sink: Sink, python: str, checkout: Path = CHECKOUT) -> Iterator[Running]:
    """A contender with fresh files, and a fresh server, that is ready to start; the service from this checkout."""
    folder = Path(mkdtemp(prefix="bench-"))
    folder.chmod(0o755)  # the servers run as users of their own
    running = Running(contender, folder, sink, python, checkout)
    try:
        with contextlib.ExitStack() as stack:
            addresses = {}
            for server in contender.servers:
                addresses[server], root = stack.enter_context(SERVERS[server](folder))
                running.server_roots.append(root)
            sink.ask("reset")
            running.prepare(addresses)
            yield running
    finally:
        shutil.rmtree(folder, ignore_errors=True)
