"""flask bus: run a dispatcher; see, retry, discard and prune deliveries."""

import getpass
import os
import signal
import threading
from datetime import UTC
from typing import Any

import click
from flask import current_app

from app.bus import Filter, operate, queries
from app.cli import output
from app.cli.group import Group, bus, database
from app.db import iso
from app.engine import InProcessEngine
from app.errors import AppError, DatabaseUnavailable
from app.observe import logs
from app.states import DeliveryState, Outcome

STOP_CHECK_SECONDS = 1

bus_group = Group("bus", help="Run a dispatcher, and see to deliveries.")


@bus_group.command("run")
def run() -> None:
    """Dispatch until SIGTERM or Ctrl-C. As many as you like may run, on one machine or, with PostgreSQL, on many."""
    engine: InProcessEngine = current_app.extensions["engine"]
    try:
        database()
    except DatabaseUnavailable:
        pass  # the dispatcher itself waits until the database is back
    except AppError as error:
        logs.fail(error)  # as a service tells it: in JSON where the log is JSON
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    engine.start()
    while engine.alive and not stop.wait(STOP_CHECK_SECONDS):
        pass
    if not engine.stop():
        logs.fail("some receivers were still running; their deliveries will be tried again")


@bus_group.command("status")
def status() -> None:
    """Which dispatchers are alive, and what is waiting or dead."""
    now = database().clock.now()
    with database().read() as session:
        alive, waiting = queries.dispatchers(session, now), queries.backlog(session)
    for dispatcher in alive:
        output.line(f"dispatcher {dispatcher.name}, since {iso(dispatcher.started_at)}")
    if not alive:
        output.line("no dispatcher is alive; start the service, or 'flask bus run'")
    output.table(
        ["receiver", "state", "deliveries", "oldest"],
        [[row.receiver, row.state, row.deliveries, row.since] for row in waiting],
        empty="nothing is waiting, and nothing is dead",
    )


def _filter_options(command: Any) -> Any:
    """Decorator: the options that select deliveries, named as the fields of Filter, and ``yes``."""
    states = [DeliveryState.READY.value, DeliveryState.DEAD.value, DeliveryState.DISCARDED.value]
    outcomes = [outcome.value for outcome in Outcome]
    for option in (
        click.option("--delivery", "delivery_id", type=click.IntRange(0, 2**63 - 1), help="This delivery only."),
        click.option("--state", type=click.Choice(states)),
        click.option("--receiver"),
        click.option("--type", "event_type", help="Of event, such as OrderCreated."),
        click.option("--order", "order_id"),
        click.option("--user", "user_id"),
        click.option("--older-than", type=click.DateTime(), help="Made before this time, in UTC."),
        click.option("--outcome", type=click.Choice(outcomes), help="Of the latest attempt."),
        click.option("--reason", help="Text that the reason contains."),
        click.option("--yes", is_flag=True, help="Do not ask."),
    ):
        command = option(command)
    return command


@bus_group.command("retry")
@_filter_options
def retry(yes: bool, **conditions: Any) -> None:
    """Make dead and discarded deliveries due again, with a new budget of attempts. Says first how many."""
    if selected := _confirmed("retry", conditions, yes):
        output.line(f"retried {bus().retry(selected, by=_operator())}")


@bus_group.command("discard")
@_filter_options
@click.option("--because", required=True, help="Why: kept with each delivery.")
def discard(yes: bool, because: str, **conditions: Any) -> None:
    """Give waiting and dead deliveries up for good. Says first how many."""
    if not because.strip():
        raise click.BadParameter("say why", param_hint="--because")
    if selected := _confirmed("discard", conditions, yes):
        output.line(f"discarded {bus().discard(selected, because, by=_operator())}")


@bus_group.command("prune")
def prune() -> None:
    """Forget finished events older than RETENTION_DAYS now; a dispatcher does so every hour. Orders are kept."""
    output.line(f"forgot {bus().prune()} events")


def _confirmed(action: str, conditions: dict[str, Any], yes: bool) -> Filter | None:
    """The deliveries to act on, once a person has confirmed their number; None where there are none."""
    if conditions["older_than"] is not None:
        conditions["older_than"] = conditions["older_than"].replace(tzinfo=UTC)
    selected = Filter(**conditions)
    with database().read() as session:
        count = operate.count(session, action, selected)
    if count == 0:
        output.line("no delivery matches")
        return None
    if not yes:
        click.confirm(f"{action} {count} deliveries?", abort=True)
    return selected


def _operator() -> str:
    """The author that an act is recorded with: the operating system's user."""
    try:
        return f"cli:{getpass.getuser()}"
    except (KeyError, OSError):  # a container may run as a user without a name
        return f"cli:{os.getuid()}"
