"""Events: the feed, one event with what followed from it, and the catalogue of all types."""

import dataclasses
import inspect
import re
from typing import Any

from flask import current_app
from flask.typing import ResponseReturnValue
from flask_babel import gettext
from pydantic import Field
from werkzeug.exceptions import NotFound

from app.bus import queries
from app.clock import iso
from app.cloud_events import cloud_event
from app.console.access import N_
from app.console.downloads import ROWS_AT_ONCE, all_pages, send_json
from app.console.pages import next_page, page, read_filter
from app.console.wiring import wiring
from app.current import database
from app.fields import BigInt, Identifier, Moment, PageSize, Text
from app.orders import is_identifier
from app.request_models import RequestModel
from app.signal import SIGNALS

MOST_LOOKED_AT = 20_000
"""So many of the newest events are looked at for those of a type."""

LATEST = 1000
"""Of so many events the catalogue tells what was published, and shows the newest of each type."""

MEANINGS = (
    N_("An order was taken."),
    N_("A person asked for the order's notification again: a new mail."),
    N_("The mail backend accepted the order's notification."),
    N_("The bus gave the order's notification up."),
    N_("The order's notification was not needed, or had nowhere to go."),
    N_("A person put the order's address right."),
)
"""How the types of events describe themselves, to be translated. A test compares them with the classes."""


class EventQuery(RequestModel):
    """Which events to show."""

    type: Text | None = Field(None, max_length=64)
    order_id: Identifier | None = Field(None)
    since: Moment | None = Field(None)
    until: Moment | None = Field(None)
    limit: PageSize = Field(50)
    cursor: BigInt | None = Field(None)

    def filters(self) -> dict[str, Any]:
        return self.model_dump(include={"order_id", "since", "until"}) | {
            "event_type": self.type,
            "most": MOST_LOOKED_AT,
        }


def show_events() -> ResponseReturnValue:
    query = read_filter(EventQuery)
    with database().read() as session:
        found = queries.feed_backwards(session, before=query.cursor, limit=query.limit, **query.filters())
    return page(
        "events.html",
        rows=found.events,
        query=query,
        types=list(SIGNALS),
        following=next_page("show_events", query, found.cursor),
        stopped=found.stopped,
        most=MOST_LOOKED_AT,
        filters=_address(query),
    )


def _address(query: EventQuery) -> dict[str, str]:
    """The filters as an address has them."""
    given = query.model_dump(exclude_none=True, exclude={"limit", "cursor"})
    return {name: iso(value) if name in ("since", "until") else str(value) for name, value in given.items()}


def download_events() -> ResponseReturnValue:
    """The events that the filters select, as CloudEvents. Raises Problem with 429."""
    query, reader, loads = read_filter(EventQuery), database(), current_app.json.loads

    def read(before: int | None) -> tuple[list[dict[str, Any]], int | None]:
        with reader.read() as session:
            found = queries.feed_backwards(session, before=before, limit=ROWS_AT_ONCE, **query.filters())
        return [_as_json(cloud_event(event._mapping, loads)) for event in found.events], found.cursor

    return send_json(all_pages(read), "events.json")


def _as_json(event: dict[str, Any]) -> dict[str, Any]:
    return event | {"time": iso(event["time"])}


def show_event(event_id: str) -> ResponseReturnValue:
    """Raises NotFound."""
    with database().read() as session:
        found = queries.find_event(session, event_id) if is_identifier(event_id) else None
    if found is None:
        raise NotFound
    return page(
        "event.html",
        found=found,
        event=found.event,
        payload=queries.readable(found.event.data),
        cloud=_as_json(cloud_event(found.event._mapping, current_app.json.loads)),
    )


def show_catalogue() -> ResponseReturnValue:
    with database().read() as session:
        latest = queries.feed_backwards(session, limit=LATEST).events
    wires = wiring({(event.source, event.type) for event in latest})
    newest = {event.type: event for event in reversed(latest)}
    entries = [
        {
            "name": name,
            "signal": signal,
            "meaning": gettext(described) if (described := meaning(signal.event_type)) else "",
            "fields": [(field.name, _type(field.type)) for field in dataclasses.fields(signal.event_type)],
            "receivers": [each for each in wires.receivers if name in each.takes],
            "publishers": [each for each in wires.receivers if name in each.publishes],
            "example": newest.get(name),
        }
        for name, signal in SIGNALS.items()
    ]
    return page("catalogue.html", entries=entries, readable=queries.readable)


def meaning(event_type: type) -> str:
    """The first sentence of its docstring; empty where it has none."""
    text = " ".join(inspect.cleandoc(event_type.__doc__ or "").split())
    if text.startswith(f"{event_type.__name__}("):  # which dataclasses write where there is no docstring
        return ""
    sentence = re.split(r"\. |: ``", text)[0]  # what follows explains the fields
    return sentence.rstrip(".") + "." if sentence else ""


def _type(declared: Any) -> str:
    return declared.__name__ if isinstance(declared, type) else str(declared)
