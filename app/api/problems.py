"""What went wrong, as RFC 9457 problem details: every error of the API is answered here."""

import logging
from http import HTTPStatus
from typing import Any

from flask import make_response, request
from flask.typing import ResponseReturnValue
from werkzeug.exceptions import HTTPException, InternalServerError, MethodNotAllowed, NotFound, RequestEntityTooLarge

from app.api.blueprint import is_api, routes
from app.errors import AppError, DatabaseUnavailable, OrderConflict, OrderNotFound, UserNotFound

log = logging.getLogger(__name__)

RETRY_AFTER_SECONDS = 2

LARGEST_BODY = 64 * 1024
"""Bytes."""

DETAILS: dict[type[HTTPException], str] = {
    NotFound: "There is nothing at this address. /openapi.json lists what there is.",
    MethodNotAllowed: "This address does not take this method; the Allow header names those it takes.",
    RequestEntityTooLarge: f"The body is larger than {LARGEST_BODY} bytes.",
    InternalServerError: "Something is wrong on our side, and has been logged.",
}


class Problem(HTTPException):
    """Raised by a view to answer with ``status``; ``members`` join the answer's JSON, ``headers`` its headers."""

    def __init__(self, status: int, detail: str, *, headers: dict[str, str] | None = None, **members: Any) -> None:
        super().__init__(detail)
        self.code = status
        self.members = members
        self.headers = headers or {}


@routes.app_errorhandler(HTTPException)
def answer_problem(error: HTTPException) -> ResponseReturnValue:
    """An error as problem+json; outside the API as it came. Flask has logged what nobody expected."""
    if not is_api(request.path):
        return error
    problem = {
        "type": "about:blank",
        "title": error.name,
        "status": error.code,
        "detail": DETAILS.get(type(error)) or error.description or error.name,
    }
    response = make_response(problem | getattr(error, "members", {}), error.code)
    response.headers.update(error.get_headers())  # Allow, where the method is wrong
    response.content_type = "application/problem+json"
    response.headers.update(getattr(error, "headers", {}))
    return response


@routes.errorhandler(OrderNotFound)
@routes.errorhandler(UserNotFound)
@routes.errorhandler(OrderConflict)
def answer_refusal(error: AppError) -> ResponseReturnValue:
    status = HTTPStatus.CONFLICT if isinstance(error, OrderConflict) else HTTPStatus.NOT_FOUND
    return answer_problem(Problem(status, str(error)))


@routes.errorhandler(DatabaseUnavailable)
def answer_unavailable(error: DatabaseUnavailable) -> ResponseReturnValue:
    log.warning("answering 503: %s", error.reason)
    retry = {"Retry-After": str(RETRY_AFTER_SECONDS)}
    return answer_problem(Problem(HTTPStatus.SERVICE_UNAVAILABLE, str(error), headers=retry))
