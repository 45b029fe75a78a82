"""Operator routes: list receivers; pause, resume and replay to one."""

from flask.typing import ResponseReturnValue

from app.api.auth import operator
from app.api.blueprint import blueprint
from app.api.operation import Operation, ResponseDoc
from app.api.response_models import PauseResult, ReceiverPage, ReplayResult
from app.bus import Replay, pause
from app.current import bus, database
from app.errors import ReplayRefused
from app.request_models import EmptyBody, PauseRequest, ReplayRequest
from app.validation import read_body

NOT_FOUND = {
    404: ResponseDoc(
        "there is no such receiver", detail="there is no receiver 'send_sms'; there are: send_email_notification"
    )
}


@blueprint.get("/operator/receivers")
@Operation("List receivers", responses={200: ResponseDoc("all that are connected or paused", ReceiverPage)})
def list_receivers() -> ResponseReturnValue:
    """Each with its events, and whether it is paused: since when, by whom and why."""
    with database().read() as session:
        return ReceiverPage.serialize({"receivers": pause.receivers(session)})


@blueprint.post("/operator/receivers/<receiver>/pause")
@Operation("Pause a receiver", body=PauseRequest, responses={200: ResponseDoc("it is", PauseResult), **NOT_FOUND})
def pause_receiver(receiver: str) -> ResponseReturnValue:
    """Once this is answered, no process claims a delivery to the receiver. Running attempts end as usual."""
    reason = read_body(PauseRequest).reason
    return {"changed": bus().pause(receiver, reason, by=operator())}


@blueprint.post("/operator/receivers/<receiver>/resume")
@Operation("Resume a receiver", body=EmptyBody, responses={200: ResponseDoc("it goes on", PauseResult), **NOT_FOUND})
def resume_receiver(receiver: str) -> ResponseReturnValue:
    """Its deliveries are tried again at once."""
    read_body(EmptyBody)
    return {"changed": bus().resume(receiver, by=operator())}


@blueprint.post("/operator/receivers/<receiver>/replay")
@Operation(
    "Give recorded events to a receiver",
    body=ReplayRequest,
    responses={
        200: ResponseDoc("done, or counted", ReplayResult),
        409: ResponseDoc(
            "these events can't be replayed to this receiver; 'detail' tells why, and the cure",
            detail=str(ReplayRefused()),
        ),
    },
)
def replay_events(receiver: str) -> ResponseReturnValue:
    """To a new receiver, or to one whose effect was lost. It is given none that it has had, unless forced."""
    body = read_body(ReplayRequest)
    which = Replay(receiver, body.event_type, body.since, body.until, body.order_id, body.force)
    found = bus().find_recorded(which)
    told = vars(found) | {"deliveries": found.deliveries, "act_id": None}
    if not body.dry_run:
        done = bus().replay(which, found, operator(), body.over_seconds)
        told |= {"deliveries": done.deliveries, "act_id": done.act_id}
    return ReplayResult.serialize(told)
