"""Orders: the table, its downloads, and the story of one order, with what can be done about it."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

from flask import flash
from flask.typing import ResponseReturnValue
from flask_babel import gettext
from pydantic import Field
from sqlalchemy.orm import Session

from app.bus import Act, Filter, acts, explain, operate, queries
from app.bus.operate import ACTIONS
from app.clock import iso
from app.console import access, in_words, why
from app.console.downloads import ROWS_AT_ONCE, all_pages, send_csv, send_json
from app.console.mails import is_sent
from app.console.pages import go_to, keep_address, next_page, page, read_filter, read_form, sought_address, wrong_fields
from app.current import bus, database
from app.errors import OrderNotFound
from app.fields import MAX_BIGINT, Text
from app.http import Problem
from app.orders import (
    Order,
    OrderPage,
    OrderSort,
    emails,
    find_order,
    is_identifier,
    list_orders,
    notification_reasons,
)
from app.request_models import DiscardReason, OrderQuery, ResendRequest
from app.resend import resend
from app.states import NotificationStatus, OrderStatus
from app.validation import field_problem

MOST_LOOKED_AT = 20_000
"""So many orders are looked at for those of a status that no index has."""

WATERFALL_WIDTH = 760
"""Of the picture's time axis."""


class OrderSearch(OrderQuery):
    """Which orders to show, and in which order. ``q`` is an order's or a user's id, or an address."""

    q: Text | None = Field(None, max_length=254, description="an order, a user or an e-mail address")
    sort: OrderSort = Field(OrderSort.NEWEST, description="newest, oldest, order or user")
    cursor: Text | None = Field(None, max_length=130, description="the cursor of the page before")

    def filters(self) -> dict[str, Any]:
        """As ``list_orders`` takes them. A search finds by an index that has its orders by their time."""
        found: dict[str, Any] = self.model_dump(include={"user_id", "status", "notification"})
        sought = (self.q or "").strip()
        if "@" in sought:
            found["email"] = sought_address(sought)
        elif sought:
            found["user_id"] = sought
        searched = bool(sought or self.user_id)
        sort = OrderSort.NEWEST if searched and self.sort in (OrderSort.ORDER, OrderSort.USER) else self.sort
        return found | {"sort": sort, "most": MOST_LOOKED_AT}


def show_orders() -> ResponseReturnValue:
    query = read_filter(OrderSearch)
    with database().read() as session:
        exact = _exact(session, query)
        found = _list(session, query, query.cursor, query.limit)
        others = [order for order in found.orders if exact is None or order.order_id != exact.order_id]
        rows = [exact, *others] if exact else others
        unsent = (NotificationStatus.FAILED, NotificationStatus.SKIPPED)
        reasons = notification_reasons(session, [each.order_id for each in rows if each.notification in unsent])
    return page(
        "orders.html",
        rows=rows,
        reasons=reasons,
        query=query,
        filters=query.model_dump(mode="json", include={"q", "user_id", "status", "notification"}, exclude_none=True),
        sort=query.filters()["sort"],
        following=next_page("show_orders", query, found.cursor),
        stopped=found.stopped,
        most=MOST_LOOKED_AT,
        statuses=list(OrderStatus),
        notifications=list(NotificationStatus),
    )


def _exact(session: Session, query: OrderSearch) -> Order | None:
    """The order whose id is sought, on the first page."""
    sought = (query.q or "").strip()
    found = session.get(Order, sought) if is_identifier(sought) and query.cursor is None else None
    wanted = {"status": query.status, "notification": query.notification}
    return found if found and all(value in (None, getattr(found, name)) for name, value in wanted.items()) else None


def _list(session: Session, query: OrderSearch, cursor: str | None, limit: int) -> OrderPage:
    """Raises Problem with 422 for the cursor of another list."""
    try:
        return list_orders(session, after=cursor, limit=limit, **query.filters())
    except ValueError as error:
        raise field_problem([("cursor", f"is {error}")]) from None


COLUMNS = ("order_id", "user_id", "total_price", "email", "status", "notification", "created_at", "event_id")
"""Of a download."""


def download_csv() -> ResponseReturnValue:
    """The orders that the filters select. Raises Problem with 429."""
    return send_csv(_pages(), COLUMNS, "orders.csv")


def download_json() -> ResponseReturnValue:
    """The orders that the filters select. Raises Problem with 429."""
    return send_json(_pages(), "orders.json")


def _pages() -> Iterator[Sequence[Mapping[str, Any]]]:
    query, reader = read_filter(OrderSearch), database()

    def read(cursor: str | None) -> tuple[list[dict[str, Any]], str | None]:
        with reader.read() as session:
            exact = _exact(session, query) if cursor is None else None
            found = _list(session, query, cursor, ROWS_AT_ONCE)
        rows = [exact] if exact and exact.user_id != query.filters().get("user_id") else []
        return [_as_row(order) for order in (*rows, *found.orders)], found.cursor

    return all_pages(read)


def _as_row(order: Order) -> dict[str, Any]:
    row = {name: getattr(order, name) for name in COLUMNS}
    return row | {"total_price": f"{order.total_price:.2f}", "created_at": iso(order.created_at)}


# One order


def show_order(order_id: str, given: Mapping[str, str] | None = None, wrong: dict[str, str] | None = None) -> str:
    """``wrong`` names fields as the page does: ``email``, or ``reason-`` and a delivery. Raises OrderNotFound."""
    if not is_identifier(order_id):
        raise OrderNotFound
    with database().read() as session:
        order = find_order(session, order_id)
        timeline = queries.timeline(session, order_id)
        breakers = queries.open_breakers(session)
        deliveries = [each["delivery_id"] for event in timeline for each in event["deliveries"]]
        touches = acts.touches(session, deliveries)
    return page(
        "order.html",
        order=order,
        timeline=timeline,
        causes={event["event_id"]: event["type"] for event in timeline},
        touches=touches,
        in_words=in_words,
        chart=waterfall(timeline, database().clock.now()),
        is_sent=is_sent,
        explained={
            each["delivery_id"]: explain.of(each, breakers) for event in timeline for each in event["deliveries"]
        },
        why=why,
        given=given or {"email": order.email or ""},
        wrong=wrong or {},
    )


def resend_notification(order_id: str) -> ResponseReturnValue:
    """Raises OrderNotFound."""
    reason = read_form(ResendRequest).reason
    resend(bus(), order_id, by=access.operator(), reason=reason)
    flash(gettext("The notification is asked for again: a new mail follows."))
    return go_to("show_order", order_id=order_id)


def set_order_email(order_id: str) -> ResponseReturnValue:
    """Set the address; an error stands beside the field. Raises OrderNotFound."""
    if not is_identifier(order_id):
        raise OrderNotFound
    return keep_address(
        lambda email: emails.set_order_email(bus(), order_id, email, by=access.operator()),
        gettext("The address is kept: this order's mails go there from the next try on."),
        partial(show_order, order_id),
        go_to("show_order", order_id=order_id),
    )


def retry_order_delivery(order_id: str, delivery_id: int) -> ResponseReturnValue:
    """Let one delivery be tried now. Raises OrderNotFound."""
    reason = read_form(ResendRequest).reason
    state = _state_of(order_id, delivery_id)
    act = Act("retry", Filter(delivery_id=delivery_id, state=state), access.operator(), reason)
    if state in ACTIONS["retry"] and bus().carry_out(bus().choose(act)).deliveries:
        flash(gettext("The delivery is due now."))
    else:
        flash(gettext("Nothing was changed: the delivery is done, or under way."))
    return go_to("show_order", order_id=order_id)


def discard_order_delivery(order_id: str, delivery_id: int) -> ResponseReturnValue:
    """Give one delivery up for good. Without a reason the page says so. Raises OrderNotFound."""
    state = _state_of(order_id, delivery_id)
    try:
        reason = read_form(DiscardReason).reason
    except Problem as problem:
        field = f"reason-{delivery_id}"
        return show_order(order_id, wrong={field: wrong_fields(problem)["reason"]}), 422
    act = Act("discard", Filter(delivery_id=delivery_id), access.operator(), reason)
    if state in ACTIONS["discard"] and bus().carry_out(bus().choose(act)).deliveries:
        flash(gettext("The delivery is given up for good."))
    else:
        flash(gettext("Nothing was changed: the delivery has ended, or is under way."))
    return go_to("show_order", order_id=order_id)


def _state_of(order_id: str, delivery_id: int) -> str:
    """Raises OrderNotFound where the order has no such delivery."""
    found: list[Any] = []
    if is_identifier(order_id) and delivery_id <= MAX_BIGINT:
        with database().read() as session:
            found, _ = operate.find(session, Filter(delivery_id=delivery_id, order_id=order_id))
    if not found:
        raise OrderNotFound
    return str(found[0].state)


# The waterfall


@dataclass(frozen=True)
class Bar:
    """A stretch of time in the picture: ``tone`` is a state's or an outcome's."""

    x: float
    width: float
    word: str
    detail: str


@dataclass(frozen=True)
class Row:
    depth: int
    label: str
    word: str
    bars: list[Bar]
    took: float | None
    """Seconds from the event until it was done."""


def waterfall(timeline: list[dict[str, Any]], now: datetime) -> list[Row]:
    """A row for each event and each delivery. Time is drawn by its logarithm between one change and the next, so that
    a wait of hours leaves the milliseconds visible."""
    scale = _scale(sorted({moment for event in timeline for moment in _moments(event, now)}))
    rows = []
    for event in timeline:
        at = event["occurred_at"]
        rows.append(Row(0, event["type"], "", [Bar(scale[at], 0, "event", event["source"])], None))
        for delivery in event["deliveries"]:
            end = delivery["settled_at"] or now
            bars = [Bar(scale[at], max(scale[max(end, at)] - scale[at], 2), "ready", "")]
            bars += [
                Bar(
                    scale[attempt["started_at"]],
                    max(scale[attempt["ended_at"]] - scale[attempt["started_at"]], 4),
                    attempt["outcome"],
                    attempt["detail"] or "",
                )
                for attempt in delivery["attempts"]
            ]
            took = (delivery["settled_at"] - at).total_seconds() if delivery["settled_at"] else None
            rows.append(Row(1, delivery["receiver"], _state(delivery), bars, took))
    return rows


def _state(delivery: dict[str, Any]) -> str:
    return "retrying" if delivery["state"] == "ready" and delivery["outcome"] else str(delivery["state"])


def _moments(event: dict[str, Any], now: datetime) -> list[datetime]:
    found = [event["occurred_at"]]
    for delivery in event["deliveries"]:
        found.append(delivery["settled_at"] or now)
        found += [attempt[name] for attempt in delivery["attempts"] for name in ("started_at", "ended_at")]
    return found


def _scale(moments: list[datetime]) -> dict[datetime, float]:
    """Where each moment lies on the axis."""
    places, x = {}, 0.0
    for before, moment in zip([moments[0], *moments], moments, strict=False):
        x += math.log1p((moment - before).total_seconds() * 1000)
        places[moment] = x
    whole = x or 1.0
    return {moment: round(WATERFALL_WIDTH * place / whole, 1) for moment, place in places.items()}
