"""The messages this application sends. Building one sends nothing."""

import binascii
import copy
import dataclasses
import functools
import re
from datetime import UTC, datetime
from decimal import Decimal
from email.charset import QP, SHORTEST, Charset
from email.utils import formatdate
from html import escape
from typing import Literal, NamedTuple

from flask_mail import Message
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from app.mail.envelope import Envelope, envelope_address, refuse_control_characters, written
from app.mail.headers import encoded_text

LANGUAGE = {"zh": "zh-CN", "en": "en"}
FACTS = ("order_id", "user_id", "total_price", "created_at")

SEVEN_BIT = Charset("utf-8")
SEVEN_BIT.header_encoding = SHORTEST
SEVEN_BIT.body_encoding = QP  # base64 isn't shorter, as most of the HTML is ASCII, and looks like spam to filters


_PLAIN = re.compile(r"(?!.{77})\w[\w.:-]*(?: [\w.:-]+)*", re.ASCII).fullmatch
"""Most facts match: they fit into a line, and neither HTML nor quoted-printable has another way to write them."""


class Texts(NamedTuple):
    subject: str
    text: str
    html: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class OrderNotification:
    """The mail that tells a user of an order: text and HTML, 7-bit clean, in Chinese or English. An OutgoingMail.

    ``total_price`` is shown with two decimals, ``created_at`` (aware) in UTC. ``requested_at`` is when somebody asked
    for the mail, where that was later: it is dated then. ``traceparent``, valid, is a header of the same name. All
    headers are functions of the facts, so copies are recognised by their Message-ID and read the same; they ask that no
    machine answers (Auto-Submitted, RFC 3834). Raises Refused for a control character in an id, and for a bad address.
    """

    order_id: str
    user_id: str
    total_price: Decimal
    created_at: datetime
    recipient: str
    event_id: str
    locale: Literal["zh", "en"]
    sender: str
    requested_at: datetime | None = None
    traceparent: str | None = None

    def __post_init__(self) -> None:
        for name in ("order_id", "user_id", "event_id", "sender"):
            refuse_control_characters(name, getattr(self, name))
        _ = self.envelope

    @functools.cached_property
    def envelope(self) -> Envelope:
        return Envelope(envelope_address(self.sender), envelope_address(self.recipient))

    @property
    def message_id(self) -> str:
        return f"<{self.event_id}.order@{self.envelope.sender.rpartition('@')[2]}>"

    def message(self) -> Message:
        """A new Message of Flask-Mail's; to change it changes nothing here."""
        message = copy.copy(_empty_message())
        message.cc, message.bcc, message.attachments = [], [], []
        message.mail_options, message.rcpt_options, message.alts = [], [], {}
        facts, formats = self._facts(), _formats(self.locale)
        message.subject, message.body = formats.subject % facts, formats.text % facts
        message.html = formats.html % {name: escape(fact) for name, fact in facts.items()}
        message.sender, message.recipients = self.sender, [self.envelope.recipient]
        message.date, message.msgId = self._dated_at.timestamp(), self.message_id
        message.charset = SEVEN_BIT  # type: ignore[assignment]  # the email package takes both
        message.extra_headers = {"Auto-Submitted": "auto-generated", "Content-Language": LANGUAGE[self.locale]}
        if self.traceparent is not None:
            message.extra_headers["Traceparent"] = self.traceparent
        return message

    def content(self) -> bytes:
        """What Flask-Mail writes of message(), but for where it breaks lines, and a hundred times as fast: only what
        differs is written anew."""
        facts = self._facts()
        pieces = {
            b"subject": encoded_text(_formats(self.locale).subject % facts),
            b"recipient": self.envelope.recipient.encode(),
            b"date": _date(int(self._dated_at.timestamp())),
            b"message_id": self.message_id.encode(),
            b"traceparent": (self.traceparent or "").encode(),
        }
        for name, fact in facts.items():
            pieces[b"text_" + name.encode()], pieces[b"html_" + name.encode()] = _encoded(fact)
        return _frame(self.locale, self.sender, self.traceparent is not None) % pieces

    @property
    def _dated_at(self) -> datetime:
        return self.requested_at or self.created_at

    def _facts(self) -> dict[str, str]:
        created_at = self.created_at.astimezone(UTC).isoformat(" ", "seconds").removesuffix("+00:00")
        values = (self.order_id, self.user_id, f"{self.total_price:.2f}", f"{created_at} UTC")
        return dict(zip(FACTS, values, strict=True))


@functools.lru_cache(maxsize=16)
def _frame(locale: Literal["zh", "en"], sender: str, is_traced: bool) -> bytes:
    """A notification as ``written`` writes it, as a %-format of what differs from one to the next."""
    example = OrderNotification(
        order_id="",
        user_id="",
        total_price=Decimal(0),
        created_at=datetime.fromtimestamp(0, UTC),
        recipient="recipient@example.com",
        event_id="",
        locale=locale,
        sender=sender,
        traceparent="@traceparent@" if is_traced else None,
    )
    message = example.message()
    message.subject, message.body, message.html, message.msgId = "@subject@", "@text@", "@html@", "@message_id@"
    content = written(message).replace(b"%", b"%%").replace(b"To: recipient@example.com", b"To: @recipient@")
    content = re.sub(rb"@(\w+)@", rb"%(\1)b", re.sub(rb"(?m)^Date: .*", b"Date: @date@\r", content))
    _, text, html = _formats(locale)
    for name, wording in ((b"text", text), (b"html", html)):
        content = content.replace(b"%%(%b)b" % name, _encoded_format(wording, name))
    return content


def _encoded_format(wording: str, name: bytes) -> bytes:
    """A %-format of facts as one of encoded facts. A fact has lines of its own, which soft line breaks (RFC 2045, 6.7)
    take away again, so that where the others end does not depend on it."""
    encoded = b""
    for place, piece in enumerate(re.split(r"%\((\w+)\)s", wording)):
        if place % 2:
            encoded += b"=\r\n%%(%b_%b)b=\r\n" % (name, piece.encode())
        else:
            encoded += _quoted_printable(piece.replace("%%", "%")).replace(b"%", b"%%")
    return encoded


@functools.cache
def _formats(locale: str) -> Texts:
    """The texts as %-formats of the facts. The templates are rendered once: they only place facts."""

    def render(kind: str) -> str:
        template = templates().get_template(f"order_notification.{locale}.{kind}")
        rendered = template.render({name: f"[[{name}]]" for name in FACTS}, language=LANGUAGE[locale])
        return re.sub(r"\[\[(\w+)\]\]", r"%(\1)s", rendered.replace("%", "%%"))

    subject, text = render("txt").split("\n\n", 1)
    return Texts(subject, text, render("html"))


@functools.cache
def templates() -> Environment:
    return Environment(
        loader=PackageLoader(__package__),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )


@functools.cache
def _empty_message() -> Message:
    """Made once: Message() asks DNS for this host's full name, for a Message-ID."""
    return Message(sender="unset")


@functools.lru_cache(maxsize=256)
def _date(seconds: int) -> bytes:
    return formatdate(seconds, localtime=True).encode()  # as Flask-Mail does


def _encoded(fact: str) -> tuple[bytes, bytes]:
    """As the text has it, and as the HTML has it."""
    if _PLAIN(fact):
        return (plain := fact.encode()), plain
    return _quoted_printable(fact), _quoted_printable(escape(fact))


def _quoted_printable(text: str) -> bytes:
    return binascii.b2a_qp(text.encode()).replace(b"\n", b"\r\n")
