"""HTTP conventions that the API and the console share: security headers, and errors as RFC 9457 problem details."""

import re
import secrets
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Any, cast

from flask import Request, make_response, request
from flask.typing import ResponseReturnValue
from werkzeug.exceptions import HTTPException, InternalServerError, MethodNotAllowed, NotFound, RequestEntityTooLarge

from app.errors import (
    ActNotFound,
    AppError,
    DatabaseUnavailable,
    OrderConflict,
    OrderNotFound,
    ReplayRefused,
    SpreadTooLong,
    UnknownReceiver,
    UserNotFound,
)

Environ = dict[str, Any]
Headers = list[tuple[str, str]]
WSGIApplication = Callable[[Environ, Any], Iterable[bytes]]

MAX_BODY_BYTES = 64 * 1024

SECURITY_HEADERS = {
    "x-content-type-options": ("X-Content-Type-Options", "nosniff"),
    "content-security-policy": ("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'"),
    "referrer-policy": ("Referrer-Policy", "no-referrer"),
}
"""Strictest values, for responses that are data. A page for people sets its own, which are kept."""

PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
"""Content-Security-Policy of a page for people: files of this service only, and nothing inline."""

DETAILS: dict[type[HTTPException], str] = {
    NotFound: "There is nothing at this address. /openapi.json lists what there is.",
    MethodNotAllowed: "This address does not take this method; the Allow header names those it takes.",
    RequestEntityTooLarge: f"The body is larger than {MAX_BODY_BYTES} bytes.",
    InternalServerError: "Something is wrong on our side, and has been logged.",
}
"""The ``detail`` of errors that Flask and Werkzeug raise."""

STATUSES: dict[type[AppError], HTTPStatus] = {
    ActNotFound: HTTPStatus.NOT_FOUND,
    OrderNotFound: HTTPStatus.NOT_FOUND,
    UserNotFound: HTTPStatus.NOT_FOUND,
    UnknownReceiver: HTTPStatus.NOT_FOUND,
    OrderConflict: HTTPStatus.CONFLICT,
    ReplayRefused: HTTPStatus.CONFLICT,
    SpreadTooLong: HTTPStatus.UNPROCESSABLE_ENTITY,
    DatabaseUnavailable: HTTPStatus.SERVICE_UNAVAILABLE,
}
"""Of our own errors that a request may end with, to programs and to people. Any other is a mistake in the code: 500."""


REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")

MADE_REQUEST_ID = "orders.request_id"
"""In the WSGI environment: the id that was made for a request. The response tells it."""


def current_request() -> Request:
    """The request itself. Flask's proxy looks for it anew at each attribute, which is half a percent of a POST."""
    return cast(Request, request._get_current_object())  # type: ignore[attr-defined]


def sent_request_id() -> str | None:
    """The id that the request brought in X-Request-ID, as proxies set it. A wrong one counts as not sent."""
    sent = request.environ.get("HTTP_X_REQUEST_ID")
    return sent if sent is not None and REQUEST_ID.fullmatch(sent) else None


def request_id() -> str:
    """The id that the request brought, or else one that is made now: most requests are logged nowhere and need none."""
    return sent_request_id() or str(request.environ.setdefault(MADE_REQUEST_ID, secrets.token_hex(16)))


API_PATHS = ("/api", "/healthz", "/readyz", "/metrics", "/openapi.json")


def is_api(path: str) -> bool:
    """Whether programs ask at this path. Every error there is JSON, also where no route exists."""
    return path.startswith(("/api/", "/operator/")) or path in API_PATHS


class SecurityHeaders:
    """WSGI middleware: adds the security headers to every response. An ``after_request`` hook would cost more."""

    def __init__(self, wsgi_app: WSGIApplication, on_response: Callable[[Environ, str], object]) -> None:
        """``on_response`` is called with each response's status line."""
        self.wsgi_app, self.on_response = wsgi_app, on_response

    def __call__(self, environ: Environ, start_response: Any) -> Iterable[bytes]:
        def start(status: str, headers: Headers, exc_info: Any = None) -> Any:
            self.on_response(environ, status)
            return start_response(status, with_security_headers(environ, headers), exc_info)

        return self.wsgi_app(environ, start)


def with_security_headers(environ: Environ, headers: Headers) -> Headers:
    """The headers of a response with the missing security headers, and the id that its log lines have; an API's
    response is never cached."""
    present = {name.lower() for name, _ in headers}
    headers += [header for name, header in SECURITY_HEADERS.items() if name not in present]
    if MADE_REQUEST_ID in environ:
        headers.append(("X-Request-ID", environ[MADE_REQUEST_ID]))
    if not is_api(environ["PATH_INFO"]):
        return headers
    dropped = {"Cache-Control"}
    if environ["REQUEST_METHOD"] == "OPTIONS" and ("Content-Length", "0") in headers:
        dropped.add("Content-Type")  # Flask calls its empty response HTML
    return [header for header in headers if header[0] not in dropped] + [("Cache-Control", "no-store")]


class Problem(HTTPException):
    """An HTTP error that a view raises. ``members`` join the problem's JSON, ``headers`` the response's headers."""

    def __init__(self, status: int, detail: str, *, headers: dict[str, str] | None = None, **members: Any) -> None:
        super().__init__(detail)
        self.code = status
        self.members = members
        self.headers = headers or {}


def problem_of(error: AppError) -> Problem:
    """As an HTTP error. Raises the error itself where no request may end with it."""
    status = next((status for kind, status in STATUSES.items() if isinstance(error, kind)), None)
    if status is None:
        raise error
    return Problem(status, str(error))


def answer_problem(error: HTTPException) -> ResponseReturnValue:
    """Error handler: an ``application/problem+json`` response under the API's paths, Flask's own page elsewhere."""
    if not is_api(request.path):
        return error
    problem = {
        "type": "about:blank",
        "title": error.name,
        "status": error.code,
        "detail": DETAILS.get(type(error)) or error.description or error.name,
    }
    response = make_response(problem | getattr(error, "members", {}), error.code)
    response.headers.update(error.get_headers())  # Allow, where the method is wrong
    response.content_type = "application/problem+json"
    response.headers.update(getattr(error, "headers", {}))
    return response
