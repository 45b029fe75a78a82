"""The order and user records, and what may be done with them.

Every function works on the session of a running transaction and commits nothing itself.
"""

from collections.abc import Sequence
from decimal import Decimal

from email_validator import validate_email
from sqlalchemy import select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from app.db import Transaction, table
from app.errors import OrderConflict, OrderNotFound, UserNotFound
from app.orders.models import NOTIFICATIONS, STATUSES, Order, User

__all__ = [
    "NOTIFICATIONS",
    "STATUSES",
    "Order",
    "User",
    "checked_email",
    "confirm_order",
    "count_order",
    "find_order",
    "find_user",
    "known_email",
    "list_orders",
    "mark_notification",
    "place_order",
    "set_email",
]


# Made once and run on the session's connection: building a statement costs more than running it.
INSERT_ORDER = {
    name: dialect.insert(table(Order)).on_conflict_do_nothing(index_elements=["order_id"]).returning(Order.order_id)
    for name, dialect in (("sqlite", sqlite), ("postgresql", postgresql))
}
INSERT_USER = {
    name: dialect.insert(table(User))
    .values(orders_count=0, total_spent=Decimal(0))
    .on_conflict_do_nothing(index_elements=["user_id"])
    for name, dialect in (("sqlite", sqlite), ("postgresql", postgresql))
}


def place_order(
    session: Transaction, *, order_id: str, user_id: str, total_price: Decimal, email: str | None, event_id: str
) -> str | None:
    """Store the order, and keep the address that came with it as the user's. ``event_id`` is what will announce it.

    The ``order_id`` is the idempotency key: the same order again is found, not stored. Of two at once the database
    lets one be first. Returns None when the order is new, else the ``event_id`` that announced it.
    Raises OrderConflict when the order exists with other content.
    """
    connection = session.connection()
    stored = connection.execute(
        INSERT_ORDER[connection.dialect.name],
        {
            "order_id": order_id,
            "user_id": user_id,
            "total_price": total_price,
            "email": email,
            "status": "created",
            "notification": "pending",
            "created_at": session.now,
            "event_id": event_id,
        },
    ).first()
    if stored is None:
        earlier = find_order(session, order_id)
        if (earlier.user_id, earlier.total_price, earlier.email) != (user_id, total_price, email):
            raise OrderConflict(f"order {order_id} exists with other content")
        return earlier.event_id
    if email is not None:
        set_email(session, user_id, email)
    return None


def confirm_order(session: Session, order_id: str) -> Order:
    """The order is ``confirmed``. Raises OrderNotFound."""
    order = find_order(session, order_id)
    order.status = "confirmed"
    return order


def count_order(session: Session, order: Order) -> User:
    """Take the order into its user's record. Call once for each order, in any order."""
    _ensure_user(session, order.user_id)
    # The row lock makes the sum below safe from another process; SQLite has the whole write lock already.
    user = session.execute(select(User).where(User.user_id == order.user_id).with_for_update()).scalar_one()
    user.orders_count += 1
    user.total_spent += order.total_price
    if user.last_order_at is None or (user.last_order_at, user.last_order_id or "") < (
        order.created_at,
        order.order_id,
    ):
        user.last_order_id, user.last_order_at = order.order_id, order.created_at
    return user


def mark_notification(session: Session, order_id: str, state: str) -> None:
    """Set the order's ``notification``. A state that is behind the present one changes nothing (see NOTIFICATIONS)."""
    earlier = NOTIFICATIONS[: NOTIFICATIONS.index(state)]
    session.execute(
        update(Order).where(Order.order_id == order_id, Order.notification.in_(earlier)).values(notification=state)
    )


def set_email(session: Session, user_id: str, email: str) -> None:
    """Keep ``email`` as the user's address; the user's record is made when there is none."""
    _ensure_user(session, user_id)
    session.execute(update(User).where(User.user_id == user_id).values(email=email))


def _ensure_user(session: Session, user_id: str) -> None:
    connection = session.connection()
    connection.execute(INSERT_USER[connection.dialect.name], {"user_id": user_id})


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


def known_email(session: Session, user_id: str) -> str | None:
    """The user's address, None where there is none."""
    return session.scalar(select(User.email).where(User.user_id == user_id))


def list_orders(
    session: Session,
    *,
    user_id: str | None = None,
    status: str | None = None,
    notification: str | None = None,
    before: str | None = None,
    limit: int = 50,
) -> tuple[Sequence[Order], str | None]:
    """A page of orders, newest first, and the cursor of the next page: None where this is the last.

    ``before`` is the cursor that the page before gave: the ``event_id`` of its last order.
    """
    page = select(Order).order_by(Order.event_id.desc()).limit(limit + 1)
    for column, value in ((Order.user_id, user_id), (Order.status, status), (Order.notification, notification)):
        if value is not None:
            page = page.where(column == value)
    if before is not None:
        page = page.where(Order.event_id < before)
    found = session.scalars(page).all()
    return found[:limit], found[limit - 1].event_id if len(found) > limit else None


def checked_email(address: str) -> str:
    """The address, normalised. Raises ValueError that says what is wrong with it. Asks no name server."""
    return validate_email(address, check_deliverability=False, allow_smtputf8=False, test_environment=True).normalized
