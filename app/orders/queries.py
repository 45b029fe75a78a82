"""Queries of the order and user records."""

from collections.abc import Sequence

from sqlalchemy import bindparam, select
from sqlalchemy.orm import Session

from app.db import Database
from app.db.prepared import Prepared
from app.errors import OrderNotFound, UserNotFound
from app.orders.models import Order, User
from app.states import NotificationStatus, OrderStatus

FIND_EMAIL = Prepared(select(User.email).where(User.user_id == bindparam("id")))
FIND_CONTENT = Prepared(
    select(Order.event_id, Order.user_id, Order.total_price, Order.email).where(Order.order_id == bindparam("id"))
)


def find_order(session: Session, order_id: str) -> Order:
    """Raises OrderNotFound."""
    order = session.get(Order, order_id)
    if order is None:
        raise OrderNotFound(f"there is no order {order_id}")
    return order


def find_user(session: Session, user_id: str) -> User:
    """Raises UserNotFound."""
    user = session.get(User, user_id)
    if user is None:
        raise UserNotFound(f"there is no user {user_id}")
    return user


def known_email(database: Database, user_id: str) -> str | None:
    """The user's address; None where none is known."""
    with database.autocommit() as reader:
        found = FIND_EMAIL(reader, {"id": user_id}).fetchone()
    return found[0] if found else None


def list_orders(
    session: Session,
    *,
    user_id: str | None = None,
    status: OrderStatus | None = None,
    notification: NotificationStatus | None = None,
    before: str | None = None,
    limit: int = 50,
) -> tuple[Sequence[Order], str | None]:
    """A page of orders, newest first, and the cursor of the next page; None on the last page.

    ``before`` is the cursor of this page: the ``event_id`` of the previous page's last order.
    """
    page = select(Order).order_by(Order.event_id.desc()).limit(limit + 1)
    for column, value in ((Order.user_id, user_id), (Order.status, status), (Order.notification, notification)):
        if value is not None:
            page = page.where(column == value)
    if before is not None:
        page = page.where(Order.event_id < before)
    found = session.scalars(page).all()
    return found[:limit], found[limit - 1].event_id if len(found) > limit else None
