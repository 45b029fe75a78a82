"""Is the process alive, and is the service of use: for load balancers and those who watch."""

from http import HTTPStatus

from flask.typing import ResponseReturnValue

from app.api.blueprint import database, routes, settings
from app.api.openapi import Answer, Operation
from app.api.outgoing import Health, Readiness
from app.api.problems import Problem
from app.bus import queries
from app.errors import DatabaseUnavailable, SchemaBehind


@routes.get("/healthz")
@Operation("Is the process alive?", answers={200: Answer("it is; nothing else was asked", Health)})
def healthz() -> ResponseReturnValue:
    """Asks nothing else, not even the database: a restart would cure nothing that it could tell."""
    return {"status": "ok"}


@routes.get("/readyz")
@Operation(
    "Is the service ready to take orders and to deliver?",
    answers={200: Answer("it is", Readiness), 503: Answer("it is not; 'reasons' tell why")},
)
def readyz() -> ResponseReturnValue:
    """Fails on the age of the oldest due delivery, not on how many there are: a burst is no outage."""
    try:
        database().check_schema()
        now = database().clock.now()
        with database().read() as session:
            alive = queries.dispatchers(session, now)
            overdue = queries.oldest_due(session, now)
    except DatabaseUnavailable:
        raise _not_ready("the database does not answer") from None
    except SchemaBehind as error:
        raise _not_ready(str(error)) from None
    seconds = overdue.total_seconds() if overdue else 0.0
    reasons = []
    if not alive:
        reasons.append("no dispatcher is alive; start one with 'flask bus run'")
    if seconds > settings().ready_lag_seconds:
        reasons.append(f"the oldest due delivery has waited {seconds:.0f} s, which is more than READY_LAG_SECONDS")
    if reasons:
        raise _not_ready(*reasons)
    return {"status": "ready", "dispatchers": len(alive), "overdue_seconds": seconds}


def _not_ready(*reasons: str) -> Problem:
    return Problem(HTTPStatus.SERVICE_UNAVAILABLE, "The service is not ready.", reasons=list(reasons))
