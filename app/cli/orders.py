"""flask orders: list orders, show one with its timeline, correct its address, and send skipped notifications."""

from collections.abc import Iterator
from typing import Any

import click

from app import orders
from app.addresses import checked_email
from app.bus import Filter, operate, queries
from app.cli import output
from app.cli.deliveries import carry_out, no_wait_option, over_option, tell_nothing
from app.cli.group import Group, bus, database, operator
from app.db import iso
from app.states import DeliveryState, NotificationStatus, OrderStatus

COLUMNS = ("order_id", "user_id", "total_price", "email", "status", "notification", "created_at")

orders_group = Group("orders", help="Look at orders, and put their addresses right.")


@orders_group.command("list")
@click.option("--user", "user_id")
@click.option("--status", type=click.Choice([status.value for status in OrderStatus]))
@click.option("--notification", type=click.Choice([status.value for status in NotificationStatus]))
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True)
@output.json_option
def list_orders(limit: int, **filters: Any) -> None:
    """Orders, the newest first; where a notification is not sent, the reason."""
    with database().read() as session:
        page = orders.list_orders(session, **filters, limit=limit)
        unsent = [order.order_id for order in page.orders if order.notification is not NotificationStatus.SENT]
        reasons = orders.notification_reasons(session, unsent)
    rows = [as_mapping(order) | {"reason": reasons.get(order.order_id)} for order in page.orders]
    output.document({"orders": rows, "next_cursor": page.cursor})
    columns = (*COLUMNS, "reason") if reasons else COLUMNS
    output.table(columns, [[row[name] for name in columns] for row in rows], empty="no orders")
    if page.cursor:
        output.line(f"and more; --limit {limit * 2} shows them")


@orders_group.command("show")
@click.argument("order_id")
@output.json_option
def show_order(order_id: str) -> None:
    """An order and all that happened to it."""
    with database().read() as session:
        order = orders.find_order(session, order_id)
        timeline = queries.timeline(session, order_id)
    output.document(as_mapping(order) | {"timeline": timeline})
    output.record(order)
    for event in timeline:
        output.line(*_event_lines(event))


@orders_group.command("set-email")
@click.argument("order_id")
@click.argument("address")
@output.json_option
def set_email(order_id: str, address: str) -> None:
    """Let the order's mails go to ADDRESS, from the next try on. Says how to send what was skipped for want of one."""
    address = checked_address(address)
    changed = orders.set_order_email(bus(), order_id, address, by=operator())
    given_up = Filter(order_id=order_id, receiver=orders.NOTIFICATION, state=DeliveryState.DEAD.value)
    with database().read() as session:
        count = operate.count(session, "retry", given_up)
    skipped = count_skipped()
    told = {"order_id": order_id, "email": address, "changed": changed, "given_up": count, "skipped": skipped}
    output.document(told)
    output.line(f"order {order_id}: {address}")
    if count:
        output.line(f"to send what was given up ({count}): flask bus retry {given_up.options()}")
    offer_to_send(skipped)


@orders_group.command("send-skipped")
@click.option("--order", "order_id", help="Only this order's.")
@click.option("--user", "user_id", help="Only this user's.")
@over_option
@output.yes_option
@no_wait_option
@output.json_option
def send_skipped(no_wait: bool, **conditions: Any) -> None:
    """Send the notifications that were skipped for want of an address, where there is one now. Says first how many."""
    chosen = orders.choose_skipped(bus(), operator(), **conditions)
    if len(chosen) == 0:
        tell_nothing("nothing was skipped that has an address now")
        return
    carry_out(
        lambda on_progress: bus().carry_out(chosen, on_progress),
        len(chosen),
        action="retry",
        question=f"send {len(chosen)} notifications?",
        waits=not no_wait,
    )


def checked_address(address: str) -> str:
    """The address, normalised. Raises ClickException."""
    try:
        return checked_email(address)
    except ValueError as problem:
        raise click.ClickException(f"ADDRESS: {problem}") from problem


def offer_to_send(count: int) -> None:
    """Print the command that sends all that was skipped and has an address now, where there is any."""
    if count:
        output.line(f"to send what was skipped and has an address now ({count}): flask orders send-skipped")


def count_skipped() -> int:
    """How many notifications, of all orders, were skipped for want of an address and have one now."""
    return len(orders.choose_skipped(bus(), operator()))


def as_mapping(row: Any) -> dict[str, Any]:
    """A row of a table, by its columns' names."""
    return {column.name: getattr(row, column.name) for column in row.__table__.columns}


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
        if attempt["why"]:
            yield f"            why then: {attempt['why']}"
    if delivery["due_because"] and delivery["due_at"]:
        yield f"        {iso(delivery['due_at'])}  next try: {delivery['due_because']}"


def _after_colon(text: str | None) -> str:
    return f": {text}" if text else ""
