"""Corrections of an order's or a user's address, and the notifications that were skipped for want of one.

A mail goes to the order's own address at the time of the attempt, else to the user's, else to one made with
USER_EMAIL_DOMAIN. Each correction is recorded as an operator's act.
"""

from array import array
from collections.abc import Collection
from typing import Any

from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session

from app.addresses import checked_email
from app.bus import Act, Bus, Filter, leases, operate
from app.bus.operate import Chosen
from app.bus.tables import UNDONE, Delivery, StoredEvent
from app.db import Transaction
from app.errors import OrderNotFound
from app.events import OrderEmailChanged, order_email_changed
from app.orders.models import Order, User
from app.orders.records import set_email
from app.states import DeliveryState

NOTIFICATION = "send_email_notification"
"""The receiver that sends the order's notification."""

NO_ADDRESS = "there is no address for user "
"""So the reason of a skipped notification begins."""

SOURCE = "set-email"
"""The ``source`` of the events."""


def made_email(user_id: str, domain: str | None) -> str | None:
    """The address that is made with USER_EMAIL_DOMAIN for a user without one; none where that makes no address."""
    if domain is None:
        return None
    try:
        return checked_email(f"{user_id}@{domain}")
    except ValueError:  # not every user_id makes an address: "a:b" doesn't
        return None


def set_order_email(bus: Bus, order_id: str, address: str, by: str) -> bool:
    """Let the order's mails go to this address, from the next try on. Returns whether it is another one.

    What is being tried keeps what it began with. A client that sends the order again sends the address that it had;
    that is the same order still. Raises ValueError for what is no address, and OrderNotFound.
    """
    address = checked_email(address)

    def work(transaction: Transaction) -> bool | None:
        order = transaction.session.get(Order, order_id, with_for_update=True)
        if order is None or order.email == address:
            return None if order is None else False
        before = order.email
        if order.email_set_at is None:
            order.placed_email = before
        order.email, order.email_set_at = address, transaction.now
        transaction.flush()
        leases.touch(transaction, order_id)
        event = OrderEmailChanged(
            order_id=order_id, user_id=order.user_id, email=address, before=before, changed_by=operate.name_of(by)
        )
        order_email_changed.send(SOURCE, event=event)
        operate.record_act(transaction, "set-email", Filter(order_id=order_id), by, f"to {address}")
        return True

    changed = bus.database.transact(work)
    if changed is None:
        raise OrderNotFound(f"there is no order {order_id}")
    if changed:
        bus.report_act("set-email", Filter(order_id=order_id), 0, by)
    return changed


def set_user_email(bus: Bus, user_id: str, address: str, by: str) -> bool:
    """Keep the address as the user's, whose record is made where there is none. Returns whether it is another one.

    It serves the orders that have none of their own. Raises ValueError for what is no address.
    """
    address = checked_email(address)

    def work(transaction: Transaction) -> bool:
        changed = set_email(transaction, user_id, address)
        if changed:
            operate.record_act(transaction, "set-email", Filter(user_id=user_id), by, f"to {address}")
        return changed

    changed = bus.database.transact(work)
    if changed:
        bus.report_act("set-email", Filter(user_id=user_id), 0, by)
    return changed


def choose_skipped(
    bus: Bus,
    by: str,
    *,
    order_id: str | None = None,
    user_id: str | None = None,
    among: Collection[str] | None = None,
    over_seconds: int | None = None,
) -> Chosen:
    """The notifications that were skipped for want of an address, where there is one now: ``Bus.carry_out`` sends them.

    ``among`` are ids of orders: no others are looked at.
    """
    state = DeliveryState.DISCARDED.value
    which = Filter(receiver=NOTIFICATION, state=state, reason=NO_ADDRESS, order_id=order_id, user_id=user_id)
    ids, tokens = array("q"), array("q")
    # Without UNDONE, SQLite finds the deliveries of these orders, and not these orders among all that were discarded.
    skipped = _skipped(which).where(UNDONE if among is None else StoredEvent.order_id.in_(among))
    with bus.database.read() as session:
        for row in session.execute(skipped.execution_options(yield_per=operate.ROWS_AT_ONCE)):
            if row.email or made_email(row.user_id, bus.settings.user_email_domain):
                ids.append(row.delivery_id)
                tokens.append(row.lease_token)
    return Chosen(Act("retry", which, by, over_seconds=over_seconds), ids, tokens)


def _skipped(which: Filter) -> Select[Any]:
    """The deliveries that were skipped, each with its user and the address that is known."""
    email = func.coalesce(Order.email, User.email).label("email")
    return (
        which.find(Delivery.delivery_id, Delivery.lease_token, StoredEvent.user_id, email)
        .outerjoin(Order, Order.order_id == StoredEvent.order_id)
        .outerjoin(User, User.user_id == StoredEvent.user_id)
        .where(Delivery.reason.startswith(NO_ADDRESS, autoescape=True))
        .order_by(Delivery.delivery_id)
    )


def notification_reasons(session: Session, order_ids: Collection[str]) -> dict[str, str]:
    """For each of these orders, why its notification is not sent, where its latest delivery tells."""
    told = select(StoredEvent.order_id, Delivery.reason).join(Delivery, Delivery.event_id == StoredEvent.event_id)
    told = told.where(StoredEvent.order_id.in_(order_ids), Delivery.receiver == NOTIFICATION)
    latest = {row.order_id: row.reason for row in session.execute(told.order_by(Delivery.delivery_id))}
    return {order_id: reason for order_id, reason in latest.items() if reason is not None}
