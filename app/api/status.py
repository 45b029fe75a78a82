"""Operator routes: the service's status, the same as 'flask bus status', and the findings of 'flask doctor'."""

from flask import current_app
from flask.typing import ResponseReturnValue

from app import doctor
from app.api.blueprint import blueprint
from app.api.operation import Operation, ResponseDoc
from app.api.response_models import FindingsView, StatusView
from app.current import bus


@blueprint.get("/operator/status")
@Operation("Show what waits, fails and was given up", responses={200: ResponseDoc("what is known", StatusView)})
def show_status() -> ResponseReturnValue:
    """Whether the service is ready, or why not; who dispatches, and how; for each receiver what waits, failed, died or
    was skipped, and why. While the database can't be read, the reason is all that is known."""
    return StatusView.serialize(bus().status().as_json())


@blueprint.get("/operator/doctor")
@Operation("Examine the service", responses={200: ResponseDoc("what was found", FindingsView)})
def examine() -> ResponseReturnValue:
    """What 'flask doctor' finds: the database, disk, files, mail server, dispatchers, clocks and outbox, as the process
    that answers sees them. It asks the mail server, so it takes as long as that takes to answer."""
    found = doctor.examine(current_app._get_current_object())  # type: ignore[attr-defined]  # of LocalProxy
    return FindingsView.serialize(found.as_json())
