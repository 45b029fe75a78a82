"""The feed of all events, which other services follow, in the format CloudEvents 1.0."""

import base64
from typing import Any

from flask import current_app
from flask.typing import ResponseReturnValue
from sqlalchemy import Row

from app.api.blueprint import blueprint, database
from app.api.operation import Operation, ResponseDoc
from app.api.request_models import FeedQuery
from app.api.response_models import CloudEvent, EventPage
from app.api.validation import field_problem, read_query
from app.bus import queries

FIRST_CURSOR = "0-0"
"""The cursor before the first event."""


@blueprint.get("/api/events")
@Operation(
    "Read the feed of all events, oldest first",
    query=FeedQuery,
    responses={200: ResponseDoc("a page of events; an empty one means that nothing more has happened yet", EventPage)},
)
def show_events() -> ResponseReturnValue:
    """Remember 'next' once a page is worked off, and ask from there again: no event is skipped."""
    query = read_query(FeedQuery)
    with database().read() as session:
        try:
            found, cursor = queries.feed(session, query.after, query.limit)
        except ValueError as error:
            raise field_problem([("after", f"is {error}")]) from None
    page = EventPage(events=[_cloud_event(event) for event in found], next=cursor or FIRST_CURSOR)
    return page.model_dump(exclude_unset=True)


def _cloud_event(event: Row[Any]) -> CloudEvent:
    attributes = {name: value for name, value in event._asdict().items() if value is not None and name != "data"}
    return CloudEvent.model_validate({"specversion": "1.0"} | attributes | _data(event.data))


def _data(stored: bytes | str) -> dict[str, Any]:
    """The event's data members; bytes that are no JSON any more are sent as they are stored, in Base64."""
    try:
        return {"datacontenttype": "application/json", "data": current_app.json.loads(stored)}
    except ValueError:
        raw = stored.encode() if isinstance(stored, str) else stored
        return {"datacontenttype": "application/octet-stream", "data_base64": base64.b64encode(raw).decode()}
