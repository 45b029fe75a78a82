"""flask orders: list orders, and show one with its timeline."""

from collections.abc import Iterator
from typing import Any

import click

from app import orders
from app.bus import queries
from app.cli import output
from app.cli.group import Group, database
from app.db import iso
from app.states import NotificationStatus, OrderStatus

COLUMNS = ("order_id", "user_id", "total_price", "email", "status", "notification", "created_at")

orders_group = Group("orders", help="Look at orders.")


@orders_group.command("list")
@click.option("--user", "user_id")
@click.option("--status", type=click.Choice([status.value for status in OrderStatus]))
@click.option("--notification", type=click.Choice([status.value for status in NotificationStatus]))
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True)
def list_orders(limit: int, **filters: Any) -> None:
    """Orders, the newest first."""
    with database().read() as session:
        page, next_cursor = orders.list_orders(session, **filters, limit=limit)
    output.table(COLUMNS, [[getattr(order, name) for name in COLUMNS] for order in page], empty="no orders")
    if next_cursor:
        output.line(f"and more; --limit {limit * 2} shows them")


@orders_group.command("show")
@click.argument("order_id")
def show_order(order_id: str) -> None:
    """An order and all that happened to it."""
    with database().read() as session:
        order = orders.find_order(session, order_id)
        timeline = queries.timeline(session, order_id)
    output.record(order)
    for event in timeline:
        for text in _event_lines(event):
            output.line(text)


def _event_lines(event: dict[str, Any]) -> Iterator[str]:
    cause = f", caused by {event['cause_id']}" if event["cause_id"] else ""
    yield ""
    yield f"{iso(event['occurred_at'])}  {event['type']}  {event['event_id']}"
    yield f"    from {event['source']}{cause}"
    for delivery in event["deliveries"]:
        yield from _delivery_lines(delivery)


def _delivery_lines(delivery: dict[str, Any]) -> Iterator[str]:
    number, reason = delivery["delivery_id"], _after_colon(delivery["reason"])
    yield f"    → {delivery['receiver']}  {delivery['state']}  (delivery {number}){reason}"
    for attempt in delivery["attempts"]:
        yield f"        {iso(attempt['ended_at'])}  {attempt['outcome']}{_after_colon(attempt['detail'])}"


def _after_colon(text: str | None) -> str:
    return f": {text}" if text else ""
