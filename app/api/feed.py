"""The feed of all events, for other services to follow, as CloudEvents 1.0."""

import base64
from typing import Any

from flask import current_app
from flask.typing import ResponseReturnValue
from sqlalchemy import Row

from app.api.blueprint import database, routes
from app.api.incoming import FeedQuery
from app.api.openapi import Answer, Operation
from app.api.outgoing import CloudEvent, EventPage
from app.api.reading import read_query, wrong_fields
from app.bus import queries

BEGINNING = "0-0"
"""The cursor before the first event."""


@routes.get("/api/events")
@Operation(
    "Read the feed of all events, oldest first",
    query=FeedQuery,
    answers={200: Answer("a page of events; an empty one means that nothing more has happened yet", EventPage)},
)
def show_events() -> ResponseReturnValue:
    """Remember 'next' once a page is worked off, and ask from there again: no event is skipped."""
    query = read_query(FeedQuery)
    with database().read() as session:
        try:
            found, cursor = queries.feed(session, query.after, query.limit)
        except ValueError as error:
            raise wrong_fields([("after", f"is {error}")]) from None
    page = EventPage(events=[_cloud_event(event) for event in found], next=cursor or BEGINNING)
    return page.model_dump(exclude_unset=True)


def _cloud_event(event: Row[Any]) -> CloudEvent:
    attributes = {name: value for name, value in event._asdict().items() if value is not None and name != "data"}
    return CloudEvent.model_validate({"specversion": "1.0"} | attributes | _data(event.data))


def _data(stored: bytes | str) -> dict[str, Any]:
    """The event's data; bytes that are no JSON any more are handed on as they are."""
    try:
        return {"datacontenttype": "application/json", "data": current_app.json.loads(stored)}
    except ValueError:
        raw = stored.encode() if isinstance(stored, str) else stored
        return {"datacontenttype": "application/octet-stream", "data_base64": base64.b64encode(raw).decode()}
