"""GET /docs: the API's documentation, on which requests can be tried. Static files that read /openapi.json.

Swagger UI 5.35.0 lies in static/swagger-ui/, unchanged, as npm's package swagger-ui-dist has it (Apache License 2.0).
Nothing is loaded from elsewhere, and nothing is inline, so the page's policy is strict.
"""

from flask import Blueprint, Flask, Response

blueprint = Blueprint("docs", __name__, static_folder="static", static_url_path="/docs")

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Swagger UI has its icons as data: URLs in its style sheet. ``connect-src`` is what "Execute" needs."""


def init_app(app: Flask) -> None:
    app.register_blueprint(blueprint)


@blueprint.get("/docs")
def show() -> Response:
    page = blueprint.send_static_file("docs.html")
    page.headers["Content-Security-Policy"] = POLICY
    return page
