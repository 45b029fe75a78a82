"""Operator route: the service's status, the same as 'flask bus status'."""

from flask.typing import ResponseReturnValue

from app.api.blueprint import blueprint
from app.api.operation import Operation, ResponseDoc
from app.api.response_models import StatusView
from app.current import bus


@blueprint.get("/operator/status")
@Operation("Show what waits, fails and was given up", responses={200: ResponseDoc("what is known", StatusView)})
def show_status() -> ResponseReturnValue:
    """Whether the service is ready, or why not; who dispatches, and how; for each receiver what waits, failed, died or
    was skipped, and why. While the database can't be read, the reason is all that is known."""
    return StatusView.serialize(bus().status().as_json())
