"""The record receiver: keep the order's and the user's record."""

from app.db import Transaction
from app.events import OrderCreated
from app.orders import confirm_order


def update_user_order_record(sender: str, event: OrderCreated, transaction: Transaction) -> None:
    """The order becomes ``confirmed``, and the user's record takes it in; exactly once."""
    confirm_order(transaction, event.order_id)
