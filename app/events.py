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


order_created = signal("order_created", OrderCreated)
notification_sent = signal("notification_sent", NotificationSent)
notification_failed = signal("notification_failed", NotificationFailed)
notification_skipped = signal("notification_skipped", NotificationSkipped)
