"""The feed of all events, which other services follow, in the format CloudEvents 1.0."""

from flask import current_app
from flask.typing import ResponseReturnValue

from app.api.blueprint import blueprint
from app.api.operation import Operation, ResponseDoc
from app.api.response_models import EventPage
from app.bus import queries
from app.cloud_events import cloud_event
from app.current import database
from app.request_models import FeedQuery
from app.validation import field_problem, read_query

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
            found, cursor = queries.feed(session, query.after or None, query.limit)
        except ValueError as error:
            raise field_problem([("after", f"is {error}")]) from None
    events = [cloud_event(event._asdict(), current_app.json.loads) for event in found]
    page = EventPage.model_validate({"events": events, "next": cursor or FIRST_CURSOR})
    return page.model_dump(exclude_unset=True)
