"""Read queries on the bus's tables: an order's timeline, the feed of all events, the backlog."""

import json
from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Select, case, func, select
from sqlalchemy.orm import Session

from app.bus.tables import GIVEN_UP, UNFINISHED, Attempt, Delivery, DispatcherHeartbeat, StoredEvent
from app.db import dialect_of, table

ALIVE = timedelta(seconds=30)
"""A dispatcher that was not seen for longer counts as gone; so does one that a clock saw which ran ahead by more."""


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


def oldest_due(session: Session, now: datetime) -> timedelta | None:
    """For how long the most overdue delivery has waited, None when none is overdue."""
    due_at = session.scalar(select(func.min(Delivery.due_at)).where(UNFINISHED))
    return now - due_at if due_at is not None and due_at <= now else None


def dispatchers(session: Session, now: datetime) -> list[DispatcherHeartbeat]:
    """The dispatchers that are alive: seen less than ALIVE ago."""
    return list(
        session.scalars(
            select(DispatcherHeartbeat)
            .where(DispatcherHeartbeat.seen_at > now - ALIVE, DispatcherHeartbeat.seen_at < now + ALIVE)
            .order_by(DispatcherHeartbeat.name)
        )
    )


def backlog(session: Session) -> list[Any]:
    """Unfinished and dead deliveries: ``receiver``, ``state``, their number, and ``since``, the oldest due or end."""
    found: list[Any] = []
    for since, condition in ((Delivery.due_at, UNFINISHED), (Delivery.settled_at, GIVEN_UP)):
        facts = (func.count().label("deliveries"), func.min(since).label("since"))
        groups = select(Delivery.receiver, Delivery.state, *facts).group_by(Delivery.receiver, Delivery.state)
        found += session.execute(groups.where(condition))
    return sorted(found, key=lambda row: row[:2])
