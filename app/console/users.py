"""Users: the table, and one user's record beside the sums of the user's orders."""

from collections.abc import Mapping
from functools import partial

from flask import flash, request
from flask.typing import ResponseReturnValue
from flask_babel import gettext, ngettext
from pydantic import Field

from app import orders
from app.bus.operate import Chosen
from app.console import access
from app.console.pages import go_to, keep_address, next_page, page, read_filter, sought_address
from app.current import bus, database
from app.errors import UserNotFound
from app.fields import Identifier, PageSize, Text
from app.orders import OrderSums, User
from app.request_models import RequestModel
from app.states import NotificationStatus

MOST_SUMMED = 10_000
"""So many of a user's orders are added up, unless all are asked for."""

MOST_SKIPPED = 500
"""So many of a user's skipped mails are sent at once, the newest."""

NEWEST_ORDERS = 10


class UserSearch(RequestModel):
    """Which users to show. ``q`` is a user's id, or an address."""

    q: Text | None = Field(None, max_length=254)
    limit: PageSize = Field(50)
    cursor: Identifier | None = Field(None)


class UserQuery(RequestModel):
    """Whether all orders are added up."""

    all: bool = Field(False)


def show_users() -> ResponseReturnValue:
    query = read_filter(UserSearch)
    sought = (query.q or "").strip()
    cursor: str | None = None
    with database().read() as session:
        if sought and "@" not in sought:
            found = session.get(User, sought) if orders.is_identifier(sought) else None
            rows = [found] if found else []
        else:
            email = sought_address(sought) if sought else None
            users, cursor = orders.list_users(session, email=email, after=query.cursor, limit=query.limit)
            rows = list(users)
    return page("users.html", rows=rows, query=query, following=next_page("show_users", query, cursor))


def show_user(user_id: str, given: Mapping[str, str] | None = None, wrong: dict[str, str] | None = None) -> str:
    """Raises UserNotFound where there is neither a record nor an order."""
    if not orders.is_identifier(user_id):
        raise UserNotFound
    most = None if read_filter(UserQuery).all else MOST_SUMMED
    with database().read() as session:
        record = session.get(User, user_id)
        sums = orders.sum_orders(session, user_id, most)
        newest = orders.list_orders(session, user_id=user_id, limit=NEWEST_ORDERS)
    if record is None and not newest.orders:
        raise UserNotFound(f"there is no user {user_id}")
    chosen = _skipped(user_id) if sums.skipped else None
    return page(
        "user.html",
        user_id=user_id,
        record=record,
        sums=sums,
        verdict=_verdict(record, sums),
        newest=newest.orders,
        more=newest.cursor is not None,
        skipped=len(chosen) if chosen else 0,
        upto=max(chosen.ids, default=0) if chosen else 0,
        most=MOST_SUMMED,
        most_skipped=MOST_SKIPPED,
        given=given or {},
        wrong=wrong or {},
    )


def _verdict(record: User | None, sums: OrderSums) -> str:
    """``equal``, ``partly`` where not all was added up, ``differs``; ``none`` where there is nothing to compare."""
    if not sums.is_whole:
        return "partly"
    if record is None or record.orders_count == sums.orders_count == 0:
        return "differs" if sums.orders_count else "none"
    return "equal" if sums.agree(record) else "differs"


def _skipped(user_id: str) -> Chosen:
    """Of the newest orders, what was skipped for want of an address, and can be sent now."""
    with database().read() as session:
        found = orders.list_orders(
            session, user_id=user_id, notification=NotificationStatus.SKIPPED, limit=MOST_SKIPPED, most=MOST_SUMMED
        )
    among = [order.order_id for order in found.orders]
    return orders.choose_skipped(bus(), access.operator(), user_id=user_id, among=among)


def set_user_email(user_id: str) -> ResponseReturnValue:
    """Set the address; an error stands beside the field. Raises UserNotFound."""
    if not orders.is_identifier(user_id):
        raise UserNotFound
    return keep_address(
        lambda email: orders.set_user_email(bus(), user_id, email, by=access.operator()),
        gettext("The address is kept: mails of orders that have none of their own go there from now on."),
        partial(show_user, user_id),
        go_to("show_user", user_id=user_id),
    )


def send_skipped(user_id: str) -> ResponseReturnValue:
    """Send what the page counted: what was skipped since is not in it. Raises UserNotFound."""
    if not orders.is_identifier(user_id):
        raise UserNotFound
    upto = request.form.get("upto", "")
    chosen = _skipped(user_id).upto(int(upto) if upto.isascii() and upto.isdigit() else 0)
    touched = bus().carry_out(chosen).deliveries if len(chosen) else 0
    flash(ngettext("%(num)d mail is due now.", "%(num)d mails are due now.", touched))
    return go_to("show_user", user_id=user_id)
