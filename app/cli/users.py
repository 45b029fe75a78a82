"""flask users: show a user's record, and set the address."""

import click

from app import orders
from app.addresses import checked_email
from app.bus import Filter, operate
from app.cli import output
from app.cli.group import Group, database
from app.states import DeliveryState

users_group = Group("users", help="Look at users, and set their addresses.")


@users_group.command("show")
@click.argument("user_id")
def show_user(user_id: str) -> None:
    """A user's record."""
    with database().read() as session:
        output.record(orders.find_user(session, user_id))


@users_group.command("set-email")
@click.argument("user_id")
@click.argument("address")
def set_email(user_id: str, address: str) -> None:
    """Keep ADDRESS as the user's. Says how to retry what was skipped for want of one."""
    if not orders.is_identifier(user_id):
        raise click.ClickException(f"USER_ID: {user_id!r} is no id; it matches {orders.ID_PATTERN}")
    try:
        address = checked_email(address)
    except ValueError as problem:
        raise click.ClickException(f"ADDRESS: {problem}") from problem
    database().transact(lambda transaction: orders.set_email(transaction, user_id, address))
    output.line(f"user {user_id}: {address}")
    _offer_retry(user_id)


def _offer_retry(user_id: str) -> None:
    """Print the command that sends the user's skipped notifications, where there are any."""
    skipped = Filter(
        user_id=user_id, receiver="send_email_notification", state=DeliveryState.DISCARDED, reason="no address"
    )
    with database().read() as session:
        count = operate.count(session, "retry", skipped)
    if count:
        output.line(
            f"to send what was skipped ({count}): flask bus retry --user {user_id} --receiver {skipped.receiver} "
            f"--state {skipped.state} --reason '{skipped.reason}'"
        )
