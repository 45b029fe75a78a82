"""Operator routes: list operators' acts, show what became of one, abort one."""

from flask.typing import ResponseReturnValue

from app.api.auth import operator
from app.api.blueprint import blueprint
from app.api.operation import Operation, ResponseDoc
from app.api.response_models import AbortResult, ActPage, ActView
from app.bus import acts
from app.current import bus, database
from app.errors import ActNotFound
from app.fields import MAX_BIGINT
from app.request_models import ActQuery, EmptyBody
from app.validation import read_body, read_query

NOT_FOUND = {404: ResponseDoc("there is no such act", detail="there is no act 1")}


@blueprint.get("/operator/acts")
@Operation(
    "List operators' acts, newest first", query=ActQuery, responses={200: ResponseDoc("a page of acts", ActPage)}
)
def list_acts() -> ResponseReturnValue:
    """Operators' acts, with the deliveries that they touched and what became of these."""
    query = read_query(ActQuery)
    with database().read() as session:
        found, cursor = acts.list_acts(session, database().clock.now(), before=query.cursor, limit=query.limit)
    return ActPage.serialize({"acts": found, "next_cursor": cursor})


@blueprint.get("/operator/acts/<int:act_id>")
@Operation("Show an act", responses={200: ResponseDoc("the act, with counts", ActView), **NOT_FOUND})
def show_act(act_id: int) -> ResponseReturnValue:
    """How far it is, and what became of the deliveries that it touched."""
    with database().read() as session:
        return ActView.serialize(acts.find_act(session, _checked(act_id), database().clock.now()))


@blueprint.post("/operator/acts/<int:act_id>/abort")
@Operation("Abort an act", body=EmptyBody, responses={200: ResponseDoc("done", AbortResult), **NOT_FOUND})
def abort_act(act_id: int) -> ResponseReturnValue:
    """Deliveries that were not tried yet return to their earlier state. Those that run or have ended stay."""
    read_body(EmptyBody)
    return {"act_id": act_id, "taken_back": bus().abort(_checked(act_id), by=operator())}


def _checked(act_id: int) -> int:
    """Raises ActNotFound for a number that no column holds, and a driver refuses."""
    if act_id > MAX_BIGINT:
        raise ActNotFound
    return act_id
