"""Error handlers: every exception that a view raises becomes a problem+json response."""

import logging
from http import HTTPStatus

from flask.typing import ResponseReturnValue
from werkzeug.exceptions import HTTPException

from app.api.blueprint import blueprint
from app.errors import DatabaseUnavailable, OrderConflict, OrderNotFound, UserNotFound
from app.http import Problem, answer_problem

log = logging.getLogger(__name__)

RETRY_AFTER_SECONDS = 2

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
    log.warning("answering 503: %s", error.reason)
    retry = {"Retry-After": str(RETRY_AFTER_SECONDS)}
    return answer_problem(Problem(HTTPStatus.SERVICE_UNAVAILABLE, str(error), headers=retry))
