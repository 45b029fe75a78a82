"""HTTP conventions that the API and the console share: security headers, and errors as RFC 9457 problem details."""

from collections.abc import Callable, Iterable
from typing import Any

from flask import make_response, request
from flask.typing import ResponseReturnValue
from werkzeug.exceptions import HTTPException, InternalServerError, MethodNotAllowed, NotFound, RequestEntityTooLarge

Environ = dict[str, Any]
Headers = list[tuple[str, str]]
WSGIApplication = Callable[[Environ, Any], Iterable[bytes]]

MAX_BODY_BYTES = 64 * 1024

SECURITY_HEADERS = (
    ("X-Content-Type-Options", "nosniff"),
    ("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'"),
    ("Referrer-Policy", "no-referrer"),
)
"""Strictest values, for responses that are data. A page for people sets its own, which are kept."""

DETAILS: dict[type[HTTPException], str] = {
    NotFound: "There is nothing at this address. /openapi.json lists what there is.",
    MethodNotAllowed: "This address does not take this method; the Allow header names those it takes.",
    RequestEntityTooLarge: f"The body is larger than {MAX_BODY_BYTES} bytes.",
    InternalServerError: "Something is wrong on our side, and has been logged.",
}
"""The ``detail`` of errors that Flask and Werkzeug raise."""


def is_api(path: str) -> bool:
    """Whether programs ask at this path. Every error there is JSON, also where no route exists."""
    return path.startswith(("/api/", "/operator/")) or path in ("/api", "/healthz", "/readyz", "/openapi.json")


class SecurityHeaders:
    """WSGI middleware: adds the security headers to every response. An ``after_request`` hook would cost more."""

    def __init__(self, wsgi_app: WSGIApplication) -> None:
        self.wsgi_app = wsgi_app

    def __call__(self, environ: Environ, start_response: Any) -> Iterable[bytes]:
        def start(status: str, headers: Headers, exc_info: Any = None) -> Any:
            return start_response(status, with_security_headers(environ, headers), exc_info)

        return self.wsgi_app(environ, start)


def with_security_headers(environ: Environ, headers: Headers) -> Headers:
    """The headers of a response with the missing security headers; an API's response is never cached."""
    present = {name.lower() for name, _ in headers}
    headers += [header for header in SECURITY_HEADERS if header[0].lower() not in present]
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
