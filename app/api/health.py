"""Health checks: liveness at /healthz, readiness at /readyz."""

from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

from flask.typing import ResponseReturnValue

from app.api.blueprint import blueprint, database, settings
from app.api.operation import Operation, ResponseDoc
from app.api.response_models import Health, Readiness
from app.bus import queries
from app.errors import DatabaseUnavailable, SchemaBehind
from app.http import Problem
from app.version import VERSION


@blueprint.get("/healthz")
@Operation("Is the process alive?", responses={200: ResponseDoc("it is; nothing else was asked", Health)})
def healthz() -> ResponseReturnValue:
    """Asks nothing else, not even the database: a restart would cure nothing that it could tell."""
    return {"status": "ok", "version": VERSION}


@blueprint.get("/readyz")
@Operation(
    "Is the service ready to take orders and to deliver?",
    responses={200: ResponseDoc("it is", Readiness), 503: ResponseDoc("it is not; 'reasons' tell why")},
)
def readyz() -> ResponseReturnValue:
    """Fails on the age of the oldest due delivery, not on how many there are: a burst is no outage."""
    try:
        state = _delivering()
    except DatabaseUnavailable:
        raise _not_ready("the database does not answer") from None
    except SchemaBehind as error:
        raise _not_ready(str(error)) from None
    if reasons := list(_reasons(**state)):
        raise _not_ready(*reasons)
    return {"status": "ready", **state}


def _delivering() -> dict[str, Any]:
    """How many dispatchers are alive, and how far delivery is behind. Raises DatabaseUnavailable, SchemaBehind."""
    database().check_schema()
    now = database().clock.now()
    with database().read() as session:
        alive = queries.dispatchers(session, now)
        overdue = queries.oldest_due(session, now)
    return {"dispatchers": len(alive), "overdue_seconds": overdue.total_seconds() if overdue else 0.0}


def _reasons(dispatchers: int, overdue_seconds: float) -> Iterator[str]:
    if not dispatchers:
        yield "no dispatcher is alive; start one with 'flask bus run'"
    if overdue_seconds > settings().ready_lag_seconds:
        yield f"the oldest due delivery has waited {overdue_seconds:.0f} s, which is more than READY_LAG_SECONDS"


def _not_ready(*reasons: str) -> Problem:
    return Problem(HTTPStatus.SERVICE_UNAVAILABLE, "The service is not ready.", reasons=list(reasons))
