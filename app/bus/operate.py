"""What a person may do with deliveries: retry or discard one, or all that a filter selects."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Select, func, select, update

from app.bus.tables import DEAD, DISCARDED, READY, Attempt, Delivery, StoredEvent
from app.db import Transaction

RETRIABLE = (DEAD, DISCARDED)
DISCARDABLE = (READY, DEAD)


@dataclass(frozen=True)
class Filter:
    """Which deliveries are meant; what is None does not restrict. Text in ``reason`` is looked for anywhere in it."""

    delivery_id: int | None = None
    state: str | None = None
    receiver: str | None = None
    event_type: str | None = None
    order_id: str | None = None
    outcome: str | None = None
    """Of the latest attempt."""
    reason: str | None = None
    settled_before: datetime | None = None

    def _select(self, states: tuple[str, ...]) -> Select[Any]:
        chosen = select(Delivery.delivery_id).join(StoredEvent, StoredEvent.event_id == Delivery.event_id)
        chosen = chosen.where(Delivery.state.in_(states))
        for column, value in (
            (Delivery.delivery_id, self.delivery_id),
            (Delivery.state, self.state),
            (Delivery.receiver, self.receiver),
            (StoredEvent.type, self.event_type),
            (StoredEvent.order_id, self.order_id),
        ):
            if value is not None:
                chosen = chosen.where(column == value)
        if self.reason is not None:
            chosen = chosen.where(Delivery.reason.contains(self.reason, autoescape=True))
        if self.settled_before is not None:
            chosen = chosen.where(Delivery.settled_at < self.settled_before)
        if self.outcome is not None:
            latest = (
                select(Attempt.outcome)
                .where(Attempt.delivery_id == Delivery.delivery_id)
                .order_by(Attempt.attempt_id.desc())
                .limit(1)
                .scalar_subquery()
            )
            chosen = chosen.where(latest == self.outcome)
        return chosen


def count_retriable(session: Any, which: Filter) -> int:
    """How many deliveries ``retry`` would touch now."""
    return _count(session, which, RETRIABLE)


def count_discardable(session: Any, which: Filter) -> int:
    """How many deliveries ``discard`` would touch now."""
    return _count(session, which, DISCARDABLE)


def _count(session: Any, which: Filter, states: tuple[str, ...]) -> int:
    return session.scalar(select(func.count()).select_from(which._select(states).subquery())) or 0


def retry(session: Transaction, which: Filter) -> int:
    """Dead and discarded deliveries become due now, with a new budget; their attempts stay. Returns how many.

    Repeating it does no harm: what is due already is not selected again.
    """
    changed = session.execute(
        update(Delivery)
        .where(Delivery.delivery_id.in_(which._select(RETRIABLE)), Delivery.state.in_(RETRIABLE))
        .values(state=READY, due_at=session.now, attempts=0, settled_at=None)
        .execution_options(synchronize_session=False)
    )
    return int(changed.rowcount)  # type: ignore[attr-defined]  # of CursorResult


def discard(session: Transaction, which: Filter, reason: str) -> int:
    """Waiting and dead deliveries are given up for good, with the reason. Returns how many."""
    changed = session.execute(
        update(Delivery)
        .where(Delivery.delivery_id.in_(which._select(DISCARDABLE)), Delivery.state.in_(DISCARDABLE))
        .values(state=DISCARDED, settled_at=session.now, reason=reason)
        .execution_options(synchronize_session=False)
    )
    return int(changed.rowcount)  # type: ignore[attr-defined]  # of CursorResult
