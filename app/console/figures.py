"""Figures: the live numbers of the flow, computed once for all viewers of a process.

A poll costs no query while the figures are fresh. Then one thread at a time looks whether the bus's state has changed,
which is cheap, and computes new ones where it has; others take the latest. The figures' version changes when one of the
numbers does, so that most polls are answered 304.
"""

import dataclasses
import hashlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any, TypeVar

from sqlalchemy.orm import Session

from app.bus import Bus, heartbeats, mark, queries, status
from app.bus.queries import EndedAttempt, LatestEvent, Rate, Step
from app.bus.status import ReceiverStatus
from app.bus.tables import DispatcherHeartbeat
from app.orders import Order, list_orders
from app.signal import subscriptions
from app.states import Outcome

Kind = TypeVar("Kind")
Row = TypeVar("Row", LatestEvent, EndedAttempt)

FRESH_SECONDS = 0.3
"""Whether figures that are older still hold is looked up when somebody asks."""

COST_FACTOR = 40
"""They stay fresh for so many times the processor time that they took, where that is longer: it bounds what viewers
cost."""

STALE_SECONDS = 0.5
"""But no longer than this, because live means within a second."""

LONGEST_SECONDS = 5.0
"""Figures whose mark is unchanged are computed anew after so long: see ``app.bus.mark``."""

MOST_LOOKED_AT = 500
"""Of the latest events, and of the latest attempts."""

MOST_COUNTED = 1000
"""Of those that are retrying, dead or skipped: the page says where there are more."""

NEWEST_ORDERS = 12
RATE_WITHIN = timedelta(minutes=1)
LATENCY_WITHIN = timedelta(minutes=5)
OVERLAP = 100
"""So many of those that were seen last are read again: on PostgreSQL another transaction may have drawn its number
before, and have committed since."""
PASSED = 24
"""So many of the latest passages of each pipe are told, for orders to be seen moving."""


@dataclass(frozen=True)
class Latency:
    """From when an event was recorded until its delivery was done, in seconds."""

    p50: float
    p99: float


@dataclass(frozen=True)
class Figures:
    """What the flow page shows."""

    at: datetime
    receivers: dict[str, ReceiverStatus]
    dispatchers: list[DispatcherHeartbeat]
    events: list[LatestEvent]
    attempts: list[EndedAttempt]
    orders: Sequence[Order]
    steps: dict[str, list[Step]]
    version: str = ""
    """Of what is shown: the same where the pages would be the same, but for the ages in them."""

    @cached_property
    def events_a_minute(self) -> Counter[str]:
        """By their type."""
        return a_minute([(each.occurred_at, each.type) for each in self.events], self.at)

    @cached_property
    def done_a_minute(self) -> Counter[str | None]:
        """Attempts that came through, by their receiver."""
        return a_minute(
            [(each.ended_at, each.receiver if each.outcome == Outcome.OK else None) for each in self.attempts], self.at
        )

    def latency(self, receiver: str) -> Latency | None:
        """None where nothing was done lately."""
        since = self.at - LATENCY_WITHIN
        return latency_of(
            each
            for each in self.attempts
            if each.receiver == receiver and each.outcome == Outcome.OK and each.ended_at >= since
        )

    def recorded(self, event_type: str) -> list[int]:
        """The latest positions of events of the type, oldest first."""
        return [each.position for each in self.events if each.type == event_type][:PASSED][::-1]

    def delivered(self, receiver: str) -> list[int]:
        """The latest attempts that came through, oldest first."""
        found = [e.attempt_id for e in self.attempts if e.receiver == receiver and e.outcome == Outcome.OK]
        return found[:PASSED][::-1]


def latency_of(attempts: Iterable[EndedAttempt]) -> Latency | None:
    """None where there are none."""
    took = sorted((each.ended_at - each.owed_at).total_seconds() for each in attempts)
    return Latency(percentile(took, 50), percentile(took, 99)) if took else None


def percentile(ordered: Sequence[float], percent: int) -> float:
    """The smallest value that at least ``percent`` of the values do not exceed."""
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]


def a_minute(latest: Sequence[tuple[datetime, Kind]], now: datetime) -> Counter[Kind]:
    """How many of each kind are from the last minute; where not all of that were looked at, at their rate."""
    since = now - RATE_WITHIN
    counts = Counter(kind for at, kind in latest if at > since)
    if len(latest) < MOST_LOOKED_AT or latest[-1][0] <= since:
        return counts
    looked_at = max(now - latest[-1][0], timedelta(milliseconds=1))
    return Counter({kind: round(count * RATE_WITHIN / looked_at) for kind, count in counts.items()})


class FiguresCache:
    """One for each application. For any thread."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._lock = threading.Lock()
        self._latest: Figures | None = None
        self._mark: object = None
        self._complete_until = float("-inf")
        self._fresh_until = float("-inf")

    def now(self) -> Figures:
        """Figures that have in them what was stored before. Raises DatabaseUnavailable."""
        with self._lock:
            return self._look()

    def latest(self, longer_seconds: float = 0.0) -> Figures:
        """Figures that are fresh, or are being computed anew by another thread. New ones stay fresh for so much longer.

        Raises DatabaseUnavailable.
        """
        monotonic = self._bus.database.clock.monotonic
        found = self._latest
        if found is not None and monotonic() < self._fresh_until:
            return found
        if not self._lock.acquire(blocking=found is None):
            assert found is not None  # noqa: S101 - else it would have waited
            return found
        try:
            if self._latest is not None and monotonic() < self._fresh_until:
                return self._latest
            return self._look(longer_seconds)
        finally:
            self._lock.release()

    def _look(self, longer_seconds: float = 0.0) -> Figures:
        """Called under the lock. The mark is read first: what is stored meanwhile makes the next one another."""
        monotonic = self._bus.database.clock.monotonic
        began = time.thread_time()
        found = mark.of(self._bus.database, subscriptions(), _lease(self._bus), _silence(self._bus))
        if self._latest is None or found != self._mark or monotonic() >= self._complete_until:
            self._latest, self._mark = compute(self._bus, self._latest), found
            self._complete_until = monotonic() + LONGEST_SECONDS
        else:
            self._latest = aged(self._latest, self._bus.database.clock.now())
        cost = COST_FACTOR * (time.thread_time() - began)
        self._fresh_until = monotonic() + min(max(FRESH_SECONDS, cost), STALE_SECONDS) + longer_seconds
        return self._latest


def aged(found: Figures, now: datetime) -> Figures:
    """Figures whose mark is unchanged, as they are now: the clock changes the rates. The same where it does not."""
    latest = max(
        [each.occurred_at for each in found.events[:1]] + [each.ended_at for each in found.attempts[:1]], default=now
    )
    if found.at - latest > LATENCY_WITHIN:
        return found
    later = dataclasses.replace(found, at=now)
    later = dataclasses.replace(later, version=_version(later))
    return found if later.version == found.version else later


def compute(bus: Bus, before: Figures | None = None) -> Figures:
    """``before`` are earlier ones: what they have of the latest is not read again. Raises DatabaseUnavailable."""
    now = bus.database.clock.now()
    with bus.database.read() as session:
        events = _newest(session, queries.latest_events, before.events if before else [])
        attempts = _newest(session, queries.ended_attempts, before.attempts if before else [])
        rate = _rate(attempts, now)
        receivers = status.of_receivers(session, now, _lease(bus), subscriptions(), rate, most=MOST_COUNTED)
        dispatchers = queries.dispatchers(session, now, _silence(bus))
        orders = list_orders(session, limit=NEWEST_ORDERS).orders
        steps = queries.steps(session, [order.order_id for order in orders])
    found = Figures(
        at=now,
        receivers={each.receiver: each for each in receivers},
        dispatchers=dispatchers,
        events=events,
        attempts=attempts,
        orders=orders,
        steps=steps,
    )
    return dataclasses.replace(found, version=_version(found))


def _lease(bus: Bus) -> timedelta:
    return timedelta(seconds=bus.settings.lease_seconds)


def _silence(bus: Bus) -> timedelta:
    return heartbeats.silence(bus.settings.ready_lag_seconds)


def _newest(session: Session, read: Callable[[Session, int, int], list[Row]], known: list[Row]) -> list[Row]:
    """The newest first; a row begins with its number. Of those that are known only the last ones are read again."""
    after = max(0, known[0][0] - OVERLAP) if known else 0
    return (read(session, MOST_LOOKED_AT, after) + [each for each in known if each[0] <= after])[:MOST_LOOKED_AT]


def _rate(attempts: Sequence[EndedAttempt], now: datetime) -> Rate:
    """How many came through lately, of each receiver: these pages say it by ``Figures.done_a_minute``."""
    lately = [each for each in attempts if each.outcome == Outcome.OK and each.ended_at > now - RATE_WITHIN]
    return Rate(Counter(each.receiver for each in lately), RATE_WITHIN.total_seconds())


def _version(figures: Figures) -> str:
    """A digest of everything that is shown, but for what only the clock changes."""
    shown: Iterable[Any] = (
        [_without_rate(each) for each in figures.receivers.values()],
        [(each.name, each.started_at) for each in figures.dispatchers],
        [(signal, figures.events_a_minute[signal]) for signal in sorted({each.type for each in figures.events})],
        [(name, figures.done_a_minute[name], figures.latency(name)) for name in figures.receivers],
        figures.events[:1],
        figures.attempts[:1],
        [(order.order_id, order.notification) for order in figures.orders],
        figures.steps,
    )
    return hashlib.sha256(repr(tuple(shown)).encode()).hexdigest()[:24]


def _without_rate(found: ReceiverStatus) -> ReceiverStatus:
    return dataclasses.replace(found, skipped_among=0, skipped_because=None, ended=0, drained_in_seconds=None)
