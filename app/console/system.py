"""System: dispatchers, receivers, throughput and latency, the settings, and the doctor's findings."""

from datetime import datetime, timedelta
from typing import Any

from flask import current_app, flash
from flask.typing import ResponseReturnValue
from flask_babel import gettext
from pydantic import Field
from sqlalchemy import make_url

from app import doctor
from app.bus import queries
from app.bus.status import ReceiverStatus, Status
from app.console import access, charts, in_words
from app.console.pages import go_to, lasting, page, read_form
from app.current import bus, database, settings
from app.fields import Text
from app.request_models import PauseRequest, RequestModel
from config import Settings

MOST_COUNTED = 2000
"""Rows that are read for each receiver's numbers."""

MOST_LOOKED_AT = 800
"""Attempts for each chart; where more ended, a sample of so many."""

SECRETS = {"mail_username", *(name for name, field in Settings.model_fields.items() if not field.repr)} - {
    "database_url"
}
"""Settings that are never shown. Of the database's address only the password is left out."""


class Why(RequestModel):
    """Why something is done."""

    reason: Text | None = Field(None, max_length=1000, description="at most 1000 characters")


def show_system() -> ResponseReturnValue:
    found = bus().status(most=MOST_COUNTED)
    now = database().clock.now()
    timed = set(bus().mails)
    with database().read() as session:
        windows = [
            _window(session, now, gettext("The last hour"), timedelta(hours=1), 30, timed),
            _window(session, now, gettext("The last day"), timedelta(days=1), 24, timed),
        ]
    return page(
        "system.html",
        status=found,
        held_up=_held_up(found),
        windows=windows,
        timed=", ".join(sorted(timed)),
        settings=_settings(),
        in_words=in_words,
        chart=charts,
    )


def _held_up(found: Status) -> list[ReceiverStatus]:
    """The receivers that the front page calls held up, from the first moment on; without those that a trouble tells of,
    which it does after READY_LAG_SECONDS."""
    told = {trouble.receiver for trouble in found.readiness.troubles}
    return [each for each in found.receivers if each.is_held_up and each.receiver not in told]


def _window(session: Any, now: datetime, name: str, within: timedelta, count: int, timed: set[str]) -> dict[str, Any]:
    """A stretch of time, as charts and as numbers."""
    sample = queries.ended_since(session, now - within, MOST_LOOKED_AT)
    found = charts.buckets(sample.attempts, now, within, count, sample.stride, timed)
    return {
        "name": name,
        "ago": gettext("%(time)s ago", time=lasting(within)),
        "middle": gettext("%(time)s ago", time=lasting(within / 2)),
        "buckets": found,
        "throughput": charts.throughput(found),
        "latency": charts.latency(found),
        "done": sum(each.done for each in found),
        "failed": sum(each.failed for each in found),
        "is_exact": sample.stride == 1,
    }


def _settings() -> list[tuple[str, str, bool]]:
    """Each setting's name, its value, and whether somebody gave it. Of a secret, whether there is one."""
    chosen = settings()
    return [
        (name.upper(), shown_setting(name, getattr(chosen, name)), name in chosen.model_fields_set)
        for name in type(chosen).model_fields
    ]


def shown_setting(name: str, value: Any) -> str:
    if name == "database_url":
        return make_url(value).set(query={}).render_as_string(hide_password=True)
    if name in SECRETS:
        return str(gettext("set, and not shown") if value else gettext("not set"))
    return in_words.anything(value)


def show_findings() -> ResponseReturnValue:
    """Looks at everything, the mail server included: it takes as long as that takes to answer."""
    return page("findings.html", in_words=in_words, found=doctor.examine(current_app._get_current_object()))  # type: ignore[attr-defined]


# What can be done with a receiver


def pause_receiver(receiver: str) -> ResponseReturnValue:
    """Raises UnknownReceiver, and Problem with 422 without a reason."""
    why = read_form(PauseRequest).reason
    if bus().pause(receiver, why, by=access.operator()):
        flash(gettext("%(name)s is paused: nothing is delivered to it until somebody resumes it.", name=receiver))
    else:
        flash(gettext("%(name)s was paused before.", name=receiver))
    return go_to("show_system")


def resume_receiver(receiver: str) -> ResponseReturnValue:
    """Raises UnknownReceiver."""
    if bus().resume(receiver, by=access.operator(), reason=read_form(Why).reason):
        flash(gettext("%(name)s goes on.", name=receiver))
    else:
        flash(gettext("%(name)s is not paused.", name=receiver))
    return go_to("show_system")


def probe_receiver(receiver: str) -> ResponseReturnValue:
    if bus().probe(receiver, by=access.operator()):
        flash(gettext("The next delivery to %(name)s is tried now: if it comes through, all go on.", name=receiver))
    else:
        flash(gettext("The circuit breaker of %(name)s is closed: nothing is to be probed.", name=receiver))
    return go_to("show_system")
