"""What the bus can tell: an order's timeline, the feed of all events, and how the bus is doing."""

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any, TypeVar

from sqlalchemy import BigInteger, LargeBinary, Text, cast, func, select, tuple_
from sqlalchemy.orm import Session

from app.bus.tables import GIVEN_UP, UNFINISHED, Attempt, Delivery, Dispatcher, StoredEvent
from app.db import on_postgresql

T = TypeVar("T")

ALIVE = timedelta(seconds=30)
"""A dispatcher that was not seen for longer counts as gone."""


def raw_data(dialect: str) -> Any:
    """The data column, as bytes on SQLite: text that is no longer UTF-8 must not break the query that meets it."""
    return StoredEvent.data if dialect == "postgresql" else cast(StoredEvent.data, LargeBinary)


EVENT_COLUMNS = (
    StoredEvent.position,
    StoredEvent.event_id,
    StoredEvent.type,
    StoredEvent.version,
    StoredEvent.source,
    StoredEvent.order_id,
    StoredEvent.user_id,
    StoredEvent.occurred_at,
    StoredEvent.cause_id,
    StoredEvent.correlation_id,
    StoredEvent.transaction_id,
)


def timeline(session: Session, order_id: str) -> list[dict[str, Any]]:
    """Everything that happened to an order, oldest first: events with their cause, deliveries, attempts."""
    found = session.execute(
        select(*EVENT_COLUMNS, raw_data(session.get_bind().dialect.name).label("data"))
        .where(StoredEvent.order_id == order_id)
        .order_by(StoredEvent.position)
    ).all()
    deliveries = _group(
        session.scalars(
            select(Delivery)
            .where(Delivery.event_id.in_([event.event_id for event in found]))
            .order_by(Delivery.delivery_id)
        ),
        "event_id",
    )
    attempts = _group(
        session.scalars(
            select(Attempt)
            .where(Attempt.delivery_id.in_([d.delivery_id for owed in deliveries.values() for d in owed]))
            .order_by(Attempt.attempt_id)
        ),
        "delivery_id",
    )
    return [
        {
            "event_id": event.event_id,
            "type": event.type,
            "version": event.version,
            "source": event.source,
            "occurred_at": event.occurred_at,
            "cause_id": event.cause_id,
            "correlation_id": event.correlation_id,
            "data": _readable(event.data),
            "deliveries": [
                delivery_view(delivery) | {"attempts": [attempt_view(a) for a in attempts[delivery.delivery_id]]}
                for delivery in deliveries[event.event_id]
            ],
        }
        for event in found
    ]


def delivery_view(delivery: Delivery) -> dict[str, Any]:
    """A delivery as people read it: one that is finished is not due any more."""
    finished = delivery.settled_at is not None
    return {
        "delivery_id": delivery.delivery_id,
        "receiver": delivery.receiver,
        "state": delivery.state,
        "due_at": None if finished else delivery.due_at,
        "settled_at": delivery.settled_at,
        "attempts_spent": delivery.attempts,
        "reason": delivery.reason,
    }


def attempt_view(attempt: Attempt) -> dict[str, Any]:
    return {
        "outcome": attempt.outcome,
        "detail": attempt.detail,
        "started_at": attempt.started_at,
        "ended_at": attempt.ended_at,
        "dispatcher": attempt.dispatcher,
    }


def _group(rows: Iterable[T], key: str) -> defaultdict[Any, list[T]]:
    groups: defaultdict[Any, list[T]] = defaultdict(list)
    for row in rows:
        groups[getattr(row, key)].append(row)
    return groups


def _readable(data: bytes | str) -> Any:
    """The event's data for showing; what is damaged is shown as the text that can be made of it."""
    try:
        return json.loads(data, parse_float=str, parse_constant=str)  # NaN and 1e999 are damage too
    except (ValueError, RecursionError):
        return data.decode(errors="replace") if isinstance(data, bytes) else data


def feed(session: Session, after: str | None, limit: int) -> tuple[Sequence[Any], str | None]:
    """A page of all events in the order in which they became facts, and the cursor to go on from (``after`` again).

    On PostgreSQL rows commit out of the order of their positions. So the page is ordered by transaction, and ends
    before the oldest transaction still running: nothing can later appear behind the cursor. Raises ValueError for a
    cursor that this function did not make.
    """
    page = select(*EVENT_COLUMNS, raw_data(session.get_bind().dialect.name).label("data")).limit(limit)
    since, position = _parse_cursor(after)
    if on_postgresql(session):
        settled = cast(cast(func.pg_snapshot_xmin(func.pg_current_snapshot()), Text), BigInteger)
        place = tuple_(StoredEvent.transaction_id, StoredEvent.position)
        page = page.where(StoredEvent.transaction_id < settled, place > (since, position))
        page = page.order_by(StoredEvent.transaction_id, StoredEvent.position)
    else:
        page = page.where(StoredEvent.position > position).order_by(StoredEvent.position)
    found = list(session.execute(page))
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


def dispatchers(session: Session, now: datetime) -> list[Dispatcher]:
    """The dispatchers that are alive: seen less than ALIVE ago."""
    return list(session.scalars(select(Dispatcher).where(Dispatcher.seen_at > now - ALIVE).order_by(Dispatcher.name)))


def backlog(session: Session) -> list[Any]:
    """What is unfinished or dead: ``receiver``, ``state``, ``deliveries``, and ``since``, the oldest due or end."""
    unfinished = select(
        Delivery.receiver, Delivery.state, func.count().label("deliveries"), func.min(Delivery.due_at).label("since")
    ).where(UNFINISHED)
    dead = select(
        Delivery.receiver,
        Delivery.state,
        func.count().label("deliveries"),
        func.min(Delivery.settled_at).label("since"),
    ).where(GIVEN_UP)
    groups = [query.group_by(Delivery.receiver, Delivery.state) for query in (unfinished, dead)]
    return sorted((row for query in groups for row in session.execute(query)), key=lambda row: row[:2])
