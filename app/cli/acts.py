"""flask bus history, acts: list operators' acts, watch one, and abort it."""

import contextlib
import json
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import click

from app.bus import acts
from app.bus.acts import ActView
from app.bus.troubles import NO_DISPATCHER
from app.cli import output
from app.cli.bus import bus_group
from app.cli.group import bus, database, operator
from app.orders import NOTIFICATION
from app.text import printable

LOOK_SECONDS = 0.5
"""Between the looks at an act that is watched; at a very large one, LOOK_SHARE times as long as a look takes."""

LOOK_SHARE = 9

SHOWN_ACTS = 10

WORDS = {"timeout": "timed out", "bug": "raised an error", "unknown": "in doubt", acts.GIVEN_UP: "given up"}
"""Of outcomes, where a person would not say the same."""


@bus_group.command("history")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True)
@output.json_option
def history(limit: int) -> None:
    """List operators' acts, the newest first, and how each ended."""
    _list(limit)


@bus_group.command("acts")
@click.argument("act_id", metavar="[ACT]", required=False, type=click.IntRange(0, 2**63 - 1))
@click.option("--watch", "watches", is_flag=True, help="Stay until all that ACT touched has been tried.")
@click.option("--abort", "aborts", is_flag=True, help="Take back what ACT has not yet got tried.")
@output.yes_option
@output.json_option
def show_acts(act_id: int | None, watches: bool, aborts: bool) -> None:
    """Show what became of the deliveries that ACT touched; without ACT, the latest acts.

    With --abort, deliveries that were not tried yet return to their earlier state. Those that run or have ended stay.
    """
    if act_id is None:
        if watches or aborts:
            raise click.UsageError("say which act: 'flask bus acts' lists them")
        _list(SHOWN_ACTS)
    elif aborts:
        _abort(act_id)
    elif watches:
        with interrupt_leaves() as left:
            watch(act_id, left)
    else:
        _show(find(act_id))


def _list(limit: int) -> None:
    with database().read() as session:
        page, cursor = acts.list_acts(session, database().clock.now(), limit=limit)
    output.document({"acts": page, "next_cursor": cursor})
    output.table(
        ["act", "when", "by", "action", "filter", "counted", "touched", "reason", "how it ended"],
        [
            [
                *(act.act_id, act.acted_at, act.acted_by, act.action, _filter(act)),
                *(act.counted, act.deliveries, act.reason, how_it_ended(act)),
            ]
            for act in page
        ],
        empty="nobody has done anything yet",
    )
    if cursor:
        output.line(f"and more; 'flask bus history --limit {limit * 2}' shows them")


def _show(act: ActView) -> None:
    output.document(act)
    for name, value in (
        ("act", act.act_id),
        ("when", act.acted_at),
        ("by", act.acted_by),
        ("action", act.action),
        ("filter", _filter(act)),
        ("reason", act.reason),
        ("counted", act.counted),
        ("touched", act.deliveries),
        ("over", None if act.over_seconds is None else f"{act.over_seconds} s"),
        ("ended", act.ended_at),
    ):
        output.line(f"{name:<9} {output.shown(value)}")
    output.line(how_it_ended(act))


def _abort(act_id: int) -> None:
    act = find(act_id)
    with database().read() as session:
        untried = acts.count_untried(session, act_id)
    if untried or act.ended_at is None:
        output.confirm(f"abort act {act_id}, and take {untried} deliveries back?")
    taken_back = bus().abort(act_id, operator())
    output.document({"act_id": act_id, "taken_back": taken_back})
    act = find(act_id)
    if act.aborted_at is None:
        output.line(f"nothing of act {act_id} is left to take back")
    else:
        output.line(f"took {taken_back} deliveries back; {how_it_ended(act)}")


def find(act_id: int) -> ActView:
    """Raises ActNotFound."""
    with database().read() as session:
        return acts.find_act(session, act_id, database().clock.now())


# Watch


@contextlib.contextmanager
def interrupt_leaves() -> Iterator[threading.Event]:
    """In the block, the first Ctrl-C sets the event, and interrupts nothing; the next one ends the process."""
    left = threading.Event()
    previous = signal.getsignal(signal.SIGINT)
    if previous is signal.SIG_IGN or threading.current_thread() is not threading.main_thread():
        yield left
        return

    def leave(*_: object) -> None:
        left.set()
        signal.signal(signal.SIGINT, previous)

    signal.signal(signal.SIGINT, leave)
    try:
        yield left
    finally:
        signal.signal(signal.SIGINT, previous)


def watch(act_id: int, left: threading.Event) -> None:
    """Wait until all that the act touched has been tried, or ``left`` is set; then print what became of it.

    A terminal shows a progress bar, even while a circuit breaker, or a person, holds everything up. Without a terminal
    the command prints that at once and returns, because it could not be interrupted.
    """
    with progress_bar(find(act_id).deliveries, f"act {act_id}") as bar:
        act, hold_ups = _wait(act_id, left, bar)
    output.document(act)
    if act.progress is None or not act.progress.left:
        output.line(how_it_ended(act))
        return
    output.line(*hold_ups)
    goes_on = "; the act goes on" if left.is_set() else ""
    output.line(f"{how_it_ended(act)}{goes_on}; 'flask bus acts {act_id}' shows how far it is")


def progress_bar(length: int, label: str) -> Any:
    """A bar, on a terminal only, whose items are the hold-ups that it shows."""
    return click.progressbar(
        length=length,
        label=label,
        hidden=output.is_json() or not sys.stdout.isatty(),
        show_eta=False,
        show_pos=True,
        item_show_func=lambda hold_ups: printable("; ".join(hold_ups or ())),
    )


def _wait(act_id: int, left: threading.Event, bar: Any) -> tuple[ActView, list[str]]:
    """Returns the act as it was seen last, and why nothing more of it is being tried."""
    while True:
        began = time.monotonic()
        act = find(act_id)
        progress = act.progress or acts.Progress()
        hold_ups = bus().hold_ups(progress.left_to) if progress.left else []
        bar.current_item = hold_ups
        bar.update(progress.tried - bar.pos)
        bar.render_progress()
        is_over = not progress.left and act.state != "running"
        is_held_up = bool(hold_ups) and (bar.hidden or NO_DISPATCHER in hold_ups)
        took = time.monotonic() - began
        if is_over or is_held_up or left.wait(max(LOOK_SECONDS, LOOK_SHARE * took)):
            return act, hold_ups


# Words


def how_it_ended(act: ActView) -> str:
    """As "18 sent, 2 refused again, 0 left"; before it, what is unusual about the act's end."""
    counts = counted_words(act)
    match act.state:
        case "aborted":
            return f"aborted by {act.aborted_by}" + (f": {counts}" if counts else "")
        case "left":
            return f"left after {act.deliveries} of {act.counted}, repeat the command to go on: {counts}"
        case "running":
            return f"{act.deliveries} of {act.counted} touched: {counts}"
    return counts


def counted_words(act: ActView) -> str:
    if act.progress is None:
        return f"'flask bus acts {act.act_id}' counts what became of them"
    if act.counted is None and not act.deliveries:
        return ""
    progress, again = act.progress, " again" if act.action == "retry" else ""
    done = "sent" if progress.receivers == (NOTIFICATION,) else "done"
    is_discard = act.action == "discard"
    counts = [
        (progress.done, done, not is_discard),
        *((count, f"{WORDS.get(outcome, outcome)}{again}", True) for outcome, count in progress.failed.items()),
        (progress.discarded, "discarded", is_discard),
        (progress.taken_back, "taken back", False),
        (progress.forgotten, "forgotten since", False),
        (progress.left, "left", not is_discard),
    ]
    return ", ".join(f"{count} {words}" for count, words, always in counts if count or always)


def _filter(act: ActView) -> str:
    return json.dumps(act.filter, ensure_ascii=False) if act.filter else "all"
