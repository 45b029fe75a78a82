"""The running application's parts, for views and commands: ``current_app.extensions``, with their types."""

from typing import cast

from flask import current_app

from app.bus import Bus
from app.db import Database
from config import Settings


def bus() -> Bus:
    return cast(Bus, current_app.extensions["bus"])


def database() -> Database:
    return cast(Database, current_app.extensions["database"])


def settings() -> Settings:
    return cast(Settings, current_app.extensions["settings"])
