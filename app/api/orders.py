"""EVENT SOURCE: an order comes in, an event goes out. Everything else that happens to the order follows from it."""

from http import HTTPStatus
from typing import Any

from flask import url_for
from flask.typing import ResponseReturnValue
from werkzeug.urls import iri_to_uri

from app.api.blueprint import blueprint
from app.api.operation import Operation, ResponseDoc
from app.api.origin import origin
from app.api.response_models import OrderPage, OrderView, OrderWithTimeline, PlacedOrder
from app.bus import queries
from app.clock import uuid7
from app.current import database
from app.errors import OrderNotFound
from app.events import OrderCreated
from app.http import current_request
from app.orders import find_order, is_identifier, list_orders, take_order
from app.request_models import NewOrder, OrderQuery
from app.validation import read_body, read_query

SOURCE = "/api/create_order"
"""The ``source`` of this route's events."""


@blueprint.post(SOURCE)
@Operation(
    "Place an order",
    body=NewOrder,
    responses={
        201: ResponseDoc("stored; what follows is under way", PlacedOrder, headers=("Location",)),
        200: ResponseDoc(
            "the same order was stored before; nothing happens twice", PlacedOrder, headers=("Idempotent-Replayed",)
        ),
        409: ResponseDoc(
            "an order with this order_id exists with other content", detail="order 1001 exists with other content"
        ),
    },
)
def create_order() -> ResponseReturnValue:
    """Stores the order and the event that announces it in one transaction, or nothing."""
    order = read_body(NewOrder)
    event_id = uuid7()
    earlier_id = take_order(database(), SOURCE, OrderCreated(**vars(order)), event_id, origin())
    if earlier_id is not None:
        return _success(order, earlier_id), HTTPStatus.OK, {"Idempotent-Replayed": "true"}
    location = f"{current_request().script_root}/api/orders/{order.order_id}"
    return _success(order, event_id), HTTPStatus.CREATED, {"Location": location}


def _success(order: NewOrder, event_id: str) -> dict[str, Any]:
    return {"status": "success", "message": "订单创建成功", "order_id": order.order_id, "event_id": event_id}


@blueprint.get("/api/orders")
@Operation(
    "List orders, newest first",
    query=OrderQuery,
    responses={200: ResponseDoc("a page of orders", OrderPage, headers=("Link",))},
)
def show_orders() -> ResponseReturnValue:
    """Follow next_cursor, or the Link header, to page. Orders placed meanwhile appear on a new first page."""
    query = read_query(OrderQuery)
    filters = query.model_dump()
    with database().read() as session:
        found = list_orders(session, after=filters.pop("cursor"), **filters)
        page = OrderPage.serialize({"orders": found.orders, "next_cursor": found.cursor})
    return (page, {"Link": _link(query, found.cursor)}) if found.cursor else page


def _link(query: OrderQuery, cursor: str) -> str:
    """The Link header of the page after this one, with the same filters."""
    parameters = query.model_copy(update={"cursor": cursor}).model_dump(exclude_none=True)
    return f'<{iri_to_uri(url_for(".show_orders", **parameters))}>; rel="next"'


@blueprint.get("/api/orders/<order_id>")
@Operation(
    "Show an order and everything that happened to it",
    responses={
        200: ResponseDoc("the order, and its events with their causes, deliveries and attempts", OrderWithTimeline),
        404: ResponseDoc("there is no such order", detail="there is no order 1001"),
    },
)
def show_order(order_id: str) -> ResponseReturnValue:
    """Every event names the event that caused it; every delivery tells its attempts and what became of them."""
    if not is_identifier(order_id):
        raise OrderNotFound
    with database().read() as session:
        order = OrderView.serialize(find_order(session, order_id))
        return OrderWithTimeline.serialize(order | {"timeline": queries.timeline(session, order_id)})
