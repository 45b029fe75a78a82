"""The order and user records, and what may be done with them."""

from app.orders.identifiers import ID_PATTERN, is_identifier
from app.orders.models import Order, User
from app.orders.queries import find_order, find_user, known_email, list_orders
from app.orders.records import confirm_order, mark_notification, place_order, set_email

__all__ = [
    "ID_PATTERN",
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
