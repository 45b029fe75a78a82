"""Operator routes: correct an order's or a user's address, and send notifications that were skipped for want of one."""

from typing import Any

from flask.typing import ResponseReturnValue

from app import orders
from app.api.auth import operator
from app.api.blueprint import blueprint
from app.api.operation import Operation, ResponseDoc
from app.api.response_models import ActResult, EmailResult
from app.current import bus
from app.errors import OrderNotFound, UserNotFound
from app.request_models import EmailRequest, SendSkippedRequest
from app.validation import read_body

KEPT = {200: ResponseDoc("it is kept", EmailResult)}


@blueprint.post("/operator/orders/<order_id>/email")
@Operation(
    "Set an order's address",
    body=EmailRequest,
    responses={**KEPT, 404: ResponseDoc("there is no such order", detail="there is no order 1001")},
)
def set_order_email(order_id: str) -> ResponseReturnValue:
    """Its mails go there from the next try on; what is being tried keeps what it began with."""
    email = read_body(EmailRequest).email
    if not orders.is_identifier(order_id):
        raise OrderNotFound
    return _kept(email, changed=orders.set_order_email(bus(), order_id, email, by=operator()))


@blueprint.post("/operator/users/<user_id>/email")
@Operation(
    "Set a user's address",
    body=EmailRequest,
    responses={**KEPT, 404: ResponseDoc("no user can have this id", detail=str(UserNotFound()))},
)
def set_user_email(user_id: str) -> ResponseReturnValue:
    """It serves the orders that have none of their own. The user's record is made where there is none."""
    email = read_body(EmailRequest).email
    if not orders.is_identifier(user_id):
        raise UserNotFound
    return _kept(email, changed=orders.set_user_email(bus(), user_id, email, by=operator()))


@blueprint.post("/operator/orders/send-skipped")
@Operation(
    "Send what was skipped for want of an address",
    body=SendSkippedRequest,
    responses={200: ResponseDoc("done, or counted", ActResult)},
)
def send_skipped() -> ResponseReturnValue:
    """Only what has an address now: the order's own, its user's, or one made with USER_EMAIL_DOMAIN."""
    body = read_body(SendSkippedRequest)
    chosen = orders.choose_skipped(bus(), operator(), **body.model_dump(exclude={"dry_run"}))
    if body.dry_run:
        return {"deliveries": len(chosen), "act_id": None}
    done = bus().carry_out(chosen)
    return {"deliveries": done.deliveries, "act_id": done.act_id}


def _kept(email: str, *, changed: bool) -> dict[str, Any]:
    return {"email": email, "changed": changed, "skipped": len(orders.choose_skipped(bus(), operator()))}
