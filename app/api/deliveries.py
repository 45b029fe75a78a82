"""Operator routes: find deliveries; retry or discard one, or all that a filter selects; send a notification again."""

from dataclasses import asdict
from http import HTTPStatus
from typing import Any

from flask.typing import ResponseReturnValue

from app.api.auth import operator
from app.api.blueprint import blueprint
from app.api.operation import Operation, ResponseDoc
from app.api.origin import origin
from app.api.response_models import ActResult, DeliveryPage, ReasonList, ResendResult
from app.bus import Act, Filter, operate
from app.current import bus, database
from app.errors import OrderNotFound
from app.fields import MAX_BIGINT
from app.http import Problem
from app.orders import is_identifier
from app.request_models import (
    DeliveryQuery,
    DiscardReason,
    DiscardRequest,
    EmptyBody,
    ReasonQuery,
    ResendRequest,
    RetryRequest,
)
from app.resend import resend
from app.validation import read_body, read_query

BULK = {200: ResponseDoc("done, or counted", ActResult)}
NOT_FOUND = {404: ResponseDoc("there is no such delivery", detail="There is no such delivery.")}


@blueprint.get("/operator/deliveries")
@Operation("Find deliveries", query=DeliveryQuery, responses={200: ResponseDoc("a page of deliveries", DeliveryPage)})
def find_deliveries() -> ResponseReturnValue:
    """?state=dead finds what was given up."""
    conditions = read_query(DeliveryQuery).model_dump()
    limit, cursor = conditions.pop("limit"), conditions.pop("cursor")
    with database().read() as session:
        found, next_cursor = operate.find(session, Filter(**conditions), after=cursor, limit=limit)
        tries = operate.next_tries(session, found, database().clock.now())
    rows = [row._asdict() | {"next_try": tries.get(row.delivery_id)} for row in found]
    return DeliveryPage.serialize({"deliveries": rows, "next_cursor": next_cursor})


@blueprint.get("/operator/deliveries/reasons")
@Operation("Group deliveries by reason", query=ReasonQuery, responses={200: ResponseDoc("the groups", ReasonList)})
def group_deliveries() -> ResponseReturnValue:
    """Deliveries that wait, run, are dead or were discarded; done ones are left out."""
    conditions = read_query(ReasonQuery).model_dump()
    limit = conditions.pop("limit")
    with database().read() as session:
        groups, complete = operate.group_by_reason(session, Filter(**conditions), operate.NOT_DONE)
    return ReasonList.serialize({"reasons": groups[:limit], "complete": complete and len(groups) <= limit})


@blueprint.post("/operator/deliveries/retry")
@Operation("Retry all deliveries that a filter selects", body=RetryRequest, responses=BULK)
def retry_deliveries() -> ResponseReturnValue:
    """Waiting and dead deliveries become due now, and discarded ones where the filter names their state.

    Dead and discarded deliveries get a new budget of attempts. Repeating it does no harm.
    """
    body = read_body(RetryRequest)
    which = Filter(**dict(body.filter))
    act = Act("retry", which, operator(), over_seconds=body.over_seconds, probe=body.probe)
    return _count(act) if body.dry_run else _carry_out(act)


@blueprint.post("/operator/deliveries/discard")
@Operation("Discard all that a filter selects", body=DiscardRequest, responses=BULK)
def discard_deliveries() -> ResponseReturnValue:
    """Waiting and dead ones are given up for good. Repeating it does no harm."""
    body = read_body(DiscardRequest)
    act = Act("discard", Filter(**dict(body.filter)), operator(), body.reason)
    return _count(act) if body.dry_run else _carry_out(act)


@blueprint.post("/operator/deliveries/<int:delivery_id>/retry")
@Operation(
    "Retry a delivery",
    body=EmptyBody,
    responses={200: ResponseDoc("done; 0 where it is done or runs", ActResult), **NOT_FOUND},
)
def retry_delivery(delivery_id: int) -> ResponseReturnValue:
    """It becomes due now, even where it was discarded. A dead or discarded delivery gets a new budget of attempts."""
    read_body(EmptyBody)
    state = _state_of(delivery_id)
    return _carry_out(Act("retry", Filter(delivery_id=delivery_id, state=state), operator()))


@blueprint.post("/operator/deliveries/<int:delivery_id>/discard")
@Operation(
    "Discard a delivery",
    body=DiscardReason,
    responses={200: ResponseDoc("done; 0 where it had ended", ActResult), **NOT_FOUND},
)
def discard_delivery(delivery_id: int) -> ResponseReturnValue:
    """It is given up for good."""
    reason = read_body(DiscardReason).reason
    _state_of(delivery_id)
    return _carry_out(Act("discard", Filter(delivery_id=delivery_id), operator(), reason))


@blueprint.post("/operator/orders/<order_id>/resend")
@Operation(
    "Send an order's notification again",
    body=ResendRequest,
    responses={
        200: ResponseDoc("asked for", ResendResult),
        404: ResponseDoc("there is no such order", detail="there is no order 1001"),
    },
)
def resend_notification(order_id: str) -> ResponseReturnValue:
    """A new mail, whatever became of the first. To try one that is owed, retry its delivery."""
    reason = read_body(ResendRequest).reason
    if not is_identifier(order_id):
        raise OrderNotFound
    return asdict(resend(bus(), order_id, by=operator(), reason=reason, origin=origin()))


def _state_of(delivery_id: int) -> str:
    """Raises Problem with 404."""
    found: list[Any] = []
    if delivery_id <= MAX_BIGINT:  # no column holds a larger one, and a driver refuses it
        with database().read() as session:
            found, _ = operate.find(session, Filter(delivery_id=delivery_id))
    if not found:
        raise Problem(HTTPStatus.NOT_FOUND, "There is no such delivery.")
    return str(found[0].state)


def _count(act: Act) -> ResponseReturnValue:
    with database().read() as session:
        return {"deliveries": operate.count(session, act.action, act.which), "act_id": None}


def _carry_out(act: Act) -> ResponseReturnValue:
    done = bus().carry_out(bus().choose(act))
    return {"deliveries": done.deliveries, "act_id": done.act_id}
