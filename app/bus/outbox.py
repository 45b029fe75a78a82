"""The outbox: an event and its deliveries are stored in the transaction of the change that the event reports."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import NamedTuple

from sqlalchemy import insert

from app.bus.leases import Lease
from app.bus.tables import Delivery, StoredEvent
from app.clock import uuid7
from app.db import Prepared, Transaction, table
from app.signal import Event, Subscription, encode, recorder
from app.states import DeliveryState


class Recorded(NamedTuple):
    """A stored event, and the names of the receivers that it is owed to."""

    event_id: str
    type: str
    order_id: str
    source: str
    receivers: tuple[str, ...]


INSERT_EVENT = Prepared(
    lambda dialect: insert(table(StoredEvent)).values(transaction_id=dialect.transaction_id()).inline(),
    *("event_id", "type", "version", "source", "order_id", "user_id", "data", "occurred_at"),
    *("cause_id", "correlation_id"),
)


INSERT_DELIVERY = Prepared(
    insert(table(Delivery)).values(state=DeliveryState.READY, attempts=0, lease_token=0).inline(),
    *("event_id", "receiver", "due_at", "created_at"),
)

_cause: ContextVar[Lease | None] = ContextVar("cause", default=None)
"""The delivery whose receiver runs: what is sent meanwhile happened because of its event."""


@contextmanager
def caused_by(lease: Lease) -> Iterator[None]:
    """Within the block, recorded events carry the delivery's event as their cause, and its correlation id."""
    token = _cause.set(lease)
    try:
        yield
    finally:
        _cause.reset(token)


@contextmanager
def recording_savepoint(transaction: Transaction) -> Iterator[None]:
    """A savepoint of the transaction: what is rolled back in it is not reported as recorded either."""
    recorded = len(transaction.facts.get("recorded", ()))
    try:
        with transaction.savepoint():
            yield
    except BaseException:
        del transaction.facts.get("recorded", [])[recorded:]
        raise


def record_into(transaction: Transaction) -> None:
    """From here on, in this context, durable signals record what they send in the transaction."""
    recorder.set(partial(record, transaction))


def record(
    transaction: Transaction, event: Event, *, source: str, owed: list[Subscription], event_id: str | None = None
) -> None:
    """Insert the event, and a delivery due at once for each subscription that it is owed to."""
    cause, now = _cause.get(), transaction.now
    event_id = event_id or uuid7()
    recorded = Recorded(
        event_id, type(event).__name__, event.order_id, source, tuple(subscription.name for subscription in owed)
    )
    transaction.add_row(
        INSERT_EVENT,
        {
            "event_id": event_id,
            "type": recorded.type,
            "version": event.version,
            "source": source,
            "order_id": event.order_id,
            "user_id": event.user_id,
            "data": encode(event),
            "occurred_at": now,
            "cause_id": cause.event_id if cause else None,
            "correlation_id": cause.correlation_id if cause else event_id,
        },
    )
    for receiver in recorded.receivers:
        delivery = {
            "event_id": event_id,
            "receiver": receiver,
            "due_at": transaction.now,
            "created_at": transaction.now,
        }
        transaction.add_row(INSERT_DELIVERY, delivery)
    transaction.facts.setdefault("recorded", []).append(recorded)
