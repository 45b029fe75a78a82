"""The console's blueprint."""

from flask import Blueprint

blueprint = Blueprint(
    "console", __name__, template_folder="templates", static_folder="static", static_url_path="/console/static"
)
