"""The outbox: an event and its deliveries are stored in the transaction of the change that the event reports."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, NamedTuple

from sqlalchemy import insert

from app.bus.leases import EVENT, Lease
from app.bus.tables import Delivery, StoredEvent
from app.clock import uuid7
from app.db import Prepared, Transaction, table
from app.signal import NO_ORIGIN, Event, Origin, Subscription, encode, recorder
from app.states import DeliveryState, Outcome


class Owed(NamedTuple):
    """A delivery of an ``event``, the event's row, that is to be stored. ``dispatcher`` publishes the event."""

    receiver: str
    dispatcher: str | None
    event: dict[str, Any]


class Recorded(NamedTuple):
    """A stored event, and the names of the receivers that it is owed to."""

    event_id: str
    type: str
    order_id: str
    source: str
    receivers: tuple[str, ...]
    traceparent: str | None
    request_id: str | None


INSERT_EVENT = Prepared(
    lambda dialect: insert(table(StoredEvent)).values(transaction_id=dialect.transaction_id()).inline(),
    *("event_id", "type", "version", "source", "order_id", "user_id", "data", "occurred_at"),
    *("cause_id", "correlation_id", "traceparent"),
)


_ready = insert(table(Delivery)).values(state=DeliveryState.READY, attempts=0, lease_token=0).inline()
INSERT_DELIVERY = Prepared(_ready, "event_id", "receiver", "due_at", "created_at")
INSERT_ORDERED_DELIVERY = Prepared(_ready, "event_id", "receiver", "due_at", "created_at", "ordering_key")

INSERT_DONE = Prepared(
    insert(table(Delivery))
    .values(state=DeliveryState.DONE, outcome=Outcome.OK, attempts=1, lease_token=1)
    .returning(Delivery.delivery_id, Delivery.event_id, Delivery.receiver)
    .inline(),
    *("event_id", "receiver", "due_at", "created_at", "leased_at", "leased_by", "settled_at"),
)

_set_apart: ContextVar[list[Owed] | None] = ContextVar("set_apart", default=None)
"""Where deliveries to transactional receivers are put that the caller will see to."""

_cause: ContextVar[Lease | None] = ContextVar("cause", default=None)
"""The delivery whose receiver runs: what is sent meanwhile happened because of its event."""


def running_delivery() -> Lease | None:
    """The delivery whose receiver runs in this thread."""
    return _cause.get()


@contextmanager
def caused_by(lease: Lease) -> Iterator[None]:
    """Within the block, recorded events carry the delivery's event as their cause, its correlation id and its trace."""
    token = _cause.set(lease)
    try:
        yield
    finally:
        _cause.reset(token)


@contextmanager
def setting_apart() -> Iterator[list[Owed]]:
    """Within the block, deliveries to transactional receivers are not stored but put into the list.

    Not where the cause is in doubt: its process died, and it may be one of these receivers that killed it. Nor to a
    receiver that is ordered: another delivery of the key may be before it.
    """
    owed: list[Owed] = []
    token = _set_apart.set(owed)
    try:
        yield owed
    finally:
        _set_apart.reset(token)


@contextmanager
def recording_savepoint(transaction: Transaction) -> Iterator[None]:
    """A savepoint of the transaction: what is rolled back in it is neither reported as recorded nor set apart."""
    recorded, apart = len(transaction.facts.get("recorded", ())), _set_apart.get()
    set_apart = len(apart or ())
    try:
        with transaction.savepoint():
            yield
    except BaseException:
        del transaction.facts.get("recorded", [])[recorded:]
        if apart is not None:
            del apart[set_apart:]
        raise


def record_into(transaction: Transaction) -> None:
    """From here on, in this context, durable signals record what they send in the transaction."""
    recorder.set(partial(record, transaction))


def record(
    transaction: Transaction,
    event: Event,
    *,
    source: str,
    owed: list[Subscription],
    event_id: str | None = None,
    origin: Origin = NO_ORIGIN,
) -> None:
    """Insert the event, and a delivery due at once for each subscription that it is owed to."""
    cause, now, apart = _cause.get(), transaction.now, _set_apart.get()
    event_id = event_id or uuid7()
    traceparent = cause.traceparent if cause else origin.traceparent
    receivers = tuple(subscription.name for subscription in owed)
    recorded = Recorded(
        event_id, type(event).__name__, event.order_id, source, receivers, traceparent, origin.request_id
    )
    row = {
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
        "traceparent": traceparent,
    }
    transaction.add_row(INSERT_EVENT, row)
    for subscription in owed:
        if subscription.ordered_by is not None:
            insert_ready(transaction, event_id, subscription.name, getattr(event, subscription.ordered_by))
        elif apart is not None and cause is not None and subscription.transactional and not cause.in_doubt:
            apart.append(Owed(subscription.name, cause.leased_by, row))
        else:
            insert_ready(transaction, event_id, subscription.name)
    transaction.facts.setdefault("recorded", []).append(recorded)


def insert_ready(transaction: Transaction, event_id: str, receiver: str, key: str | None = None) -> None:
    """Add a delivery that is due at once; with a ``key``, to an ordered receiver: the claim decides when it runs."""
    now = transaction.now
    row = {"event_id": event_id, "receiver": receiver, "due_at": now, "created_at": now}
    if key is None:
        transaction.add_row(INSERT_DELIVERY, row)
    else:
        transaction.add_row(INSERT_ORDERED_DELIVERY, row | {"ordering_key": key})
    transaction.facts["due"] = True


def insert_done(transaction: Transaction, owed: list[Owed]) -> list[Lease]:
    """Insert deliveries as done, each as the lease under which its receiver is still to be called."""
    now = transaction.now
    same = {"due_at": now, "created_at": now, "leased_at": now, "settled_at": now}
    rows = [
        {"event_id": each.event["event_id"], "receiver": each.receiver, "leased_by": each.dispatcher, **same}
        for each in owed
    ]
    found = INSERT_DONE.insert_all(transaction, rows).fetchall() if rows else []
    ids = {(event_id, receiver): delivery_id for delivery_id, event_id, receiver in found}
    return [
        Lease(
            delivery_id=ids[each.event["event_id"], each.receiver],
            token=1,
            receiver=each.receiver,
            created_at=now,
            leased_at=now,
            leased_by=each.dispatcher,
            **{name: each.event[name] for name in (*EVENT, "occurred_at", "data")},
        )
        for each in owed
    ]
