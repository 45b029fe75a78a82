"""Retention: finished and old events are deleted, in small batches that block nobody. Orders are kept for ever."""

import itertools
from datetime import timedelta

from sqlalchemy import ColumnElement, delete, exists, or_, select
from sqlalchemy.orm import Session

from app.bus.tables import ActDelivery, Attempt, Delivery, StoredEvent
from app.db import Database, Transaction
from app.states import DeliveryState

BATCH = 200
"""Events deleted in one transaction."""


def prune(database: Database, keep: timedelta, batches: int | None = None) -> int:
    """Delete events older than ``keep``, with their deliveries and attempts. Returns how many events.

    What operators did is kept: an act forgets only which deliveries it touched.

    ``batches`` is how many at the most, each a transaction of its own. An event stays while one of its deliveries is
    waiting, running or dead, or ended less than ``keep`` ago.
    """
    total, last = 0, 0
    for _ in range(batches) if batches else itertools.count():
        count, following = database.transact(lambda t, last=last: _prune_batch(t, keep, last))  # type: ignore[misc]
        total += count
        if following is None:
            break
        last = following
    return total


def _prune_batch(transaction: Transaction, keep: timedelta, last: int) -> tuple[int, int | None]:
    """Returns how many events were deleted, and the position to go on from: None at the end."""
    session, cutoff = transaction.session, transaction.now - keep
    # Events lie in the order of time: the first one that is too young is the end, and nothing behind it is looked at;
    # but not one of a time to come, when the clock ran ahead.
    first_young = (
        select(StoredEvent.position)
        .where(StoredEvent.occurred_at.between(cutoff, transaction.now), StoredEvent.position > last)
        .order_by(StoredEvent.position)
        .limit(1)
    )
    end = session.scalar(first_young)
    unfinished = Delivery.state.not_in((DeliveryState.DONE, DeliveryState.DISCARDED))
    needed = or_(unfinished, Delivery.settled_at >= cutoff)
    still_needed = exists().where(Delivery.event_id == StoredEvent.event_id, needed)
    old = select(StoredEvent.position, StoredEvent.event_id).where(
        StoredEvent.occurred_at < cutoff, StoredEvent.position > last, ~still_needed
    )
    if end is not None:
        old = old.where(StoredEvent.position < end)
    found = session.execute(old.order_by(StoredEvent.position).limit(BATCH)).all()
    ids = _lock_unneeded(session, [row.event_id for row in found], needed)
    deliveries = select(Delivery.delivery_id).where(Delivery.event_id.in_(ids))
    for statement in (
        delete(Attempt).where(Attempt.delivery_id.in_(deliveries)),
        delete(ActDelivery).where(ActDelivery.delivery_id.in_(deliveries)),
        delete(Delivery).where(Delivery.event_id.in_(ids)),
        delete(StoredEvent).where(StoredEvent.event_id.in_(ids)),
    ):
        session.execute(statement.execution_options(synchronize_session=False))
    return len(ids), found[-1].position if len(found) == BATCH else None


def _lock_unneeded(session: Session, ids: list[str], needed: ColumnElement[bool]) -> list[str]:
    """Lock the events and their deliveries, and look again: on PostgreSQL a person may have retried or replayed one
    since it was read."""
    session.execute(select(StoredEvent.position).where(StoredEvent.event_id.in_(ids)).with_for_update())
    locked = select(Delivery.delivery_id).where(Delivery.event_id.in_(ids)).order_by(Delivery.delivery_id)
    session.execute(locked.with_for_update())
    spared = set(session.scalars(select(Delivery.event_id).where(Delivery.event_id.in_(ids), needed)))
    return [event_id for event_id in ids if event_id not in spared]
