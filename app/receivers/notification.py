"""Tell the user by email that the order was taken, and keep on the order's record how that went."""

from typing import Any

from flask import current_app

from app.addresses import checked_email
from app.answers import Discard, Done
from app.db import Database, Transaction
from app.events import NotificationFailed, NotificationSent, NotificationSkipped, OrderCreated
from app.mail import Mailer, OrderNotification
from app.orders import known_email, mark_notification
from app.signal import Event
from app.states import NotificationStatus
from config import Settings


def send_email_notification(sender: str, event: OrderCreated, delivery: Any) -> Done | Discard:
    """Send the notification by the configured mail backend; at least once, every copy with one Message-ID.

    Answers Discard where there is no address. Raises one of the kinds of AttemptFailed as the mail server says.
    """
    settings: Settings = current_app.extensions["settings"]
    recipient = _address(event, settings.user_email_domain)
    if recipient is None:
        reason = _no_address(event.user_id, settings.user_email_domain)
        return Discard(reason, NotificationSkipped(order_id=event.order_id, user_id=event.user_id, reason=reason))
    mailer: Mailer = current_app.extensions["mailer"]
    notification = OrderNotification(
        order_id=event.order_id,
        user_id=event.user_id,
        total_price=event.total_price,
        created_at=delivery.occurred_at,
        recipient=recipient,
        event_id=delivery.event_id,
        locale=settings.mail_locale,
        sender=settings.mail_default_sender,
    )
    mailer.send(notification)
    return Done(
        NotificationSent(
            order_id=event.order_id, user_id=event.user_id, recipient=recipient, message_id=notification.message_id
        )
    )


def announce_failure(event: OrderCreated, reason: str) -> NotificationFailed:
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


def _address(event: OrderCreated, domain: str | None) -> str | None:
    """The order's own address, else the user's known one, else one made with ``domain``, USER_EMAIL_DOMAIN."""
    if event.email is not None:
        return event.email
    database: Database = current_app.extensions["database"]
    known = known_email(database, event.user_id)
    if known is not None or domain is None:
        return known
    try:
        return checked_email(f"{event.user_id}@{domain}")
    except ValueError:  # not every user_id makes an address: "a:b" doesn't
        return None


def _no_address(user_id: str, domain: str | None) -> str:
    why, or_else = "", ", or set USER_EMAIL_DOMAIN"
    if domain is not None:
        why, or_else = f", and {user_id}@{domain} can't be one", ""
    return (
        f"there is no address for user {user_id}{why}: send one with an order as 'email', or run "
        f"'flask users set-email {user_id} ADDRESS'{or_else}; then retry this"
    )
