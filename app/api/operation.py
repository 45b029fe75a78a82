"""OpenAPI descriptions of views: a decorator, and a registry of all decorated views."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from flask.typing import ResponseReturnValue
from pydantic import BaseModel
from werkzeug.exceptions import InternalServerError, RequestEntityTooLarge

from app.api.response_models import ProblemDetails
from app.errors import DatabaseUnavailable
from app.fields import PAGE_SIZE_RULE
from app.http import DETAILS, MAX_BODY_BYTES
from app.refusals import (
    FROM_ELSEWHERE,
    NOT_TYPED_JSON,
    NOT_UTF8,
    PASSWORD_MISSING,
    TOKEN_MISSING,
    WRONG_HOST,
)
from app.request_models import RequestModel

View = TypeVar("View", bound=Callable[..., ResponseReturnValue])

HEADERS: dict[str, dict[str, Any]] = {
    "Location": {"description": "where the order can be read", "required": True, "schema": {"type": "string"}},
    "Idempotent-Replayed": {"description": "always true", "required": True, "schema": {"const": "true"}},
    "Link": {"description": 'the next page, as rel="next"; the last page has none', "schema": {"type": "string"}},
    "Retry-After": {
        "description": "seconds after which another try makes sense",
        "required": True,
        "schema": {"type": "string", "pattern": "^[0-9]+$"},
    },
    "X-Request-ID": {
        "description": "the request's id in the service's log, where the request brought none",
        "schema": {"type": "string"},
    },
    "WWW-Authenticate": {"description": "how to authenticate", "required": True, "schema": {"type": "string"}},
}
"""Response headers, as the document describes them."""


@dataclass(frozen=True)
class ResponseDoc:
    """One response that a view may give. Without a model it is a problem; the model None is plain text."""

    description: str
    model: type[BaseModel] | None = ProblemDetails
    headers: tuple[str, ...] = ()
    detail: str = ""
    """Of the example that the document shows of a problem: what a client that provokes it may read."""
    members: Mapping[str, Any] = field(default_factory=dict)
    """The members of that example besides ``detail``."""


@dataclass(frozen=True)
class Operation:
    """View decorator: registers the view's summary, schemas and responses.

    The view's docstring is the description, in CommonMark, and its module is the tag.

    Responses that all routes of a kind share need not be named: see ALWAYS and its neighbours.
    """

    summary: str
    responses: Mapping[int, ResponseDoc]
    body: type[RequestModel] | None = None
    query: type[RequestModel] | None = None

    def __call__(self, view: View) -> View:
        OPERATIONS[view.__name__] = self, view
        return view


OPERATIONS: dict[str, tuple[Operation, Callable[..., ResponseReturnValue]]] = {}
"""With the view, by its name."""

NOT_JSON = "The body is not JSON: Expecting value: line 1 column 1 (char 0)."
UNKNOWN_FIELD = {"errors": [{"field": "", "message": "must be a JSON object"}]}

ALWAYS = {
    421: ResponseDoc("the service does not answer to the name in the Host header", detail=WRONG_HOST),
    500: ResponseDoc(
        "something is wrong on the service's side",
        headers=("X-Request-ID",),
        detail=DETAILS[InternalServerError],
    ),
}


def _lacks(what: str, detail: str) -> ResponseDoc:
    words = f"the service has {what}, and the request lacks it"
    return ResponseDoc(words, headers=("WWW-Authenticate",), detail=detail)


UNDER_API = {
    401: _lacks("an API_TOKEN", TOKEN_MISSING.format("API_TOKEN")),
    503: ResponseDoc(
        "the database can't take it now; nothing was stored",
        headers=("Retry-After",),
        detail=str(DatabaseUnavailable()),
    ),
}
UNDER_OPERATOR = {
    401: _lacks("a CONSOLE_PASSWORD", PASSWORD_MISSING),
    403: ResponseDoc(
        "the service has no CONSOLE_PASSWORD, and the request comes from elsewhere",
        detail=FROM_ELSEWHERE.format("Operator routes answer", "CONSOLE_PASSWORD"),
    ),
    503: UNDER_API[503],
}
AT_METRICS = {
    401: _lacks("a METRICS_TOKEN", TOKEN_MISSING.format("METRICS_TOKEN")),
    403: ResponseDoc(
        "the service has no METRICS_TOKEN, and the request comes from elsewhere",
        detail=FROM_ELSEWHERE.format("Metrics answer", "METRICS_TOKEN"),
    ),
}
WITH_BODY = {
    400: ResponseDoc("the body is not JSON in UTF-8, or names a field twice", detail=NOT_JSON),
    413: ResponseDoc(f"the body is larger than {MAX_BODY_BYTES} bytes", detail=DETAILS[RequestEntityTooLarge]),
    415: ResponseDoc("the body is not application/json", detail=NOT_TYPED_JSON),
    422: ResponseDoc("fields are wrong; 'errors' names every one", detail="1 field is wrong.", members=UNKNOWN_FIELD),
}
WITH_QUERY = {
    400: ResponseDoc("the query is not UTF-8", detail=NOT_UTF8),
    422: ResponseDoc(
        "parameters are wrong; 'errors' names every one",
        detail="1 field is wrong.",
        members={"errors": [{"field": "limit", "message": f"must be {PAGE_SIZE_RULE}"}]},
    ),
}
