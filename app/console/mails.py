"""An order's mail as it was sent: text, HTML and raw where the backend keeps it, else its events."""

import email
import email.policy
from dataclasses import dataclass
from datetime import datetime
from email.message import Message
from typing import Any

from flask import Response, current_app, make_response
from flask.typing import ResponseReturnValue
from werkzeug.exceptions import NotFound

from app.bus import queries
from app.console.pages import page
from app.current import database, settings
from app.http import PAGE_POLICY
from app.mail import Mailer
from app.orders import is_identifier
from app.states import Outcome

FRAME_POLICY = PAGE_POLICY + "; frame-src 'self'"
"""Of the page around the mail."""

MAIL_POLICY = "default-src 'none'; style-src 'unsafe-inline'; sandbox; base-uri 'none'; frame-ancestors 'self'"
"""Of a mail's HTML: mails have their styles inline. It runs no script, loads nothing, and belongs to no origin."""

HEADERS = ("Subject", "From", "Date")
"""That are shown beside what the events tell."""


@dataclass(frozen=True)
class Sent:
    """A sent mail, from the events."""

    message_id: str
    recipient: str
    at: datetime
    """When the attempt that sent it ended."""
    words: str
    """The mail server's."""
    attempts: int
    """That may have sent it: after one whose outcome is unknown a copy may have arrived."""


@dataclass(frozen=True)
class Mail:
    """A mail that a backend keeps."""

    headers: list[tuple[str, str]]
    text: str | None
    html: str | None
    raw: str


def show_mail(order_id: str, event_id: str) -> ResponseReturnValue:
    """The mail that the NotificationSent with this id tells of. Raises NotFound."""
    sent = _find_sent(order_id, event_id)
    mail, trouble = None, None
    try:
        mail = _find_mail(sent)
    except OSError as error:
        trouble = error.strerror or type(error).__name__
    chosen = settings()
    response = make_response(
        page(
            "mail.html",
            order_id=order_id,
            event_id=event_id,
            sent=sent,
            mail=mail,
            trouble=trouble,
            backend=chosen.mail_backend,
            server=f"{chosen.mail_server}:{chosen.mail_port}",
            folder=chosen.instance_path / "mail",
        )
    )
    response.headers["Content-Security-Policy"] = FRAME_POLICY
    return response


def show_mail_html(order_id: str, event_id: str) -> ResponseReturnValue:
    """The mail's HTML alone, for a frame. Raises NotFound."""
    try:
        mail = _find_mail(_find_sent(order_id, event_id))
    except OSError:
        mail = None
    if mail is None or mail.html is None:
        raise NotFound
    return Response(mail.html, mimetype="text/html", headers={"Content-Security-Policy": MAIL_POLICY})


def _find_sent(order_id: str, event_id: str) -> Sent:
    """Raises NotFound."""
    with database().read() as session:
        timeline = queries.timeline(session, order_id) if is_identifier(order_id) else []
    events = {event["event_id"]: event for event in timeline}
    found = events.get(event_id)
    if found is None or not is_sent(found):
        raise NotFound
    cause = events.get(found["cause_id"], {"deliveries": []})
    own = [delivery for delivery in cause["deliveries"] if delivery["receiver"] == found["source"]]
    tried = [attempt for delivery in own for attempt in delivery["attempts"]]
    last = next((each for each in reversed(tried) if each["outcome"] == Outcome.OK), None)
    return Sent(
        message_id=found["data"]["message_id"],
        recipient=found["data"]["recipient"],
        at=last["ended_at"] if last else found["occurred_at"],
        words=(last["detail"] if last else None) or "",
        attempts=sum(each["outcome"] in (Outcome.OK, Outcome.UNKNOWN) for each in tried),
    )


def is_sent(event: dict[str, Any]) -> bool:
    """Whether the event of a timeline reports a sent mail."""
    data = event["data"]
    named = isinstance(data, dict) and all(isinstance(data.get(name), str) for name in ("message_id", "recipient"))
    return event["type"] == "NotificationSent" and named


def _find_mail(sent: Sent) -> Mail | None:
    """Raises OSError where the folder of mails can't be read."""
    mailer: Mailer = current_app.extensions["mailer"]
    raw = mailer.backend.find(sent.message_id, sent.at)
    return None if raw is None else read_mail(raw)


def read_mail(raw: bytes) -> Mail:
    """The parts of a mail as a person reads it."""
    message = email.message_from_bytes(raw, policy=email.policy.default)
    headers = [(name, str(message[name])) for name in HEADERS if message[name] is not None]
    return Mail(headers, part(message, "plain"), part(message, "html"), raw.decode(errors="replace"))


def part(message: Message, kind: str) -> str | None:
    """The first text of this kind, ``plain`` or ``html``; None without one."""
    for each in message.walk():
        content = each.get_payload(decode=True) if each.get_content_type() == f"text/{kind}" else None
        if isinstance(content, bytes):
            try:
                return content.decode(each.get_content_charset("utf-8"), "replace")
            except (LookupError, ValueError):  # an unknown charset, or none at all
                return content.decode(errors="replace")
    return None
