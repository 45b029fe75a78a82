"""The messages this application sends. Building one sends nothing."""

import copy
import functools
from datetime import UTC, datetime
from decimal import Decimal
from email.charset import BASE64, QP, SHORTEST, Charset
from typing import Literal

from flask_mail import Message
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from app.mail.parcel import ascii_address, refuse_control_characters

LANGUAGE = {"zh": "zh-CN", "en": "en"}
BODY_ENCODING = {"zh": BASE64, "en": QP}  # the shorter one; ASCII text in base64 looks like spam to filters


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
) -> Message:
    """The mail that tells a user of an order: text and HTML, 7-bit clean, in Chinese or English.

    ``total_price`` is shown with two decimals, ``created_at`` (aware) in UTC. All headers are functions of the
    arguments, so that copies are recognised by their Message-ID and read the same; they ask that no machine answers
    (Auto-Submitted, RFC 3834). Raises Refused for a control character in an id, and for a bad address.
    """
    for name, value in {"order_id": order_id, "user_id": user_id, "event_id": event_id}.items():
        refuse_control_characters(name, value)
    facts = {
        "order_id": order_id,
        "user_id": user_id,
        "total_price": f"{total_price:.2f}",
        "created_at": f"{created_at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC",
        "language": LANGUAGE[locale],
    }
    message = _blank_message()
    message.subject, message.body = _render(f"order_notification.{locale}.txt", facts).split("\n\n", 1)
    message.html = _render(f"order_notification.{locale}.html", facts)
    message.sender = sender
    message.recipients = [ascii_address(recipient)]
    message.date = created_at.timestamp()
    message.msgId = f"<{event_id}.order-notification@{ascii_address(sender).rpartition('@')[2]}>"
    message.charset = _seven_bit(locale)  # type: ignore[assignment]  # Flask-Mail says str; MIMEText takes a Charset
    message.extra_headers = {"Auto-Submitted": "auto-generated", "Content-Language": LANGUAGE[locale]}
    return message


def _blank_message() -> Message:
    return copy.deepcopy(_blank_original())


@functools.cache
def _blank_original() -> Message:
    """Message() asks DNS for this host's full name, each time, for a Message-ID that we replace: ask once."""
    return Message(sender="unset")


@functools.cache
def _seven_bit(locale: str) -> Charset:
    charset = Charset("utf-8")
    charset.header_encoding = SHORTEST
    charset.body_encoding = BODY_ENCODING[locale]
    return charset


def _render(template: str, facts: dict[str, str]) -> str:
    return _templates().get_template(template).render(facts)


@functools.cache
def _templates() -> Environment:
    return Environment(
        loader=PackageLoader(__package__),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
