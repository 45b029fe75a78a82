"""The origin of a request's events: its trace and its id, from the headers."""

from app import trace_context
from app.http import current_request, sent_request_id
from app.signal import NO_ORIGIN, Origin


def origin() -> Origin:
    """The running request's. A header that is wrong counts as not sent: nobody's order fails for it."""
    environ = current_request().environ
    if "HTTP_TRACEPARENT" not in environ and "HTTP_X_REQUEST_ID" not in environ:
        return NO_ORIGIN
    return Origin(trace_context.parse(environ.get("HTTP_TRACEPARENT")), sent_request_id())
