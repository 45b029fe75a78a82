"""EVENT SOURCE: HTTP in, an event out; and what programs may read. Errors are problem+json."""

from flask import Flask

from app.api import auth, feed, health, openapi, operator, orders, problems
from app.api.blueprint import routes
from app.api.edge import Edge, PlainResponse
from app.api.exactjson import ExactJSON

__all__ = ["auth", "feed", "health", "init_app", "openapi", "operator", "orders", "problems"]


def init_app(app: Flask) -> None:
    """Adds the API to an application that has a Database and its Settings among its extensions."""
    app.json = ExactJSON(app)
    app.url_map.merge_slashes = False  # Flask would answer //api//orders with a redirect that is an HTML page
    app.register_blueprint(routes)
    app.response_class = PlainResponse
    app.wsgi_app = Edge(app)  # type: ignore[method-assign]  # as Flask's documentation has it
