"""An hour in which some recipients' mail is taken and never answered, played in seconds on a clock of its own.

    python benchmarks/hanging_recipients.py [--seeds 5] [--arrival burst|spread] [--step message|recipient] [--outage]

Twelve recipients hang, at once or spread over the hour; an ordinary order comes every 15 seconds. Shown are the copies
that each hanging recipient gets, and how long ordinary mails wait. ``--outage`` plays another hour: 2,000 orders wait
for a server that is down, silent, or never answers a message, and that is back after half an hour.

The bus is the real one (claim, lease, breaker, settle, on a SQLite file), with default settings but
RETRY_POLICY=exponential: it is the plain breaker that is looked at. Only the engine's threads and the mail server are
played: an attempt occupies one of the MAIL_THREADS threads for as long as it would last, and ends with the outcome that
the SMTP backend gives it.
"""

import argparse
import collections
import heapq
import itertools
import random
import statistics
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from app import create_app
from app.bus.breaker import BACKEND_DOWN
from app.bus.invoke import Failure, NotBegun, is_transactional
from app.bus.leases import Lease
from app.clock import Clock, uuid7
from app.db import sqlite_module
from app.engine.inprocess.pool import QUICK_SECONDS, STALLED_SECONDS
from app.engine.inprocess.worker import PASSED_OVER_SECONDS, PREFETCH
from app.errors import InDoubt, TimedOut, Unreachable
from app.events import OrderCreated, order_created
from app.mail.smtp_client import TIMEOUTS_PER_CONVERSATION
from app.orders import place_order
from app.signal import subscriptions
from config import Settings

MAIL = "send_email_notification"
HOUR = 3600.0
ORDINARY_EVERY = 15.0
HANGING = 12
MAIL_TAKES = 0.05
"""Seconds of an ordinary mail: a server on another machine, with TLS."""


class PlayedClock(Clock):
    seconds = 0.0

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.seconds)

    def monotonic(self) -> float:
        return self.seconds


class Server:
    """The mail server: how long an attempt lasts, and how it ends."""

    def __init__(self, timeout: float, step: str) -> None:
        self.timeout, self.step = timeout, step
        self.down = ""
        self.copies: collections.Counter[str] = collections.Counter()
        self.attempts: collections.Counter[str] = collections.Counter()
        self.began: list[float] = []
        self.took = MAIL_TAKES

    def deliver(self, mail: Any) -> None:
        recipient = mail.envelope.recipient
        self.attempts[recipient] += 1
        trouble = self.down or (self.step if recipient.startswith("hangs") else "")
        self.took = MAIL_TAKES
        if trouble == "refused":
            raise Unreachable("connection refused")
        if trouble == "recipient":
            self.took = self.timeout
            raise TimedOut("no answer to RCPT")
        self.copies[recipient] += 1
        if trouble == "message":
            self.took = TIMEOUTS_PER_CONVERSATION * self.timeout
            raise InDoubt("no answer to the message")

    def close(self) -> None: ...


class Played:
    """One application and one process's engine, on the played clock."""

    def __init__(self, folder: Path, seed: int, step: str) -> None:
        random.seed(seed)
        self.clock = PlayedClock()
        settings = Settings.of(
            instance_path=folder, mail_backend="memory", log_level="ERROR", retry_policy="exponential"
        )
        self.app = create_app(settings, clock=self.clock)
        self.database = self.app.extensions["database"]
        self.dispatcher = self.app.extensions["bus"].dispatcher()
        self.server = self.app.extensions["mailer"].backend = Server(settings.mail_timeout, step)
        self.free = settings.mail_threads
        self.quick = False
        self.waiting: collections.deque[Lease] = collections.deque()
        self.progress = 0.0
        self.answers: list[tuple[Lease, Any]] = []
        self.placed: dict[str, float] = {}
        self.sent: dict[str, float] = {}
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._look_at = float("inf")

    def at(self, when: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._numbers), what))

    def place(self, order_id: str) -> None:
        email = f"{order_id}@example.com"
        facts: dict[str, Any] = {
            "order_id": order_id, "user_id": order_id, "total_price": Decimal(1), "email": email
        }  # fmt: skip
        event_id = uuid7()

        def work(transaction: Any) -> None:
            place_order(transaction, **facts, event_id=event_id)
            order_created.send("benchmark", event=OrderCreated(**facts), event_id=event_id)

        self.database.transact(work)
        self.placed[order_id] = self.clock.seconds

    def play(self, until: float) -> None:
        self.at(0, self._beat)
        while self._events and self._events[0][0] <= until:
            when, _, what = heapq.heappop(self._events)
            self.clock.seconds = max(self.clock.seconds, when)
            what()
            self._rounds()

    def _beat(self) -> None:
        self.dispatcher.heartbeat()
        self.at(self.clock.seconds + 10, self._beat)

    def _rounds(self) -> None:
        """As Worker._round(), until there is nothing to do at this moment."""
        while True:
            if self.waiting and self.clock.seconds - self.progress > STALLED_SECONDS:
                self._take_back()
            now = self.clock.now()
            due = self.dispatcher.next_due()
            overdue = [receiver for receiver, due_at in due.items() if due_at <= now]
            capacity = {receiver: slots for receiver in overdue if (slots := self._slots(receiver)) > 0}
            idle = capacity if self.free > len(self.waiting) else {}
            alone = self.dispatcher.in_doubt_waits and bool(idle)
            pause = self.dispatcher.rest_seconds(self.answers, alone=alone) if capacity else 0.0
            if not (self.answers or (capacity and not pause)):
                break
            answers, self.answers = self.answers, []
            _, claimed, _ = self.dispatcher.settle_and_claim(answers, idle if alone else capacity, alone=alone)
            if not (answers or claimed):
                pause = PASSED_OVER_SECONDS
                break
            for batch in self.dispatcher.batches(claimed):
                if is_transactional(batch[0]):
                    self.dispatcher.deliver_transactional(batch)
                else:
                    self.waiting.extend(batch)
                    self.progress = self.clock.seconds
            self._begin()
        waits = [(due_at - now).total_seconds() for due_at in due.values() if due_at > now]
        if self.waiting:
            waits.append(STALLED_SECONDS + 0.001)
        if pause:
            waits.append(pause + 0.001)
        if waits and self.clock.seconds + min(waits) < self._look_at:
            self._look_at = self.clock.seconds + min(waits)
            self.at(self._look_at, self._looked)

    def _looked(self) -> None:
        self._look_at = float("inf")

    def _slots(self, receiver: str) -> int:
        if subscriptions()[receiver].transactional:
            return 20
        return self.free - len(self.waiting) + (PREFETCH if self.quick else 0)

    def _take_back(self) -> None:
        self.answers += [(lease, NotBegun()) for lease in self.waiting]
        self.waiting.clear()
        self.quick = False

    def _begin(self) -> None:
        while self.free > 0 and self.waiting:
            lease = self.waiting.popleft()
            self.server.took = 0.0
            answer = self.dispatcher.invoke(lease)
            if answer is None:
                continue
            self.server.began.append(self.clock.seconds)
            self.free -= 1
            ends = self.clock.seconds + self.server.took
            self.at(ends, lambda lease=lease, answer=answer, took=self.server.took: self._end(lease, answer, took))  # type: ignore[misc]

    def _end(self, lease: Lease, answer: Any, took: float) -> None:
        self.free += 1
        self.progress, self.quick = self.clock.seconds, took <= QUICK_SECONDS
        if isinstance(answer, Failure) and answer.outcome in BACKEND_DOWN:
            self._take_back()
        elif not isinstance(answer, Failure):
            self.sent[lease.order_id] = self.clock.seconds
        self.answers.append((lease, answer))
        self._begin()


def play_hour(seed: int, arrival: str, step: str) -> tuple[list[int], list[int], list[float], int, int]:
    """Copies and attempts of each hanging recipient, the delays of ordinary mails, how many were not sent, dead."""
    with tempfile.TemporaryDirectory() as folder:
        played = Played(Path(folder), seed, step)
        for n in range(HANGING):
            when = 0 if arrival == "burst" else n * HOUR / HANGING
            played.at(when, lambda n=n: played.place(f"hangs-{n}"))  # type: ignore[misc]
        for n in range(int(HOUR / ORDINARY_EVERY)):
            played.at(n * ORDINARY_EVERY + 1, lambda n=n: played.place(f"ordinary-{n}"))  # type: ignore[misc]
        played.play(HOUR)
        names = [f"hangs-{n}@example.com" for n in range(HANGING)]
        ordinary = [order_id for order_id in played.placed if order_id.startswith("ordinary")]
        delays = [played.sent[o] - played.placed[o] for o in ordinary if o in played.sent]
        waited = [HOUR - played.placed[o] for o in ordinary if o not in played.sent]
        dead = _look(Path(folder), "SELECT count(*) FROM deliveries WHERE state = 'dead'")
        played.database.close()
        copies = [played.server.copies[name] for name in names]
        attempts = [played.server.attempts[name] for name in names]
        return copies, attempts, delays + waited, len(waited), dead


def play_outage(seed: int, trouble: str, arrival: str) -> str:
    """Down for half an hour, with 2,000 orders waiting from the start, or with one that comes every minute."""
    with tempfile.TemporaryDirectory() as folder:
        played = Played(Path(folder), seed, trouble)
        played.server.down = trouble
        back = HOUR / 2
        orders = 2000 if arrival == "burst" else int(HOUR / 60)
        for n in range(orders):
            when = 0 if arrival == "burst" else n * 60.0
            played.at(when, lambda n=n: played.place(f"o{n}"))  # type: ignore[misc]
        played.at(back, lambda: setattr(played.server, "down", ""))
        played.play(2 * HOUR)
        during = sum(1 for began in played.server.began if began < back)
        late = [played.sent[o] - max(back, placed) for o, placed in played.placed.items() if o in played.sent]
        dead = _look(Path(folder), "SELECT count(*) FROM deliveries WHERE state = 'dead'")
        most = max(played.server.copies.values())
        played.database.close()
        return (
            f"{during} attempts while down, {len(late)} of {orders} sent, the last {max(late):.0f} s after the return "
            f"or its order; {dead} dead; at most {most} copies of one"
        )


def _look(folder: Path, query: str) -> int:
    connection = sqlite_module().connect(folder / "orders.db")
    count: int = connection.execute(query).fetchone()[0]
    connection.close()
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--arrival", choices=["burst", "spread"], default="burst")
    parser.add_argument("--step", choices=["message", "recipient"], default="message", help="where it hangs")
    parser.add_argument("--outage", action="store_true")
    asked = parser.parse_args()
    if asked.outage:
        for trouble in ("refused", "recipient", "message"):
            for seed in range(asked.seeds):
                print(f"{trouble}, {asked.arrival}, seed {seed}: {play_outage(seed, trouble, asked.arrival)}")
        return
    all_delays: list[float] = []
    for seed in range(asked.seeds):
        copies, attempts, delays, unsent, dead = play_hour(seed, asked.arrival, asked.step)
        all_delays += delays
        print(f"seed {seed}: copies {sorted(copies)}, attempts {sorted(attempts)}; {_delays(delays)}; "
              f"{unsent} of {len(delays)} not sent after the hour; {dead} dead")  # fmt: skip
    print(f"all seeds: {_delays(all_delays)}")


def _delays(delays: list[float]) -> str:
    delays = sorted(delays)
    p99 = delays[min(len(delays) - 1, int(len(delays) * 0.99))]
    median = statistics.median(delays)
    return f"ordinary mails wait {median:.2f} s (median), {p99:.0f} s (p99), {delays[-1]:.0f} s (max)"


if __name__ == "__main__":
    main()
