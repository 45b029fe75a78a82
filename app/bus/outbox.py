"""Remember: store an event and its deliveries in the transaction that made it a fact."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import NamedTuple

from sqlalchemy import BigInteger, Text, cast, func, insert

from app.bus.leases import Lease
from app.bus.tables import READY, Delivery, StoredEvent
from app.clock import uuid7
from app.db import Transaction, table
from app.db.prepared import Prepared
from app.signal import Event, Subscription, encode, recorder


class Recorded(NamedTuple):
    """A stored event, and the names of the receivers that it is owed to."""

    event_id: str
    type: str
    order_id: str
    source: str
    receivers: tuple[str, ...]


INSERT_EVENT = Prepared(
    lambda dialect: (
        insert(table(StoredEvent))
        # Where transactions commit out of order, a reader of the feed waits for this one to end.
        .values(
            transaction_id=cast(cast(func.pg_current_xact_id(), Text), BigInteger) if dialect == "postgresql" else 0
        )
        .inline()
    ),
    *("event_id", "type", "version", "source", "order_id", "user_id", "data", "occurred_at"),
    *("cause_id", "correlation_id"),
)


INSERT_DELIVERY = Prepared(
    insert(table(Delivery)).values(state=READY, attempts=0, lease_token=0).inline(),
    *("event_id", "receiver", "due_at", "created_at"),
)

_cause: ContextVar[Lease | None] = ContextVar("cause", default=None)
"""The delivery that is running: what is published meanwhile happened because of its event."""


@contextmanager
def because_of(lease: Lease) -> Iterator[None]:
    """Within the block, recorded events carry its event as their cause, and its correlation id."""
    token = _cause.set(lease)
    try:
        yield
    finally:
        _cause.reset(token)


def record_into(transaction: Transaction) -> None:
    """What durable signals send from here on, in this context, is stored in the transaction."""
    recorder.set(partial(record, transaction))


def record(
    session: Transaction, event: Event, *, source: str, owed: list[Subscription], event_id: str | None = None
) -> None:
    """Insert the event, and a delivery due at once for each subscription that it is owed to."""
    receivers = tuple(subscription.name for subscription in owed)
    event_id = event_id or uuid7()
    cause = _cause.get()
    session.add_row(
        INSERT_EVENT,
        {
            "event_id": event_id,
            "type": type(event).__name__,
            "version": event.version,
            "source": source,
            "order_id": event.order_id,
            "user_id": event.user_id,
            "data": encode(event),
            "occurred_at": session.now,
            "cause_id": cause.event_id if cause else None,
            "correlation_id": cause.correlation_id if cause else event_id,
        },
    )
    for name in receivers:
        delivery = {"event_id": event_id, "receiver": name, "due_at": session.now, "created_at": session.now}
        session.add_row(INSERT_DELIVERY, delivery)
    session.facts.setdefault("recorded", []).append(
        Recorded(event_id, type(event).__name__, event.order_id, source, receivers)
    )
