"""The words of all state columns. Imports nothing of the application."""

import enum


class DeliveryState(enum.StrEnum):
    """Where a delivery is: ``ready → leased → done``, or back to ``ready``, or given up."""

    READY = "ready"
    LEASED = "leased"
    DONE = "done"
    DEAD = "dead"
    DISCARDED = "discarded"


class Outcome(enum.StrEnum):
    """How an attempt at a delivery ended."""

    OK = "ok"
    REFUSED = "refused"  # permanent: trying again cannot help
    DEFERRED = "deferred"  # temporary: the other side asks to come back later
    THROTTLED = "throttled"  # temporary: we send faster than the other side takes
    UNREACHABLE = "unreachable"
    TIMEOUT = "timeout"
    BUG = "bug"  # an exception that nobody expected
    UNKNOWN = "unknown"  # the process died or lost its lease in the middle, or the answer got lost


class OrderStatus(enum.StrEnum):
    """Of an order: stored, then taken into the user's record."""

    CREATED = "created"
    CONFIRMED = "confirmed"


class NotificationStatus(enum.StrEnum):
    """Of an order's notification, in the order in which it may move: ``sent`` is never taken back by an older fact."""

    PENDING = "pending"
    SKIPPED = "skipped"
    FAILED = "failed"
    SENT = "sent"
