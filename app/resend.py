"""Resend: an order's notification again, because a person asks for it. An act that is recorded, and a new event.

The mail is a new one, with a Message-ID of its own. A retry, in contrast, tries the mail that is still owed.
"""

from dataclasses import dataclass

from app.bus import Bus, Filter, operate
from app.clock import iso, uuid7
from app.db import Transaction
from app.events import NotificationRequested, notification_requested
from app.orders import find_order
from app.signal import NO_ORIGIN, Origin


@dataclass(frozen=True)
class Resent:
    """The act, and the event that it had stored."""

    act_id: int
    event_id: str


def resend(bus: Bus, order_id: str, *, by: str, reason: str | None = None, origin: Origin = NO_ORIGIN) -> Resent:
    """Ask for the order's notification again. ``by`` is the new event's source. Raises OrderNotFound."""
    with bus.database.read() as session:  # an error within a transaction would make those that share it begin again
        find_order(session, order_id)
    event_id, which = uuid7(), Filter(order_id=order_id)

    def work(transaction: Transaction) -> int:
        earlier = operate.act_that_made(transaction.session, event_id)
        if earlier is not None:  # it was committed, and the database's answer got lost
            return earlier
        order = find_order(transaction.session, order_id)
        act_id = operate.record_act(transaction, "resend", which, by, reason)
        event = NotificationRequested(
            order_id=order.order_id,
            user_id=order.user_id,
            total_price=order.total_price,
            email=order.email,
            ordered_at=iso(order.created_at),
            requested_by=operate.name_of(by),
        )
        notification_requested.send(event.requested_by, event=event, event_id=event_id, origin=origin)
        operate.record_made(transaction, act_id, event_id, f"act {act_id}, which asked for it, was aborted")
        return act_id

    act_id = bus.database.transact(work)
    bus.report_act("resend", which, 1, by)
    return Resent(act_id, event_id)
