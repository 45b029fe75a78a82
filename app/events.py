"""EVENTS: facts that happened, and the durable signals that carry them.

An event is a frozen dataclass with a version. To add one, write its class and its signal's line.
"""

import dataclasses
from decimal import Decimal

from app.signal import Event, signal


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class OrderCreated(Event):
    """An order was taken. ``email`` is the address that came with it, if one did."""

    total_price: Decimal
    email: str | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NotificationRequested(Event):
    """A person asked for the order's notification again: a new mail. ``ordered_at`` is when the order was taken."""

    total_price: Decimal
    email: str | None
    ordered_at: str
    requested_by: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NotificationSent(Event):
    """The mail backend accepted the order's notification."""

    recipient: str
    message_id: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NotificationFailed(Event):
    """The bus gave the order's notification up."""

    reason: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NotificationSkipped(Event):
    """The order's notification was not needed, or had nowhere to go."""

    reason: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class OrderEmailChanged(Event):
    """A person put the order's address right: ``email`` is what its mails go to from now on."""

    email: str
    before: str | None
    """The order's own until then; none where it had none."""
    changed_by: str


order_created = signal("order_created", OrderCreated)
notification_requested = signal("notification_requested", NotificationRequested)
notification_sent = signal("notification_sent", NotificationSent)
notification_failed = signal("notification_failed", NotificationFailed)
notification_skipped = signal("notification_skipped", NotificationSkipped)
order_email_changed = signal("order_email_changed", OrderEmailChanged)
