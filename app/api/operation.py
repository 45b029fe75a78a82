"""OpenAPI descriptions of views: a decorator, and a registry of all decorated views."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from flask.typing import ResponseReturnValue
from pydantic import BaseModel

from app.api.request_models import RequestModel
from app.api.response_models import ProblemDetails
from app.http import MAX_BODY_BYTES

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
    "WWW-Authenticate": {"description": "how to authenticate", "required": True, "schema": {"type": "string"}},
}
"""Response headers, as the document describes them."""


@dataclass(frozen=True)
class ResponseDoc:
    """One response that a view may give. Without a model it is a problem."""

    description: str
    model: type[BaseModel] = ProblemDetails
    headers: tuple[str, ...] = ()


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
    description: str = ""
    tag: str = ""

    def __call__(self, view: View) -> View:
        tag = view.__module__.rpartition(".")[2]
        OPERATIONS[view.__name__] = replace(self, description=inspect.getdoc(view) or "", tag=tag)
        return view


OPERATIONS: dict[str, Operation] = {}
"""By the name of the view."""

ALWAYS = {
    421: ResponseDoc("the service does not answer to the name in the Host header"),
    500: ResponseDoc("something is wrong on the service's side"),
}
UNDER_API = {
    401: ResponseDoc("the service has an API_TOKEN, and the request lacks it", headers=("WWW-Authenticate",)),
    503: ResponseDoc("the database can't take it now; nothing was stored", headers=("Retry-After",)),
}
UNDER_OPERATOR = {
    401: ResponseDoc("the service has a CONSOLE_PASSWORD, and the request lacks it", headers=("WWW-Authenticate",)),
    403: ResponseDoc("the service has no CONSOLE_PASSWORD, and the request comes from elsewhere"),
    503: UNDER_API[503],
}
WITH_BODY = {
    400: ResponseDoc("the body is not JSON in UTF-8, or names a field twice"),
    413: ResponseDoc(f"the body is larger than {MAX_BODY_BYTES} bytes"),
    415: ResponseDoc("the body is not application/json"),
    422: ResponseDoc("fields are wrong; 'errors' names every one"),
}
WITH_QUERY = {
    400: ResponseDoc("the query is not UTF-8"),
    422: ResponseDoc("parameters are wrong; 'errors' names every one"),
}
