"""EVENT SOURCE: an order comes in, an event goes out. Everything else that happens to it follows from the event."""

from http import HTTPStatus

from flask import request, url_for
from flask.typing import ResponseReturnValue

from app.api.blueprint import database, routes
from app.api.incoming import NewOrder, OrderQuery
from app.api.openapi import Answer, Operation
from app.api.outgoing import OrderPage, OrderView, OrderWithTimeline, PlacedOrder, UserView, view
from app.api.reading import read_body, read_query
from app.bus import queries
from app.clock import uuid7
from app.db import Transaction
from app.errors import OrderConflict, OrderNotFound, UserNotFound
from app.events import OrderCreated, order_created
from app.orders import find_order, find_user, is_identifier, list_orders, place_order

SOURCE = "/api/create_order"
"""What the events of this route name as their source."""


@routes.post(SOURCE)
@Operation(
    "Place an order",
    body=NewOrder,
    answers={
        201: Answer("stored; what follows is under way", PlacedOrder, headers=("Location",)),
        200: Answer(
            "the same order was stored before; nothing happens twice", PlacedOrder, headers=("Idempotent-Replayed",)
        ),
        409: Answer("an order with this order_id exists with other content"),
    },
)
def create_order() -> ResponseReturnValue:
    """Stores the order and the event that announces it in one transaction, or nothing."""
    order = read_body(NewOrder)
    event = OrderCreated(**vars(order))
    event_id = uuid7()

    def place(transaction: Transaction) -> str | OrderConflict | None:
        try:
            earlier = place_order(transaction, **vars(order), event_id=event_id)
        except OrderConflict as conflict:  # it wrote nothing, so those who share the commit need not begin again
            return conflict
        if earlier is None:
            order_created.send(SOURCE, event=event, event_id=event_id)
        return earlier

    earlier = database().transact(place, lock_order=order.user_id)
    if isinstance(earlier, OrderConflict):
        raise earlier
    answer = {
        "status": "success",
        "message": "订单创建成功",
        "order_id": order.order_id,
        "event_id": earlier or event_id,
    }
    if earlier:
        return answer, HTTPStatus.OK, {"Idempotent-Replayed": "true"}
    return answer, HTTPStatus.CREATED, {"Location": f"{request.script_root}/api/orders/{order.order_id}"}


@routes.get("/api/orders")
@Operation(
    "List orders, newest first",
    query=OrderQuery,
    answers={200: Answer("a page of orders", OrderPage, headers=("Link",))},
)
def show_orders() -> ResponseReturnValue:
    """Follow next_cursor, or the Link header, to page. Orders placed meanwhile appear on a new first page."""
    query = read_query(OrderQuery)
    wanted = query.model_dump()
    with database().read() as session:
        orders, cursor = list_orders(session, before=wanted.pop("cursor"), **wanted)
        page = view(OrderPage, {"orders": orders, "next_cursor": cursor})
    if cursor is None:
        return page
    following = query.model_copy(update={"cursor": cursor}).model_dump(exclude_none=True)
    return page, {"Link": f'<{url_for(".show_orders", **following)}>; rel="next"'}


@routes.get("/api/orders/<order_id>")
@Operation(
    "Show an order and everything that happened to it",
    answers={
        200: Answer("the order, and its events with their causes, deliveries and attempts", OrderWithTimeline),
        404: Answer("there is no such order"),
    },
)
def show_order(order_id: str) -> ResponseReturnValue:
    """Every event names the event that caused it; every delivery tells its attempts and what became of them."""
    if not is_identifier(order_id):
        raise OrderNotFound
    with database().read() as session:
        order = view(OrderView, find_order(session, order_id))
        return view(OrderWithTimeline, order | {"timeline": queries.timeline(session, order_id)})


@routes.get("/api/users/<user_id>")
@Operation(
    "Show a user's record",
    answers={
        200: Answer("the user's record, into which confirmed orders are counted", UserView),
        404: Answer("there is no such user"),
    },
)
def show_user(user_id: str) -> ResponseReturnValue:
    """The record runs behind the orders by as much as the receivers do: usually by milliseconds."""
    if not is_identifier(user_id):
        raise UserNotFound
    with database().read() as session:
        return view(UserView, find_user(session, user_id))
