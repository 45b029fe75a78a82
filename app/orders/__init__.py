"""The order and user records, and what may be done with them."""

from app.orders.emails import (
    NOTIFICATION,
    choose_skipped,
    made_email,
    notification_reasons,
    set_order_email,
    set_user_email,
)
from app.orders.identifiers import ID_PATTERN, UUID_PATTERN, is_identifier
from app.orders.intake import take_order
from app.orders.models import Order, User
from app.orders.queries import (
    OrderPage,
    OrderSort,
    OrderSums,
    find_order,
    find_user,
    list_orders,
    list_users,
    order_email,
    sum_orders,
    user_email,
)
from app.orders.records import confirm_order, mark_notification, place_order, set_email

__all__ = [
    "ID_PATTERN",
    "NOTIFICATION",
    "UUID_PATTERN",
    "Order",
    "OrderPage",
    "OrderSort",
    "OrderSums",
    "User",
    "choose_skipped",
    "confirm_order",
    "find_order",
    "find_user",
    "is_identifier",
    "list_orders",
    "list_users",
    "made_email",
    "mark_notification",
    "notification_reasons",
    "order_email",
    "place_order",
    "set_email",
    "set_order_email",
    "set_user_email",
    "sum_orders",
    "take_order",
    "user_email",
]
