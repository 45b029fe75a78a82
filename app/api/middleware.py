"""WSGI middleware and the response class of the API, for work that Flask's hooks would do at a higher cost."""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

from flask import Flask, Response

from app.db import Database
from app.http import Environ


class AnnounceWrites:
    """WSGI middleware: tells group commit that a POST is being served, so that a commit under way can wait for it."""

    def __init__(self, app: Flask) -> None:
        self.wsgi_app = app.wsgi_app
        self.extensions = app.extensions

    def __call__(self, environ: Environ, start_response: Any) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] != "POST":
            return self.wsgi_app(environ, start_response)
        with announced_write(self.extensions["database"]):
            return self.wsgi_app(environ, start_response)


def announced_write(database: Database) -> AbstractContextManager[None]:
    """The database's context manager around a request that will write."""
    return database.commits.expected()


class PlainResponse(Response):
    """Response that sends a Location as the view wrote it. Werkzeug would parse and join it once more."""

    def get_wsgi_headers(self, environ: Any) -> Any:
        return self.headers if "Location" in self.headers else super().get_wsgi_headers(environ)
