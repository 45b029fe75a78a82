"""flask bus list, retry, discard, resend: find deliveries, and act on them."""

import re
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, TypeVar

import click

from app import orders
from app.bus import Act, Filter, operate
from app.bus.operate import CarriedOut
from app.cli import output
from app.cli.acts import find, interrupt_leaves, progress_bar, watch
from app.cli.bus import bus_group
from app.cli.group import bus, database, operator
from app.resend import resend
from app.states import DeliveryState, Outcome
from app.text import one_line

Command = TypeVar("Command", bound=Callable[..., Any])

REASON_CHARACTERS = 120
"""How much of a reason a list shows. JSON, and 'flask orders show', have the whole of it."""

DELIVERY_FIELDS = (
    *("delivery_id", "order_id", "user_id", "event_type", "event_id", "receiver", "state", "attempts_spent"),
    *("outcome", "due_at", "settled_at", "reason"),
)

DURATION = re.compile(r"(\d{1,9})(s|m|h|)")
SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600}

DONE_WORDS = {"retry": "retried", "discard": "discarded", "replay": "replayed"}


class Duration(click.ParamType[int]):
    """Seconds, as 90, 90s, 10m or 1h."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        found = DURATION.fullmatch(value)
        if found is None:
            self.fail(f"{value!r} is no time; write 90s, 10m or 1h", param, ctx)
        return int(found[1]) * SECONDS[found[2]]


class UtcTime(click.DateTime):
    """A time, written without an offset, in UTC."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        return super().convert(value, param, ctx).replace(tzinfo=UTC)


def filter_options(*states: DeliveryState) -> Callable[[Command], Command]:
    """Decorator: the options that select deliveries, named as the fields of Filter."""
    options = (
        click.option("--delivery", "delivery_id", type=click.IntRange(0, 2**63 - 1), help="This delivery only."),
        click.option("--state", type=click.Choice([state.value for state in states])),
        click.option("--tried", type=bool, help="Whether an attempt has failed: true or false."),
        click.option("--receiver"),
        click.option("--type", "event_type", help="Of event, such as OrderCreated."),
        click.option("--order", "order_id"),
        click.option("--user", "user_id"),
        click.option("--older-than", type=UtcTime(), help="Made before this time, in UTC."),
        click.option("--outcome", type=click.Choice([outcome.value for outcome in Outcome]), help="Of the latest try."),
        click.option("--reason", help="Text that the reason contains."),
        click.option("--reason-group", help="A reason as --by reason --json has it."),
    )

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


over_option = click.option(
    "--over", "over_seconds", type=Duration(), help="Spread the tries evenly over this time, as 10m."
)
no_wait_option = click.option("--no-wait", is_flag=True, help="Return at once, rather than when all have been tried.")


@bus_group.command("list")
@filter_options(*operate.NOT_DONE)
@click.option("--by", type=click.Choice(["reason"]), help="Group them, with one of each group as an example.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True)
@output.json_option
def list_deliveries(by: str | None, limit: int, **conditions: Any) -> None:
    """Deliveries that wait, run, are dead or were discarded, the oldest first; with what their latest try said.

    What is done is in 'flask orders show'.
    """
    which = Filter(**conditions)
    if by:
        _list_reasons(which, limit)
        return
    with database().read() as session:
        found, cursor = operate.find(session, which, limit=limit, states=operate.NOT_DONE)
        tries = operate.next_tries(session, found, database().clock.now())
    rows = [
        {name: getattr(row, name) for name in DELIVERY_FIELDS} | {"next_try": tries.get(row.delivery_id)}
        for row in found
    ]
    output.document({"deliveries": rows, "next_cursor": cursor})
    output.table(
        ["delivery", "order", "receiver", "state", "attempts", "outcome", "next try", "reason"],
        [
            [
                *(row.delivery_id, row.order_id, row.receiver, row.state, row.attempts_spent, row.outcome),
                *(tries.get(row.delivery_id), _shown_reason(row.reason)),
            ]
            for row in found
        ],
        empty="no delivery matches",
    )
    if cursor:
        output.line(f"and more; --limit {limit * 2} shows them, --by reason groups them")


def _list_reasons(which: Filter, limit: int) -> None:
    with database().read() as session:
        groups, complete = operate.group_by_reason(session, which, operate.NOT_DONE)
    output.document({"reasons": groups[:limit], "complete": complete and len(groups) <= limit})
    output.table(
        ["deliveries", "receiver", "state", "outcome", "reason", "for example"],
        [
            [
                *(group.deliveries, group.receiver, group.state, group.outcome, _shown_reason(group.reason)),
                f"delivery {group.example_delivery_id}, order {group.example_order_id}",
            ]
            for group in groups[:limit]
        ],
        empty="no delivery matches",
    )
    if len(groups) > limit:
        output.line(f"and {len(groups) - limit} groups more; --limit {len(groups)} shows them")
    if not complete:
        output.line(f"of more than {operate.GROUPED_AT_MOST:,} deliveries, the newest {operate.GROUPED_AT_MOST:,}")


def _shown_reason(reason: str | None) -> str | None:
    return None if reason is None else one_line(reason, REASON_CHARACTERS)


@bus_group.command("retry")
@filter_options(*operate.ACTIONS["retry"])
@over_option
@click.option("--probe", is_flag=True, help="Also let an open circuit breaker take its next probe now.")
@output.yes_option
@no_wait_option
@output.json_option
def retry(over_seconds: int | None, probe: bool, no_wait: bool, **conditions: Any) -> None:
    """Try waiting and dead deliveries now. Says first how many, and shows what becomes of them.

    Discarded ones only with --state discarded. What was dead or discarded has a new budget of attempts. The same
    command goes on with an act that was left in the middle.
    """
    act = Act("retry", Filter(**conditions), operator(), over_seconds=over_seconds or None, probe=probe)
    _carry_out(act, waits=not no_wait)


@bus_group.command("discard")
@filter_options(*operate.ACTIONS["discard"], DeliveryState.DISCARDED)
@click.option("--because", required=True, help="Why: kept with each delivery.")
@output.yes_option
@output.json_option
def discard(because: str, **conditions: Any) -> None:
    """Give waiting and dead deliveries up for good. Says first how many."""
    if not because.strip():
        raise click.BadParameter("say why", param_hint="--because")
    act = Act("discard", Filter(**conditions), operator(), because)
    _carry_out(act, waits=False)


@bus_group.command("resend")
@click.option("--order", "order_id", required=True)
@click.option("--because", help="Why: kept with the act.")
@output.yes_option
@no_wait_option
@output.json_option
def resend_notification(order_id: str, because: str | None, no_wait: bool) -> None:
    """Send an order's confirmation again: a new mail, whatever became of the first. 'retry' tries one that is owed."""
    with database().read() as session:
        order = orders.find_order(session, order_id)
    output.confirm(f"the notification of order {order.order_id} is {order.notification}; send it again?")
    resent = resend(bus(), order_id, by=operator(), reason=because)
    output.line(f"asked for the notification of order {order_id} again (act {resent.act_id})")
    with interrupt_leaves() as left:
        follow(resent.act_id, left, waits=not no_wait)


def _carry_out(act: Act, *, waits: bool) -> None:
    """Once a person has confirmed the number: what comes later is not touched."""
    chosen = bus().choose(act)
    if len(chosen) == 0 and chosen.act_id is None:
        _tell_nothing(act)
        return
    if chosen.act_id is not None:
        output.line(f"act {chosen.act_id} goes on, which has touched {chosen.touched}")
    over = f" over {act.over_seconds} s" if act.over_seconds else ""
    carry_out(
        lambda on_progress: bus().carry_out(chosen, on_progress),
        len(chosen),
        action=act.action,
        question=f"{act.action} {len(chosen)} deliveries{over}?",
        waits=waits,
    )


def carry_out(
    run: Callable[[Callable[[int], object]], CarriedOut],
    counted: int,
    *,
    action: str,
    question: str,
    waits: bool,
) -> None:
    """Once a person has confirmed the ``question``, ``run(on_progress)`` the act, and show what becomes of it."""
    output.confirm(question)
    with interrupt_leaves() as left:
        with progress_bar(counted, action) as bar:
            done = run(bar.update)
        missed = counted - done.deliveries
        less = f"; {missed} were tried or changed meanwhile" if missed and not done.aborted else ""
        output.line(f"{DONE_WORDS[action]} {done.deliveries} (act {done.act_id}){less}")
        follow(done.act_id, left, waits=waits and not done.aborted)


def follow(act_id: int, left: threading.Event, *, waits: bool) -> None:
    """Show what becomes of the act's deliveries, to the end where ``waits`` is true, or say how to see it."""
    if waits and not left.is_set():
        watch(act_id, left)
    elif output.is_json():
        output.document(find(act_id))
    elif waits:
        output.line(f"'flask bus acts {act_id}' shows what becomes of them")


def tell_nothing(*lines: str) -> None:
    """Nothing was selected, and no act recorded."""
    output.document({"act_id": None, "counted": 0, "deliveries": 0})
    output.line(*lines)


def _tell_nothing(act: Act) -> None:
    tell_nothing("no delivery matches")
    discarded = replace(act.which, state=DeliveryState.DISCARDED.value)
    if act.action == "retry" and act.which.state is None and not output.is_json():
        with database().read() as session:
            count = operate.count(session, "retry", discarded)
        if count:
            output.line(f"to retry what was discarded ({count}): flask bus retry {discarded.options()}")
