"""What every request meets first and every answer last, beneath Flask, whose hooks and headers cost more."""

from collections.abc import Iterable
from typing import Any, cast

from flask import Flask, Response

from app.api.blueprint import is_api

PROTECTION = (
    ("X-Content-Type-Options", "nosniff"),
    ("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'"),
    ("Referrer-Policy", "no-referrer"),
)
"""Keeps a browser from making anything but data of an answer. A page for people sets its own before."""


class Edge:
    """Gives each answer the headers that protect."""

    def __init__(self, app: Flask) -> None:
        self.inner = app.wsgi_app

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
            return start_response(status, protected(environ, headers), exc_info)

        return self.inner(environ, start)


class PlainResponse(Response):
    """Its headers leave as they were set."""

    def get_wsgi_headers(self, environ: Any) -> Any:
        """Werkzeug's would parse and join the addresses in them, which are right already."""
        return self.headers if "Location" in self.headers else super().get_wsgi_headers(environ)


def protected(environ: dict[str, Any], headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The headers of an answer with those that protect its reader."""
    present = {name.lower() for name, _ in headers}
    headers += [each for each in PROTECTION if each[0].lower() not in present]
    if is_api(cast(str, environ["PATH_INFO"])):
        headers = [each for each in headers if each[0] != "Cache-Control"]
        headers.append(("Cache-Control", "no-store"))  # what is asked again is to be answered anew
        if environ["REQUEST_METHOD"] == "OPTIONS" and ("Content-Length", "0") in headers:
            headers = [each for each in headers if each[0] != "Content-Type"]  # Flask says HTML of its empty answer
    return headers
