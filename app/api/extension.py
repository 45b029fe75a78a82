"""Flask extension: ``init_app`` adds the API to an application."""

from typing import Any

from flask import Flask, Response

from app.api import auth, deliveries, error_handlers, events, health, openapi, orders, users
from app.api.blueprint import blueprint
from app.api.json_provider import ExactJSONProvider
from app.http import SecurityHeaders

ROUTES = (auth, deliveries, error_handlers, events, health, openapi, orders, users)
"""The modules that add something to the blueprint when they are imported."""


def init_app(app: Flask) -> None:
    """Add the API to an application whose extensions hold ``database`` and ``settings``."""
    app.extensions["outage_log"] = error_handlers.OutageLog()
    app.json = ExactJSONProvider(app)
    app.url_map.merge_slashes = False  # Flask would redirect //api//orders with an HTML page
    app.register_blueprint(blueprint)
    app.response_class = PlainLocation
    app.wsgi_app = SecurityHeaders(app.wsgi_app)  # type: ignore[method-assign]  # as Flask documents it


class PlainLocation(Response):
    """Sends a Location as the view wrote it. Werkzeug parses and quotes it again, 2 % of a POST for an ASCII path."""

    def get_wsgi_headers(self, environ: Any) -> Any:
        return self.headers if "Location" in self.headers else super().get_wsgi_headers(environ)
