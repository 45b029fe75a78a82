"""Status: of each receiver, how many deliveries wait, fail, died or were skipped, why, and until when.

Its cost does not grow with history, nor with a backlog beyond a bound: waiting deliveries are counted in the index
alone, up to MOST_COUNTED, and each other number reads at most MOST_READ rows. ``is_exact`` says whether that was
enough.
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from functools import reduce
from typing import Any

from sqlalchemy.orm import Session

from app.bus import queries
from app.bus.breaker import BACKEND_DOWN
from app.bus.tables import DispatcherHeartbeat
from app.bus.troubles import MOST_COUNTED, Readiness, Trouble, missing, paused_by_breaker
from app.bus.words import lasting, moment
from app.signal import ordering_of
from app.translatable import Translatable

MOST_READ = 10_000
"""Rows."""

RATE_WITHIN = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class BreakerStatus:
    """An open circuit breaker."""

    opened_at: datetime
    failures: int
    next_probe_at: datetime
    reason: str | None


@dataclass(frozen=True, slots=True)
class PauseStatus:
    """A person's pause."""

    paused_at: datetime
    paused_by: str
    reason: str


@dataclass(frozen=True, slots=True)
class ReceiverStatus:
    """Of one receiver, now. Times are in UTC."""

    receiver: str
    is_connected: bool
    """Whether this process knows the receiver."""
    waiting: int
    """Those that are due, and those that wait for their next try."""
    in_flight: int
    retrying: int
    """Of those that wait, the ones that failed at least once."""
    next_try_at: datetime | None
    """Of the first of these."""
    oldest_waits_since: datetime | None
    dead: int
    skipped: int
    """Not needed, or without an address: discarded by the receiver's own answer, among the ``skipped_among``
    deliveries of all receivers that were made last."""
    skipped_among: int
    skipped_because: str | None
    """Of the last of these."""
    ended: int
    """Done or dead within ``ended_within_seconds``."""
    ended_within_seconds: float
    drained_in_seconds: float | None
    """All that waits and is in flight, at this rate; None where nothing ends."""
    breaker: BreakerStatus | None
    pause: PauseStatus | None
    is_exact: bool
    """Whether no number stands for more than it says."""
    held_back: queries.HeldBack | None = None
    """Of a receiver that is ordered: what waits behind others of its key. None where nothing does."""

    @property
    def is_held_up(self) -> bool:
        """Whether something keeps it from delivering."""
        return not self.is_connected or self.pause is not None or self.breaker is not None


def of_receivers(
    session: Session,
    now: datetime,
    lease: timedelta,
    connected: Iterable[str],
    rate: queries.Rate | None = None,
    *,
    most: int = MOST_READ,
) -> list[ReceiverStatus]:
    """The receivers that are connected, or have deliveries that wait or are dead.

    ``rate``, where it is known; ``most`` is in place of MOST_READ.
    """
    breakers, paused = queries.open_breakers(session), queries.paused_receivers(session)
    all_dead, all_skipped = queries.count_dead(session, most), queries.skipped(session, most)
    rate = rate or queries.rate(session, now, RATE_WITHIN, most)
    with_unfinished, known = set(queries.receivers_with_unfinished(session)), set(connected)

    def look(receiver: str) -> ReceiverStatus:
        unfinished = queries.count_unfinished(session, receiver, MOST_COUNTED) if receiver in with_unfinished else 0
        in_flight = queries.count_in_flight(session, receiver, now, lease, most) if unfinished else 0
        retrying = queries.retrying(session, receiver, most) if unfinished else queries.Retrying(0, None)
        skipped, skipped_because = all_skipped.get(receiver, (0, None))
        ended, pause = rate.ended.get(receiver, 0), paused.get(receiver)
        return ReceiverStatus(
            receiver=receiver,
            is_connected=receiver in known,
            waiting=max(0, unfinished - in_flight),
            in_flight=in_flight,
            retrying=retrying.deliveries,
            next_try_at=retrying.next_at,
            oldest_waits_since=queries.oldest(session, receiver) if unfinished else None,
            dead=all_dead.get(receiver, 0),
            skipped=skipped,
            skipped_among=most,
            skipped_because=skipped_because,
            ended=ended,
            ended_within_seconds=round(rate.seconds, 3),
            drained_in_seconds=round(unfinished * rate.seconds / ended) if ended else None,
            breaker=_breaker(session, breakers.get(receiver)),
            pause=PauseStatus(pause.paused_at, pause.paused_by, pause.reason) if pause else None,
            is_exact=unfinished < most and sum(all_dead.values()) < most,
            held_back=queries.held_back(session, receiver, most) if unfinished and ordering_of(receiver) else None,
        )

    return [look(receiver) for receiver in sorted({*known, *with_unfinished, *all_dead, *paused})]


def _breaker(session: Session, found: queries.OpenBreaker | None) -> BreakerStatus | None:
    if found is None:
        return None
    reason = queries.latest_failure(session, found.receiver, BACKEND_DOWN)
    return BreakerStatus(found.opened_at, found.failures, found.probe_at, reason)


def sentence(status: ReceiverStatus, now: datetime) -> Translatable:
    """As a person would say it: what keeps the receiver from delivering, then what waits, then what needs somebody."""
    first, *others = _counts(status, now)
    counts = reduce(Translatable.then, others, first)
    if held := _held_up(status, now):
        return held.then(counts)
    return Translatable("%(receiver)s: %(counts)s", receiver=status.receiver, counts=counts)


def _held_up(status: ReceiverStatus, now: datetime) -> Translatable | None:
    """Why nothing is delivered, beginning with the receiver's name; None where nothing keeps it."""
    name = status.receiver
    if not status.is_connected:
        return Translatable("%(receiver)s: nobody takes %(deliveries)s", receiver=name, deliveries=missing(name))
    if pause := status.pause:
        since, why = moment(pause.paused_at, now), short(pause.reason)
        return Translatable(
            "%(receiver)s: paused by %(name)s since %(since)s: %(reason)s",
            receiver=name,
            name=pause.paused_by,
            since=since,
            reason=why,
        )
    if (breaker := status.breaker) is None:
        return None
    told = paused_by_breaker(name, breaker.opened_at, now)
    if breaker.reason:
        told = Translatable("%(paused)s: %(reason)s", paused=told, reason=short(breaker.reason))
    wait = breaker.next_probe_at - now
    if wait > timedelta(0):
        return told.then(Translatable("next probe in %(time)s", time=lasting(wait)))
    return told.then(Translatable("a probe is due"))


def _counts(status: ReceiverStatus, now: datetime) -> Iterator[Translatable]:
    if status.waiting:
        count = _at_least(status.waiting, MOST_COUNTED)
        time = lasting(now - (status.oldest_waits_since or now))
        if status.waiting == 1:
            yield Translatable("1 waits, the oldest for %(time)s", time=time)
        else:
            yield Translatable("%(count)s wait, the oldest for %(time)s", count=count, time=time)
    else:
        yield Translatable("nothing waits")
    if status.in_flight:
        yield Translatable("%(count)s in flight", count=status.in_flight)
    if held := status.held_back:
        yield Translatable(
            "%(count)s held back, the first behind delivery %(behind)s of %(key)s",
            count=held.deliveries,
            behind=held.waits_behind,
            key=held.ordering_key,
        )
    if status.retrying:
        yield _retrying(status, now)
    if status.dead:
        yield Translatable("%(count)s dead", count=_at_least(status.dead, MOST_READ))
    if status.skipped:
        among = f"{status.skipped_among:,}"
        yield Translatable("%(count)s skipped among the latest %(among)s deliveries", count=status.skipped, among=among)
    if status.ended:
        yield Translatable("%(count)s a minute", count=f"{status.ended / status.ended_within_seconds * 60:.3g}")
        if status.waiting and status.breaker is None and status.pause is None:
            time = lasting(timedelta(seconds=status.drained_in_seconds or 0))
            yield Translatable("drained in %(time)s", time=time)


def _at_least(count: int, most: int) -> object:
    return Translatable("at least %(count)s", count=count) if count >= most else count


def _retrying(status: ReceiverStatus, now: datetime) -> Translatable:
    count, at = status.retrying, status.next_try_at or now
    if status.breaker or status.pause:
        return Translatable("%(count)s failed before", count=count)
    if at > now:
        return Translatable("%(count)s failed before, next try in %(time)s", count=count, time=lasting(at - now))
    return Translatable("%(count)s failed before, next try due since %(since)s", count=count, since=moment(at, now))


def short(reason: str) -> str:
    """A reason without its cure, which stands behind a semicolon."""
    return reason.partition("; ")[0].rstrip(".")


@dataclass(frozen=True, slots=True)
class Status:
    """The service, as its database tells it."""

    at: datetime
    readiness: Readiness
    receivers: list[ReceiverStatus]
    before: list[DispatcherHeartbeat]
    """The dispatchers that are alive; where none is, the last one that was."""
    refused_here: str | None
    """Why a dispatcher with this process' settings would not start; None where it would."""

    def as_json(self) -> dict[str, Any]:
        found = self.readiness
        return {
            "at": self.at,
            "ready": not found.reasons,
            "reasons": [_trouble(trouble) for trouble in found.reasons],
            "warnings": [_trouble(trouble) for trouble in found.warnings],
            "dispatchers": [_dispatcher(each) for each in found.dispatchers],
            "last_dispatcher": next((_dispatcher(each) for each in self.before if each.has_stopped), None),
            "receivers": [asdict(each) for each in self.receivers],
            "refused_here": self.refused_here,
        }


def _dispatcher(heartbeat: DispatcherHeartbeat) -> dict[str, Any]:
    names = ("name", "started_at", "seen_at")
    return {name: getattr(heartbeat, name) for name in names} | {"settings": heartbeat.told}


def _trouble(trouble: Trouble) -> dict[str, str | None]:
    return {
        "cause": str(trouble.cause),
        "text": trouble.text,
        "detail": trouble.detail or None,
        "receiver": trouble.receiver,
    }
