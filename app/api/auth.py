"""Who is answered: trusted host names; a bearer token under /api/; HTTP Basic, or this machine, under /operator/.

The checks run before a missing route is reported and before the body is read: a refused client learns nothing about
the routes, and costs little.
"""

import hashlib
import hmac
import ipaddress
import re
from http import HTTPStatus

from flask import request
from werkzeug.sansio.utils import host_is_trusted

from app.api.blueprint import blueprint, settings
from app.http import Problem

FORWARDING_HEADERS = re.compile(
    r"Via|Forwarded|X-(Forwarded|Original|Real|Client|Cluster|Envoy)\b.*|(Cf|True|Fastly)-.*", re.IGNORECASE
)
"""Headers that proxies add. A proxy on this machine says nothing about where its client is."""

LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")


@blueprint.before_app_request
def guard() -> None:
    """Every check, in one hook: each costs every request its share. Raises Problem with 401, 403 or 421."""
    chosen, path = settings(), request.path
    if chosen.trusted_hosts is not None:
        _demand_trusted_host(chosen.trusted_hosts)
    if path.startswith("/api/"):
        if chosen.api_token is not None:
            _demand_token(chosen.api_token)
    elif path.startswith("/operator/"):
        if chosen.console_password is None:
            _demand_local_client()
        else:
            _demand_password(chosen.console_password)


def operator_name() -> str:
    """The Basic user name, which the client chooses freely; empty where none was sent."""
    return _basic_credentials()[0]


def is_secret(given: bytes, secret: bytes) -> bool:
    """Compare in constant time. Digests have one length, so that the time tells nothing about the secret's."""
    return hmac.compare_digest(hashlib.sha256(given).digest(), hashlib.sha256(secret).digest())


def _demand_trusted_host(names: tuple[str, ...]) -> None:
    """Answer to this machine's names and to TRUSTED_HOSTS only.

    Flask has a setting of this name too, but its check takes no IPv6 address. Browsers always send a Host, so a request
    without one, such as a balancer's, comes from no page.
    """
    if _has_local_host_name() or "HTTP_HOST" not in request.environ or host_is_trusted(request.host, names):
        return
    raise Problem(
        HTTPStatus.MISDIRECTED_REQUEST,
        "The service does not answer to the name in the Host header. List its names in the setting TRUSTED_HOSTS.",
    )


def _demand_token(token: str) -> None:
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    given_bytes = given.strip().encode("latin-1", "replace")  # WSGI decodes a header's bytes as Latin-1
    if not is_secret(given_bytes, token.encode()) or scheme.lower() != "bearer":
        raise Problem(
            HTTPStatus.UNAUTHORIZED,
            "Send the header 'Authorization: Bearer <token>' with the service's API_TOKEN.",
            headers={"WWW-Authenticate": 'Bearer realm="orders"'},
        )


def _demand_password(password: str) -> None:
    _, given = _basic_credentials()
    if not is_secret(given.encode(errors="replace"), password.encode(errors="replace")):
        raise Problem(
            HTTPStatus.UNAUTHORIZED,
            "Send a name of your choice and the CONSOLE_PASSWORD by HTTP Basic authentication.",
            headers={"WWW-Authenticate": 'Basic realm="operators", charset="UTF-8"'},
        )


def _demand_local_client() -> None:
    if not (_has_loopback_address() and _has_local_host_name() and not _is_forwarded()):
        raise Problem(
            HTTPStatus.FORBIDDEN,
            "Operator routes answer this machine only. Set CONSOLE_PASSWORD to reach them from elsewhere.",
        )


def _has_loopback_address() -> bool:
    try:
        return ipaddress.ip_address(request.remote_addr or "").is_loopback
    except ValueError:
        return request.remote_addr == ""  # a Unix socket


def _has_local_host_name() -> bool:
    """DNS rebinding: a foreign page whose domain points to 127.0.0.1 sends its own name as the Host."""
    host = request.host
    name = host if host.endswith("]") else host.rpartition(":")[0] or host
    return name in LOCAL_NAMES


def _is_forwarded() -> bool:
    return any(FORWARDING_HEADERS.fullmatch(header) for header, _ in request.headers)


def _basic_credentials() -> tuple[str, str]:
    """Name and password of the Authorization header; empty where there are none."""
    try:
        given = request.authorization
    except ValueError:  # Werkzeug forgives bad Base64, but not bytes outside ASCII
        given = None
    return (given.username or "", given.password or "") if given else ("", "")
