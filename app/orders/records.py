"""The order and user records, and what may be done with them.

Every function works in a running transaction and commits nothing itself.
"""

import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from email_validator import validate_email
from sqlalchemy import bindparam, or_, select, update
from sqlalchemy.orm import Session

from app.db import Base, Database, Dialect, Prepared, Transaction, money, table, utc
from app.errors import OrderConflict, OrderNotFound, UserNotFound
from app.orders.models import NOTIFICATIONS, Order, User

ID_PATTERN = "[A-Za-z0-9._:-]{1,64}"
"""What an order_id and a user_id look like."""


def _insert(model: type[Base], key: str, dialect: Dialect) -> Any:
    """An INSERT that leaves alone what is there under the key."""
    return dialect.insert(table(model)).on_conflict_do_nothing(index_elements=[key]).inline()


INSERT_ORDER = Prepared(
    lambda dialect: _insert(Order, "order_id", dialect).values(status="created", notification="pending"),
    *("order_id", "user_id", "total_price", "email", "created_at", "event_id"),
)
INSERT_USER = Prepared(
    lambda dialect: _insert(User, "user_id", dialect).values(orders_count=0, total_spent=Decimal(0)), "user_id"
)
CONFIRM_ORDER = Prepared(
    update(table(Order))
    .where(Order.order_id == bindparam("id"))
    .values(status="confirmed")
    .returning(Order.user_id, Order.total_price, Order.created_at)
)
# The row lock makes the sum safe from another process; SQLite has the whole write lock already.
FIND_RECORD = Prepared(
    select(User.orders_count, User.total_spent, User.last_order_id, User.last_order_at)
    .where(User.user_id == bindparam("id"))
    .with_for_update()
)
UPDATE_RECORD = Prepared(
    update(table(User))
    .where(User.user_id == bindparam("id"))
    .values({name: bindparam(name) for name in ("orders_count", "total_spent", "last_order_id", "last_order_at")})
)
FIND_EMAIL = Prepared(select(User.email).where(User.user_id == bindparam("id")))
SET_EMAIL = Prepared(update(table(User)).where(User.user_id == bindparam("id")).values(email=bindparam("address")))
MARK_NOTIFICATION = {
    state: Prepared(
        update(table(Order))
        .where(Order.order_id == bindparam("id"), or_(*(Order.notification == each for each in NOTIFICATIONS[:at])))
        .values(notification=state)
    )
    for at, state in enumerate(NOTIFICATIONS)
    if at
}


def place_order(
    transaction: Transaction, *, order_id: str, user_id: str, total_price: Decimal, email: str | None, event_id: str
) -> str | None:
    """Store the order, and keep the address that came with it as the user's. ``event_id`` is what will announce it.

    The ``order_id`` is the idempotency key: the same order again is found, not stored. Of two at once the database
    lets one be first. Returns None when the order is new, else the ``event_id`` that announced it.
    Raises OrderConflict when the order exists with other content.
    """
    stored = INSERT_ORDER(
        transaction,
        {
            "order_id": order_id,
            "user_id": user_id,
            "total_price": total_price,
            "email": email,
            "created_at": transaction.now,
            "event_id": event_id,
        },
    )
    if stored.rowcount != 1:
        earlier = find_order(transaction.session, order_id)
        if (earlier.user_id, earlier.total_price, earlier.email) != (user_id, total_price, email):
            raise OrderConflict(f"order {order_id} exists with other content")
        return earlier.event_id
    if email is not None:
        set_email(transaction, user_id, email)
    return None


def confirm_order(transaction: Transaction, order_id: str) -> None:
    """The order is ``confirmed``, and counted in its user's record. Call once for each order, in any order.

    Raises OrderNotFound.
    """
    found = CONFIRM_ORDER(transaction, {"id": order_id}).fetchone()
    if found is None:
        raise OrderNotFound(f"there is no order {order_id}")
    user_id, price, created_at = found[0], money(found[1]), utc(found[2])
    record = FIND_RECORD(transaction, {"id": user_id}).fetchone()
    if record is None:
        INSERT_USER(transaction, {"user_id": user_id})
        record = FIND_RECORD(transaction, {"id": user_id}).fetchone()
    count, spent, last_id, last_at = record
    latest = (created_at, order_id)
    if last_at is not None:
        latest = max(latest, (utc(last_at), last_id))
    UPDATE_RECORD(
        transaction,
        {
            "id": user_id,
            "orders_count": count + 1,
            "total_spent": money(spent) + price,
            "last_order_at": latest[0],
            "last_order_id": latest[1],
        },
    )


def mark_notification(transaction: Transaction, order_id: str, state: str) -> None:
    """Set the order's ``notification``. A state that is behind the present one changes nothing (see NOTIFICATIONS)."""
    MARK_NOTIFICATION[state](transaction, {"id": order_id})


def set_email(transaction: Transaction, user_id: str, email: str) -> None:
    """Keep ``email`` as the user's address; the user's record is made when there is none."""
    known = FIND_EMAIL(transaction, {"id": user_id}).fetchone()
    if known is None or known[0] != email:  # else the record need not be locked, which on PostgreSQL others may want
        INSERT_USER(transaction, {"user_id": user_id})
        SET_EMAIL(transaction, {"id": user_id, "address": email})


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
    """The user's address, None where there is none."""
    with database.autocommit() as reader:
        found = FIND_EMAIL(reader, {"id": user_id}).fetchone()
    return found[0] if found else None


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


def is_identifier(value: str) -> bool:
    return re.fullmatch(ID_PATTERN, value) is not None


def checked_email(address: str) -> str:
    """The address, normalised. Raises ValueError that says what is wrong with it. Asks no name server."""
    return validate_email(address, check_deliverability=False, allow_smtputf8=False, test_environment=True).normalized
