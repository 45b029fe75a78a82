"""The messages this application sends. Building one sends nothing."""

import binascii
import copy
import functools
import re
from datetime import UTC, datetime
from decimal import Decimal
from email.charset import QP, SHORTEST, Charset
from email.utils import formatdate
from typing import Any, Literal

from flask_mail import Message
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import escape

from app.mail.envelope import ascii_address, refuse_control_characters

LANGUAGE = {"zh": "zh-CN", "en": "en"}
FACTS = ("order_id", "user_id", "total_price", "created_at")

SEVEN_BIT = Charset("utf-8")
SEVEN_BIT.header_encoding = SHORTEST
SEVEN_BIT.body_encoding = QP  # base64 isn't shorter, as most of the HTML is ASCII, and looks like spam to filters


def order_notification(
    *,
    order_id: str,
    user_id: str,
    total_price: Decimal,
    created_at: datetime,
    recipient: str,
    event_id: str,
    locale: Literal["zh", "en"],
    sender: str,
) -> "OrderNotification":
    """The mail that tells a user of an order: text and HTML, 7-bit clean, in Chinese or English.

    ``total_price`` is shown with two decimals, ``created_at`` (aware) in UTC. All headers are functions of the
    arguments, so that copies are recognised by their Message-ID and read the same; they ask that no machine answers
    (Auto-Submitted, RFC 3834). Raises Refused for a control character in an id, and for a bad address.
    """
    for name, value in (("order_id", order_id), ("user_id", user_id), ("event_id", event_id)):
        refuse_control_characters(name, value)
    shown_time = f"{created_at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
    facts = dict(zip(FACTS, (order_id, user_id, f"{total_price:.2f}", shown_time), strict=True))
    envelope = _sender_address(sender), ascii_address(recipient)
    return OrderNotification(facts, event_id, created_at.timestamp(), locale, sender, envelope)


class OrderNotification(Message):
    """A message of Flask-Mail's that is made ready only for who looks inside.

    Untouched, it holds the facts alone, and as_bytes() fills them into what Flask-Mail wrote once (``_frame``), which
    takes a fraction of the time. The first look at an attribute, or a change, makes it a Message as any other.
    """

    __slots__ = ("_envelope", "facts", "locale", "message_id", "original_sender", "timestamp")

    def __init__(
        self,
        facts: dict[str, str],
        event_id: str,
        timestamp: float,
        locale: str,
        sender: str,
        envelope: tuple[str, str],
    ) -> None:
        self.facts, self.timestamp, self.locale, self.original_sender = facts, timestamp, locale, sender
        self._envelope = envelope
        self.message_id = f"<{event_id}.order@{envelope[0].rpartition('@')[2]}>"

    @property
    def envelope(self) -> tuple[str, str] | None:
        """Sender's and recipient's addresses, checked; None once they may have been changed."""
        return None if vars(self) else self._envelope

    def __getattr__(self, name: str) -> Any:
        if name not in _blank():
            raise AttributeError(name)
        subject, body, html = self._texts()
        made = copy.deepcopy(_blank()) | {
            "subject": subject,
            "body": body,
            "alts": {"html": html},
            "sender": self.original_sender,
            "recipients": [self._envelope[1]],
            "date": self.timestamp,
            "msgId": self.message_id,
            "charset": SEVEN_BIT,
            "extra_headers": {"Auto-Submitted": "auto-generated", "Content-Language": LANGUAGE[self.locale]},
        }
        vars(self).update(made | vars(self))  # what was set before stays
        return vars(self)[name]

    def as_bytes(self) -> bytes:
        """What Flask-Mail writes, in 7 bits and short lines. Raises ValueError for a header that isn't ASCII."""
        if vars(self):
            return super().as_bytes()
        subject, body, html = self._texts()
        date, recipient = _date(int(self.timestamp)), self._envelope[1]
        headers = (
            f"Subject: {_unstructured(subject)}\r\nTo: {recipient}\r\nDate: {date}\r\nMessage-ID: {self.message_id}"
        )
        frame = _frame(self.locale, self.original_sender)
        return frame % (headers.encode("ascii"), _quoted_printable(body), _quoted_printable(html))

    def _texts(self) -> tuple[str, str, str]:
        subject, body, html = _formats(self.locale)
        return subject % self.facts, body % self.facts, html % {name: escape(self.facts[name]) for name in FACTS}


@functools.lru_cache(maxsize=16)
def _sender_address(sender: str) -> str:
    refuse_control_characters("sender", sender)
    return ascii_address(sender)


@functools.lru_cache(maxsize=16)
def _frame(locale: str, sender: str) -> bytes:
    """A notification as Flask-Mail writes it, as a %-format: of headers, then text and HTML, both encoded."""
    original = OrderNotification(
        dict.fromkeys(FACTS, ""), "", 0, locale, sender, (_sender_address(sender), "to@example")
    )
    original.subject, original.body, original.html = "", "@text@", "@html@"
    head, content = original.as_bytes().replace(b"%", b"%%").split(b"\r\n\r\n", 1)
    head = re.sub(rb"(?m)^(?:To|Date|Message-ID):.*\n(?:[ \t].*\n)*", b"", head + b"\r\n")
    return head + b"%b\r\n\r\n" + content.replace(b"@text@", b"%b").replace(b"@html@", b"%b")


@functools.cache
def _formats(locale: str) -> tuple[str, str, str]:
    """Subject, text and HTML as %-formats of the facts. The templates are rendered once: they only place facts."""

    def render(kind: str) -> str:
        template = _templates().get_template(f"order_notification.{locale}.{kind}")
        rendered = template.render({name: f"[[{name}]]" for name in FACTS}, language=LANGUAGE[locale])
        return re.sub(r"\[\[(\w+)\]\]", r"%(\1)s", rendered.replace("%", "%%"))

    subject, body = render("txt").split("\n\n", 1)
    return subject, body, render("html")


@functools.lru_cache(maxsize=256)
def _date(seconds: int) -> str:
    return formatdate(seconds, localtime=True)  # as Flask-Mail does


def _unstructured(text: str) -> str:
    """A header's text in ASCII, in encoded words where need be (RFC 2047); no line is longer than 76 columns."""
    if text.isascii() and len(text) <= 64 and "=?" not in text:
        return text
    pieces = (text[start : start + 9].encode() for start in range(0, len(text), 9))
    return "\r\n ".join(f"=?utf-8?b?{binascii.b2a_base64(piece, newline=False).decode()}?=" for piece in pieces)


def _quoted_printable(text: str) -> bytes:
    return binascii.b2a_qp(text.encode()).replace(b"\n", b"\r\n")


@functools.cache
def _blank() -> dict[str, Any]:
    """A Message's attributes. Message() asks DNS for this host's full name, for a Message-ID: ask only once."""
    return vars(Message(sender="unset"))


@functools.cache
def _templates() -> Environment:
    return Environment(
        loader=PackageLoader(__package__),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
