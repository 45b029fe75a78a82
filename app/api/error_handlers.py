"""Error handlers: every exception that a view raises becomes a problem+json response."""

import logging
import time
from http import HTTPStatus

from flask import current_app
from flask.typing import ResponseReturnValue
from werkzeug.exceptions import HTTPException

from app.api.blueprint import blueprint
from app.errors import DatabaseUnavailable, OrderConflict, OrderNotFound, UserNotFound
from app.http import Problem, answer_problem

log = logging.getLogger(__name__)

RETRY_AFTER_SECONDS = 2

SAY_AGAIN_SECONDS = 10.0
"""Until the reason for answering 503 is logged again while it lasts."""


class OutageLog:
    """Logs why requests are answered 503: a line for each reason, not for each request. One for each application."""

    def __init__(self) -> None:
        self._told = ""
        self._again = 0.0

    def tell(self, reason: str) -> None:
        now = time.monotonic()
        if reason != self._told or now >= self._again:
            self._told, self._again = reason, now + SAY_AGAIN_SECONDS
            log.warning("answering 503: %s", reason)


blueprint.app_errorhandler(HTTPException)(answer_problem)


@blueprint.errorhandler(OrderNotFound)
@blueprint.errorhandler(UserNotFound)
def answer_not_found(error: OrderNotFound | UserNotFound) -> ResponseReturnValue:
    return answer_problem(Problem(HTTPStatus.NOT_FOUND, str(error)))


@blueprint.errorhandler(OrderConflict)
def answer_conflict(error: OrderConflict) -> ResponseReturnValue:
    return answer_problem(Problem(HTTPStatus.CONFLICT, str(error)))


@blueprint.errorhandler(DatabaseUnavailable)
def answer_unavailable(error: DatabaseUnavailable) -> ResponseReturnValue:
    """503 with Retry-After. The database's reason is logged and not sent: it may name hosts and users."""
    current_app.extensions["outage_log"].tell(error.reason)
    retry = {"Retry-After": str(RETRY_AFTER_SECONDS)}
    return answer_problem(Problem(HTTPStatus.SERVICE_UNAVAILABLE, str(error), headers=retry))
