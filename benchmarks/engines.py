"""The service's engines beside each other: who delivers, and how many of them. Two parts of run.py: see README.md."""

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import load
from contenders import CONTENDERS, Running
from processes import CHECKOUT, Sink, busy_seconds, cpu_seconds, process, run, wait_until

NUMBERS = (1, 2, 4)
SLOW_MAIL = 0.03
"""Seconds that a mail server far away takes for a mail."""

WEB = ("gunicorn", "wsgi:app")
DISPATCHER = ("flask", "--app", "wsgi.py", "bus", "run")
WORKER = ("celery", "-A", "celery_app", "worker", "--concurrency", "3", "--loglevel", "WARNING")

_SERVICE = {each.name: each for each in CONTENDERS if each.is_service}
_ON_SQLITE, _ON_POSTGRESQL = _SERVICE["this service"], _SERVICE["this service (postgresql)"]
_BY_CELERY = replace(_ON_POSTGRESQL, servers=("postgresql", "rabbitmq"))


def _plural(number: int, word: str) -> str:
    return f"{number} {word}{'s' * (number > 1)}"


CASES = {"SQLite, 1 dispatcher": (_ON_SQLITE, (DISPATCHER,))}
CASES |= {f"PostgreSQL, {_plural(n, 'dispatcher')}": (_ON_POSTGRESQL, (DISPATCHER,) * n) for n in NUMBERS}
CASES |= {f"Celery, {_plural(n, 'worker')}": (_BY_CELERY, (DISPATCHER, *(WORKER,) * n)) for n in NUMBERS}
ENGINES = [replace(contender, name=name) for name, (contender, _) in CASES.items()]
PURGED = replace(_BY_CELERY, name="Celery, 2 workers, purged")


@contextlib.contextmanager
def started(running: Running, *commands: tuple[str, ...]) -> Iterator[None]:
    """The service's processes, ready for work and among ``running.pids`` as long as the block lasts."""
    env = running.env | {"DISPATCH_IN_WEB": "false", "LOG_LEVEL": "WARNING"}
    before = list(running.roots)
    with contextlib.ExitStack() as stack:
        for number, command in enumerate(commands):
            log = running.folder / f"{command[0]}.log"
            named = ("-n", f"w{number}@%h") if command is WORKER else ()
            begun = process(running.python, "-m", *command, *named, log=log, env=env, cwd=CHECKOUT)
            running.roots.append(stack.enter_context(begun).pid)
        if WEB in commands:
            wait_until(lambda: running.place("first"), "a first answer")
        if DISPATCHER in commands:
            expected = sum(3 if command is WORKER else command is DISPATCHER for command in commands)
            wait_until(lambda: alive(running) >= expected, "the dispatchers", limit=120, pause=0.2)
        yield
        running.roots[:] = before


def alive(running: Running) -> int:
    """How many processes deliver; each of a Celery worker's is one."""
    return int(running.ask("SELECT count(*) FROM dispatchers WHERE settings NOT LIKE '%stopped_at%'")[0])


def measured(running: Running, mails: Sink, seconds: float) -> dict[str, float]:
    """Under full load until the last mail; each half alone; and a backlog's mails where each takes 30 ms."""
    commands = CASES[running.contender.name][1]
    with started(running, WEB):
        with started(running, *commands):
            load.full(running.port, 1, "warm")
            running.drain(60)
            before, burned = mails.ask("count")["mails"], spent(running)
            found = load.full(running.port, seconds, "load")
            counts, after = running.drain(60), mails.ask("count")
            burned = spent(running) - burned
            arrived = after["mails"] - before
        row = found | {
            "errors": found["refused"] + found["broken"],
            "mails_per_second": arrived / (after["last"] - found["began"]),
            "cpu_ms": 1000 * burned / arrived,
        }
        burned = spent(running)
        posts = load.full(running.port, 2, "alone")["per_second"]
        time.sleep(0.2)
        burned, orders = spent(running) - burned, running.counts()["stored"] - counts["stored"]
        row |= {"posts_alone": posts, "post_cpu_ms": 1000 * burned / orders}
        row |= {f"{name}_alone": value for name, value in delivered(running, mails, commands).items()}
        load.paced(running.port, 300, 2, "slow")
        mails.ask(f"pause {SLOW_MAIL}")
        try:
            row["slow_mails"] = delivered(running, mails, commands)["mails"]
        finally:
            mails.ask("pause 0")
        counts = running.drain(60)
    return row | {"unfinished": counts["stored"] - min(counts.values())}


def delivered(running: Running, mails: Sink, commands: tuple[tuple[str, ...], ...]) -> dict[str, float]:
    """A backlog, with nobody placing orders: mails a second once all deliver, processor time of each, cores busy."""
    counts, before = running.counts(), mails.ask("count")["mails"]
    owed = counts["stored"] - counts["sent"]
    with started(running, *commands):
        burned, busy, began = spent(running), busy_seconds(), time.monotonic()
        wait_until(lambda: mails.ask("count")["mails"] >= before + owed, "the last mail", limit=600, pause=0.1)
        burned, busy = spent(running) - burned, (busy_seconds() - busy) / (time.monotonic() - began)
        arrivals = [moment for _, moment in mails.ask("arrivals")][before:]
    middle = arrivals[len(arrivals) // 5 : len(arrivals) * 19 // 20]  # while all processes are at it
    return {
        "mails": (len(middle) - 1) / (middle[-1] - middle[0]),
        "cpu_ms": 1000 * burned / owed,
        "busy": busy,
    }


def spent(running: Running) -> float:
    """Seconds of processor so far: its processes and its servers."""
    return cpu_seconds([*running.pids, *running.server_pids])


# Purges

FIGURES = {
    "orders": "SELECT count(*) FROM orders",
    "orders lost": "SELECT count(*) FROM orders WHERE status <> 'confirmed' OR notification <> 'sent'",
    "orders that users' records counted": "SELECT sum(orders_count) FROM users",
    "attempts ok": "SELECT count(*) FROM attempts WHERE outcome = 'ok'",
    "attempts of unknown outcome": "SELECT count(*) FROM attempts WHERE outcome = 'unknown'",
    "deliveries published more than once": "SELECT count(*) FROM deliveries WHERE lease_token > 2",
}
QUEUES = ("orders.update_user_order_record", "orders.send_email_notification")


def purged(running: Running, mails: Sink, orders: int, purges: int = 20) -> dict[str, float]:
    """Place the orders, and empty the broker's queues again and again meanwhile. What is there in the end."""
    lost = 0
    with started(running, WEB, DISPATCHER, WORKER, WORKER):
        began = time.monotonic()
        arguments = (running.port, 10_000, orders / 10_000, "order")
        placing = threading.Thread(target=load.paced, args=arguments, daemon=True)
        placing.start()
        for number in range(1, purges + 1):
            wanted = orders * number // (purges + 1)
            wait_until(lambda: running.counts()["stored"] >= wanted, "orders", 900, pause=0.2)  # noqa: B023 - in time
            lost += _purge(running)
        placing.join()
        placed = time.monotonic() - began
        running.drain(60)
        lasted = time.monotonic() - began
        figures = {name: int(running.ask(query)[0]) for name, query in FIGURES.items()}
    counted = {"messages purged": lost, **figures, "mails": mails.ask("count")["mails"]}
    return counted | {"placed in, s": placed, "delivered in, s": lasted}


def _purge(running: Running) -> int:
    script = (
        "import sys, kombu; c = kombu.Connection(sys.argv[1]).channel(); "
        "print(sum(c.queue_purge(q) for q in sys.argv[2:]))"
    )
    return int(run(running.python, "-c", script, running.env["CELERY_BROKER_URL"], *QUEUES))
