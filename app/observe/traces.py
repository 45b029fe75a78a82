"""Traces for OpenTelemetry: a span for each request, and for each attempt at a delivery.

Only where OTEL_* variables ask for it: otherwise OpenTelemetry is not loaded, and a request runs no code of this
module. A request's span is passed on as its ``traceparent``, which the event keeps, so the attempts' spans are its
children, whichever process makes them.
"""

import importlib.util
import logging
import threading
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import TYPE_CHECKING, Any

from flask import Flask

from app import trace_context
from app.bus import Bus, LeaseEnd, lifecycle
from app.text import masked
from config import exports_traces

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

log = logging.getLogger(__name__)

PACKAGES = ("opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http.trace_exporter")


def init_app(app: Flask) -> None:
    if not exports_traces():
        return
    if not all(map(_is_there, PACKAGES)):
        log.warning("no trace is exported, though OTEL_* asks for it; run 'pip install -r requirements-traces.txt'")
        return
    traces = app.extensions["traces"] = Traces(app.extensions["bus"])
    app.wsgi_app = TracedRequests(app.wsgi_app, traces)  # type: ignore[method-assign]  # as Flask documents it


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


class Traces:
    """One application's. Signals hold it weakly: keep it for as long as the bus."""

    def __init__(self, bus: Bus) -> None:
        self._lock = threading.Lock()
        self._provider: Any = None
        lifecycle.deliveries_settled.connect(self.deliveries_settled, sender=bus)

    @property
    def provider(self) -> Any:
        """Made at the first span, which comes after every fork: it has a thread, which sends spans in batches."""
        with self._lock:
            if self._provider is None:
                self._provider = _provider()
            return self._provider

    @property
    def tracer(self) -> "Tracer":
        tracer: Tracer = self.provider.get_tracer("orders")
        return tracer

    def deliveries_settled(self, bus: Bus, ends: list[LeaseEnd]) -> None:
        for end in ends:
            if end.outcome is not None:
                self._attempt_ended(end, bus.database.clock.now())

    def _attempt_ended(self, end: LeaseEnd, now: datetime) -> None:
        """The attempt's span, once it has ended."""
        from opentelemetry.trace import SpanKind, Status, StatusCode

        lease = end.lease
        span = self.tracer.start_span(
            lease.receiver,
            context=_context(lease.traceparent),
            kind=SpanKind.CONSUMER,
            start_time=_nanoseconds(lease.leased_at),
            attributes={
                "orders.order_id": lease.order_id,
                "orders.event_id": lease.event_id,
                "orders.event_type": lease.type,
                "orders.delivery_id": lease.delivery_id,
                "orders.attempt": lease.spent + 1,
                "orders.outcome": str(end.outcome),
                "orders.state": str(end.state),
            },
        )
        if end.outcome != "ok":
            span.set_status(Status(StatusCode.ERROR, masked(end.reason or "")))
        span.end(_nanoseconds(now))


class TracedRequests:
    """WSGI middleware: the application sees the request's own span as its ``traceparent``."""

    def __init__(self, wsgi_app: Callable[..., Iterable[bytes]], traces: Traces) -> None:
        self.wsgi_app, self.traces = wsgi_app, traces

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        from opentelemetry.trace import SpanKind, Status, StatusCode

        method = environ["REQUEST_METHOD"]
        span = self.traces.tracer.start_span(
            method,
            context=_context(trace_context.parse(environ.get("HTTP_TRACEPARENT"))),
            kind=SpanKind.SERVER,
            attributes={"http.request.method": method, "url.path": environ["PATH_INFO"]},
        )
        mine = span.get_span_context()
        environ["HTTP_TRACEPARENT"] = f"00-{mine.trace_id:032x}-{mine.span_id:016x}-{mine.trace_flags:02x}"

        def start(status: str, headers: Any, exc_info: Any = None) -> Any:
            rule = getattr(environ.get("werkzeug.request"), "url_rule", None)
            if rule is not None:
                span.update_name(f"{method} {rule.rule}")
                span.set_attribute("http.route", rule.rule)
            span.set_attribute("http.response.status_code", int(status[:3]))
            if status.startswith("5"):
                span.set_status(Status(StatusCode.ERROR))
            return start_response(status, headers, exc_info)

        try:
            return self.wsgi_app(environ, start)
        finally:
            span.end()


def _provider() -> Any:
    """Settled by OTEL_* variables, which its parts read."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    resource = Resource.create()
    if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
        resource = resource.merge(Resource({SERVICE_NAME: "orders"}))
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


def _context(traceparent: str | None) -> Any:
    from opentelemetry.context import Context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier = {} if traceparent is None else {"traceparent": traceparent}
    return TraceContextTextMapPropagator().extract(carrier, Context())


def _nanoseconds(moment: datetime) -> int:
    return int(moment.timestamp() * 1_000_000) * 1000
