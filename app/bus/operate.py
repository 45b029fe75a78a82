"""Operators' acts on deliveries: find, retry or discard one, or all that a filter selects."""

import dataclasses
import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Select, func, select, update
from sqlalchemy.orm import Session

from app.bus.queries import DELIVERY_COLUMNS
from app.bus.tables import Delivery, OperatorAct, StoredEvent
from app.db import Database, Transaction, table
from app.states import DeliveryState
from app.text import printable, storable

BATCH = 500
"""Deliveries changed in one transaction: it bounds how long an act on very many holds the write lock."""

MOST_NAME_CHARACTERS = 100
"""Of who acted: people choose their names freely, and a column holds no more."""

ACTIONS = {
    "retry": (DeliveryState.DEAD, DeliveryState.DISCARDED),
    "discard": (DeliveryState.READY, DeliveryState.DEAD),
}
"""The actions, and the states of the deliveries that each applies to."""


@dataclass(frozen=True)
class Filter:
    """Selects deliveries. A field that is None does not restrict; ``reason`` matches anywhere in a reason."""

    delivery_id: int | None = None
    state: str | None = None
    receiver: str | None = None
    event_type: str | None = None
    order_id: str | None = None
    user_id: str | None = None
    outcome: str | None = None
    """Of the latest attempt."""
    reason: str | None = None
    older_than: datetime | None = None
    """The delivery was made before."""

    def find(self, *columns: Any) -> Select[Any]:
        """A query of ``columns`` of the selected deliveries, and of their events."""
        query = select(*columns).join(StoredEvent, StoredEvent.event_id == Delivery.event_id)
        for column, value in (
            (Delivery.delivery_id, self.delivery_id),
            (Delivery.state, self.state),
            (Delivery.receiver, self.receiver),
            (Delivery.outcome, self.outcome),
            (StoredEvent.type, self.event_type),
            (StoredEvent.order_id, self.order_id),
            (StoredEvent.user_id, self.user_id),
        ):
            if value is not None:
                query = query.where(column == value)
        if self.reason is not None:
            query = query.where(Delivery.reason.contains(self.reason, autoescape=True))
        if self.older_than is not None:
            query = query.where(Delivery.created_at < self.older_than)
        return query

    def __str__(self) -> str:
        given = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        return json.dumps(given, ensure_ascii=False, default=str)


def find(session: Session, which: Filter, *, after: int = 0, limit: int = 50) -> tuple[list[Any], int | None]:
    """A page of deliveries with their events, oldest first, and the cursor of the next page: None at the end."""
    about = (StoredEvent.type.label("event_type"), StoredEvent.order_id, StoredEvent.user_id)
    page = which.find(*DELIVERY_COLUMNS, *about).where(Delivery.delivery_id > after).order_by(Delivery.delivery_id)
    found = list(session.execute(page.limit(limit + 1)))
    return found[:limit], found[limit - 1].delivery_id if len(found) > limit else None


def count(session: Session, action: str, which: Filter) -> int:
    """How many deliveries the action would touch now."""
    return session.scalar(select(func.count()).select_from(_chosen(action, which).subquery())) or 0


def act(database: Database, action: str, which: Filter, *, by: str, reason: str | None = None) -> int:
    """Change deliveries, a batch in each transaction, and record who did what, when and why. Returns how many.

    ``retry``: dead and discarded deliveries become due now, with a new budget; their attempts stay. ``discard``:
    waiting and dead ones are given up for good; those that run at the moment are spared. Repeating either does no harm,
    because what was changed is not selected again. Both end at the newest delivery that was there when they began.
    """
    with database.read() as session:
        newest = session.scalar(select(func.max(Delivery.delivery_id))) or 0
    act_id = database.transact(lambda transaction: record_act(transaction, action, which, by, reason))
    total, last = 0, 0
    while last < newest:
        changed, last = database.transact(
            lambda transaction, last=last: act_on_batch(transaction, act_id, action, which, reason, last, newest)  # type: ignore[misc]
        )
        total += changed
    return total


def _chosen(action: str, which: Filter) -> Select[Any]:
    return which.find(Delivery.delivery_id).where(Delivery.state.in_(ACTIONS[action]))


def record_act(transaction: Transaction, action: str, which: Filter, by: str, reason: str | None) -> int:
    """Record who does what, when and why. Returns the act's id."""
    acted_by = printable(storable(by))[:MOST_NAME_CHARACTERS]
    act = OperatorAct(acted_at=transaction.now, acted_by=acted_by, action=action, filter=str(which), reason=reason)
    transaction.session.add(act)
    transaction.session.flush()
    return act.act_id


def act_on_batch(
    transaction: Transaction, act_id: int, action: str, which: Filter, reason: str | None, last: int, newest: int
) -> tuple[int, int]:
    """Act on the next BATCH deliveries after ``last``. Returns how many, and where the next batch begins."""
    session, now = transaction.session, transaction.now
    batch = _chosen(action, which).where(Delivery.delivery_id > last, Delivery.delivery_id <= newest)
    ids = session.scalars(batch.order_by(Delivery.delivery_id).limit(BATCH).with_for_update(of=Delivery)).all()
    if not ids:
        return 0, newest
    values: dict[str, Any] = (
        {"state": DeliveryState.READY, "due_at": now, "attempts": 0, "settled_at": None}
        if action == "retry"
        else {"state": DeliveryState.DISCARDED, "settled_at": now, "reason": reason}
    )
    session.execute(update(table(Delivery)).where(Delivery.delivery_id.in_(ids)).values(**values))
    acted = update(table(OperatorAct)).where(OperatorAct.act_id == act_id)
    session.execute(acted.values(deliveries=OperatorAct.deliveries + len(ids)))
    return len(ids), ids[-1]
