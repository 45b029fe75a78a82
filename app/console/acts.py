"""Acts: the list of operators' acts, and the page of one, to abort it or to go on with one that was left."""

import dataclasses
import hashlib
from datetime import datetime
from typing import Any

from flask import flash, request, url_for
from flask.typing import ResponseReturnValue
from flask_babel import gettext, ngettext
from pydantic import Field

from app.bus import Act, Filter, acts, operate
from app.bus.acts import ActView
from app.console import access, background, in_words
from app.console.pages import go_to, live_part, page, read_filter
from app.current import bus, database
from app.errors import ActNotFound
from app.fields import MAX_BIGINT, BigInt
from app.request_models import RequestModel

PAGE_SIZE = 30

COUNTED_IN_A_LIST = 200
"""Progress of larger acts is counted on the act's own page only."""


class ActsQuery(RequestModel):
    """Which acts to show."""

    cursor: BigInt | None = Field(None, description="the cursor of the page before")


def show_acts() -> ResponseReturnValue:
    return page("acts.html", **_listed(read_filter(ActsQuery)))


def show_acts_live() -> ResponseReturnValue:
    return _live("acts_live.html", _listed(read_filter(ActsQuery)))


def _listed(query: ActsQuery) -> dict[str, Any]:
    with database().read() as session:
        found, cursor = acts.list_acts(
            session, database().clock.now(), before=query.cursor, limit=PAGE_SIZE, counted_at_most=COUNTED_IN_A_LIST
        )
    following = url_for("console.show_acts", cursor=cursor) if cursor else None
    return {"acts": found, "query": query, "following": following, "in_words": in_words}


def show_act(act_id: int) -> ResponseReturnValue:
    """Raises ActNotFound."""
    return page("act.html", **_shown(act_id))


def show_act_live(act_id: int) -> ResponseReturnValue:
    return _live("act_live.html", _shown(act_id))


def _shown(act_id: int) -> dict[str, Any]:
    """Of an act on very many deliveries, what became of them is counted where that is asked for."""
    most = None if request.args.get("count") == "1" else acts.COUNTED_IN_LISTS
    found = _find(act_id, most)
    left_to = found.progress.left_to if found.progress else ()
    has_left = found.ended_at is None or found.progress is None or found.progress.left > 0
    return {
        "act": found,
        "counts": request.args.get("count"),
        "hold_ups": bus().hold_ups(left_to) if left_to and found.state != "aborted" else [],
        "may_abort": found.aborted_at is None and found.action in ("retry", "replay", "resend") and has_left,
        "may_go_on": found.state == "left" and found.action in operate.ACTIONS and found.acted_by == _by(),
        "in_words": in_words,
    }


def _by() -> str:
    return operate.name_of(access.operator())


def _find(act_id: int, counted_at_most: int | None = 0) -> ActView:
    """Raises ActNotFound, also for a number that no column holds, and a driver refuses."""
    if act_id > MAX_BIGINT:
        raise ActNotFound
    with database().read() as session:
        return acts.find_act(session, act_id, database().clock.now(), counted_at_most=counted_at_most)


def _live(template: str, values: dict[str, Any]) -> ResponseReturnValue:
    html = page(template, **values)
    return live_part(hashlib.sha256(html.encode()).hexdigest()[:24], html)


# What can be done with one


def abort_act(act_id: int) -> ResponseReturnValue:
    """What waits for its try becomes again what it was: at once, or in the background where there is much of it."""
    by = _by()
    found = _find(act_id)
    of_this_application = bus()
    if found.deliveries > operate.BATCH:
        background.run(f"abort of act {act_id}", lambda: of_this_application.abort(act_id, by))
        flash(gettext("It is being aborted: what was not tried yet becomes again what it was."))
    else:
        count = of_this_application.abort(act_id, by)
        flash(
            ngettext(
                "%(num)d delivery is again what it was before.",
                "%(num)d deliveries are again what they were before.",
                count,
            )
            if count
            else gettext("Nothing of it was left to take back.")
        )
    return go_to("show_act", act_id=act_id)


def go_on(act_id: int) -> ResponseReturnValue:
    """With one's own act that was left in the middle: its process had died. It touches what was counted then."""
    found = _find(act_id)
    if found.state != "left" or found.acted_by != _by() or found.action not in operate.ACTIONS:
        flash(gettext("Only who began it can go on with it, and only where it was left in the middle."))
        return go_to("show_act", act_id=act_id)
    wanted = Act(
        found.action, _filter(found.filter), found.acted_by, found.reason, found.over_seconds, counted_at=found.acted_at
    )
    chosen = bus().choose(wanted)
    if chosen.act_id != act_id:
        flash(
            gettext("Others have been at its deliveries since. Begin anew: what it has not touched is counted again.")
        )
    else:
        background.carry_out(bus(), chosen)
        flash(gettext("It goes on."))
    return go_to("show_act", act_id=act_id)


def _filter(kept: dict[str, Any]) -> Filter:
    older_than = kept.get("older_than")
    moment = {"older_than": datetime.fromisoformat(older_than)} if older_than else {}
    names = {each.name for each in dataclasses.fields(Filter)}
    return Filter(**{name: value for name, value in kept.items() if name in names} | moment)
