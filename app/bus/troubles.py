"""Troubles: what keeps the bus from delivering in time, as its tables tell it, each in words that name the cause.

``/readyz``, ``flask bus status``, ``flask doctor`` and the log show the same ones: see ``Watch``. Nothing here scans a
table: of each receiver's unfinished deliveries the first and the last few are read, by ``deliveries_due``.
"""

import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from sqlalchemy.orm import Session

from app.bus import queries
from app.bus.breaker import BACKEND_DOWN
from app.bus.tables import DispatcherHeartbeat
from app.signal import Subscription
from app.states import Outcome

FAULTS = (Outcome.BUG, *BACKEND_DOWN)
"""Outcomes that say that something is broken. A refusal, or a request to come back later, is an answer."""


class Cause(enum.StrEnum):
    """A trouble's stable name: monitoring may rely on it."""

    DATABASE_UNREACHABLE = "database_unreachable"
    DATABASE_UNWRITABLE = "database_unwritable"
    SCHEMA_DIFFERS = "schema_differs"
    NO_DISPATCHER = "no_dispatcher"
    CLOCK_DIFFERS = "clock_differs"
    RECEIVER_MISSING = "receiver_missing"
    RECEIVER_HANGS = "receiver_hangs"
    BACKEND_DOWN = "backend_down"
    DELIVERIES_OVERDUE = "deliveries_overdue"
    DELIVERIES_FAIL = "deliveries_fail"
    CHECK_FAILED = "check_failed"


DATABASE = (Cause.DATABASE_UNREACHABLE, Cause.DATABASE_UNWRITABLE)
UNREAD = (Cause.DATABASE_UNREACHABLE, Cause.SCHEMA_DIFFERS, Cause.CHECK_FAILED)
DISPATCHING = (Cause.NO_DISPATCHER, Cause.DELIVERIES_OVERDUE)


@dataclass(frozen=True, slots=True)
class Trouble:
    """What is wrong, and the cure. ``text`` may be told to anybody; ``detail`` names hosts, ids and users."""

    cause: Cause
    text: str
    detail: str = ""
    receiver: str | None = None
    error: Exception | None = field(default=None, compare=False)

    def __str__(self) -> str:
        return f"{self.text} ({self.detail})" if self.detail else self.text

    @property
    def is_warning(self) -> bool:
        """Whether the service is ready all the same: one delivery that fails must not make a whole service unready."""
        return self.cause is Cause.DELIVERIES_FAIL


@dataclass(frozen=True, slots=True)
class Limits:
    """After how long something is a trouble."""

    lag: timedelta
    """READY_LAG_SECONDS: how long deliveries may wait, or be tried, or find their backend down."""
    silence: timedelta
    """How long a dispatcher may go without a heartbeat."""
    lease: timedelta


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether the service is ready, or why not."""

    troubles: tuple[Trouble, ...] = ()
    dispatchers: tuple[DispatcherHeartbeat, ...] = ()
    """Those that are alive."""
    overdue: timedelta = timedelta(0)
    """For how long the oldest due delivery has waited."""
    is_complete: bool = True
    """Whether everything was looked at. Else what was wrong before may be so still."""

    @property
    def is_read(self) -> bool:
        """Whether the bus's tables could be read."""
        return not any(trouble.cause in UNREAD for trouble in self.troubles)

    @property
    def reasons(self) -> list[Trouble]:
        """Why the service is not ready; none when it is."""
        return [trouble for trouble in self.troubles if not trouble.is_warning]

    @property
    def warnings(self) -> list[Trouble]:
        return [trouble for trouble in self.troubles if trouble.is_warning]


def missing(receiver: str) -> str:
    """The words for deliveries whose receiver nobody knows."""
    return f"deliveries to {receiver!r}, which is not connected; connect it, or discard them"


def examine(session: Session, now: datetime, limits: Limits, connected: Mapping[str, Subscription]) -> Readiness:
    """All troubles that the bus's tables tell. ``connected`` are the receivers that this process knows."""
    return _Examination(session, now, limits, connected).result()


@dataclass(frozen=True, slots=True)
class _Queue:
    """The unfinished deliveries of one receiver."""

    receiver: str
    overdue: timedelta
    last: list[queries.Unfinished]
    """Those that are due last: what failed waits there."""
    longest: queries.LongLease | None
    """The delivery that has been tried for longest."""


class _Examination:
    def __init__(self, session: Session, now: datetime, limits: Limits, connected: Mapping[str, Subscription]) -> None:
        self.session, self.now, self.limits, self.connected = session, now, limits, connected
        self.alive = queries.dispatchers(session, now, limits.silence)
        self.last_heartbeat = queries.last_heartbeat(session)
        self.breakers = queries.open_breakers(session)
        self.queues = [self._queue(receiver) for receiver in queries.receivers_with_unfinished(session)]

    def _queue(self, receiver: str) -> _Queue:
        due_at = queries.earliest_due(self.session, receiver) or self.now
        return _Queue(
            receiver,
            max(timedelta(0), self.now - due_at),
            queries.due_last(self.session, receiver),
            queries.longest_lease(self.session, receiver, self.now, self.limits.lease),
        )

    def result(self) -> Readiness:
        overdue = max((queue.overdue for queue in self.queues), default=timedelta(0))
        return Readiness(tuple(self._troubles()), tuple(self.alive), overdue)

    def _troubles(self) -> Iterator[Trouble]:
        if not self.alive:
            yield self._no_dispatcher()
        yield from self._clock()
        unexplained = []
        for queue in self.queues:
            known = self._of_receiver(queue)
            if known:
                yield known
            else:
                unexplained.append(queue)
        yield from self._overdue(unexplained)
        for queue in unexplained:
            yield from self._failing(queue)

    def _no_dispatcher(self) -> Trouble:
        text = "no dispatcher is alive; start one with 'flask bus run'"
        last = self.last_heartbeat
        detail = f"the last heartbeat was {last.name}'s, {_seconds(self.now - last.seen_at)} ago" if last else ""
        return Trouble(Cause.NO_DISPATCHER, text, detail)

    def _clock(self) -> Iterator[Trouble]:
        """Moments that have not come yet, though something happened then."""
        stored = [each.created_at for queue in self.queues for each in queue.last]
        if self.last_heartbeat:
            stored.append(self.last_heartbeat.seen_at)
        ahead = max(stored, default=self.now) - self.now
        if ahead > self.limits.lag:
            yield Trouble(
                Cause.CLOCK_DIFFERS,
                f"what is stored is up to {_seconds(ahead)} ahead of this machine's clock, which was set back, or "
                "differs from another machine's; set the clocks right",
            )

    def _of_receiver(self, queue: _Queue) -> Trouble | None:
        """Why a receiver's deliveries are late, where that is known."""
        if queue.receiver not in self.connected:
            before = self.now - self.limits.lag
            waits = queries.has_unfinished_since(self.session, queue.receiver, before)
            return self._missing(queue) if waits else None
        if (lease := queue.longest) and self.now - lease.leased_at > self.limits.lag:
            return self._hanging(queue, lease)
        opened_at = self.breakers.get(queue.receiver)
        if opened_at and self.now - opened_at > self.limits.lag:
            return self._backend_down(queue, self.now - opened_at)
        return None

    def _missing(self, queue: _Queue) -> Trouble:
        text = f"nobody takes the {missing(queue.receiver)} with 'flask bus discard'"
        return Trouble(Cause.RECEIVER_MISSING, text, receiver=queue.receiver)

    def _hanging(self, queue: _Queue, lease: queries.LongLease) -> Trouble:
        return Trouble(
            Cause.RECEIVER_HANGS,
            f"the receiver {queue.receiver!r} has been at one delivery for {_seconds(self.now - lease.leased_at)}; "
            "restart its process, and give a time limit to whatever it waits for",
            f"delivery {lease.delivery_id}, order {lease.order_id}, in {lease.leased_by}",
            queue.receiver,
        )

    def _backend_down(self, queue: _Queue, duration: timedelta) -> Trouble:
        failed = next((each for each in queue.last if each.outcome in BACKEND_DOWN), None)
        return Trouble(
            Cause.BACKEND_DOWN,
            f"what the receiver {queue.receiver!r} needs has been down for {_seconds(duration)}: its circuit breaker "
            "is open, and its deliveries wait; see to it, 'flask doctor' asks the mail server",
            failed.reason or "" if failed else "",
            queue.receiver,
        )

    def _overdue(self, unexplained: list[_Queue]) -> Iterator[Trouble]:
        worst = max(unexplained, key=lambda queue: queue.overdue, default=None)
        if worst and worst.overdue > self.limits.lag:
            yield Trouble(
                Cause.DELIVERIES_OVERDUE,
                f"the oldest due delivery, to {worst.receiver!r}, has waited {_seconds(worst.overdue)}, which is more "
                f"than READY_LAG_SECONDS: {self._why_overdue(worst)}",
            )

    def _why_overdue(self, queue: _Queue) -> str:
        if not self.alive:
            return "no dispatcher is alive"
        if queue.receiver in self.breakers:
            return "its circuit breaker is open"
        if self._is_transactional(queue) and any(map(self._holds_up_transactional, self.queues)):
            return "another receiver with a session, which shares its thread, hangs"
        return "the dispatchers are busy or stuck; start more with 'flask bus run', or restart them"

    def _is_transactional(self, queue: _Queue) -> bool:
        subscription = self.connected.get(queue.receiver)
        return subscription is not None and subscription.transactional

    def _holds_up_transactional(self, queue: _Queue) -> bool:
        long = queue.longest is not None and self.now - queue.longest.leased_at > self.limits.lag
        return long and self._is_transactional(queue)

    def _failing(self, queue: _Queue) -> Iterator[Trouble]:
        before = self.now - self.limits.lag
        failed = next((each for each in queue.last if each.outcome in FAULTS and each.created_at < before), None)
        if failed:
            yield Trouble(
                Cause.DELIVERIES_FAIL,
                f"deliveries to {queue.receiver!r} fail, with outcome {failed.outcome}, and are tried again; the log "
                "and 'flask orders show' tell why",
                f"delivery {failed.delivery_id}: {failed.reason or 'without a result, as if its process had died'}",
                queue.receiver,
            )


def _seconds(duration: timedelta) -> str:
    return f"{duration.total_seconds():.0f} s"
