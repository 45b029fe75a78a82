"""Deliveries that wait, fail or were given up, grouped by reason; retry or discard one, a group, or all of a filter.

An act is counted first, on a page of its own. It then touches only the counted deliveries.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from http import HTTPStatus
from typing import Any, Literal

from flask import flash, request, url_for
from flask.typing import ResponseReturnValue
from flask_babel import gettext, ngettext
from pydantic import Field

from app.bus import Act, Filter, acts, explain, operate, status
from app.bus.operate import Chosen
from app.clock import iso
from app.console import access, background, in_words, why
from app.console.pages import go_to, page, read_filter, read_form
from app.current import bus, database, settings
from app.fields import ID_RULE, BigInt, Identifier, Moment, Text
from app.http import Problem
from app.request_models import RequestModel
from app.signal import subscriptions
from app.states import DeliveryState, Outcome
from app.text import KIND_CHARACTERS

MOST_COUNTED = 2000
"""Dead ones, and of each receiver those that are tried again: the page says where there are more."""

MOST_GROUPED = 500
"""Deliveries of each state and receiver that are looked at for grouping, where nobody asks for all."""

STATES: dict[str, dict[str, Any]] = {
    "waiting": {"state": DeliveryState.READY, "tried": False},
    "leased": {"state": DeliveryState.LEASED},
    "retrying": {"state": DeliveryState.READY, "tried": True},
    "dead": {"state": DeliveryState.DEAD},
    "discarded": {"state": DeliveryState.DISCARDED},
}
"""The states that a page may ask for, as a filter's fields. Done deliveries are on their order's page."""

BY_DUE = ("waiting", "leased", "retrying")
"""Listed by when they are due; the others by their number."""

OVER_SECONDS = (60, 600, 3600, 6 * 3600)
"""A retry's choices of the time that its tries are spread over."""

State = Literal["waiting", "leased", "retrying", "dead", "discarded"]


class Selection(RequestModel):
    """Which deliveries a page shows, or an act touches."""

    delivery_id: BigInt | None = Field(None, description="a delivery's number")
    state: State | None = Field(None, description="waiting, leased, retrying, dead or discarded")
    receiver: Text | None = Field(None, max_length=100, description="a receiver's name of at most 100 characters")
    outcome: Outcome | None = Field(None, description=f"the latest attempt's: {', '.join(Outcome)}")
    order_id: Identifier | None = Field(None, description=ID_RULE)
    user_id: Identifier | None = Field(None, description=ID_RULE)
    reason: Text | None = Field(None, max_length=200, description="text of at most 200 characters in the reason")
    reason_group: Text | None = Field(None, max_length=KIND_CHARACTERS, description="a group's reason")

    @property
    def which(self) -> Filter:
        return Filter(**self.fields() | STATES.get(self.state or "", {}))

    def fields(self) -> dict[str, Any]:
        """Those that restrict, of Selection's own."""
        return self.model_dump(mode="json", include=set(Selection.model_fields), exclude_none=True)


class DeliverySearch(Selection):
    """The page's filter."""

    view: Literal["list"] | None = Field(None, description="list, or left out for groups")
    all: Literal["1"] | None = Field(None, description="1: all are counted")
    cursor: str | None = Field(None, max_length=60, description="the cursor of the page before")


class Question(Selection):
    """An act that somebody thinks of."""

    action: Literal["retry", "discard"] = Field(description="retry or discard")


class Answer(Question):
    """An act that somebody wants, once it was counted."""

    because: Text | None = Field(None, max_length=1000, description="at most 1000 characters")
    over: int | None = Field(None, ge=1, description="a number of seconds")
    probe: Literal["1"] | None = Field(None, description="1, or left out")
    counted: BigInt = Field(description="the number that was counted")
    counted_at: Moment = Field(description="when it was counted")
    sure: Literal["1"] | None = Field(None, description="1, or left out")


def show_deliveries() -> ResponseReturnValue:
    query = read_filter(DeliverySearch)
    now = database().clock.now()
    with database().read() as session:
        receivers = status.of_receivers(
            session, now, timedelta(seconds=settings().lease_seconds), subscriptions(), most=MOST_COUNTED
        )
        listed = query.view == "list" or query.state in ("waiting", "leased") or query.delivery_id is not None
        rows, cursor = _list(session, query) if listed else ([], None)
        groups, complete = ([], True) if listed else _groups(session, query)
        tries = operate.next_tries(session, rows, now)
        explained = explain.explain(session, query.delivery_id) if query.delivery_id and rows else None
        touches = acts.touches(session, [row.delivery_id for row in rows])
    return page(
        "deliveries.html",
        receivers=receivers,
        query=query,
        fields=query.fields(),
        listed=listed,
        rows=rows,
        tries=tries,
        explained=explained,
        why=why,
        touches=touches,
        in_words=in_words,
        groups=groups,
        complete=complete,
        most=MOST_GROUPED,
        following=cursor and url_for("console.show_deliveries", **query.fields(), view=query.view, cursor=cursor),
        states=STATES,
        outcomes=[outcome for outcome in Outcome if outcome is not Outcome.OK],
        may_act=query.state != "leased",
    )


def _list(session: Any, query: DeliverySearch) -> tuple[list[Any], str | None]:
    """Raises Problem with 422."""
    if query.state in BY_DUE:
        due, _, number = (query.cursor or "").partition("_")
        try:
            after = (datetime.fromisoformat(due), int(number)) if query.cursor else None
        except ValueError:
            raise wrong_cursor() from None
        rows, last = operate.by_due(session, query.which, operate.NOT_DONE, after=after, limit=50)
        return rows, f"{iso(last[0])}_{last[1]}" if last else None
    if not (query.cursor or "0").isdecimal() or len(query.cursor or "") > 18:
        raise wrong_cursor()
    rows, last_number = operate.find(session, query.which, after=int(query.cursor or 0), states=_states(query))
    return rows, None if last_number is None else f"{last_number}"


def _states(query: Selection) -> tuple[DeliveryState, ...]:
    """Of one delivery, whatever it is; of several, what is not as it should be."""
    if query.delivery_id is not None:
        return tuple(DeliveryState)
    return (DeliveryState.DEAD, DeliveryState.DISCARDED) if query.state else (DeliveryState.DEAD, DeliveryState.READY)


def wrong_cursor() -> Problem:
    return Problem(
        HTTPStatus.UNPROCESSABLE_ENTITY,
        gettext("This page's address is damaged. Begin again at the first page."),
        errors=[{"field": "cursor", "message": gettext("is no cursor of this list")}],
    )


@dataclass(frozen=True)
class Group:
    """A group with the addresses of what can be done with it."""

    found: operate.ReasonGroup
    word: str
    fields: dict[str, Any]


def _groups(session: Any, query: DeliverySearch) -> tuple[list[Group], bool]:
    """What is dead, and what is tried again; of what was discarded where it is asked for."""
    most = None if query.all else MOST_GROUPED
    which = query.which
    states = [DeliveryState(which.state)] if which.state else [DeliveryState.DEAD]
    groups, complete = operate.group_by_reason(session, which, states, most)
    if query.state is None:
        tried = Filter(**which.given() | STATES["retrying"])
        more, also = operate.group_by_reason(session, tried, [DeliveryState.READY], most)
        groups, complete = groups + more, complete and also
    return [_group(each, query) for each in groups], complete


def _group(found: operate.ReasonGroup, query: Selection) -> Group:
    word = found.state
    if word == DeliveryState.READY:
        word = "retrying" if found.outcome else "waiting"
    own = {"state": word, "receiver": found.receiver, "outcome": found.outcome, "reason_group": found.reason}
    return Group(found, word, query.fields() | {name: value for name, value in own.items() if value is not None})


# Acts


def ask_to_act() -> ResponseReturnValue:
    """How many an act would touch, and which: it is done once somebody confirms that."""
    return _ask(read_filter(Question))


def _ask(question: Question, told: str = "", given: dict[str, str] | None = None) -> str:
    counted_at = database().clock.now()  # before it is counted: what changes in between is left out
    act = Act(question.action, question.which, "")
    with database().read() as session:
        count = operate.count(session, act.action, act.which)
        groups, complete = operate.group_by_reason(session, act.which, act.states, MOST_GROUPED)
    return page(
        "act_ask.html",
        question=question,
        fields=question.fields(),
        count=count,
        counted_at=iso(counted_at),
        groups=[_group(each, question) for each in groups],
        complete=complete,
        most=MOST_GROUPED,
        told=told,
        given=given or {},
        in_words=in_words,
        over=[seconds for seconds in OVER_SECONDS if seconds <= bus().policy.maximum],
    )


def act() -> ResponseReturnValue:
    """Touch what was counted. Without a filter it is asked twice; where more matches than was counted, once more."""
    answer = read_form(Answer)
    if answer.action == "discard" and not answer.because:
        return _ask(answer, gettext("Say why: it is kept with each delivery."), dict(request.form)), 422
    wanted = Act(
        answer.action,
        answer.which,
        access.operator(),
        answer.because,
        over_seconds=answer.over,
        probe=answer.probe is not None,
        counted_at=answer.counted_at,
    )
    chosen = bus().choose(wanted)
    if len(chosen) > answer.counted:
        return _ask(answer, gettext("There are more than were counted. This is the new number."), dict(request.form))
    if not len(chosen) and chosen.act_id is None:
        flash(gettext("Nothing of it is left: all of it was tried, or changed, since it was counted."))
        return go_to("show_deliveries", **answer.fields())
    if not wanted.which.given() and answer.sure is None:
        return page("act_ask.html", question=answer, count=len(chosen), given=dict(request.form), sure=True)
    return go_to("show_act", act_id=_carry_out(chosen))


def _carry_out(chosen: Chosen) -> int:
    act_id = background.carry_out(bus(), chosen)
    count = len(chosen)
    if chosen.act.action == "retry":
        flash(
            ngettext("%(num)d delivery is due now.", "%(num)d deliveries are due now.", count)
            if not chosen.act.over_seconds
            else ngettext("%(num)d delivery is tried again.", "%(num)d deliveries are tried again, spread out.", count)
        )
    else:
        flash(ngettext("%(num)d delivery is given up.", "%(num)d deliveries are given up.", count))
    return act_id
