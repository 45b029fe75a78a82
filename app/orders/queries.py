"""Queries of the order and user records."""

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any, NamedTuple

from sqlalchemy import Select, bindparam, func, select, tuple_
from sqlalchemy.orm import Session

from app.db import Database, dialect_of
from app.db.prepared import Prepared
from app.errors import OrderNotFound, UserNotFound
from app.orders.identifiers import ID_PATTERN, UUID_PATTERN
from app.orders.models import UNSENT, Order, User
from app.states import NotificationStatus, OrderStatus

FIND_EMAIL = Prepared(select(User.email).where(User.user_id == bindparam("id")))
FIND_ORDER_EMAIL = Prepared(select(Order.email).where(Order.order_id == bindparam("id")))
FIND_CONTENT = Prepared(
    select(Order.event_id, Order.user_id, Order.total_price, Order.email, Order.placed_email, Order.email_set_at).where(
        Order.order_id == bindparam("id")
    )
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


def order_email(database: Database, order_id: str) -> str | None:
    """The order's own address; None where it has none."""
    return _email(database, FIND_ORDER_EMAIL, order_id)


def user_email(database: Database, user_id: str) -> str | None:
    """The user's address; None where none is known."""
    return _email(database, FIND_EMAIL, user_id)


def _email(database: Database, find: Prepared, of: str) -> str | None:
    row = database.query(lambda reader: find(reader, {"id": of}).fetchone())
    return row[0] if row else None


class OrderSort(StrEnum):
    """The order of a list of orders: each has an index."""

    NEWEST = "newest"
    OLDEST = "oldest"
    ORDER = "order"
    USER = "user"


SORT_KEYS: dict[OrderSort, tuple[Any, ...]] = {
    OrderSort.NEWEST: (Order.event_id,),
    OrderSort.OLDEST: (Order.event_id,),
    OrderSort.ORDER: (Order.order_id,),
    OrderSort.USER: (Order.user_id, Order.event_id),
}

UNSENT_STATUSES = (NotificationStatus.FAILED, NotificationStatus.SKIPPED)
"""Those that the index of UNSENT orders has."""

CURSOR_SEPARATOR = "/"
"""No id has it."""


class OrderPage(NamedTuple):
    """A page of orders. ``cursor`` is that of the next page; None on the last page."""

    orders: Sequence[Order]
    cursor: str | None
    stopped: bool
    """Whether the page is not full because enough was looked at: there may be more behind the cursor."""


def list_orders(
    session: Session,
    *,
    user_id: str | None = None,
    status: OrderStatus | None = None,
    notification: NotificationStatus | None = None,
    email: str | None = None,
    sort: OrderSort = OrderSort.NEWEST,
    after: str | None = None,
    limit: int = 50,
    most: int | None = None,
) -> OrderPage:
    """A page of orders. ``after`` is its cursor: where the page before ended.

    A status that few orders have is looked for among all of them, unless ``most`` says among how many, of those that
    an index has in this order. Raises ValueError for a cursor of another list.
    """
    keys, falls = SORT_KEYS[sort], sort is OrderSort.NEWEST
    indexed = {Order.user_id: user_id, Order.email: email}
    others = {Order.status: status, Order.notification: notification}
    page = select(Order).order_by(*(key.desc() if falls else key for key in keys))
    if notification in UNSENT_STATUSES and keys == (Order.event_id,) and user_id is None and email is None:
        page = page.where(UNSENT)
        indexed[Order.notification] = others.pop(Order.notification)
    page = _equal(page, indexed)
    if after is not None:
        place = _parse_cursor(after, keys)
        page = page.where(keys[0] < place[0] if falls else tuple_(*keys) > tuple_(*place))
    last = None
    if most is not None and any(others.values()):
        last = session.execute(page.with_only_columns(*keys).offset(most - 1).limit(1)).first()
    if last is not None:
        page = page.where(keys[0] >= last[0] if falls else tuple_(*keys) <= tuple_(*last))
    found = session.scalars(_equal(page, others).limit(limit + 1)).all()
    if len(found) > limit:
        ends_at = tuple(getattr(found[limit - 1], key.key) for key in keys)
        return OrderPage(found[:limit], CURSOR_SEPARATOR.join(ends_at), stopped=False)
    return OrderPage(found, None if last is None else CURSOR_SEPARATOR.join(last), stopped=last is not None)


def _equal(page: Select[Any], wanted: Mapping[Any, Any]) -> Select[Any]:
    """With these columns' values, where they are not None."""
    for column, value in wanted.items():
        if value is not None:
            page = page.where(column == value)
    return page


def _parse_cursor(cursor: str, keys: tuple[Any, ...]) -> list[str]:
    parts = cursor.split(CURSOR_SEPARATOR)
    patterns = [UUID_PATTERN if key is Order.event_id else ID_PATTERN for key in keys]
    if len(parts) != len(keys) or not all(map(re.fullmatch, patterns, parts)):
        raise ValueError("not a cursor of this list; leave it out to begin at its start")
    return parts


# Users


def list_users(
    session: Session, *, email: str | None = None, after: str | None = None, limit: int = 50
) -> tuple[Sequence[User], str | None]:
    """A page of users by their ids, and the cursor of the next page, its ``after``; None on the last page."""
    page = _equal(select(User), {User.email: email}).order_by(User.user_id)
    if after is not None:
        page = page.where(User.user_id > after)
    found = session.scalars(page.limit(limit + 1)).all()
    return found[:limit], found[limit - 1].user_id if len(found) > limit else None


class OrderSums(NamedTuple):
    """What a user's orders add up to: the record, where it is right, and what is not in the record yet."""

    orders_count: int
    """Confirmed ones, and so are those of the next three."""
    total_spent: Decimal
    last_order_id: str | None
    last_order_at: datetime | None
    unconfirmed: int
    """Orders that the receiver of the record has not had yet."""
    skipped: int
    """Orders without a notification, for want of an address."""
    is_whole: bool
    """Whether all of the user's orders were looked at."""

    def agree(self, record: User) -> bool:
        """Whether the record says the same."""
        names = ("orders_count", "total_spent", "last_order_id", "last_order_at")
        return all(getattr(self, name) == getattr(record, name) for name in names)


def sum_orders(session: Session, user_id: str, most: int | None = None) -> OrderSums:
    """Add up the user's orders, or the ``most`` newest of them."""
    columns = (Order.order_id, Order.status, Order.notification, Order.created_at, Order.total_price)
    newest = select(*columns).where(Order.user_id == user_id).order_by(Order.event_id.desc()).limit(most).subquery()
    cents = func.sum(dialect_of(session).in_cents(newest.c.total_price))
    groups = select(newest.c.status, newest.c.notification, func.count(), cents)
    found = session.execute(groups.group_by(newest.c.status, newest.c.notification)).all()
    confirmed = [group for group in found if group[0] == OrderStatus.CONFIRMED]
    latest = select(newest.c.order_id, newest.c.created_at).where(newest.c.status == OrderStatus.CONFIRMED)
    latest = latest.order_by(newest.c.created_at.desc(), newest.c.order_id.desc()).limit(1)
    last_order_id, last_order_at = session.execute(latest).first() or (None, None)
    looked_at = sum(count for _, _, count, _ in found)
    return OrderSums(
        orders_count=sum(count for _, _, count, _ in confirmed),
        total_spent=Decimal(sum(int(total) for *_, total in confirmed)).scaleb(-2),
        last_order_id=last_order_id,
        last_order_at=last_order_at,
        unconfirmed=sum(count for status, _, count, _ in found if status == OrderStatus.CREATED),
        skipped=sum(count for _, state, count, _ in found if state == NotificationStatus.SKIPPED),
        is_whole=most is None or looked_at < most,
    )
