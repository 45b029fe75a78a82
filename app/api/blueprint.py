"""The blueprint that every route of the API hangs on, and which addresses are the API's."""

from typing import cast

from flask import Blueprint, current_app

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
