"""Read queries on the bus's tables: an order's timeline, the feed of all events, the backlog."""

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import Select, case, func, select
from sqlalchemy.orm import Session

from app.bus.tables import (
    GIVEN_UP,
    UNFINISHED,
    Attempt,
    CircuitBreaker,
    Delivery,
    DispatcherHeartbeat,
    StoredEvent,
)
from app.db import dialect_of, table
from app.states import DeliveryState

DELIVERY_COLUMNS = (
    *(column for column in table(Delivery).columns if column.name not in ("due_at", "attempts")),
    case((Delivery.settled_at.is_(None), Delivery.due_at)).label("due_at"),  # what has ended is not due any more
    Delivery.attempts.label("attempts_spent"),
)
"""A delivery as people read it."""


def timeline(session: Session, order_id: str) -> list[dict[str, Any]]:
    """Everything that happened to an order, oldest first: events with their cause, deliveries, attempts."""
    events = _events(session).where(StoredEvent.order_id == order_id).order_by(StoredEvent.position)
    found = session.execute(events).mappings().all()
    owed = select(*DELIVERY_COLUMNS).where(Delivery.event_id.in_([event["event_id"] for event in found]))
    deliveries = _group(session, owed.order_by(Delivery.delivery_id), "event_id")
    tried = Attempt.delivery_id.in_([each["delivery_id"] for group in deliveries.values() for each in group])
    attempts = _group(session, select(table(Attempt)).where(tried).order_by(Attempt.attempt_id), "delivery_id")
    return [
        {
            **event,
            "data": _readable(event["data"]),
            "deliveries": [
                delivery | {"attempts": attempts[delivery["delivery_id"]]} for delivery in deliveries[event["event_id"]]
            ],
        }
        for event in found
    ]


def _events(session: Session) -> Select[Any]:
    columns = (column for column in table(StoredEvent).columns if column.name != "data")
    return select(*columns, dialect_of(session).raw_text(StoredEvent.data).label("data"))


def _group(session: Session, query: Select[Any], key: str) -> defaultdict[Any, list[dict[str, Any]]]:
    groups: defaultdict[Any, list[dict[str, Any]]] = defaultdict(list)
    for row in session.execute(query).mappings():
        groups[row[key]].append(dict(row))
    return groups


def _readable(data: bytes | str) -> Any:
    """The event's data for showing; what is damaged is shown as the text that can be made of it."""
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


class LongLease(NamedTuple):
    """A delivery that is being tried."""

    delivery_id: int
    order_id: str
    leased_at: datetime
    leased_by: str


DUE_LAST = 50
"""So many of a receiver's unfinished deliveries are looked at, from the last due on: failed ones wait for their next
try there, behind all that was not tried yet."""


def receivers_with_unfinished(session: Session) -> Iterator[str]:
    """By one step in the index for each: a backlog of 100,000 costs no more than one of three."""
    receiver = ""
    while (following := session.scalar(_next_receiver(receiver))) is not None:
        yield following
        receiver = following


def _next_receiver(after: str) -> Select[Any]:
    found = select(Delivery.receiver).where(UNFINISHED, Delivery.receiver > after)
    return found.order_by(Delivery.receiver).limit(1)  # min() reads them all where PostgreSQL has no statistics yet


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
    leased = leased.where(Delivery.due_at > now, Delivery.due_at <= now + 2 * lease)
    found = session.execute(leased.order_by(Delivery.leased_at).limit(1)).first()
    return LongLease(*found) if found else None


def has_unfinished_since(session: Session, receiver: str, before: datetime) -> bool:
    """Whether the receiver has an unfinished delivery that was made ``before``."""
    old = select(Delivery.delivery_id).where(Delivery.receiver == receiver, UNFINISHED, Delivery.created_at < before)
    return session.execute(old.limit(1)).first() is not None


def open_breakers(session: Session) -> dict[str, datetime]:
    """For each receiver whose circuit breaker is open, since when."""
    return {row.receiver: row.opened_at for row in session.execute(select(table(CircuitBreaker)))}


def dispatchers(session: Session, now: datetime, silence: timedelta) -> list[DispatcherHeartbeat]:
    """The dispatchers that are alive: their latest heartbeat is less than ``silence`` away.

    It may be so far ahead of ``now``, because machines' clocks differ; one further ahead is from before the clock was
    set back.
    """
    near = (DispatcherHeartbeat.seen_at > now - silence, DispatcherHeartbeat.seen_at < now + silence)
    return list(session.scalars(select(DispatcherHeartbeat).where(*near).order_by(DispatcherHeartbeat.name)))


def last_heartbeat(session: Session) -> DispatcherHeartbeat | None:
    """Of all dispatchers that have not signed off."""
    return session.scalar(select(DispatcherHeartbeat).order_by(DispatcherHeartbeat.seen_at.desc()).limit(1))


def backlog(session: Session) -> list[Any]:
    """Unfinished and dead deliveries: ``receiver``, ``state``, their number, and ``since``, the oldest due or end."""
    found: list[Any] = []
    for since, condition in ((Delivery.due_at, UNFINISHED), (Delivery.settled_at, GIVEN_UP)):
        facts = (func.count().label("deliveries"), func.min(since).label("since"))
        groups = select(Delivery.receiver, Delivery.state, *facts).group_by(Delivery.receiver, Delivery.state)
        found += session.execute(groups.where(condition))
    return sorted(found, key=lambda row: row[:2])
