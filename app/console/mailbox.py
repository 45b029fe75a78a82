"""Mailbox: the mails that the file and the memory backend keep, as their readers would see them."""

import email
import heapq
import os
import re
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.errors import HeaderParseError
from email.header import decode_header, make_header
from email.message import Message
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from flask import current_app, make_response, url_for
from flask.typing import ResponseReturnValue
from pydantic import Field
from sqlalchemy import select
from werkzeug.exceptions import NotFound

from app.bus.tables import StoredEvent
from app.console.mails import FRAME_POLICY, part
from app.console.pages import page, read_filter, seen
from app.current import database, settings
from app.fields import Text
from app.mail.envelope import readable
from app.request_models import RequestModel

MOST_MAILS = 1000
"""So many are shown, the newest."""

PAGE_SIZE = 25
MOST_BYTES = 256 * 1024
"""Of a mail."""

COST_FACTOR = 20
"""The names of a folder's mails stay for so many times what reading them took: a million cost half a second."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=,:@+-]{0,250}")
EVENT = re.compile(r"<?([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})\.")
"""Of a Message-ID."""

HTML_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; form-action 'none'; base-uri 'none'; "
    "frame-ancestors 'self'; sandbox"
)
"""Of a mail's HTML, in its frame: its own look, and nothing else. No script runs, and nothing is loaded."""


class MailQuery(RequestModel):
    """Which mails to show."""

    cursor: Text | None = Field(None, max_length=260, description="the name of the last mail of the page before")


@dataclass(frozen=True)
class Mail:
    """A mail as it is listed."""

    name: str
    subject: str
    recipient: str
    at: datetime | None
    event_id: str | None


def show_mailbox() -> ResponseReturnValue:
    query = read_filter(MailQuery)
    names = _names()
    after = names.index(query.cursor) + 1 if query.cursor in names else 0
    shown = names[after : after + PAGE_SIZE]
    mails = [_mail(name, content) for name in shown if (content := _content(name)) is not None]
    return page(
        "mailbox.html",
        backend=settings().mail_backend,
        where=_where(),
        mails=mails,
        orders=_orders(each.event_id for each in mails if each.event_id),
        query=query,
        following=url_for("console.show_mailbox", cursor=shown[-1]) if after + PAGE_SIZE < len(names) else None,
        most=MOST_MAILS if len(names) >= MOST_MAILS else None,
    )


def show_kept_mail(name: str) -> ResponseReturnValue:
    """Raises NotFound."""
    content = _demand(name)
    message = email.message_from_bytes(content)
    mail = _mail(name, content)
    response = make_response(
        page(
            "kept_mail.html",
            mail=mail,
            order=_orders([mail.event_id] if mail.event_id else []).get(mail.event_id),
            headers=[(header, seen(value)) for header, value in _headers(message)],
            text=part(message, "plain"),
            has_html=part(message, "html") is not None,
            raw=content.decode(errors="replace"),
            is_cut=len(content) >= MOST_BYTES,
        )
    )
    response.headers["Content-Security-Policy"] = FRAME_POLICY
    return response


def show_kept_html(name: str) -> ResponseReturnValue:
    """The mail's HTML as it is, where nothing of it can do any harm. Raises NotFound."""
    html = part(email.message_from_bytes(_demand(name)), "html")
    if html is None:
        raise NotFound
    response = make_response(html)
    response.headers["Content-Security-Policy"] = HTML_POLICY
    return response


# What is in a mail


def _mail(name: str, content: bytes) -> Mail:
    """What can be made of it: mails of others may be in the folder, and damaged ones."""
    headers = {header.lower(): value for header, value in reversed(_headers(email.message_from_bytes(content)))}
    found = EVENT.match(headers.get("message-id", ""))
    try:
        at = parsedate_to_datetime(headers.get("date", ""))
        at = at.astimezone(UTC) if at.tzinfo else at.replace(tzinfo=UTC)
    except (ValueError, TypeError, OverflowError, IndexError):
        at = None
    return Mail(name, headers.get("subject", ""), headers.get("to", ""), at, found[1] if found else None)


def _headers(message: Message) -> list[tuple[str, str]]:
    """Decoded. The email package's newer policies, which decode by themselves, fail at damaged ones."""
    return [(name, _decoded(str(value))) for name, value in message.raw_items()]


def _decoded(value: str) -> str:
    text = re.sub(r"\r?\n(?=[ \t])", "", value.encode(errors="surrogateescape").decode(errors="replace"))
    try:
        return str(make_header(decode_header(text)))
    except (LookupError, ValueError, HeaderParseError):
        return text


def _orders(event_ids: Iterable[str]) -> dict[str | None, str]:
    """The order of each event."""
    wanted = list(event_ids)
    if not wanted:
        return {}
    query = select(StoredEvent.event_id, StoredEvent.order_id).where(StoredEvent.event_id.in_(wanted))
    with database().read() as session:
        return {row.event_id: row.order_id for row in session.execute(query)}


# Where mails are kept


def _where() -> str:
    chosen = settings()
    if chosen.mail_backend == "smtp":
        return f"{chosen.mail_server}:{chosen.mail_port}"
    return str(chosen.instance_path / "mail") if chosen.mail_backend == "file" else chosen.mail_backend


def _names() -> list[str]:
    """Of the newest MOST_MAILS mails, the newest first."""
    if settings().mail_backend == "file":
        folder: Folder = current_app.extensions.setdefault(
            "console_mails", Folder(settings().instance_path / "mail", database().clock.monotonic)
        )
        return folder.names()
    return list(_remembered())[::-1]


def _remembered() -> dict[str, Any]:
    """The memory backend's messages of this process, oldest first, by the part of their Message-ID before the @."""
    outbox = list(current_app.extensions["mailer"].outbox)[-MOST_MAILS:]
    return {f"{each.msgId or ''}".strip("<>").partition("@")[0]: each for each in outbox}


def _demand(name: str) -> bytes:
    content = _content(name) if NAME.fullmatch(name) else None
    if content is None:
        raise NotFound
    return content


def _content(name: str) -> bytes | None:
    """None where it is not there, or no more."""
    if settings().mail_backend != "file":
        message = _remembered().get(name)
        return readable(message)[:MOST_BYTES] if message else None
    for folder in ("new", "cur"):
        try:
            with (settings().instance_path / "mail" / folder / name).open("rb") as file:
                return file.read(MOST_BYTES)
        except OSError:
            continue
    return None


class Folder:
    """A Maildir's newest mails by name. The names begin with the time, so they sort by it. For any thread."""

    def __init__(self, path: Path, monotonic: Any) -> None:
        self._path, self._monotonic = path, monotonic
        self._lock = threading.Lock()
        self._found: list[str] = []
        self._fresh_until = float("-inf")

    def names(self) -> list[str]:
        with self._lock:
            began = self._monotonic()
            if began >= self._fresh_until:
                self._found = heapq.nlargest(MOST_MAILS, self._all(), key=_time)
                self._fresh_until = began + COST_FACTOR * (self._monotonic() - began)
            return self._found

    def _all(self) -> Iterable[str]:
        for folder in ("new", "cur"):
            try:
                with os.scandir(self._path / folder) as entries:
                    yield from (entry.name for entry in entries if NAME.fullmatch(entry.name))
            except OSError:  # not made yet
                continue


def _time(name: str) -> tuple[int, str]:
    seconds, _, rest = name.partition(".")
    return (int(seconds) if seconds.isdecimal() and len(seconds) < 15 else 0, rest)
