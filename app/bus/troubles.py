"""Troubles: what keeps the bus from delivering in time, as its tables tell it, each in words that name the cause.

``/readyz``, ``flask bus status``, ``flask doctor`` and the log show the same ones: see ``Watch``. Nothing here scans a
table: of each receiver's unfinished deliveries the first and the last few are read, by ``deliveries_due``.
"""

import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from sqlalchemy.orm import Session

from app.bus import delivers_by, heartbeats, queries
from app.bus.breaker import BACKEND_DOWN
from app.bus.tables import DispatcherHeartbeat, PausedReceiver
from app.bus.words import moment
from app.db import iso
from app.signal import Subscription
from app.states import Outcome
from app.translatable import Translatable
from config import Settings

FAULTS = (Outcome.BUG, *BACKEND_DOWN)
"""Outcomes that say that something is broken. A refusal, or a request to come back later, is an answer."""


class Cause(enum.StrEnum):
    """A trouble's stable name: monitoring may rely on it."""

    DATABASE_UNREACHABLE = "database_unreachable"
    DATABASE_UNWRITABLE = "database_unwritable"
    SCHEMA_DIFFERS = "schema_differs"
    NO_DISPATCHER = "no_dispatcher"
    DISPATCHER_REFUSES = "dispatcher_refuses"
    BROKER_UNREACHABLE = "broker_unreachable"
    SETTINGS_DIFFER = "settings_differ"
    CLOCK_DIFFERS = "clock_differs"
    RECEIVER_MISSING = "receiver_missing"
    RECEIVER_HANGS = "receiver_hangs"
    BACKEND_DOWN = "backend_down"
    DELIVERIES_OVERDUE = "deliveries_overdue"
    DELIVERIES_FAIL = "deliveries_fail"
    RECEIVER_PAUSED = "receiver_paused"
    PREDICTIONS_REFUTED = "predictions_refuted"
    CHECK_FAILED = "check_failed"


DATABASE = (Cause.DATABASE_UNREACHABLE, Cause.DATABASE_UNWRITABLE)
UNREAD = (Cause.DATABASE_UNREACHABLE, Cause.SCHEMA_DIFFERS, Cause.CHECK_FAILED)
DISPATCHING = (Cause.NO_DISPATCHER, Cause.DELIVERIES_OVERDUE)
WARNINGS = (
    *(Cause.DELIVERIES_FAIL, Cause.RECEIVER_PAUSED, Cause.SETTINGS_DIFFER, Cause.PREDICTIONS_REFUTED),
    Cause.BROKER_UNREACHABLE,
)

NO_DISPATCHER = Translatable(
    "no dispatcher is alive; start the service as before, or 'flask bus run' with its settings"
)
NO_WORKER = Translatable(
    "no Celery worker is alive, so what the relay publishes waits; start 'celery -A celery_app worker'"
)
NO_RELAY = Translatable(
    "no relay is alive, so Celery's workers get nothing; start the service as before, or 'flask bus run'"
)
"""Another shell's settings might deliver mail otherwise."""

CONFIRMED = 2
"""Failures in a row with which an open breaker counts as an outage: after the first the probe follows at once, because
a single message may hang for its own sake."""

REFUTED_WITHIN = timedelta(hours=1)
"""For so long it is told that the retry policy's predictions were refuted."""

MOST_COUNTED = 1_000_000
"""Deliveries that wait: so many are counted at most."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """What is wrong, and the cure. ``text`` may be told to anybody; ``detail`` names hosts, ids and users."""

    cause: Cause
    text: str
    detail: str = ""
    receiver: str | None = None
    error: Exception | None = field(default=None, compare=False)

    def __str__(self) -> str:
        return self.in_full

    @property
    def in_full(self) -> str:
        """With the detail."""
        return Translatable("%(text)s (%(detail)s)", text=self.text, detail=self.detail) if self.detail else self.text

    @property
    def is_warning(self) -> bool:
        """Whether the service is ready all the same: one delivery that fails must not make a whole service unready,
        who pauses a receiver knows of it, and a broker that restarts is soon back: else deliveries become overdue."""
        return self.cause in WARNINGS


@dataclass(frozen=True, slots=True)
class Outage:
    """What a receiver needs is down: its circuit breaker is open, and a probe has failed as well."""

    receiver: str
    since: datetime
    reason: str
    probe_at: datetime
    waiting: int
    """Deliveries, those that are tried included."""


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether the service is ready, or why not."""

    troubles: tuple[Trouble, ...] = ()
    dispatchers: tuple[DispatcherHeartbeat, ...] = ()
    """Those that are alive."""
    overdue: timedelta = timedelta(0)
    """For how long the oldest due delivery has waited, those to paused receivers aside."""
    outages: tuple[Outage, ...] = ()
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


def missing(receiver: str) -> Translatable:
    """The words for deliveries whose receiver nobody knows."""
    return Translatable(
        "deliveries to '%(receiver)s', which is not connected; connect it, or discard them", receiver=receiver
    )


def paused_by_breaker(receiver: str, opened_at: datetime, now: datetime) -> Translatable:
    """The words for an open circuit breaker: everybody who tells of one begins with them."""
    since = moment(opened_at, now)
    return Translatable("%(receiver)s: paused by its circuit breaker since %(since)s", receiver=receiver, since=since)


def examine(session: Session, now: datetime, settings: Settings, connected: Mapping[str, Subscription]) -> Readiness:
    """All troubles that the bus's tables tell. ``connected`` are the receivers that this process knows."""
    return _Examination(session, now, settings, connected).result()


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
    def __init__(
        self, session: Session, now: datetime, settings: Settings, connected: Mapping[str, Subscription]
    ) -> None:
        self.session, self.now, self.connected = session, now, connected
        self.lag = timedelta(seconds=settings.ready_lag_seconds)
        """How long deliveries may wait, or be tried, or find their backend down."""
        self.lease = timedelta(seconds=settings.lease_seconds)
        known, silence = queries.heartbeats(session), heartbeats.silence(settings.ready_lag_seconds)
        self.alive = queries.alive(known, now, silence)
        self.refusing = queries.refusing(known, now, silence)
        self.last_heartbeat = queries.last_heartbeat(known)
        self.breakers = queries.open_breakers(session)
        self.paused = queries.paused_receivers(session)
        self.queues = [self._queue(receiver) for receiver in queries.receivers_with_unfinished(session)]

    def _queue(self, receiver: str) -> _Queue:
        due_at = queries.earliest_due(self.session, receiver) or self.now
        return _Queue(
            receiver,
            max(timedelta(0), self.now - due_at),
            queries.due_last(self.session, receiver),
            queries.longest_lease(self.session, receiver, self.now, self.lease),
        )

    def result(self) -> Readiness:
        waiting = [queue.overdue for queue in self.queues if queue.receiver not in self.paused]
        overdue = max(waiting, default=timedelta(0))
        return Readiness(tuple(self._troubles()), tuple(self.alive), overdue, tuple(self._outages()))

    def _outages(self) -> Iterator[Outage]:
        for breaker in self.breakers.values():
            if breaker.failures >= CONFIRMED:
                waiting = queries.count_unfinished(self.session, breaker.receiver, MOST_COUNTED)
                reason = self._reason(breaker.receiver)
                yield Outage(breaker.receiver, breaker.opened_at, reason, breaker.probe_at, waiting)

    def _reason(self, receiver: str) -> str:
        """Why what the receiver needs counts as down: the latest attempt's, or where that is long ago, a delivery's."""
        if reason := queries.latest_failure(self.session, receiver, BACKEND_DOWN):
            return reason
        last = next((queue.last for queue in self.queues if queue.receiver == receiver), [])
        return next((each.reason or "" for each in last if each.outcome in BACKEND_DOWN), "")

    def _troubles(self) -> Iterator[Trouble]:
        yield from self._dispatchers()
        yield from self._broker()
        yield from self._clock()
        yield from map(self._paused, self.paused.values())
        yield from map(self._refuted, queries.refuted(self.session, self.now - REFUTED_WITHIN))
        unexplained = []
        for queue in self.queues:
            known = self._of_receiver(queue)
            if known:
                yield known
            elif queue.receiver not in self.paused:
                unexplained.append(queue)
        yield from self._overdue(unexplained)
        for queue in unexplained:
            yield from self._failing(queue)

    def _dispatchers(self) -> Iterator[Trouble]:
        """Whether one is alive, and all deliver mail the same way."""
        delivering = [each for each in self.alive if not each.is_relay]
        if not delivering:
            yield self._refusing(self.refusing[0]) if self.refusing else self._no_dispatcher()
            return
        if len(delivering) == len(self.alive) and all(each.needs_relay for each in delivering):
            yield Trouble(Cause.NO_DISPATCHER, NO_RELAY)
        routes = {delivers_by.route(each.told): each for each in delivering if each.told}
        if len(routes) > 1:
            ways = (f"{each.name} {delivers_by.in_words(each.told)}" for each in routes.values())
            text = Translatable("dispatchers deliver mail in different ways; give all of them the same MAIL_… settings")
            yield Trouble(Cause.SETTINGS_DIFFER, text, "; ".join(ways))
        elif self.refusing:
            text = Translatable(
                "a dispatcher refuses to start beside those that are alive, because it would deliver mail otherwise; "
                "'flask bus status' names both ways, and the cure"
            )
            yield Trouble(Cause.SETTINGS_DIFFER, text, _refusal(self.refusing[0]))

    def _refusing(self, dispatcher: DispatcherHeartbeat) -> Trouble:
        return Trouble(
            Cause.DISPATCHER_REFUSES,
            Translatable(
                "no dispatcher is alive: the one that is there refuses to start, because it would deliver mail "
                "otherwise than the one before it; 'flask bus status' names both ways, and the cure"
            ),
            _refusal(dispatcher),
        )

    def _no_dispatcher(self) -> Trouble:
        text = NO_WORKER if self.alive else NO_DISPATCHER
        last = self.last_heartbeat
        if last is None:
            return Trouble(Cause.NO_DISPATCHER, text)
        ago = _seconds(self.now - last.seen_at)
        what = (
            Translatable("%(name)s stopped %(time)s ago", name=last.name, time=ago)
            if last.has_stopped
            else Translatable("the last heartbeat was %(name)s's, %(time)s ago", name=last.name, time=ago)
        )
        if last.told:
            what = what.then(Translatable("it delivered mail %(how)s", how=delivers_by.in_words(last.told)))
        return Trouble(Cause.NO_DISPATCHER, text, what)

    def _broker(self) -> Iterator[Trouble]:
        relays = [each for each in self.alive if each.is_relay]
        if lost := [each for each in relays if "lost_since" in each.broker]:
            yield Trouble(
                Cause.BROKER_UNREACHABLE,
                Translatable(
                    "%(count)s of %(all)s relays can't hand deliveries to the broker, since %(since)s; they wait, and "
                    "follow when it is back; start it, or let CELERY_BROKER_URL name it",
                    count=len(lost),
                    all=len(relays),
                    since=min(each.broker["lost_since"] for each in lost),
                ),
                "; ".join(f"{each.name}: {each.broker['reason']}" for each in lost),
            )

    def _clock(self) -> Iterator[Trouble]:
        """Moments that have not come yet, though something happened then."""
        stored = [each.created_at for queue in self.queues for each in queue.last]
        if self.last_heartbeat:
            stored.append(self.last_heartbeat.seen_at)
        ahead = max(stored, default=self.now) - self.now
        if ahead > self.lag:
            yield Trouble(
                Cause.CLOCK_DIFFERS,
                Translatable(
                    "what is stored is up to %(time)s ahead of this machine's clock, which was set back, or differs "
                    "from another machine's; set the clocks right",
                    time=_seconds(ahead),
                ),
            )

    def _of_receiver(self, queue: _Queue) -> Trouble | None:
        """Why a receiver's deliveries are late, where that is known."""
        lease = queue.longest
        hanging = self._hanging(queue, lease) if lease and self.now - lease.leased_at > self.lag else None
        if queue.receiver in self.paused:
            return hanging
        if queue.receiver not in self.connected:
            before = self.now - self.lag
            waits = queries.has_unfinished_since(self.session, queue.receiver, before)
            return self._missing(queue) if waits else None
        if hanging:
            return hanging
        breaker = self.breakers.get(queue.receiver)
        if breaker and self.now - breaker.opened_at > self.lag:
            return self._backend_down(breaker)
        return None

    def _paused(self, pause: PausedReceiver) -> Trouble:
        return Trouble(
            Cause.RECEIVER_PAUSED,
            Translatable(
                "the receiver '%(receiver)s' was paused at %(at)s, and its deliveries wait; "
                "'flask bus resume %(receiver)s' lets it go on",
                receiver=pause.receiver,
                at=iso(pause.paused_at),
            ),
            Translatable("by %(name)s: %(reason)s", name=pause.paused_by, reason=pause.reason),
            pause.receiver,
        )

    def _refuted(self, key: str) -> Trouble:
        scope, kind, receiver = key.split("/", 2)
        whose = (
            Translatable("deliveries to '%(receiver)s'", receiver=receiver)
            if scope == "message"
            else Translatable("the backend of '%(receiver)s'", receiver=receiver)
        )
        return Trouble(
            Cause.PREDICTIONS_REFUTED,
            Translatable(
                "the retry policy's predictions of how long %(kind)s lasts for %(whose)s were refuted by what "
                "happened: what was learned before is forgotten, and it decides by its prior until it has learned "
                "anew; 'flask bus policy show' tells more",
                kind=kind,
                whose=whose,
            ),
            receiver=receiver,
        )

    def _missing(self, queue: _Queue) -> Trouble:
        text = Translatable(
            "nobody takes the %(deliveries)s with 'flask bus discard'", deliveries=missing(queue.receiver)
        )
        return Trouble(Cause.RECEIVER_MISSING, text, receiver=queue.receiver)

    def _hanging(self, queue: _Queue, lease: queries.LongLease) -> Trouble:
        return Trouble(
            Cause.RECEIVER_HANGS,
            Translatable(
                "the receiver '%(receiver)s' has been at one delivery for %(time)s; restart its process, and give a "
                "time limit to whatever it waits for",
                receiver=queue.receiver,
                time=_seconds(self.now - lease.leased_at),
            ),
            Translatable(
                "delivery %(delivery)s, order %(order)s, in %(process)s",
                delivery=lease.delivery_id,
                order=lease.order_id,
                process=lease.leased_by,
            ),
            queue.receiver,
        )

    def _backend_down(self, breaker: queries.OpenBreaker) -> Trouble:
        return Trouble(
            Cause.BACKEND_DOWN,
            Translatable(
                "%(paused)s, because what it needs is down; its deliveries wait, and follow when it is back; see to "
                "it, 'flask doctor' asks the mail server",
                paused=paused_by_breaker(breaker.receiver, breaker.opened_at, self.now),
            ),
            self._reason(breaker.receiver),
            breaker.receiver,
        )

    def _overdue(self, unexplained: list[_Queue]) -> Iterator[Trouble]:
        worst = max(unexplained, key=lambda queue: queue.overdue, default=None)
        if worst and worst.overdue > self.lag:
            yield Trouble(
                Cause.DELIVERIES_OVERDUE,
                Translatable(
                    "the oldest due delivery, to '%(receiver)s', has waited %(time)s, which is more than "
                    "READY_LAG_SECONDS: %(why)s",
                    receiver=worst.receiver,
                    time=_seconds(worst.overdue),
                    why=self._why_overdue(worst),
                ),
            )

    def _why_overdue(self, queue: _Queue) -> str:
        if all(each.is_relay for each in self.alive):
            return Translatable("no dispatcher is alive")
        if queue.receiver in self.breakers:
            return Translatable("its circuit breaker is open")
        relays = [each.broker for each in self.alive if each.is_relay]
        if any("lost_since" in broker for broker in relays):
            return Translatable("the broker can't be reached")
        if any(queue.receiver in broker.get("untaken", []) for broker in relays):
            return Translatable(
                "no Celery worker takes from its queue; start one that does, and see that those which run reach the "
                "broker"
            )
        if self._is_transactional(queue) and any(map(self._holds_up_transactional, self.queues)):
            return Translatable("another receiver with a session, which shares its thread, hangs")
        return Translatable("the dispatchers are busy or stuck; start more with 'flask bus run', or restart them")

    def _is_transactional(self, queue: _Queue) -> bool:
        subscription = self.connected.get(queue.receiver)
        return subscription is not None and subscription.transactional

    def _holds_up_transactional(self, queue: _Queue) -> bool:
        long = queue.longest is not None and self.now - queue.longest.leased_at > self.lag
        return long and self._is_transactional(queue)

    def _failing(self, queue: _Queue) -> Iterator[Trouble]:
        breaker = self.breakers.get(queue.receiver)
        if breaker and breaker.failures >= CONFIRMED:  # an outage: it is told as one, once it has lasted
            return
        before = self.now - self.lag
        failed = next((each for each in queue.last if each.outcome in FAULTS and each.created_at < before), None)
        if failed:
            yield Trouble(
                Cause.DELIVERIES_FAIL,
                Translatable(
                    "deliveries to '%(receiver)s' fail, with outcome %(outcome)s, and are tried again; the log and "
                    "'flask orders show' tell why",
                    receiver=queue.receiver,
                    outcome=failed.outcome,
                ),
                Translatable("delivery %(delivery)s: %(reason)s", delivery=failed.delivery_id, reason=failed.reason),
                queue.receiver,
            )


def _refusal(dispatcher: DispatcherHeartbeat) -> str:
    return f"{dispatcher.name}: {dispatcher.told['refused']}"


def _seconds(duration: timedelta) -> str:
    return f"{duration.total_seconds():.0f} s"
