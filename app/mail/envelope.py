"""A message with its envelope, and what every backend does with it."""

import contextlib
import copy
import dataclasses
import re
import time
from collections.abc import Iterator
from email.errors import MessageError
from email.utils import parseaddr

import idna
from flask_mail import Message

from app.errors import Refused
from app.text import control_character
from config import Settings

_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_LOCAL_PART = re.compile(rf"{_ATOM}(?:\.{_ATOM})*")
_DOMAIN = re.compile(r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*")
_PLAIN_ADDRESS = re.compile(rf"(?=[^@]{{1,64}}@){_LOCAL_PART.pattern}@{_DOMAIN.pattern}")
_SUBJECT = re.compile(rb"^Subject:.*(?:\n[ \t].*)*", re.MULTILINE)


@dataclasses.dataclass(frozen=True, slots=True)
class Parcel:
    """A message to be handed over, and its envelope: plain ASCII addresses (RFC 5321, section 4.1.2)."""

    message: Message
    sender: str
    recipient: str

    def content(self) -> bytes:
        """The message as a server takes it, with CRLF line ends. Raises Refused when it can't be written."""
        return _written(self.message)

    def readable(self) -> bytes:
        """The message as a person reads it: UTF-8, unencoded (RFC 6532), with LF. Raises Refused as content()."""
        plain = copy.copy(self.message)
        plain.charset = "utf-8"
        content = _written(plain).replace(b"\r\n", b"\n")
        subject = f"Subject: {plain.subject}".encode()
        return _SUBJECT.sub(lambda _: subject, content, count=1) if plain.subject else content


class Backend:
    """Hands messages over. One object serves all threads."""

    def __init__(self, settings: Settings) -> None: ...

    def deliver(self, parcel: Parcel) -> None:
        """Hand the message over for good. Raises one of app.errors' kinds of AttemptFailed."""
        raise NotImplementedError

    def check(self) -> None:
        """See whether deliver() would work, without delivering. Raises as it does."""

    def close(self) -> None:
        """Give up what is held open."""


def pack(message: Message) -> Parcel:
    """The message with its envelope. Raises Refused unless it goes to one good address and its headers are safe."""
    if checked := getattr(message, "envelope", None):
        return Parcel(message, *checked)  # an OrderNotification that nobody touched
    recipients = message.send_to
    if len(recipients) != 1:
        raise Refused(f"A mail goes to exactly one recipient, and this one has {len(recipients)}; send one for each.")
    for text in _header_texts(message):
        refuse_control_characters("header", text)
    if message.date is None:
        message.date = time.time()
    return Parcel(message, ascii_address(message.sender), ascii_address(*recipients))


def refuse_control_characters(name: str, value: str) -> None:
    """Raises Refused if ``value`` has a line break, NUL or another control character: it could add a header."""
    if found := control_character(value):
        raise Refused(f"The mail's {name} has a control character ({found}): {value!a:.80}.")


def ascii_address(address: str | tuple[str, str]) -> str:
    """The address as SMTP without SMTPUTF8 takes it: ``user@domain``, an international domain as IDNA (RFC 5891).

    Takes also ``Name <user@domain>`` and ``(name, address)``. Raises Refused for anything else, and for a local part
    that is quoted or not ASCII.
    """
    if isinstance(address, str) and _PLAIN_ADDRESS.fullmatch(address) and len(address) <= 254:
        return address
    shown = f"{address!a:.80}"
    found = address[1] if isinstance(address, tuple) else parseaddr(address)[1]
    if isinstance(address, str) and address != found and not address.endswith(f"<{found}>"):
        raise Refused(f"{shown} is not one e-mail address.")
    local, _, domain = found.rpartition("@")
    if not local.isascii():
        raise Refused(f"{shown} has letters before the @ that only SMTPUTF8 could carry; use an ASCII address.")
    if not domain.isascii():
        with contextlib.suppress(idna.IDNAError):
            domain = idna.encode(domain, uts46=True).decode()
    if not (_LOCAL_PART.fullmatch(local) and _DOMAIN.fullmatch(domain)) or len(local) > 64 or len(domain) > 253:
        raise Refused(f"{shown} is not an e-mail address.")
    return f"{local}@{domain}"


def _written(message: Message) -> bytes:
    try:
        return message.as_bytes()
    except (ValueError, LookupError, MessageError) as problem:  # bad surrogates, an unknown charset, a broken header
        raise Refused(f"The mail can't be written: {problem}") from problem


def _header_texts(message: Message) -> Iterator[str]:
    """Everything that Flask-Mail writes into headers; it checks some of it, and only for line breaks."""
    headers = (message.extra_headers or {}).items()
    files = (attachment.filename for attachment in message.attachments)
    named = (message.subject, message.msgId, message.sender, message.reply_to)
    for value in (*named, *message.send_to, *headers, *files):
        yield from value if isinstance(value, tuple) else (value or "",)
