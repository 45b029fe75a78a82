"""The notification receivers: mail the user that the order was taken, and keep the result on the order's record."""

from datetime import datetime
from typing import Any

from flask import current_app

from app.answers import Discard, Done
from app.db import Database, Transaction
from app.events import (
    NotificationFailed,
    NotificationRequested,
    NotificationSent,
    NotificationSkipped,
    OrderCreated,
)
from app.mail import Mailer, OrderNotification
from app.orders import made_email, mark_notification, order_email, user_email
from app.orders.emails import NO_ADDRESS
from app.signal import Event
from app.states import NotificationStatus
from config import Settings

Wanted = OrderCreated | NotificationRequested
"""The events that a notification follows from."""


def send_email_notification(sender: str, event: Wanted, delivery: Any) -> Done | Discard:
    """Send the notification by the configured mail backend; at least once, every copy with one Message-ID.

    Answers Discard where there is no address. Raises one of the kinds of AttemptFailed as the mail server says.
    """
    settings: Settings = current_app.extensions["settings"]
    recipient = _address(event, settings.user_email_domain, untouched=delivery.untouched)
    if recipient is None:
        reason = _no_address(event.user_id, settings.user_email_domain)
        return Discard(reason, NotificationSkipped(order_id=event.order_id, user_id=event.user_id, reason=reason))
    mailer: Mailer = current_app.extensions["mailer"]
    created_at, requested_at = delivery.occurred_at, None
    if isinstance(event, NotificationRequested):  # long after the order was taken
        created_at, requested_at = datetime.fromisoformat(event.ordered_at), delivery.occurred_at
    notification = OrderNotification(
        order_id=event.order_id,
        user_id=event.user_id,
        total_price=event.total_price,
        created_at=created_at,
        requested_at=requested_at,
        recipient=recipient,
        event_id=delivery.event_id,
        locale=settings.mail_locale,
        sender=settings.mail_default_sender,
        traceparent=delivery.traceparent,
    )
    mailer.send(notification)
    return Done(
        NotificationSent(
            order_id=event.order_id, user_id=event.user_id, recipient=recipient, message_id=notification.message_id
        )
    )


def announce_failure(event: Wanted, reason: str) -> NotificationFailed:
    """The event that is published when the bus gives the notification up."""
    return NotificationFailed(order_id=event.order_id, user_id=event.user_id, reason=reason)


STATUSES: dict[type[Event], NotificationStatus] = {
    NotificationSent: NotificationStatus.SENT,
    NotificationFailed: NotificationStatus.FAILED,
    NotificationSkipped: NotificationStatus.SKIPPED,
}


def update_order_notification(sender: str, event: Event, transaction: Transaction) -> None:
    """Set the order's ``notification`` to the status that the event means."""
    mark_notification(transaction, event.order_id, STATUSES[type(event)])


def _address(event: Wanted, domain: str | None, *, untouched: bool) -> str | None:
    """The order's own address, else the user's known one, else one made with ``domain``, USER_EMAIL_DOMAIN.

    Where nobody has touched the delivery, the order's own is what came with the event.
    """
    database: Database = current_app.extensions["database"]
    of_order = event.email if untouched else order_email(database, event.order_id) or event.email
    return of_order or user_email(database, event.user_id) or made_email(event.user_id, domain)


def _no_address(user_id: str, domain: str | None) -> str:
    why, or_else = "", ", or set USER_EMAIL_DOMAIN"
    if domain is not None:
        why, or_else = f", and {user_id}@{domain} can't be one", ""
    return (  # quoted, what differs from user to user is left out where reasons are grouped
        f"{NO_ADDRESS}'{user_id}'{why}: send one with an order as 'email', or run "
        f"'flask users set-email {user_id} ADDRESS'{or_else}; then run 'flask orders send-skipped'"
    )
