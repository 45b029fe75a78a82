"""RECEIVERS: every subscription on one screen, and so everything that follows from an order.

order_created ──────────┬─ update_user_order_record ── order confirmed, user's record
notification_requested ─┴─ send_email_notification ─┬─ notification_sent ────┐
                                                    ├─ notification_failed ──┼─ update_order_notification
                                                    └─ notification_skipped ─┘
"""

from app.events import (
    notification_failed,
    notification_requested,
    notification_sent,
    notification_skipped,
    order_created,
)
from app.receivers.notification import announce_failure, send_email_notification, update_order_notification
from app.receivers.order_record import update_user_order_record
from app.signal import ReceiverOptions
from config import Settings


def connect_all() -> None:
    """Connect every receiver to its signal, under the name that its deliveries are stored with."""
    order_created.connect(update_user_order_record)
    order_created.connect(send_email_notification, when_dead=announce_failure)
    notification_requested.connect(send_email_notification, when_dead=announce_failure)
    notification_sent.connect(update_order_notification)
    notification_failed.connect(update_order_notification)
    notification_skipped.connect(update_order_notification)


def options(settings: Settings) -> dict[str, ReceiverOptions]:
    """The receivers' options under these settings, where they differ from the defaults."""
    mail = ReceiverOptions(
        concurrency=settings.mail_threads,
        timeout_seconds=max(settings.receiver_timeout, 4 * settings.mail_timeout),  # it has three times MAIL_TIMEOUT
        hold_unknown=settings.mail_on_unknown == "hold",
        unknown_limit=settings.mail_max_copies,
        sends_mail=True,
    )
    return {"send_email_notification": mail}
