"""flask bus: run a dispatcher, show the status, prune old events. Deliveries and acts have files of their own."""

import signal
import sys
import threading
import time
from collections.abc import Iterator

import click
from flask import current_app

from app import affinity, current
from app.bus import Role, delivers_by
from app.bus.status import Status, sentence
from app.bus.troubles import Cause
from app.cli import output
from app.cli.group import Group, bus, check_there, one_line_errors
from app.db import iso, schema
from app.engine import Engine
from app.errors import AppError, DatabaseUnavailable
from app.observe import logs
from app.text import printable

STOP_CHECK_SECONDS = 1

bus_group = Group("bus", help="Run a dispatcher, and see to deliveries.")


@bus_group.command("run")
@click.option("--anyway", is_flag=True, help="Deliver mail by the settings of this shell, whatever was used before.")
def run(anyway: bool) -> None:
    """Dispatch until SIGTERM or Ctrl-C. As many as you like may run, on one machine or, with PostgreSQL, on many.

    Refuses to start where it would deliver mail by another backend or server than the dispatchers before it.
    """
    logs.announce(current.bus().settings)
    engine: Engine = current_app.extensions["engine"]
    try:
        schema.prepare(current.database())
    except DatabaseUnavailable:
        pass  # the dispatcher itself waits until the database is back
    except AppError as error:
        logs.fail(error)  # as a service tells it: in JSON where the log is JSON
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    affinity.keep_to_a_core(current.bus().settings.web_concurrency)
    worker = engine.start(anyway=anyway, waits=False)
    while engine.alive and not stop.wait(STOP_CHECK_SECONDS):
        pass
    ended_by_itself = not stop.is_set()
    finished = engine.stop()
    if worker.refusal:
        logs.fail(worker.refusal)
    if ended_by_itself:
        logs.fail("the dispatcher ended by itself; see its log, and start it again")
    if not finished:
        logs.fail("some receivers were still running; their deliveries will be tried again")


@bus_group.command("status")
@click.option("--watch", is_flag=True, help="Show it again and again, until Ctrl-C.")
@click.option(
    "--interval", type=click.FloatRange(0.1, 3600), default=2, show_default=True, help="Of --watch, in seconds."
)
@output.json_option
def status(watch: bool, interval: float) -> None:
    """Whether the service is ready, or why not; who dispatches; for each receiver what waits, failed, died, and why.

    Exit code 1 where the database can't be read, so that nothing is known of it.
    """
    if not watch:
        if not _show_status():
            sys.exit(1)
        return
    try:
        while True:
            _show_again()
            time.sleep(interval)
    except KeyboardInterrupt:
        output.line("")


def _show_again() -> None:
    """One picture of a row of them: what keeps one from being taken is shown in its place."""
    click.clear()
    try:
        with one_line_errors():
            _show_status()
    except click.ClickException as error:
        click.echo(printable(f"error: {error.message}"))
    output.line("")


def _show_status() -> bool:
    """Returns whether it could look. Raises ClickException instead, unless as JSON."""
    check_there(current.database())
    found = current.bus().status()
    if not found.readiness.is_read and not output.is_json():
        raise click.ClickException("; ".join(map(str, found.readiness.reasons)))
    output.document(found.as_json())
    output.line(*_status_lines(found))
    return found.readiness.is_read


def _status_lines(found: Status) -> Iterator[str]:
    readiness = found.readiness
    yield f"{found.at:%Y-%m-%d %H:%M:%S} UTC"
    yield from (f"not ready: {trouble}" for trouble in readiness.reasons)
    if not readiness.reasons:
        yield "ready"
    yield from (f"warning: {trouble}" for trouble in readiness.warnings)
    is_told = any(trouble.cause is Cause.DISPATCHER_REFUSES for trouble in readiness.reasons)
    if found.refused_here and not readiness.dispatchers and not is_told:
        yield f"'flask bus run' would refuse here: {found.refused_here}"
    for each in readiness.dispatchers:
        by = f": mail {delivers_by.in_words(each.told)}" if each.told and not each.is_relay else ""
        role = f", {each.role}" if each.role != Role.DISPATCHER else ""
        yield f"dispatcher {each.name}{role}, since {iso(each.started_at)}{by}"
    yield from (sentence(receiver, found.at) for receiver in found.receivers)


@bus_group.command("prune")
@output.json_option
def prune() -> None:
    """Forget finished events older than RETENTION_DAYS now; a dispatcher does so every hour. Orders are kept."""
    count = bus().prune()
    output.document({"events": count})
    output.line(f"forgot {count} events")
