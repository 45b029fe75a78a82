"""Writes to the order and user records.

Each function works in the caller's transaction and commits nothing. The statements are prepared, because every order
runs them.
"""

from decimal import Decimal
from functools import partial
from typing import Any

from sqlalchemy import BigInteger, bindparam, case, or_, tuple_, update

from app.db import Base, Dialect, Prepared, Transaction, money, table, utc
from app.errors import OrderConflict, OrderNotFound
from app.orders.models import Order, User
from app.orders.queries import FIND_CONTENT, FIND_EMAIL
from app.states import NotificationStatus, OrderStatus


def _insert(model: type[Base], key: str, dialect: Dialect) -> Any:
    """An INSERT that changes nothing where a row with this key exists."""
    return dialect.insert(table(model)).on_conflict_do_nothing(index_elements=[key]).inline()


def _mark(status: NotificationStatus) -> Prepared:
    """An UPDATE that moves the notification forward: only from a status that stands before the new one."""
    words = list(NotificationStatus)
    earlier = [Order.notification == word for word in words[: words.index(status)]]
    return Prepared(
        update(table(Order)).where(Order.order_id == bindparam("id"), or_(*earlier)).values(notification=status)
    )


def _insert_order(dialect: Dialect) -> Any:
    return _insert(Order, "order_id", dialect).values(
        status=OrderStatus.CREATED, notification=NotificationStatus.PENDING
    )


ORDER_COLUMNS = ("order_id", "user_id", "total_price", "email", "created_at", "event_id")
INSERT_ORDER = Prepared(_insert_order, *ORDER_COLUMNS)
INSERT_ORDERS = Prepared(lambda dialect: _insert_order(dialect).returning(Order.event_id), *ORDER_COLUMNS)
INSERT_USER = Prepared(
    lambda dialect: _insert(User, "user_id", dialect).values(orders_count=0, total_spent=Decimal(0)), "user_id"
)
CONFIRM_ORDER = Prepared(
    update(table(Order))
    .where(Order.order_id == bindparam("id"))
    .values(status=OrderStatus.CONFIRMED)
    .returning(Order.user_id, Order.total_price, Order.created_at)
)
_order = {
    "last_order_at": bindparam("created_at", type_=User.last_order_at.type),
    "last_order_id": bindparam("order_id"),
}
_is_latest = or_(
    User.last_order_at.is_(None), tuple_(User.last_order_at, User.last_order_id) < tuple_(*_order.values())
)
ADD_TO_RECORD = Prepared(
    lambda dialect: (
        update(table(User))
        .where(User.user_id == bindparam("id"))
        .values(
            orders_count=User.orders_count + 1,
            total_spent=dialect.plus_cents(User.total_spent, bindparam("cents", type_=BigInteger)),
            **{name: case((_is_latest, value), else_=table(User).c[name]) for name, value in _order.items()},
        )
    )
)
SET_EMAIL = Prepared(update(table(User)).where(User.user_id == bindparam("id")).values(email=bindparam("address")))
MARK_NOTIFICATION: dict[NotificationStatus, Prepared] = {
    status: _mark(status) for status in NotificationStatus if status is not NotificationStatus.PENDING
}


def place_order(
    transaction: Transaction, *, order_id: str, user_id: str, total_price: Decimal, email: str | None, event_id: str
) -> str | None:
    """Store the order once, and keep its address as the user's. ``event_id`` is the event that will announce it.

    The ``order_id`` is the idempotency key: of two equal orders the database stores the first. Returns None for a new
    order, else the ``event_id`` of the stored one. Raises OrderConflict when the stored one has other content.

    Where many are placed at once, give ``transact`` a first row for INSERT_ORDERS.
    """
    is_new = transaction.is_new
    if is_new is None:
        row = {
            "order_id": order_id,
            "user_id": user_id,
            "total_price": total_price,
            "email": email,
            "event_id": event_id,
            "created_at": transaction.now,
        }
        is_new = INSERT_ORDER(transaction, row).rowcount == 1
    if not is_new:
        return _earlier_event_id(transaction, order_id, (user_id, total_price, email))
    if email is not None:
        transaction.postpone(user_id, partial(set_email, transaction, user_id, email))
    return None


def _earlier_event_id(transaction: Transaction, order_id: str, content: tuple[str, Decimal, str | None]) -> str:
    found = FIND_CONTENT(transaction, {"id": order_id}).fetchone()
    event_id, user_id, total_price, email, placed_email, email_set_at = found
    placed = email if email_set_at is None else placed_email  # a person may have put it right since
    if (user_id, money(total_price), placed) != content:
        raise OrderConflict(f"order {order_id} exists with other content")
    return str(event_id)


def confirm_order(transaction: Transaction, order_id: str) -> None:
    """Set the order to ``confirmed`` and add it to its user's record. Call once for each order, in any order.

    Raises OrderNotFound.
    """
    confirmed = CONFIRM_ORDER(transaction, {"id": order_id}).fetchone()
    if confirmed is None:
        raise OrderNotFound(f"there is no order {order_id}")
    user_id, price, created_at = confirmed
    cents = int(money(price).scaleb(2))
    order = {"id": user_id, "cents": cents, "created_at": utc(created_at), "order_id": order_id}
    if not ADD_TO_RECORD(transaction, order).rowcount:
        INSERT_USER(transaction, {"user_id": user_id})
        ADD_TO_RECORD(transaction, order)


def mark_notification(transaction: Transaction, order_id: str, status: NotificationStatus) -> None:
    """Move the order's ``notification`` forward. A status before the present one, or equal to it, changes nothing."""
    MARK_NOTIFICATION[status](transaction, {"id": order_id})


def set_email(transaction: Transaction, user_id: str, email: str) -> bool:
    """Keep ``email`` as the user's address, in a record that is made where there is none. Returns whether it is new."""
    known = FIND_EMAIL(transaction, {"id": user_id}).fetchone()
    if known is not None and known[0] == email:  # the record is not locked: on PostgreSQL others may wait for it
        return False
    INSERT_USER(transaction, {"user_id": user_id})
    SET_EMAIL(transaction, {"id": user_id, "address": email})
    return True
