"""Error handlers: every exception that a view raises becomes a problem+json response."""

import logging
import time

from flask import current_app
from flask.typing import ResponseReturnValue
from werkzeug.exceptions import HTTPException

from app.api.blueprint import blueprint
from app.errors import AppError, DatabaseUnavailable, SpreadTooLong
from app.http import answer_problem, problem_of
from app.validation import field_problem

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


@blueprint.errorhandler(AppError)
def answer_error(error: AppError) -> ResponseReturnValue:
    return answer_problem(problem_of(error))


@blueprint.errorhandler(SpreadTooLong)
def answer_spread_too_long(error: SpreadTooLong) -> ResponseReturnValue:
    return answer_problem(field_problem([("over_seconds", str(error))]))


@blueprint.errorhandler(DatabaseUnavailable)
def answer_unavailable(error: DatabaseUnavailable) -> ResponseReturnValue:
    """503 with Retry-After. The database's reason is logged and not sent: it may name hosts and users."""
    current_app.extensions["outage_log"].tell(error.reason)
    problem = problem_of(error)
    problem.headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
    return answer_problem(problem)
