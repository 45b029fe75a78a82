"""The engines beside each other, on one PostgreSQL and one RabbitMQ: see README.md.

python3 benchmarks/engines.py throughput [--rounds N] [--seconds S]
python3 benchmarks/engines.py purge [--orders N] [--purges N]
"""

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import load
from processes import (
    CHECKOUT,
    Sink,
    environment,
    free_port,
    listens,
    postgresql,
    process,
    program,
    rabbitmq,
    run,
    sink,
    wait_until,
)

WEB = ("gunicorn", "wsgi:app")
DISPATCHER = ("flask", "--app", "wsgi.py", "bus", "run")
WORKER = ("celery", "-A", "celery_app", "worker", "--concurrency", "3", "--loglevel", "WARNING")
CASES = {
    "inprocess": (DISPATCHER,),
    **{f"celery, workers: {n}": (DISPATCHER, *[WORKER] * n) for n in (1, 2, 4)},
}
TABLES = "orders, users, events, deliveries, attempts, dispatchers, circuit_breakers, retry_transitions, retry_tables"
QUEUES = ("orders.update_user_order_record", "orders.send_email_notification")
FIGURES = {
    "orders": "SELECT count(*) FROM orders",
    "lost": "SELECT count(*) FROM orders WHERE status <> 'confirmed' OR notification <> 'sent'",
    "records counted": "SELECT sum(orders_count) FROM users",
    "attempts ok": "SELECT count(*) FROM attempts WHERE outcome = 'ok'",
    "attempts unknown": "SELECT count(*) FROM attempts WHERE outcome = 'unknown'",
    "dispatched more than once": "SELECT count(*) FROM deliveries WHERE lease_token > 2",
}


class Bench:
    def __init__(self, folder: Path, address: str, broker: str, mails: Sink, python: str) -> None:
        self.folder, self.address, self.broker, self.mails, self.python = folder, address, broker, mails, python
        self.port = free_port()

    def prepare(self) -> None:
        run(self.python, "-m", "flask", "--app", "wsgi.py", "db", "upgrade", env=self.env("inprocess"), cwd=CHECKOUT)

    def env(self, engine: str) -> dict[str, str]:
        return environment(
            PORT=self.port,
            INSTANCE_PATH=self.folder / "instance",
            DATABASE_URL=f"postgresql+psycopg://{self.address}",
            MAIL_SERVER="127.0.0.1",
            MAIL_PORT=self.mails.port,
            USER_EMAIL_DOMAIN="users.example",
            BUS_ENGINE=engine,
            CELERY_BROKER_URL=self.broker,
            DISPATCH_IN_WEB="false",
            LOG_LEVEL="WARNING",
            FLASK_SKIP_DOTENV="1",
        )

    @contextlib.contextmanager
    def started(self, engine: str, *commands: tuple[str, ...]) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for number, command in enumerate(commands):
                named = ("-n", f"w{number}@%h") if command is WORKER else ()
                log = self.folder / f"{command[0]}-{number}.log"
                log.write_text("")
                stack.enter_context(
                    process(self.python, "-m", *command, *named, log=log, env=self.env(engine), cwd=CHECKOUT)
                )
            if WEB in commands:
                wait_until(lambda: listens(self.port), "gunicorn")
            expected = sum(3 if command is WORKER else command is DISPATCHER for command in commands)
            alive = "SELECT count(*) FROM dispatchers WHERE settings NOT LIKE '%stopped_at%'"
            wait_until(lambda: self.query(alive) >= expected, "the dispatchers", limit=120, pause=0.2)
            yield

    def query(self, query: str) -> int:
        return int(run(program("psql"), "-X", "-A", "-t", "-c", query, f"postgresql://{self.address}").strip() or 0)

    def empty(self) -> None:
        run(program("psql"), "-X", "-q", "-c", f"TRUNCATE {TABLES} CASCADE", f"postgresql://{self.address}")
        self.mails.ask("reset")

    def wait_until_delivered(self, limit: float) -> None:
        left = "SELECT count(*) FROM deliveries WHERE state IN ('ready', 'leased')"
        wait_until(lambda: self.query(left) == 0, "the last delivery", limit=limit, pause=0.2)

    # Throughput

    def measure(self, name: str, seconds: float) -> dict[str, float]:
        """Orders a second while deliveries go on beside; then a backlog's mails a second, with nothing else to do."""
        engine = name.partition(",")[0]
        self.empty()
        with self.started(engine, WEB, *CASES[name]):
            posts = load.full(self.port, seconds, "busy")["per_second"]
            self.wait_until_delivered(600)
        self.empty()
        with self.started(engine, WEB):
            load.full(self.port, seconds, "backlog")
        orders = self.query("SELECT count(*) FROM orders")
        with self.started(engine, *CASES[name]):
            wait_until(lambda: self.mails.ask("count")["mails"] >= orders, "the last mail", limit=600, pause=0.1)
            arrivals = [moment for _, moment in self.mails.ask("arrivals")]
        return {"posts": posts, "mails": (len(arrivals) - 1) / (arrivals[-1] - arrivals[0]), "backlog": orders}

    # Purges

    def purge(self, orders: int, purges: int) -> dict[str, float]:
        """Place the orders, and empty the queues again and again meanwhile. Returns what is there in the end."""
        self.empty()
        purged = 0
        with self.started("celery", WEB, DISPATCHER, WORKER, WORKER):
            began = time.monotonic()
            placing = threading.Thread(target=self.place, args=[orders], daemon=True)
            placing.start()
            for number in range(1, purges + 1):
                wanted = orders * number // (purges + 1)
                wait_until(lambda: self.query("SELECT count(*) FROM orders") >= wanted, "orders", 900, pause=0.2)  # noqa: B023
                purged += self.purge_queues()
            placing.join()
            lasted = time.monotonic() - began
            self.wait_until_delivered(900)
            delivered = time.monotonic() - began
        figures = {name: self.query(query) for name, query in FIGURES.items()}
        arrivals = self.mails.ask("count")["mails"]
        return {"messages purged": purged, **figures, "mails": arrivals, "placed in": lasted, "delivered in": delivered}

    def place(self, orders: int) -> None:
        _, _, failed = load.paced(self.port, 10_000, orders / 10_000, "order")
        assert not failed, f"{failed} orders were not answered with 201"

    def purge_queues(self) -> int:
        script = (
            "import sys, kombu; c = kombu.Connection(sys.argv[1]).channel(); "
            "print(sum(c.queue_purge(q) for q in sys.argv[2:]))"
        )
        return int(run(self.python, "-c", script, self.broker, *QUEUES))


def spread(values: list[float], form: str = "{:.2f}") -> str:
    return f"{form.format(statistics.median(values))} ({form.format(min(values))}–{form.format(max(values))})"


def throughput(bench: Bench, rounds: int, seconds: float) -> None:
    found: dict[str, list[dict[str, float]]] = {name: [] for name in CASES}
    for number in range(rounds):
        for name in CASES if number % 2 == 0 else reversed(CASES):
            found[name].append(bench.measure(name, seconds))
            print(f"round {number + 1}: {name}: {json.dumps(found[name][-1])}", file=sys.stderr, flush=True)
    print("| | POST/s, of inprocess | mails/s from a backlog, of inprocess |\n|---|---|---|")
    for name, rows in found.items():
        base = found["inprocess"]
        ratios = {key: [row[key] / one[key] for row, one in zip(rows, base, strict=True)] for key in ("posts", "mails")}
        print(f"| {name} | {spread(ratios['posts'])} | {spread(ratios['mails'])} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["throughput", "purge"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--orders", type=int, default=10_000)
    parser.add_argument("--purges", type=int, default=20)
    parser.add_argument("--service-python", default=str(CHECKOUT / ".venv" / "bin" / "python"))
    options = parser.parse_args()
    with TemporaryDirectory(prefix="bench-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        folder.chmod(0o755)  # the servers run as users of their own
        address, _ = stack.enter_context(postgresql(folder))
        broker, _ = stack.enter_context(rabbitmq(folder))
        bench = Bench(folder, address, broker, stack.enter_context(sink(folder)), options.service_python)
        bench.prepare()
        try:
            if options.what == "throughput":
                throughput(bench, options.rounds, options.seconds)
            else:
                for figure, value in bench.purge(options.orders, options.purges).items():
                    print(f"{figure}: {value:g}")
        except (TimeoutError, subprocess.SubprocessError):
            for log in folder.glob("*.log"):
                print(f"--- {log.name}\n{log.read_text()[-2000:]}", file=sys.stderr)
            raise


if __name__ == "__main__":
    main()
