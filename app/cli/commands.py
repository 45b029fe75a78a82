"""Commands for people: flask bus, flask orders, flask users, flask db, flask doctor."""

import contextlib
import getpass
import os
import signal
import threading
from datetime import UTC
from typing import Any, cast

import click
from flask import Flask, current_app
from flask.cli import AppGroup, with_appcontext

from app import doctor, orders
from app.bus import Bus, Filter, operate, queries
from app.db import Database, iso, schema
from app.engine import InProcessEngine
from app.errors import AppError, DatabaseUnavailable
from app.states import Outcome


class _Group(AppGroup):
    """Commands whose expected errors are one line, without a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except DatabaseUnavailable as error:
            raise click.ClickException(f"{error} ({error.reason})") from error
        except AppError as error:
            raise click.ClickException(str(error)) from error


bus_group = _Group("bus", help="Run a dispatcher, and see to deliveries.")
orders_group = _Group("orders", help="Look at orders.")
users_group = _Group("users", help="Look at users, and set their addresses.")
db_group = _Group("db", help="The database schema.")


def init_app(app: Flask) -> None:
    for group in (bus_group, orders_group, users_group, db_group):
        app.cli.add_command(group)
    app.cli.add_command(doctor_command)


def _any_database() -> Database:
    return cast(Database, current_app.extensions["database"])


def _database() -> Database:
    """Raises SchemaBehind, which says what to run, before a table turns out to be missing."""
    database = _any_database()
    database.check_schema()
    return database


def _bus() -> Bus:
    _database()
    return cast(Bus, current_app.extensions["bus"])


@bus_group.command("run")
def run_bus() -> None:
    """Dispatch until SIGTERM or Ctrl-C. As many as you like may run, on one machine or, with PostgreSQL, on many."""
    with contextlib.suppress(DatabaseUnavailable):  # at the start as later, the worker waits until it is back
        _database()
    engine: InProcessEngine = current_app.extensions["engine"]
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    engine.start()
    while engine.alive and not stop.wait(1):
        pass
    if not engine.stop():
        raise click.ClickException("some receivers were still running; their deliveries will be tried again")


@bus_group.command("status")
def bus_status() -> None:
    """Which dispatchers are alive, and what is waiting or dead."""
    database = _database()
    now = database.clock.now()
    with database.read() as session:
        alive, waiting = queries.dispatchers(session, now), queries.backlog(session)
    for dispatcher in alive:
        click.echo(f"dispatcher {dispatcher.name}, since {iso(dispatcher.started_at)}")
    if not alive:
        click.echo("no dispatcher is alive; start the service, or 'flask bus run'")
    _table(
        ["receiver", "state", "deliveries", "oldest"],
        [[row.receiver, row.state, row.deliveries, iso(row.since)] for row in waiting],
        "nothing is waiting, and nothing is dead",
    )


def _filter_options(command: Any) -> Any:
    for option in (
        click.option("--delivery", "delivery_id", type=click.IntRange(0, 2**63 - 1), help="This delivery only."),
        click.option("--state", type=click.Choice(["ready", "dead", "discarded"])),
        click.option("--receiver"),
        click.option("--type", "event_type", help="Of event, such as OrderCreated."),
        click.option("--order", "order_id"),
        click.option("--user", "user_id"),
        click.option("--older-than", type=click.DateTime(), help="Made before this time, in UTC."),
        click.option(
            "--outcome", type=click.Choice([outcome.value for outcome in Outcome]), help="Of the latest attempt."
        ),
        click.option("--reason", help="Text that the reason contains."),
        click.option("--yes", is_flag=True, help="Do not ask."),
    ):
        command = option(command)
    return command


@bus_group.command("retry")
@_filter_options
def retry(yes: bool, **which: Any) -> None:
    """Make dead and discarded deliveries due again, with a new budget of attempts. Says first how many."""
    if chosen := _agreed("retry", which, yes):
        click.echo(f"retried {_bus().retry(chosen, by=_who())}")


@bus_group.command("discard")
@_filter_options
@click.option("--because", required=True, help="Why: kept with each delivery.")
def discard(yes: bool, because: str, **which: Any) -> None:
    """Give waiting and dead deliveries up for good. Says first how many."""
    if not because.strip():
        raise click.BadParameter("say why", param_hint="--because")
    if chosen := _agreed("discard", which, yes):
        click.echo(f"discarded {_bus().discard(chosen, because, by=_who())}")


@bus_group.command("prune")
def prune() -> None:
    """Forget finished events older than RETENTION_DAYS now; a dispatcher does so every hour. Orders are kept."""
    click.echo(f"forgot {_bus().prune()} events")


def _agreed(action: str, which: dict[str, Any], yes: bool) -> Filter | None:
    """What to act on, once a person has agreed to how many that is; None where it is none."""
    if which["older_than"] is not None:
        which["older_than"] = which["older_than"].replace(tzinfo=UTC)
    chosen = Filter(**which)
    with _database().read() as session:
        count = operate.count(session, action, chosen)
    if count == 0:
        click.echo("no delivery matches")
        return None
    if not yes:
        click.confirm(f"{action} {count} deliveries?", abort=True)
    return chosen


def _who() -> str:
    try:
        return f"cli:{getpass.getuser()}"
    except (KeyError, OSError):  # a container may run as a user without a name
        return f"cli:{os.getuid()}"


@orders_group.command("list")
@click.option("--user", "user_id")
@click.option("--status", type=click.Choice(orders.STATUSES))
@click.option("--notification", type=click.Choice(orders.NOTIFICATIONS))
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True)
def list_orders(limit: int, **which: Any) -> None:
    """Orders, the newest first."""
    with _database().read() as session:
        page, more = orders.list_orders(session, **which, limit=limit)
    columns = ["order_id", "user_id", "total_price", "email", "status", "notification", "created_at"]
    _table(columns, [[_shown(getattr(order, name)) for name in columns] for order in page], "no orders")
    if more:
        click.echo(f"and more; --limit {limit * 2} shows them")


@orders_group.command("show")
@click.argument("order_id")
def show_order(order_id: str) -> None:
    """An order and all that happened to it."""
    with _database().read() as session:
        order = orders.find_order(session, order_id)
        story = queries.timeline(session, order_id)
    _record(order)
    for event in story:
        click.echo(f"\n{iso(event['occurred_at'])}  {event['type']}  {event['event_id']}")
        click.echo(f"    from {event['source']}" + (f", caused by {event['cause_id']}" if event["cause_id"] else ""))
        for delivery in event["deliveries"]:
            why = f": {delivery['reason']}" if delivery["reason"] else ""
            click.echo(f"    → {delivery['receiver']}  {delivery['state']}  (delivery {delivery['delivery_id']}){why}")
            for attempt in delivery["attempts"]:
                detail = f": {attempt['detail']}" if attempt["detail"] else ""
                click.echo(f"        {iso(attempt['ended_at'])}  {attempt['outcome']}{detail}")


@users_group.command("show")
@click.argument("user_id")
def show_user(user_id: str) -> None:
    """A user's record."""
    with _database().read() as session:
        _record(orders.find_user(session, user_id))


@users_group.command("set-email")
@click.argument("user_id")
@click.argument("address")
def set_email(user_id: str, address: str) -> None:
    """Keep ADDRESS as the user's. Says how to retry what was skipped for want of one."""
    if not orders.is_identifier(user_id):
        raise click.ClickException(f"USER_ID: {user_id!r} is no id; it matches {orders.ID_PATTERN}")
    try:
        address = orders.checked_email(address)
    except ValueError as problem:
        raise click.ClickException(f"ADDRESS: {problem}") from problem
    database = _database()
    database.transact(lambda transaction: orders.set_email(transaction, user_id, address))
    click.echo(f"user {user_id}: {address}")
    mails = Filter(user_id=user_id, receiver="send_email_notification", state="discarded", reason="no address")
    with database.read() as session:
        skipped = operate.count(session, "retry", mails)
    if skipped:
        click.echo(
            f"to send what was skipped ({skipped}): flask bus retry --user {user_id} --receiver {mails.receiver} "
            f"--state {mails.state} --reason '{mails.reason}'"
        )


@db_group.command("upgrade")
def upgrade() -> None:
    """Bring the schema up to date."""
    schema.upgrade(_any_database())
    click.echo(f"the schema is at {_any_database().schema_revision()}")


@db_group.command("current")
def current() -> None:
    """The revision that the database is at."""
    click.echo(_any_database().schema_revision() or "empty; run 'flask db upgrade'")


@db_group.command("check")
def check() -> None:
    """Fail when models and migrations differ."""
    schema.check(_any_database())
    click.echo("models and migrations agree")


@click.command("doctor")
@with_appcontext
def doctor_command() -> None:
    """Check everything that is easily forgotten; each finding with its cure."""
    findings = doctor.examine(current_app._get_current_object())  # type: ignore[attr-defined]  # of LocalProxy
    for finding in findings:
        click.echo(str(finding))
    if any(finding.level == "wrong" for finding in findings):
        raise SystemExit(1)


def _record(row: Any) -> None:
    for column in row.__table__.columns:
        click.echo(f"{column.name:<14} {_shown(getattr(row, column.name))}")


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    return iso(value) if hasattr(value, "isoformat") else str(value)


def _table(columns: list[str], rows: list[list[Any]], nothing: str) -> None:
    if not rows:
        click.echo(nothing)
        return
    lines = [columns, *[[str(value) for value in row] for row in rows]]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    for line in lines:
        click.echo("  ".join(value.ljust(width) for value, width in zip(line, widths, strict=True)).rstrip())
