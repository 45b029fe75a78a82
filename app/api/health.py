"""Health checks: liveness at /healthz, readiness at /readyz."""

from http import HTTPStatus

from flask.typing import ResponseReturnValue

from app.api.blueprint import blueprint
from app.api.operation import Operation, ResponseDoc
from app.api.response_models import Health, Readiness
from app.bus.troubles import NO_DISPATCHER, Cause
from app.current import bus
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
    responses={
        200: ResponseDoc("it is", Readiness),
        503: ResponseDoc(
            "it is not; 'reasons' tell why",
            detail="The service is not ready.",
            members={"reasons": [NO_DISPATCHER], "causes": [Cause.NO_DISPATCHER], "warnings": []},
        ),
    },
)
def readyz() -> ResponseReturnValue:
    """Tells every cause, with its cure, within three seconds, whatever the database does.

    Fails on the age of what is late, not on how much there is: a burst is no outage.
    """
    found = bus().watch.look_and_report()
    warnings = [trouble.text for trouble in found.warnings]
    if found.reasons:
        raise Problem(
            HTTPStatus.SERVICE_UNAVAILABLE,
            "The service is not ready.",
            reasons=[trouble.text for trouble in found.reasons],
            causes=[trouble.cause for trouble in found.reasons],
            warnings=warnings,
        )
    return {
        "status": "ready",
        "dispatchers": len(found.dispatchers),
        "overdue_seconds": found.overdue.total_seconds(),
        "warnings": warnings,
    }
