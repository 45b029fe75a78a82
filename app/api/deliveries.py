"""Operator routes: find deliveries; retry or discard one, or all that a filter selects."""

from http import HTTPStatus
from typing import Any

from flask.typing import ResponseReturnValue

from app.api.auth import operator_name
from app.api.blueprint import blueprint, bus, database
from app.api.fields import MAX_BIGINT
from app.api.operation import Operation, ResponseDoc
from app.api.request_models import DeliveryQuery, DiscardReason, DiscardRequest, EmptyBody, RetryRequest
from app.api.response_models import ActResult, DeliveryPage
from app.api.validation import read_body, read_query
from app.bus import Filter, operate
from app.http import Problem

BULK = {200: ResponseDoc("done, or counted", ActResult)}
NOT_FOUND = {404: ResponseDoc("there is no such delivery")}


@blueprint.get("/operator/deliveries")
@Operation("Find deliveries", query=DeliveryQuery, responses={200: ResponseDoc("a page of deliveries", DeliveryPage)})
def find_deliveries() -> ResponseReturnValue:
    """?state=dead finds what was given up."""
    conditions = read_query(DeliveryQuery).model_dump()
    limit, cursor = conditions.pop("limit"), conditions.pop("cursor")
    with database().read() as session:
        found, next_cursor = operate.find(session, Filter(**conditions), after=cursor, limit=limit)
    return DeliveryPage.serialize({"deliveries": found, "next_cursor": next_cursor})


@blueprint.post("/operator/deliveries/retry")
@Operation("Retry all deliveries that a filter selects", body=RetryRequest, responses=BULK)
def retry_deliveries() -> ResponseReturnValue:
    """Dead and discarded ones become due now, with a new budget of attempts. Repeating it does no harm."""
    body = read_body(RetryRequest)
    selected = Filter(**dict(body.filter))
    return _count("retry", selected) if body.dry_run else _retry(selected)


@blueprint.post("/operator/deliveries/discard")
@Operation("Discard all that a filter selects", body=DiscardRequest, responses=BULK)
def discard_deliveries() -> ResponseReturnValue:
    """Waiting and dead ones are given up for good. Repeating it does no harm."""
    body = read_body(DiscardRequest)
    selected = Filter(**dict(body.filter))
    return _count("discard", selected) if body.dry_run else _discard(selected, body.reason)


@blueprint.post("/operator/deliveries/<int:delivery_id>/retry")
@Operation(
    "Retry a delivery",
    body=EmptyBody,
    responses={200: ResponseDoc("done; 0 where it was not dead", ActResult), **NOT_FOUND},
)
def retry_delivery(delivery_id: int) -> ResponseReturnValue:
    """It becomes due now, with a new budget of attempts."""
    read_body(EmptyBody)
    return _retry(_only(delivery_id))


@blueprint.post("/operator/deliveries/<int:delivery_id>/discard")
@Operation(
    "Discard a delivery",
    body=DiscardReason,
    responses={200: ResponseDoc("done; 0 where it had ended", ActResult), **NOT_FOUND},
)
def discard_delivery(delivery_id: int) -> ResponseReturnValue:
    """It is given up for good."""
    reason = read_body(DiscardReason).reason
    return _discard(_only(delivery_id), reason)


def _only(delivery_id: int) -> Filter:
    """The filter of one delivery. Raises Problem with 404."""
    selected = Filter(delivery_id=delivery_id)
    found: list[Any] = []
    if delivery_id <= MAX_BIGINT:  # no column holds a larger one, and a driver refuses it
        with database().read() as session:
            found, _ = operate.find(session, selected)
    if not found:
        raise Problem(HTTPStatus.NOT_FOUND, "There is no such delivery.")
    return selected


def _count(action: str, selected: Filter) -> dict[str, int]:
    with database().read() as session:
        return {"deliveries": operate.count(session, action, selected)}


def _retry(selected: Filter) -> dict[str, int]:
    return {"deliveries": bus().retry(selected, by=_operator())}


def _discard(selected: Filter, reason: str) -> dict[str, int]:
    return {"deliveries": bus().discard(selected, reason, by=_operator())}


def _operator() -> str:
    """The author that an act is recorded with."""
    return f"operator:{operator_name() or 'unnamed'}"
