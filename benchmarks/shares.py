"""Where an order's processor time goes, by part of the code. Run by run.py with the service's Python.

    shares.py FOLDER MAIL_PORT

In one process and one thread, on a SQLite file at ``synchronous=FULL``: in turns a POST to an empty route and one to
the service, and after each twenty their deliveries, with mails over loopback. Each time some more processor time has
passed, the kernel's among it, the stack is looked at; it belongs to the innermost frame whose file is in ``PARTS``.
Prints two lines of JSON, of a POST and of an order's deliveries: the time of each part, an empty route's being 1; and
how many statements, commits and instructions they take, of the latter an empty route's being 1 (None: no valgrind).
"""

import collections
import gc
import json
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import instructions
from sqlalchemy import event

ORDERS = 4000
BATCH = 20
SECONDS = 0.001
"""Between two looks; the kernel makes it up to 4 ms."""
PARTS = {
    "/app/api/": "the API's checks and answer",
    "/app/http.py": "the API's checks and answer",
    "/app/orders/": "orders and users",
    "/app/receivers/": "orders and users",
    "/app/db/": "the database",
    "/sqlalchemy/": "the database",
    "/app/mail/": "the mail",
    "/smtplib.py": "the mail",
    "/app/bus/": "the bus: events, leases, ends",
    "/app/engine/": "the bus: events, leases, ends",
    "/app/signal.py": "the bus: events, leases, ends",
    "/app/events.py": "the bus: events, leases, ends",
    "/app/retry/": "the bus: events, leases, ends",
    "/app/observe/": "log, metrics, traces",
    "/logging/": "log, metrics, traces",
    "/flask/": "Flask",
    "/werkzeug/": "Flask",
}
"""What a path contains, and the part that it is of."""
REST = "the rest"


class Watch:
    """How much processor time each work takes, and in which part its stack is seen how often."""

    def __init__(self) -> None:
        self.seconds: collections.Counter[str] = collections.Counter()
        self.looks: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
        self.at = ""

    def run(self, name: str, work: Callable[[], object]) -> None:
        self.at, began = name, time.thread_time()
        work()
        self.seconds[name] += time.thread_time() - began

    def look(self, _: int, frame: FrameType | None) -> None:
        self.looks[self.at][part_of(frame)] += 1

    def parts(self, name: str, unit: float) -> dict[str, float]:
        looks = self.looks[name]
        each = self.seconds[name] / looks.total() / unit
        return {part: looks[part] * each for part in dict.fromkeys([*PARTS.values(), REST]) if looks[part]}


def part_of(frame: FrameType | None) -> str:
    while frame is not None:
        path = frame.f_code.co_filename
        if found := next((part for piece, part in PARTS.items() if piece in path), None):
            return found
        frame = frame.f_back
    return REST


def main() -> None:
    folder, port = Path(sys.argv[1]), int(sys.argv[2])
    empty, service, deliver = instructions.shop(
        instance_path=folder, mail_server="127.0.0.1", mail_port=port, user_email_domain="users.example"
    )
    for app in (empty, service):
        instructions.post(app, "warm", 100)
    deliver()
    gc.freeze()
    watch = Watch()
    signal.signal(signal.SIGPROF, watch.look)
    signal.setitimer(signal.ITIMER_PROF, SECONDS, SECONDS)
    for number in range(ORDERS):
        watch.run("empty", lambda: instructions.post(empty, str(number), 1))  # noqa: B023 - runs at once
        watch.run("POST", lambda: instructions.post(service, str(number), 1))  # noqa: B023 - the same
        if number % BATCH == BATCH - 1:
            watch.run("deliveries", deliver)
    signal.setitimer(signal.ITIMER_PROF, 0)
    print(json.dumps({name: watch.parts(name, watch.seconds["empty"]) for name in ("POST", "deliveries")}), flush=True)
    print(json.dumps(counted(service, deliver)), flush=True)


def counted(service: Any, deliver: Callable[[], None]) -> dict[str, dict[str, float | None]]:
    """Of a POST alone, and of one order of twenty whose deliveries are made together."""
    database, told = service.extensions["database"], list[str]()

    @event.listens_for(database.engine, "connect")
    def listen(connection: Any, _: Any) -> None:
        connection.set_trace_callback(told.append)

    def of(work: Callable[[], object], orders: int) -> dict[str, float | None]:
        told.clear()
        work()
        return {"statements": len(told) / orders, "commits": told.count("COMMIT") / orders}

    database.renew_connections()
    instructions.post(service, "traced", 1)
    deliver()
    found = {"POST": of(lambda: instructions.post(service, "alone", 1), 1)}
    instructions.post(service, "together", BATCH - 1)
    found["deliveries"] = of(deliver, BATCH)
    counts = instructions.measured() if shutil.which("valgrind") else {}
    for name, key in (("POST", "post"), ("deliveries", "delivery")):
        found[name]["instructions"] = counts[key] / counts["empty"] if counts else None
    return found


main()
