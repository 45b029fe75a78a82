"""Access control: trusted host names, bearer tokens, HTTP Basic, and requests from this machine.

/api/ takes a bearer token; /operator/ HTTP Basic, or this machine; /metrics a bearer token, or this machine.

The checks run before a missing route is reported and before the body is read: a refused client learns nothing about the
routes, and costs little.
"""

from http import HTTPStatus

from flask import Request, request
from werkzeug.sansio.utils import host_is_trusted

from app.api.blueprint import blueprint
from app.clients import has_local_host_name, is_local, is_secret
from app.current import settings
from app.http import Problem, current_request
from app.refusals import FROM_ELSEWHERE, PASSWORD_MISSING, TOKEN_MISSING, WRONG_HOST


@blueprint.before_app_request
def guard() -> None:
    """Every check, in one hook: each costs every request its share. Raises Problem with 401, 403 or 421."""
    chosen, asked = settings(), current_request()
    path = asked.path
    if chosen.trusted_hosts is not None:
        _demand_trusted_host(asked, chosen.trusted_hosts)
    if path.startswith("/api/"):
        if chosen.api_token is not None:
            _demand_token(chosen.api_token, "API_TOKEN")
    elif path == "/metrics":
        if chosen.metrics_token is None:
            _demand_local_client(asked, "Metrics answer", "METRICS_TOKEN")
        else:
            _demand_token(chosen.metrics_token, "METRICS_TOKEN")
    elif path.startswith("/operator/"):
        if chosen.console_password is None:
            _demand_local_client(asked, "Operator routes answer", "CONSOLE_PASSWORD")
        else:
            _demand_password(chosen.console_password)


def operator() -> str:
    """The author that an act is recorded with: the Basic user name, which the client chooses freely."""
    return f"operator:{_basic_credentials()[0] or 'unnamed'}"


def _demand_trusted_host(asked: Request, names: tuple[str, ...]) -> None:
    """Answer to this machine's names and to TRUSTED_HOSTS only.

    Flask has a setting of this name too, but its check takes no IPv6 address. Browsers always send a Host, so a request
    without one, such as a balancer's, comes from no page.
    """
    if has_local_host_name(asked) or "HTTP_HOST" not in asked.environ or host_is_trusted(asked.host, names):
        return
    raise Problem(
        HTTPStatus.MISDIRECTED_REQUEST,
        WRONG_HOST,
    )


def _demand_token(token: str, name: str) -> None:
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    given_bytes = given.strip().encode("latin-1", "replace")  # WSGI decodes a header's bytes as Latin-1
    if not is_secret(given_bytes, token.encode()) or scheme.lower() != "bearer":
        raise Problem(
            HTTPStatus.UNAUTHORIZED,
            TOKEN_MISSING.format(name),
            headers={"WWW-Authenticate": 'Bearer realm="orders"'},
        )


def _demand_password(password: str) -> None:
    _, given = _basic_credentials()
    if not is_secret(given.encode(errors="replace"), password.encode(errors="replace")):
        raise Problem(
            HTTPStatus.UNAUTHORIZED,
            PASSWORD_MISSING,
            headers={"WWW-Authenticate": 'Basic realm="operators", charset="UTF-8"'},
        )


def _demand_local_client(asked: Request, who_answers: str, cure: str) -> None:
    if not is_local(asked):
        raise Problem(
            HTTPStatus.FORBIDDEN,
            FROM_ELSEWHERE.format(who_answers, cure),
        )


def _basic_credentials() -> tuple[str, str]:
    """Name and password of the Authorization header; empty where there are none."""
    try:
        given = request.authorization
    except ValueError:  # Werkzeug forgives bad Base64, but not bytes outside ASCII
        given = None
    return (given.username or "", given.password or "") if given else ("", "")
