"""What operators may do: find deliveries, and retry or discard one, or all that a filter selects.

Without CONSOLE_PASSWORD these routes answer this machine only. With it they ask for it, by HTTP Basic: the user name
is whoever one says one is, and is kept with what one does.
"""

import ipaddress
import re
from http import HTTPStatus
from typing import Any

from flask import current_app, request
from flask.typing import ResponseReturnValue

from app.api.auth import is_secret
from app.api.blueprint import database, routes, settings
from app.api.incoming import LARGEST_NUMBER, DeliveryQuery, Discarding, Nothing, Reason, Retry, Which
from app.api.openapi import Answer, Operation
from app.api.outgoing import Acted, DeliveryPage, view
from app.api.problems import Problem
from app.api.reading import read_body, read_query
from app.bus import Bus, Filter, operate

FORWARDED = re.compile(
    r"Via|Forwarded|X-(Forwarded|Original|Real|Client|Cluster|Envoy)\b.*|(Cf|True|Fastly)-.*", re.IGNORECASE
)
"""A request with one of these came through a proxy: that the proxy is on this machine tells nothing of its client."""

LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")

ABSENT = {404: Answer("there is no such delivery")}


@routes.before_app_request
def demand_operator() -> None:
    """Runs before the body is looked at."""
    if not request.path.startswith("/operator/"):
        return
    password = settings().console_password
    if password is None:
        if not _is_local():
            raise Problem(
                HTTPStatus.FORBIDDEN,
                "Operator routes answer this machine only. Set CONSOLE_PASSWORD to reach them from elsewhere.",
            )
        return
    _, given = _basic()
    if not is_secret(given.encode(errors="replace"), password.encode(errors="replace")):
        raise Problem(
            HTTPStatus.UNAUTHORIZED,
            "Send a name of your choice and the CONSOLE_PASSWORD by HTTP Basic authentication.",
            headers={"WWW-Authenticate": 'Basic realm="operators", charset="UTF-8"'},
        )


def _is_local() -> bool:
    """From this machine, and asked for under its own name: a page whose domain points to 127.0.0.1 is not."""
    try:
        near = ipaddress.ip_address(request.remote_addr or "").is_loopback
    except ValueError:
        near = request.remote_addr == ""  # a Unix socket
    name = request.host if request.host.endswith("]") else request.host.rpartition(":")[0] or request.host
    forwarded = any(FORWARDED.fullmatch(header) for header, _ in request.headers)
    return near and name in LOCAL_NAMES and not forwarded


def _basic() -> tuple[str, str]:
    """The name and the password that were given; empty where none was."""
    try:
        given = request.authorization
    except ValueError:  # Werkzeug takes no offence at bad Base64, but does at what is not even ASCII
        given = None
    return (given.username or "", given.password or "") if given else ("", "")


@routes.get("/operator/deliveries")
@Operation(
    "Find deliveries",
    query=DeliveryQuery,
    answers={200: Answer("a page of deliveries", DeliveryPage)},
)
def find_deliveries() -> ResponseReturnValue:
    """?state=dead finds what was given up."""
    wanted = read_query(DeliveryQuery).model_dump()
    limit, cursor = wanted.pop("limit"), wanted.pop("cursor")
    with database().read() as session:
        found, following = operate.find(session, Filter(**wanted), after=cursor, limit=limit)
    return view(DeliveryPage, {"deliveries": found, "next_cursor": following})


@routes.post("/operator/deliveries/retry")
@Operation("Retry all deliveries that a filter selects", body=Retry, answers={200: Answer("done, or counted", Acted)})
def retry_deliveries() -> ResponseReturnValue:
    """Dead and discarded ones become due now, with a new budget of attempts. Repeating it does no harm."""
    return _act("retry", read_body(Retry))


@routes.post("/operator/deliveries/discard")
@Operation("Discard all that a filter selects", body=Discarding, answers={200: Answer("done, or counted", Acted)})
def discard_deliveries() -> ResponseReturnValue:
    """Waiting and dead ones are given up for good. Repeating it does no harm."""
    asked = read_body(Discarding)
    return _act("discard", asked, asked.reason)


@routes.post("/operator/deliveries/<int:delivery_id>/retry")
@Operation("Retry a delivery", body=Nothing, answers={200: Answer("done; 0 where it was not dead", Acted), **ABSENT})
def retry_delivery(delivery_id: int) -> ResponseReturnValue:
    """It becomes due now, with a new budget of attempts."""
    read_body(Nothing)
    return _act("retry", _only(delivery_id))


@routes.post("/operator/deliveries/<int:delivery_id>/discard")
@Operation("Discard a delivery", body=Reason, answers={200: Answer("done; 0 where it had ended", Acted), **ABSENT})
def discard_delivery(delivery_id: int) -> ResponseReturnValue:
    """It is given up for good."""
    reason = read_body(Reason).reason
    return _act("discard", _only(delivery_id), reason)


def _only(delivery_id: int) -> Retry:
    found: list[Any] = []
    if delivery_id <= LARGEST_NUMBER:
        with database().read() as session:
            found, _ = operate.find(session, Filter(delivery_id=delivery_id))
    if not found:
        raise Problem(HTTPStatus.NOT_FOUND, "There is no such delivery.")
    return Retry(filter=Which(delivery_id=delivery_id))


def _act(action: str, asked: Retry, reason: str = "") -> dict[str, Any]:
    which = Filter(**dict(asked.filter))
    if asked.dry_run:
        with database().read() as session:
            return {"deliveries": operate.count(session, action, which)}
    bus: Bus = current_app.extensions["bus"]
    count = bus.retry(which, by=_who()) if action == "retry" else bus.discard(which, reason, by=_who())
    return {"deliveries": count}


def _who() -> str:
    name, _ = _basic()
    return f"operator:{(name or 'unnamed')[:80]}"
