"""Order intake: store an order with the event that announces it, or nothing. All sources of orders use it."""

from datetime import datetime
from typing import Any

from app.db import Database, FirstRow, Transaction
from app.errors import OrderConflict
from app.events import OrderCreated, order_created
from app.orders.records import INSERT_ORDERS, place_order
from app.signal import NO_ORIGIN, Origin


def take_order(
    database: Database, source: str, event: OrderCreated, event_id: str, origin: Origin = NO_ORIGIN
) -> str | None:
    """Store the order and send its event. Returns the earlier event's id where the same order was stored before.

    Raises OrderConflict, outside the transaction: a refused order has written nothing, and an error inside would
    make the requests of the same group commit begin again.
    """
    order: dict[str, Any] = {
        "order_id": event.order_id,
        "user_id": event.user_id,
        "total_price": event.total_price,
        "email": event.email,
        "event_id": event_id,
    }

    def first(now: datetime) -> FirstRow:
        return FirstRow(INSERT_ORDERS, "event_id", order | {"created_at": now})

    def work(transaction: Transaction) -> str | OrderConflict | None:
        try:
            earlier_id = place_order(transaction, **order)
        except OrderConflict as conflict:
            return conflict
        if earlier_id is None:
            order_created.send(source, event=event, event_id=event_id, origin=origin)
        return earlier_id

    stored = database.transact(work, lock_order=event.order_id, first=first)
    if isinstance(stored, OrderConflict):
        raise stored
    return stored
