"""flask bus receivers, pause, resume and replay."""

from typing import Any

import click

from app.bus import Replay, pause
from app.bus.replay import Found
from app.cli import output
from app.cli.bus import bus_group
from app.cli.deliveries import UtcTime, carry_out, no_wait_option, over_option, tell_nothing
from app.cli.group import bus, database, operator
from app.db import iso

COLUMNS = ("receiver", "state", "event_types", "paused_at", "paused_by", "reason")


@bus_group.command("receivers")
@output.json_option
def list_receivers() -> None:
    """The receivers: their events, and which are paused, since when, by whom and why."""
    with database().read() as session:
        found = pause.receivers(session)
    output.document({"receivers": found})
    rows = [[getattr(each, column) for column in COLUMNS] for each in found]
    output.table(COLUMNS, rows, empty="no receivers")


@bus_group.command("pause")
@click.argument("receiver")
@click.option("--because", required=True, help="Why: others read it in 'flask bus status' and 'flask bus receivers'.")
@output.json_option
def pause_receiver(receiver: str, because: str) -> None:
    """Deliver nothing to RECEIVER, in all processes, until it is resumed. What is being tried at this moment ends."""
    if not because.strip():
        raise click.BadParameter("say why", param_hint="--because")
    changed = bus().pause(receiver, because, by=operator())
    output.document({"receiver": receiver, "changed": changed})
    if changed:
        output.line(f"{receiver} is paused; to go on: flask bus resume {receiver}")
        return
    with database().read() as session:
        (known,) = (each for each in pause.receivers(session) if each.receiver == receiver)
    since = iso(known.paused_at) if known.paused_at else "just now"
    output.line(f"{receiver} is paused already, since {since}, by {known.paused_by}: {known.reason}")


@bus_group.command("resume")
@click.argument("receiver")
@click.option("--because", help="Why: kept in the history of acts.")
@output.json_option
def resume_receiver(receiver: str, because: str | None) -> None:
    """Deliver to RECEIVER again, at once."""
    changed = bus().resume(receiver, by=operator(), reason=because)
    output.document({"receiver": receiver, "changed": changed})
    output.line(f"{receiver} goes on" if changed else f"{receiver} is not paused")


@bus_group.command("replay")
@click.argument("receiver")
@click.option("--type", "event_type", required=True, help="Of event, such as OrderCreated.")
@click.option("--since", type=UtcTime(), help="From this time on, in UTC.")
@click.option("--until", type=UtcTime(), help="Before this time, in UTC.")
@click.option("--order", "order_id", help="Only this order's.")
@click.option("--force", is_flag=True, help="Also those that RECEIVER has dealt with, or that were given up.")
@over_option
@output.yes_option
@no_wait_option
@output.json_option
def replay_events(over_seconds: int | None, no_wait: bool, **conditions: Any) -> None:
    """Give recorded events to RECEIVER: a new one, or one whose effect was lost. Says first how many.

    An event that it has had already is not given to it again, unless --force says so.
    """
    which = Replay(**conditions)
    found = bus().find_recorded(which)
    if found.deliveries == 0:
        tell_nothing(*_told(which, found))
        return
    output.line(*_told(which, found))
    carry_out(
        lambda on_progress: bus().replay(which, found, operator(), over_seconds, on_progress),
        found.deliveries,
        action="replay",
        question=f"give {found.deliveries} events to {which.receiver}?",
        waits=not no_wait,
    )


def _told(which: Replay, found: Found) -> list[str]:
    """What is kept of the time that was asked for, and what becomes of it."""
    lines = []
    if found.kept_since and (which.since is None or which.since < found.kept_since):
        lines.append(f"events are kept since {iso(found.kept_since)}: older ones, if there were any, are forgotten")
    if found.oldest_at is None:
        return [*lines, f"no {which.event_type} is kept of that time"]
    lines.append(f"{found.events} {which.event_type} are kept of that time, the oldest of {iso(found.oldest_at)}")
    if found.finished and not which.force:
        lines.append(f"{found.finished} of them {which.receiver} has had: they are left alone without --force")
    if found.under_way:
        lines.append(f"{found.under_way} of them wait for {which.receiver} or are being tried: they are left alone")
    if found.deliveries == 0:
        lines.append("nothing is left to replay")
    return lines
