"""Read queries on the bus's tables: an order's timeline, the feed of all events, what waits."""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Integer, Select, bindparam, case, exists, func, select
from sqlalchemy.orm import Session

from app.bus.tables import (
    GIVEN_UP,
    UNFINISHED,
    ActDelivery,
    Attempt,
    CircuitBreaker,
    Delivery,
    DispatcherHeartbeat,
    PausedReceiver,
    RetryTable,
    StoredEvent,
)
from app.db import Prepared, dialect_of, reader_of, table, utc
from app.states import DeliveryState

NOT_SHOWN = ("due_at", "attempts", "due_because", "obstacle", "obstacle_since", "obstacle_seen_at")
"""As they are: two of them are shown below, and the others tell nothing that ``due_because`` does not."""

DELIVERY_COLUMNS = (
    *(column for column in table(Delivery).columns if column.name not in NOT_SHOWN),
    case((Delivery.settled_at.is_(None), Delivery.due_at)).label("due_at"),  # what has ended is not due any more
    case((Delivery.settled_at.is_(None), Delivery.due_because)).label("due_because"),
    Delivery.attempts.label("attempts_spent"),
)
"""A delivery as people read it."""


def timeline(session: Session, order_id: str) -> list[dict[str, Any]]:
    """Everything that happened to an order, oldest first: events with their cause, deliveries, attempts."""
    events = _events(session).where(StoredEvent.order_id == order_id).order_by(StoredEvent.position)
    found = session.execute(events).mappings().all()
    owed = _grouped(deliveries(session, Delivery.event_id.in_([event["event_id"] for event in found])), "event_id")
    return [
        {**event, "data": readable(event["data"]), "deliveries": owed.get(event["event_id"], [])} for event in found
    ]


def deliveries(session: Session, which: ColumnElement[bool]) -> list[dict[str, Any]]:
    """Deliveries as people read them, each with its ``attempts``, oldest first."""
    found = session.execute(select(*DELIVERY_COLUMNS).where(which).order_by(Delivery.delivery_id)).mappings().all()
    tried = Attempt.delivery_id.in_([each["delivery_id"] for each in found])
    attempts = session.execute(select(table(Attempt)).where(tried).order_by(Attempt.attempt_id)).mappings()
    of_each = _grouped(map(dict, attempts), "delivery_id")
    return [{**each, "attempts": of_each.get(each["delivery_id"], [])} for each in found]


def _events(session: Session) -> Select[Any]:
    columns = (column for column in table(StoredEvent).columns if column.name != "data")
    return select(*columns, dialect_of(session).raw_text(StoredEvent.data).label("data"))


def _grouped(rows: Iterable[dict[str, Any]], key: str) -> dict[Any, list[dict[str, Any]]]:
    groups: defaultdict[Any, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[row[key]].append(row)
    return groups


def readable(data: bytes | str) -> Any:
    """Stored JSON for showing; what is damaged is shown as the text that can be made of it."""
    try:
        return json.loads(data, parse_float=str, parse_constant=str)  # NaN and 1e999 are damage too
    except (ValueError, RecursionError):
        return data.decode(errors="replace") if isinstance(data, bytes) else data


def feed(session: Session, after: str | None, limit: int) -> tuple[Sequence[Any], str | None]:
    """A page of all events in the order in which they became facts, and the cursor to go on from (``after`` again).

    Nothing can later appear behind the cursor. Raises ValueError for a cursor that this function did not make.
    """
    place = (StoredEvent.transaction_id, StoredEvent.position)
    page = dialect_of(session).in_commit_order(_events(session), *place, after=_parse_cursor(after))
    found = list(session.execute(page.limit(limit)))
    return found, f"{found[-1].transaction_id}-{found[-1].position}" if found else after


class EventPage(NamedTuple):
    """A page of the feed, the newest event first. ``cursor`` is that of the next page; None at the feed's beginning."""

    events: Sequence[Any]
    cursor: int | None
    stopped: bool
    """Whether the page is not full because enough was looked at: there may be more behind the cursor."""


def feed_backwards(
    session: Session,
    *,
    order_id: str | None = None,
    event_type: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    before: int | None = None,
    limit: int = 50,
    most: int = 20_000,
) -> EventPage:
    """A page of events, the newest first, of those before the position ``before``.

    No index has their types: of an order's events all are looked at, else so many as ``most`` positions may have.
    ``since`` (inclusive) and ``until`` are found by halving, for which events lie in the order of time: where the clock
    was set back, some near that moment may be left out.
    """
    page = _events(session).order_by(StoredEvent.position.desc())
    if order_id is not None:
        page = page.where(StoredEvent.order_id == order_id)
    if event_type is not None:
        page = page.where(StoredEvent.type == event_type)
    if since is not None:
        page = page.where(StoredEvent.occurred_at >= since)
    if until is not None:
        page = page.where(StoredEvent.occurred_at < until)
    if before is not None:
        page = page.where(StoredEvent.position < before)
    floor = first = 0
    if order_id is None:
        first, end = bounds(session, StoredEvent.position)
        place = StoredEvent.position, StoredEvent.occurred_at
        first = first if since is None else max(first, _first_since(session, *place, since, first, end))
        end = end if until is None else _first_since(session, *place, until, first, end)
        end = end if before is None else min(end, before)
        floor = max(first, end - most)
        page = page.where(StoredEvent.position >= floor, StoredEvent.position < end)
    found = session.execute(page.limit(limit + 1)).all()
    if len(found) > limit:
        return EventPage(found[:limit], found[limit - 1].position, stopped=False)
    return EventPage(found, floor if floor > first else None, stopped=floor > first)


def bounds(session: Session, number: Any) -> tuple[int, int]:
    """The first ``number`` in its table, and the one that comes after the last; two equal ones where there is none."""
    first, last = session.scalar(select(func.min(number))), session.scalar(select(func.max(number)))
    return (0, 0) if first is None or last is None else (first, last + 1)


def _first_since(session: Session, number: Any, at: Any, since: datetime, first: int, end: int) -> int:
    """The first ``number`` of a row whose time ``at`` is ``since`` then or later; ``end`` where none is.

    By halving: rows are numbered in the order of their times, and numbers have gaps.
    """
    following = select(number, at).order_by(number).limit(1)
    while first < end:
        middle = (first + end) // 2
        found = session.execute(following.where(number >= middle)).first()
        if found is None or found[1] >= since:
            end = middle
        else:
            first = found[0] + 1
    return first


def find_event(session: Session, event_id: str) -> Any:
    """The event, with what is owed for it; None where there is no such event."""
    found = session.execute(_events(session).where(StoredEvent.event_id == event_id)).first()
    if found is None:
        return None
    owed = select(*DELIVERY_COLUMNS).where(Delivery.event_id == event_id).order_by(Delivery.delivery_id)
    followed = _events(session).where(StoredEvent.order_id == found.order_id, StoredEvent.cause_id == event_id)
    return FoundEvent(
        found,
        session.execute(owed).all(),
        session.execute(followed.order_by(StoredEvent.position)).all(),
    )


class FoundEvent(NamedTuple):
    """An event, its deliveries, and the events that followed from it."""

    event: Any
    deliveries: Sequence[Any]
    followed: Sequence[Any]


def _parse_cursor(cursor: str | None) -> tuple[int, int]:
    if cursor is None:
        return 0, 0
    since, dash, position = cursor.partition("-")
    parts = (since, position)
    if not dash or not all(part.isascii() and part.isdigit() and len(part) < 19 for part in parts):
        raise ValueError("not a cursor of this feed; leave it out to begin at the first event")
    return int(since), int(position)


class Unfinished(NamedTuple):
    """An unfinished delivery, and how its latest attempt ended."""

    delivery_id: int
    created_at: datetime
    outcome: str | None
    reason: str | None


@dataclass(frozen=True, slots=True)
class HeldBack:
    """Deliveries of an ordered receiver that wait behind others of their key."""

    deliveries: int
    delivery_id: int
    """The one of them that was made first."""
    ordering_key: str
    """Its order id or user id."""
    waits_behind: int
    """The delivery that it waits behind."""


class LongLease(NamedTuple):
    """A delivery that is being tried."""

    delivery_id: int
    order_id: str
    leased_at: datetime
    leased_by: str


DUE_LAST = 50
"""So many of a receiver's unfinished deliveries are looked at, from the last due on: failed ones wait for their next
try there, behind all that was not tried yet."""


NEXT_RECEIVER = Prepared(
    select(Delivery.receiver)
    .where(UNFINISHED, Delivery.receiver > bindparam("after"))
    .order_by(Delivery.receiver)
    .limit(1)  # min() reads them all where PostgreSQL has no statistics yet
)


def receivers_with_unfinished(session: Session) -> Iterator[str]:
    """By one step in the index for each: a backlog of 100,000 costs no more than one of three."""
    reader, found = reader_of(session), ("",)
    while (found := NEXT_RECEIVER(reader, {"after": found[0]}).fetchone()) is not None:
        yield found[0]


def earliest_due(session: Session, receiver: str) -> datetime | None:
    """When the first of the receiver's unfinished deliveries is or was due; of a leased one, when its lease ends."""
    found = select(Delivery.due_at).where(Delivery.receiver == receiver, UNFINISHED)
    return session.scalar(found.order_by(Delivery.due_at).limit(1))


def due_last(session: Session, receiver: str) -> list[Unfinished]:
    """The DUE_LAST unfinished deliveries of the receiver that are due last, the last one first."""
    columns = (Delivery.delivery_id, Delivery.created_at, Delivery.outcome, Delivery.reason)
    found = select(*columns).where(Delivery.receiver == receiver, UNFINISHED).order_by(Delivery.due_at.desc())
    return [Unfinished(*row) for row in session.execute(found.limit(DUE_LAST))]


def longest_lease(session: Session, receiver: str, now: datetime, lease: timedelta) -> LongLease | None:
    """The delivery that the receiver has been at for longest, by a ``lease`` that is extended still.

    Only what is due within two leases is looked at, because a backlog may hold many that wait for a later try.
    """
    columns: tuple[Any, ...] = (Delivery.delivery_id, StoredEvent.order_id, Delivery.leased_at, Delivery.leased_by)
    leased = select(*columns).join(StoredEvent, StoredEvent.event_id == Delivery.event_id)
    leased = leased.where(Delivery.receiver == receiver, UNFINISHED, Delivery.state == DeliveryState.LEASED)
    leased = leased.where(Delivery.due_at > now, Delivery.due_at <= now + 2 * lease, Delivery.leased_by.is_not(None))
    found = session.execute(leased.order_by(Delivery.leased_at).limit(1)).first()
    return LongLease(*found) if found else None


def held_back(session: Session, receiver: str, most: int) -> HeldBack | None:
    """What of an ordered receiver waits behind others of its key, counting ``most`` at most; None where nothing does.

    Reads what the index of ordered deliveries has of the receiver.
    """
    columns = (Delivery.delivery_id, Delivery.ordering_key, Delivery.waits_behind)
    held = select(*columns).where(Delivery.receiver == receiver, Delivery.ordering_key.is_not(None), UNFINISHED)
    held = held.where(Delivery.waits_behind.is_not(None)).limit(most)
    found = session.execute(select(held.subquery())).all()
    first = min(found, key=lambda row: row.delivery_id, default=None)
    return HeldBack(len(found), *first) if first else None


def has_unfinished_since(session: Session, receiver: str, before: datetime) -> bool:
    """Whether the receiver has an unfinished delivery that was made ``before``."""
    old = select(Delivery.delivery_id).where(Delivery.receiver == receiver, UNFINISHED, Delivery.created_at < before)
    return session.execute(old.limit(1)).first() is not None


class OpenBreaker(NamedTuple):
    """A receiver's circuit breaker that lets nothing through but probes."""

    receiver: str
    opened_at: datetime
    failures: int
    """More than one: a probe has found the backend down as well."""
    probe_at: datetime


def open_breakers(session: Session) -> dict[str, OpenBreaker]:
    """By receiver."""
    columns: tuple[Any, ...] = (CircuitBreaker.receiver, CircuitBreaker.opened_at)
    columns += (CircuitBreaker.failures, CircuitBreaker.probe_at)
    found = select(*columns).where(CircuitBreaker.opened_at.is_not(None))
    return {row.receiver: OpenBreaker(*row) for row in session.execute(found)}


def paused_receivers(session: Session) -> dict[str, PausedReceiver]:
    """The receivers that are paused, by name: since when, by whom and why."""
    return {each.receiver: each for each in session.scalars(select(PausedReceiver).order_by(PausedReceiver.receiver))}


def refuted(session: Session, since: datetime) -> list[str]:
    """The keys of what the retry policy has forgotten, because what happened refuted it."""
    recent = select(RetryTable.refuted).where(RetryTable.refuted.is_not(None), RetryTable.fitted_at >= since)
    return sorted({key for told in session.scalars(recent) for key in json.loads(str(told))})


LATEST_ATTEMPTS = 1000
"""Among so many, of all receivers, one receiver's are looked for: it bounds what that costs."""


def latest_attempts(column: Any, receiver: str, outcomes: Sequence[str]) -> Select[Any]:
    """A query of a column of the receiver's latest attempts that ended with one of the outcomes."""
    latest = select(func.max(Attempt.attempt_id)).scalar_subquery() - LATEST_ATTEMPTS
    found = select(column).join(Delivery, Delivery.delivery_id == Attempt.delivery_id)
    return found.where(Attempt.attempt_id > latest, Attempt.outcome.in_(outcomes), Delivery.receiver == receiver)


def latest_failure(session: Session, receiver: str, outcomes: Sequence[str]) -> str | None:
    """Why the receiver's latest attempt failed that ended with one of the outcomes."""
    found = latest_attempts(Attempt.detail, receiver, outcomes)
    reason: str | None = session.scalar(found.order_by(Attempt.attempt_id.desc()).limit(1))
    return reason


# How many, by bounded cost


_of_receiver = (Delivery.receiver == bindparam("receiver"), UNFINISHED)
_most = bindparam("most", type_=Integer)


def count_up_to(found: Select[Any], most: Any) -> Select[int]:
    """How many rows are found, ``most`` at most: no more are read."""
    return select(func.count()).select_from(found.limit(most).subquery("found"))


COUNT_UNFINISHED = Prepared(count_up_to(select(Delivery.due_at).where(*_of_receiver), _most))


def count_unfinished(session: Session, receiver: str, most: int) -> int:
    """How many unfinished deliveries the receiver has, ``most`` at most. Reads the index alone."""
    found = COUNT_UNFINISHED(reader_of(session), {"receiver": receiver, "most": most})
    return int(found.fetchone()[0])


DUE_SOON = (*_of_receiver, Delivery.due_at > bindparam("now"), Delivery.due_at <= bindparam("until"))
"""Deliveries of a receiver whose lease is running, and those that are due soon."""
_soonest = select(Delivery.state).where(*DUE_SOON).order_by(Delivery.due_at.desc()).limit(_most).subquery()
COUNT_IN_FLIGHT = Prepared(select(func.count()).select_from(_soonest).where(_soonest.c.state == DeliveryState.LEASED))


def count_in_flight(session: Session, receiver: str, now: datetime, lease: timedelta, most: int) -> int:
    """How many deliveries are being tried, looking at ``most`` at most of those due within two leases."""
    values = {"receiver": receiver, "now": now, "until": now + 2 * lease, "most": most}
    return int(COUNT_IN_FLIGHT(reader_of(session), values).fetchone()[0])


class Retrying(NamedTuple):
    """Deliveries that failed at least once, and wait for their next try."""

    deliveries: int
    next_at: datetime | None


_last = (
    select(Delivery.state, Delivery.outcome, Delivery.attempts, Delivery.due_at)
    .where(*_of_receiver)
    .order_by(Delivery.due_at.desc())
    .limit(_most)
    .subquery()
)
FIND_RETRYING = Prepared(
    select(func.count(), func.min(_last.c.due_at)).where(
        _last.c.state == DeliveryState.READY, _last.c.outcome.is_not(None) | (_last.c.attempts > 0)
    )
)


def retrying(session: Session, receiver: str, most: int) -> Retrying:
    """Among the ``most`` that are due last: failed ones wait there, behind all that was not tried yet."""
    count, next_at = FIND_RETRYING(reader_of(session), {"receiver": receiver, "most": most}).fetchone()
    return Retrying(count, utc(next_at) if next_at is not None else None)


FIND_OLDEST = Prepared(select(Delivery.created_at).where(*_of_receiver).order_by(Delivery.due_at).limit(1))


def oldest(session: Session, receiver: str) -> datetime | None:
    """When the receiver's first due delivery was made, whatever became of it since."""
    found = FIND_OLDEST(reader_of(session), {"receiver": receiver}).fetchone()
    return utc(found[0]) if found else None


_dead = select(Delivery.receiver).where(GIVEN_UP).order_by(Delivery.settled_at.desc()).limit(_most).subquery()
COUNT_DEAD = Prepared(select(_dead.c.receiver, func.count()).group_by(_dead.c.receiver))


def count_dead(session: Session, most: int) -> dict[str, int]:
    """For each receiver, how many of the ``most`` deliveries that died last."""
    return dict(COUNT_DEAD(reader_of(session), {"most": most}).fetchall())


def count_all_dead(session: Session, most: int) -> int:
    """Of all receivers together, ``most`` at most. Reads an index alone."""
    return session.scalar(count_up_to(select(Delivery.delivery_id).where(GIVEN_UP), most)) or 0


_made = (
    select(Delivery.delivery_id, Delivery.receiver, Delivery.state, Delivery.lease_token)
    .order_by(Delivery.delivery_id.desc())
    .limit(_most)
    .subquery()
)
_by_a_person = exists().where(
    ActDelivery.delivery_id == _made.c.delivery_id,
    ActDelivery.lease_token == _made.c.lease_token,  # not tried since
    ActDelivery.taken_back_at.is_(None),
)
COUNT_SKIPPED = Prepared(
    select(_made.c.receiver, func.count(), func.max(_made.c.delivery_id))
    .where(_made.c.state == DeliveryState.DISCARDED, ~_by_a_person)
    .group_by(_made.c.receiver)
)


def skipped(session: Session, most: int) -> dict[str, tuple[int, str | None]]:
    """For each receiver, how many deliveries it had no use for, or could not do, and so discarded; and why the last.

    Among the ``most`` that were made last: no index has the older ones. Without those that a person discarded, who
    knows why.
    """
    found = COUNT_SKIPPED(reader_of(session), {"most": most}).fetchall()
    reason = select(Delivery.reason)
    return {
        receiver: (count, session.scalar(reason.where(Delivery.delivery_id == newest)))
        for receiver, count, newest in found
    }


class Rate(NamedTuple):
    """Deliveries that ended lately, and within which time."""

    ended: dict[str, int]
    """By receiver."""
    seconds: float


def rate(session: Session, now: datetime, within: timedelta, most: int) -> Rate:
    """Done or dead ``within`` the last while; where more attempts than ``most`` ended then, since the first of them."""
    last = select(Attempt.delivery_id, Attempt.ended_at).order_by(Attempt.attempt_id.desc()).limit(most).subquery()
    since = session.scalar(select(func.min(last.c.ended_at)).select_from(last)) or now
    looked, since = session.scalar(select(func.count()).select_from(last)) or 0, max(since, now - within)
    if looked < most:
        since = now - within
    counted = select(Delivery.receiver, func.count()).join(last, last.c.delivery_id == Delivery.delivery_id)
    counted = counted.where(last.c.ended_at >= since, last.c.ended_at <= now, Delivery.settled_at == last.c.ended_at)
    ended = {row[0]: row[1] for row in session.execute(counted.group_by(Delivery.receiver))}
    return Rate(ended, max((now - since).total_seconds(), 0.001))


# Dispatchers


def heartbeats(session: Session) -> list[DispatcherHeartbeat]:
    """Of all dispatchers that the table remembers, by name: a handful."""
    return list(session.scalars(select(DispatcherHeartbeat).order_by(DispatcherHeartbeat.name)))


def dispatchers(session: Session, now: datetime, silence: timedelta) -> list[DispatcherHeartbeat]:
    """The dispatchers that are alive, by name."""
    return alive(heartbeats(session), now, silence)


def alive(known: list[DispatcherHeartbeat], now: datetime, silence: timedelta) -> list[DispatcherHeartbeat]:
    return [each for each in known if is_alive(each, now, silence)]


def is_alive(heartbeat: DispatcherHeartbeat, now: datetime, silence: timedelta) -> bool:
    """Its latest heartbeat is less than ``silence`` away, and it has neither ended nor refused to start.

    The heartbeat may be so far ahead of ``now``, because machines' clocks differ; one further ahead is from before the
    clock was set back.
    """
    is_near = now - silence < heartbeat.seen_at < now + silence
    return is_near and not heartbeat.has_stopped and not heartbeat.is_refused


def refusing(known: list[DispatcherHeartbeat], now: datetime, silence: timedelta) -> list[DispatcherHeartbeat]:
    """Processes that would dispatch, are there, and refuse to: see ``delivers_by``."""
    return [each for each in known if each.is_refused and abs(each.seen_at - now) < silence]


def last_heartbeat(known: list[DispatcherHeartbeat]) -> DispatcherHeartbeat | None:
    """Of all that ever dispatched."""
    return max((each for each in known if not each.is_refused), key=lambda each: each.seen_at, default=None)


# The latest, for a live picture


class LatestEvent(NamedTuple):
    position: int
    type: str
    source: str
    occurred_at: datetime


LATEST_EVENTS = Prepared(
    select(StoredEvent.position, StoredEvent.type, StoredEvent.source, StoredEvent.occurred_at)
    .where(StoredEvent.position > bindparam("after"))
    .order_by(StoredEvent.position.desc())
    .limit(_most)
)


def latest_events(session: Session, most: int, after: int = 0) -> list[LatestEvent]:
    """The newest events behind the position ``after``, the newest first."""
    found = LATEST_EVENTS(reader_of(session), {"after": after, "most": most}).fetchall()
    return [LatestEvent(position, kind, source, utc(at)) for position, kind, source, at in found]


class EndedAttempt(NamedTuple):
    attempt_id: int
    receiver: str
    outcome: str
    ended_at: datetime
    owed_at: datetime
    """When the delivery was made, which is when its event was recorded."""


_ended = (
    select(Attempt.attempt_id, Attempt.delivery_id, Attempt.outcome, Attempt.ended_at)
    .where(Attempt.attempt_id > bindparam("after"))
    .order_by(Attempt.attempt_id.desc())
    .limit(_most)
    .subquery()
)
ENDED_ATTEMPTS = Prepared(
    select(_ended.c.attempt_id, Delivery.receiver, _ended.c.outcome, _ended.c.ended_at, Delivery.created_at)
    .join(Delivery, Delivery.delivery_id == _ended.c.delivery_id)
    .order_by(_ended.c.attempt_id.desc())
)


def ended_attempts(session: Session, most: int, after: int = 0) -> list[EndedAttempt]:
    """The newest attempts of all receivers behind the attempt ``after``, the newest first."""
    found = ENDED_ATTEMPTS(reader_of(session), {"after": after, "most": most}).fetchall()
    return [EndedAttempt(number, name, outcome, utc(end), utc(owed)) for number, name, outcome, end, owed in found]


class Step(NamedTuple):
    """A delivery of one of an order's events."""

    order_id: str
    event_type: str
    receiver: str
    state: str
    outcome: str | None
    reason: str | None
    due_at: datetime
    settled_at: datetime | None


def steps(session: Session, order_ids: Sequence[str]) -> defaultdict[str, list[Step]]:
    """For each of these orders, what is owed or done to its events' receivers, oldest first."""
    columns = (StoredEvent.order_id, StoredEvent.type, Delivery.receiver, Delivery.state, Delivery.outcome)
    more = (Delivery.reason, Delivery.due_at, Delivery.settled_at)
    found = select(*columns, *more).join(Delivery, Delivery.event_id == StoredEvent.event_id)
    found = found.where(StoredEvent.order_id.in_(order_ids)).order_by(Delivery.delivery_id)
    by_order: defaultdict[str, list[Step]] = defaultdict(list)
    for row in session.execute(found):
        by_order[row.order_id].append(Step(*row))
    return by_order


class Sample(NamedTuple):
    """Attempts that stand for ``stride`` each."""

    attempts: list[EndedAttempt]
    stride: int


def ended_since(session: Session, since: datetime, most: int) -> Sample:
    """The attempts that ended since then, or ``most`` of them at equal distances: the cost is bounded.

    They are numbered in the order in which they were stored, so that the first is found by halving.
    """
    lowest, end = bounds(session, Attempt.attempt_id)
    first = _first_since(session, Attempt.attempt_id, Attempt.ended_at, since, lowest, end)
    stride = max(1, -(-(end - first) // most))
    numbers = range(end - 1, first - 1, -stride)
    columns = (Attempt.attempt_id, Delivery.receiver, Attempt.outcome, Attempt.ended_at, Delivery.created_at)
    found = select(*columns).join(Delivery, Delivery.delivery_id == Attempt.delivery_id)
    which = Attempt.attempt_id.in_(numbers) if stride > 1 else Attempt.attempt_id >= first
    rows = [EndedAttempt(*row) for row in session.execute(found.where(which, Attempt.ended_at >= since))]
    return Sample(rows, stride)
