"""An event in the format CloudEvents 1.0, as the feed and the console show it. Imports nothing of the application."""

import base64
from collections.abc import Callable, Mapping
from typing import Any

NAMES = {
    "event_id": "id",
    "source": "source",
    "type": "type",
    "order_id": "subject",
    "occurred_at": "time",
    "version": "dataversion",
    "correlation_id": "correlationid",
    "cause_id": "causationid",
    "traceparent": "traceparent",
}
"""The events table's columns, and what CloudEvents calls them. An extension's name has small letters only."""


def cloud_event(event: Mapping[str, Any], loads: Callable[[bytes | str], Any]) -> dict[str, Any]:
    """The attributes of a stored event, without those that it lacks. ``time`` is a datetime.

    ``loads`` reads JSON, and raises ValueError: what is no JSON any more is sent as it is stored, as ``data_base64``.
    """
    named = {NAMES[column]: event[column] for column in NAMES if event[column] is not None}
    return {"specversion": "1.0"} | named | _data(event["data"], loads)


def _data(stored: bytes | str, loads: Callable[[bytes | str], Any]) -> dict[str, Any]:
    try:
        return {"datacontenttype": "application/json", "data": loads(stored)}
    except ValueError:
        raw = stored.encode() if isinstance(stored, str) else stored
        return {"datacontenttype": "application/octet-stream", "data_base64": base64.b64encode(raw).decode()}
