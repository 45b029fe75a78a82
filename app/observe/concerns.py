"""The ids of what a log line concerns: request, order, event, delivery and trace."""

from typing import Any

from flask import has_request_context

from app import trace_context
from app.bus import Lease
from app.bus.outbox import Recorded, running_delivery
from app.http import request_id


def ids_here() -> dict[str, Any]:
    """Of the delivery whose receiver runs in this thread, or else of the request that this thread answers."""
    if (lease := running_delivery()) is not None:
        return ids_of(lease)
    return {"request_id": request_id()} if has_request_context() else {}


def ids_of(lease: Lease) -> dict[str, Any]:
    ids = {
        "receiver": lease.receiver,
        "order_id": lease.order_id,
        "event_id": lease.event_id,
        "delivery_id": lease.delivery_id,
        "attempt": lease.spent + 1,
    }
    return ids if lease.traceparent is None else ids | _trace(lease.traceparent)


def request_of(event: Recorded) -> dict[str, Any]:
    """The trace and the request that the event comes from, where they have a name."""
    ids = {} if event.traceparent is None else _trace(event.traceparent)
    return ids if event.request_id is None else ids | {"request_id": event.request_id}


def _trace(traceparent: str) -> dict[str, Any]:
    return {"trace_id": trace_context.trace_id(traceparent)}
