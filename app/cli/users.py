"""flask users: show a user's record, and set the address."""

import click

from app import orders
from app.cli import output
from app.cli.group import Group, bus, database, operator
from app.cli.orders import as_mapping, checked_address, count_skipped, offer_to_send

users_group = Group("users", help="Look at users, and set their addresses.")


@users_group.command("show")
@click.argument("user_id")
@output.json_option
def show_user(user_id: str) -> None:
    """A user's record."""
    with database().read() as session:
        user = orders.find_user(session, user_id)
    output.document(as_mapping(user))
    output.record(user)


@users_group.command("set-email")
@click.argument("user_id")
@click.argument("address")
@output.json_option
def set_email(user_id: str, address: str) -> None:
    """Keep ADDRESS as the user's. Says how to send what was skipped for want of one."""
    if not orders.is_identifier(user_id):
        raise click.ClickException(f"USER_ID: {user_id!r} is no id; it matches {orders.ID_PATTERN}")
    address = checked_address(address)
    changed = orders.set_user_email(bus(), user_id, address, by=operator())
    skipped = count_skipped()
    output.document({"user_id": user_id, "email": address, "changed": changed, "skipped": skipped})
    output.line(f"user {user_id}: {address}")
    offer_to_send(skipped)
