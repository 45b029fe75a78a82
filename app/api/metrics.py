"""GET /metrics: the metrics, for Prometheus."""

from flask import Response, current_app
from flask.typing import ResponseReturnValue

from app.api.blueprint import blueprint
from app.api.operation import Operation, ResponseDoc


@blueprint.get("/metrics")
@Operation(
    "Metrics for Prometheus",
    responses={200: ResponseDoc("all metrics, in Prometheus' text format", model=None)},
)
def metrics() -> ResponseReturnValue:
    """Counts of all processes of the service on this machine. Gauges from the database may be some seconds old.

    Answers this machine only; with METRICS_TOKEN set, every request that carries it.
    """
    from app.observe.exposition import exposition  # loads prometheus-client, which nothing else needs

    text = exposition(current_app.extensions["metrics"])
    return Response(text, content_type="text/plain; version=0.0.4; charset=utf-8")
