"""Flask extension: ``init_app`` adds the API to an application."""

from typing import Any

from flask import Flask, Response
from werkzeug.middleware.proxy_fix import ProxyFix

from app.api import (
    acts,
    addresses,
    auth,
    deliveries,
    error_handlers,
    events,
    health,
    metrics,
    openapi,
    orders,
    receivers,
    status,
    users,
)
from app.api.blueprint import blueprint
from app.api.json_provider import ExactJSONProvider
from app.http import SecurityHeaders
from app.observe.metrics import Metrics
from config import Settings

ROUTES = (
    *(acts, addresses, auth, deliveries, error_handlers, events, health, metrics, openapi, orders, receivers, status),
    users,
)
"""The modules that add something to the blueprint when they are imported."""


def init_app(app: Flask) -> None:
    """Add the API to an application whose extensions hold ``bus``, ``database``, ``metrics`` and ``settings``."""
    app.extensions["outage_log"] = error_handlers.OutageLog()
    app.json = ExactJSONProvider(app)
    app.url_map.merge_slashes = False  # Flask would redirect //api//orders with an HTML page
    app.register_blueprint(blueprint)
    app.response_class = PlainLocation
    observed: Metrics = app.extensions["metrics"]
    app.wsgi_app = SecurityHeaders(app.wsgi_app, observed.count_request)  # type: ignore[method-assign]  # as Flask documents
    settings: Settings = app.extensions["settings"]
    if settings.trusted_proxies:
        trusted = {f"x_{header}": 0 for header in ("for", "proto")}  # ProxyFix trusts these two by itself
        trusted |= {f"x_{header}": settings.trusted_proxies for header in settings.trusted_proxy_headers}
        app.wsgi_app = ProxyFix(app.wsgi_app, **trusted)  # type: ignore[method-assign]


class PlainLocation(Response):
    """Sends an ASCII Location as the view wrote it. Werkzeug parses and quotes it again, 2 % of a POST."""

    def get_wsgi_headers(self, environ: Any) -> Any:
        location = self.headers.get("Location")
        return self.headers if location and location.isascii() else super().get_wsgi_headers(environ)
