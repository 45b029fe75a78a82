"""The blueprint that every route of the API hangs on, and which addresses are the API's."""

from typing import cast

from flask import Blueprint, Response, current_app, request

from app.db import Database
from config import Settings

routes = Blueprint("api", __name__)


def is_api(path: str) -> bool:
    """Whether a program, not a person, asks here: answers are JSON, also where there is no such route."""
    return path.startswith(("/api/", "/operator/")) or path in ("/api", "/healthz", "/readyz", "/openapi.json")


def database() -> Database:
    return cast(Database, current_app.extensions["database"])


def settings() -> Settings:
    return cast(Settings, current_app.extensions["settings"])


@routes.after_app_request
def protect(response: Response) -> Response:
    """The headers that keep a browser from making anything but data of an answer, or from keeping it. Pages for people
    set their own before."""
    response.headers.setdefault("X-Content-Type-Options", "nosniff")
    response.headers.setdefault("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
    response.headers.setdefault("Referrer-Policy", "no-referrer")
    if is_api(request.path):
        response.headers["Cache-Control"] = "no-store"
        if request.method == "OPTIONS" and not response.data:
            del response.headers["Content-Type"]  # Flask says HTML of its empty answer
    return response
