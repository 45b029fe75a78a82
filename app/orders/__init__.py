"""The order and user records, and what may be done with them."""

from app.orders.models import NOTIFICATIONS, STATUSES, Order, User
from app.orders.records import (
    ID_PATTERN,
    confirm_order,
    find_order,
    find_user,
    is_identifier,
    known_email,
    list_orders,
    mark_notification,
    place_order,
    set_email,
)

__all__ = [
    "ID_PATTERN",
    "NOTIFICATIONS",
    "STATUSES",
    "Order",
    "User",
    "confirm_order",
    "find_order",
    "find_user",
    "is_identifier",
    "known_email",
    "list_orders",
    "mark_notification",
    "place_order",
    "set_email",
]
