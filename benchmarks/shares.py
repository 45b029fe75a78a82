"""Where an order's processor time goes, by part of the code. Run by run.py with the service's Python.

    shares.py FOLDER MAIL_PORT

In one process and one thread, on a SQLite file at ``synchronous=FULL``: in turns a POST to an empty route and one to
the service, and after each twenty their deliveries, with mails over loopback. Each time some more processor time has
passed, the kernel's among it, the stack is looked at; it belongs to the innermost frame whose file is in ``PARTS``.
Prints a line of JSON: for a POST and for an order's deliveries the time of each part, an empty route's being 1.
"""

import collections
import gc
import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import instructions

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
    found = {name: watch.parts(name, watch.seconds["empty"]) for name in ("POST", "deliveries")}
    print(json.dumps(found), flush=True)


main()
