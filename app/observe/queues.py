"""Gauges of deliveries and dispatchers, read from the database, each number at bounded cost."""

import threading
import time
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from app.bus import Bus, heartbeats, queries
from app.bus.status import MOST_READ
from app.bus.troubles import MOST_COUNTED
from app.errors import DatabaseUnavailable
from app.signal import subscriptions

KEPT_SECONDS = 5.0
"""A reading is kept for so long, and for at least ten times as long as it took: to ask often costs little."""


@dataclass(frozen=True, slots=True)
class Queue:
    """The deliveries of one receiver."""

    receiver: str
    waiting: int
    """Those that are due, and those that wait for their next try."""
    in_flight: int
    retrying: int
    """Of those that wait, the ones that failed at least once; MOST_READ at most."""
    dead: int
    """MOST_READ at most, of all receivers'."""
    overdue_seconds: float
    breaker_open: bool
    paused: bool


@dataclass(frozen=True, slots=True)
class Reading:
    queues: list[Queue]
    dispatchers: dict[str, datetime]
    """Those that are alive, each with its latest heartbeat."""


class Queues:
    """Reads the database, and keeps what it read for a while. For any thread."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self._lock = threading.Lock()
        self._kept: Reading | None = None
        self._kept_until = float("-inf")

    def read(self) -> Reading | None:
        """None where the database can't be read."""
        clock = self.bus.database.clock
        with self._lock:
            if clock.monotonic() >= self._kept_until:
                began = time.perf_counter()
                self._kept = self._read()
                took = time.perf_counter() - began
                self._kept_until = clock.monotonic() + max(KEPT_SECONDS, 10 * took)
            return self._kept

    def _read(self) -> Reading | None:
        try:
            with self.bus.database.read() as session:
                now = self.bus.database.clock.now()
                silence = heartbeats.silence(self.bus.settings.ready_lag_seconds)
                alive = queries.dispatchers(session, now, silence)
                return Reading(self._queues(session, now), {each.name: each.seen_at for each in alive})
        except (DatabaseUnavailable, DBAPIError):
            return None

    def _queues(self, session: Session, now: datetime) -> list[Queue]:
        unfinished = set(queries.receivers_with_unfinished(session))
        dead = queries.count_dead(session, MOST_READ)
        breakers, paused = queries.open_breakers(session), queries.paused_receivers(session)
        lease = timedelta(seconds=self.bus.settings.lease_seconds)
        found = []
        for receiver in sorted({*subscriptions(), *unfinished, *dead, *breakers, *paused}):
            waits = receiver in unfinished
            count = queries.count_unfinished(session, receiver, MOST_COUNTED) if waits else 0
            in_flight = queries.count_in_flight(session, receiver, now, lease, MOST_READ) if waits else 0
            due_at = (queries.earliest_due(session, receiver) if waits else None) or now
            found.append(
                Queue(
                    receiver=receiver,
                    waiting=max(0, count - in_flight),
                    in_flight=in_flight,
                    retrying=queries.retrying(session, receiver, MOST_READ).deliveries if waits else 0,
                    dead=dead.get(receiver, 0),
                    overdue_seconds=max(0.0, (now - due_at).total_seconds()),
                    breaker_open=receiver in breakers,
                    paused=receiver in paused,
                )
            )
        return found
