"""Access control of the console: this machine only without CONSOLE_PASSWORD; with it, anybody who has signed in.

A visitor may look, or operate too. Checked before every page. A POST needs the right to operate, and proof that a page
of this console sent it.
"""

import contextlib
import hmac
import secrets
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from hashlib import sha256
from http import HTTPStatus
from urllib.parse import urlsplit

from flask import current_app, g, redirect, request, session, url_for
from werkzeug.wrappers import Response

from app.clients import is_local, is_secret
from app.current import settings
from app.http import MAX_BODY_BYTES, Problem, current_request
from config import Settings

OPEN = ("console.static", "console.show_sign_in", "console.sign_in", "console.sign_out", "console.choose_language")
"""Pages for everybody who reaches the console."""


def N_(words: str) -> str:  # noqa: N802 - gettext's own name for it
    """Marks words to be translated later."""
    return words


SESSION_SECONDS = 12 * 3600

GUESSES = 5
"""Wrong passwords that a client may send at once; then one in GUESS_SECONDS."""
GUESS_SECONDS = 10
MOST_CLIENTS = 10_000
"""The number of clients whose guesses are remembered."""


# Translated where the error's page is made: this module is loaded with every application, and Babel is not.
SESSION_ENDED = N_("Your session has ended. Sign in again.")
LOOKING_ONLY = N_("You have signed in for looking only. Sign in with CONSOLE_PASSWORD to act.")
CLOSED = N_("The console answers this machine only. Set CONSOLE_PASSWORD to open it.")
TOO_MANY_GUESSES = N_("Too many wrong passwords came from your address. Wait for some seconds, then try again.")
FORGED = N_(
    "This form does not come from a page of this console, or your session has ended. Open the page again, and send it "
    "from there."
)


@dataclass(frozen=True)
class Visitor:
    """The person who looks at a page. ``name`` is recorded with acts."""

    name: str
    operates: bool
    signed_in: bool


def guard() -> Response | None:
    """Refuse, or send to the sign-in page. Raises Problem with 401, 403 or 413's exception."""
    request.max_content_length = MAX_BODY_BYTES
    chosen = settings()
    if request.endpoint != "console.static":
        g.visitor = _find_visitor(chosen)
    if request.method == "POST":
        _refuse_forged()
    if request.endpoint in OPEN:
        return None
    if g.visitor is None:
        if request.method == "POST" or "X-Live" in request.headers:
            raise Problem(HTTPStatus.UNAUTHORIZED, SESSION_ENDED)
        return redirect(url_for("console.show_sign_in", next=request.full_path.rstrip("?")), 303)
    if request.method == "POST" and not g.visitor.operates:
        raise Problem(HTTPStatus.FORBIDDEN, LOOKING_ONLY)
    return None


def recognise() -> None:
    """Note whose request this is, where no page of the console is asked for; nobody's where it is closed to them."""
    with contextlib.suppress(Problem):
        g.visitor = _find_visitor(settings())


def visitor() -> Visitor | None:
    """The request's visitor; None where nobody has signed in."""
    found: Visitor | None = g.get("visitor")
    return found


def operator() -> str:
    """The operator's name, for acts."""
    found = visitor()
    return f"console:{found.name}" if found else "console"


def _find_visitor(chosen: Settings) -> Visitor | None:
    """Raises Problem with 403 where the console is closed to this client."""
    if chosen.console_password is None:
        if is_local(current_request()):
            return Visitor("local", operates=True, signed_in=False)
        raise Problem(HTTPStatus.FORBIDDEN, CLOSED)
    right, until = session.get("right"), session.get("until", 0)
    password = _passwords(chosen).get(right)
    if password is None or time.time() > until or not hmac.compare_digest(session.get("proof", ""), _proof(password)):
        return None
    return Visitor(session["name"], operates=right == "operate", signed_in=True)


def _passwords(chosen: Settings) -> dict[str | None, str]:
    found = {"operate": chosen.console_password, "look": chosen.console_read_password}
    return {right: password for right, password in found.items() if password}


def _proof(password: str) -> str:
    """What a session holds of the password: another password ends it."""
    key = str(current_app.secret_key).encode()
    return hmac.new(key, b"console session\0" + password.encode(errors="replace"), sha256).hexdigest()


def sign_in(name: str, given: str) -> bool:
    """Begin a new session where the password is one of the two. Raises Problem with 429 after too many wrong ones."""
    guesses: Guesses = current_app.extensions.setdefault("console_guesses", Guesses())
    client = request.remote_addr or ""
    if wait := guesses.wait_seconds(client):
        raise Problem(HTTPStatus.TOO_MANY_REQUESTS, TOO_MANY_GUESSES, headers={"Retry-After": str(wait)})
    for right, password in _passwords(settings()).items():
        if is_secret(given.encode(errors="replace"), password.encode(errors="replace")):
            session.clear()
            until = int(time.time()) + SESSION_SECONDS  # the JSON provider reads 1.5 as a Decimal
            session.update(name=name, right=right, until=until, proof=_proof(password))
            return True
    guesses.note(client)
    return False


class Guesses:
    """Wrong passwords by client address: a token bucket for each, in this process. For any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._full_at: OrderedDict[str, float] = OrderedDict()
        """For each client, when its bucket is full again."""

    def wait_seconds(self, client: str) -> int:
        """How long the client has to wait for its next guess; 0 where it need not."""
        with self._lock:
            over = self._full_at.get(client, 0.0) - time.monotonic() - (GUESSES - 1) * GUESS_SECONDS
        return max(0, int(over + 0.999))

    def note(self, client: str) -> None:
        with self._lock:
            full_at = max(self._full_at.pop(client, 0.0), time.monotonic())
            self._full_at[client] = full_at + GUESS_SECONDS
            if len(self._full_at) > MOST_CLIENTS:
                self._full_at.popitem(last=False)


# Forged requests


def token() -> str:
    """The session's, which every form carries."""
    if "token" not in session:
        session["token"] = secrets.token_urlsafe(24)
    return str(session["token"])


def _refuse_forged() -> None:
    """A form of another site is refused by what the browser says of where it stands, and by its lack of the token."""
    site = request.headers.get("Sec-Fetch-Site")
    origin = request.headers.get("Origin")
    is_foreign = site not in (None, "same-origin", "none")
    if site is None and origin is not None:
        is_foreign = urlsplit(origin).netloc != request.host
    given = request.form.get("token", "")
    if is_foreign or not hmac.compare_digest(given.encode(), session.get("token", "").encode()) or not given:
        raise Problem(HTTPStatus.FORBIDDEN, FORGED)
