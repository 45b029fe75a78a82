"""The API's blueprint, and the application's parts that its views use."""

from typing import cast

from flask import Blueprint, current_app

from app.bus import Bus
from app.db import Database
from config import Settings

blueprint = Blueprint("api", __name__)


def bus() -> Bus:
    return cast(Bus, current_app.extensions["bus"])


def database() -> Database:
    return cast(Database, current_app.extensions["database"])


def settings() -> Settings:
    return cast(Settings, current_app.extensions["settings"])
