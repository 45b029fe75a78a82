"""flask bus move: from the SQLite file of one machine to PostgreSQL."""

import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import click

from app import current
from app.cli import output
from app.cli.bus import bus_group
from app.db.move import Sums, move


@bus_group.command("move")
@click.option("--from", "source", required=True, metavar="URL", help="The file that the service ran on: sqlite:///…")
@click.option("--to", "target", required=True, metavar="URL", help="An empty database: postgresql+psycopg://…")
@output.json_option
def move_command(source: str, target: str) -> None:
    """Copy all of a stopped service's data from SQLite to an empty PostgreSQL database, and check what was copied.

    Where anything is wrong the target stays empty, and the move can be run again. The file is left as it is.
    """
    current.database().close()
    with ExitStack() as stack:
        moved = move(source, target, lambda rows: _progress(stack, rows))
    output.document({"rows": {table: sums["rows"] for table, sums in moved.items()}, "sums": moved})
    output.line(*_told(moved))


def _progress(stack: ExitStack, rows: int) -> Callable[[int], Any]:
    """Shown on a terminal only, on stderr."""
    bar = click.progressbar(length=rows, label="rows", show_pos=True, file=sys.stderr, hidden=not sys.stderr.isatty())
    return stack.enter_context(bar).update


def _told(moved: dict[str, Sums]) -> list[str]:
    orders, users, states = moved["orders"], moved["users"], moved["deliveries"]["state"]
    by_state = ", ".join(f"{number:,} {state}" for state, number in states.items()) or "none"
    count, spent = users["orders_count"][1] or 0, _amount(users["total_spent"])
    return [
        f"moved {sum(each['rows'] for each in moved.values()):,} rows of {len(moved)} tables; counts and sums agree:",
        f"orders      {orders['rows']:,}, worth {_amount(orders['total_price'])}",
        f"users       {users['rows']:,}, with {count:,} orders worth {spent}",
        f"deliveries  {by_state}",
        "now start the service with DATABASE_URL set to --to; never again on the file, which would go on for itself",
    ]


def _amount(column: list[int | None]) -> str:
    cents = column[1] or 0
    return f"{cents // 100:,}.{cents % 100:02}"
