"""Where API_TOKEN is set, nothing under /api/ answers without it."""

import hashlib
import hmac
from http import HTTPStatus

from flask import request

from app.api.blueprint import routes, settings
from app.api.problems import Problem


@routes.before_app_request
def demand_token() -> None:
    """Runs before routing's outcome and the body are looked at: a stranger learns nothing and costs little."""
    token = settings().api_token
    if token is None or not request.path.startswith("/api/"):
        return
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    # WSGI hands the header's bytes on as Latin-1.
    same = is_secret(given.strip().encode("latin-1", "replace"), token.encode())
    if scheme.lower() != "bearer" or not same:
        raise Problem(
            HTTPStatus.UNAUTHORIZED,
            "Send the header 'Authorization: Bearer <token>' with the service's API_TOKEN.",
            headers={"WWW-Authenticate": 'Bearer realm="orders"'},
        )


def is_secret(given: bytes, secret: bytes) -> bool:
    """Digests are of one length: how long it takes tells nothing."""
    return hmac.compare_digest(hashlib.sha256(given).digest(), hashlib.sha256(secret).digest())
