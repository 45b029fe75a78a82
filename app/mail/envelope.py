"""A mail on its way to a backend: one message to one recipient, with its envelope."""

import copy
import dataclasses
import functools
import re
import time
from collections.abc import Iterator
from email.errors import MessageError
from email.utils import parseaddr
from typing import NamedTuple, Protocol

from flask_mail import Message

from app.addresses import ascii_email
from app.errors import Refused
from app.mail.headers import encoded_mailbox
from app.text import control_character

_SUBJECT = re.compile(rb"^Subject:.*(?:\n[ \t].*)*", re.MULTILINE)


class Envelope(NamedTuple):
    """Plain ASCII addresses (RFC 5321, section 4.1.2)."""

    sender: str
    recipient: str


class OutgoingMail(Protocol):
    """A mail that a backend can deliver. Its addresses are checked, and no header has a line break."""

    @property
    def envelope(self) -> Envelope: ...

    def message(self) -> Message:
        """The mail as Flask-Mail's Message."""

    def content(self) -> bytes:
        """The mail as a server takes it, with CRLF line ends. Raises Refused when it can't be written."""


@dataclasses.dataclass(frozen=True, slots=True)
class CheckedMessage:
    """A Message of Flask-Mail's as an OutgoingMail."""

    original: Message
    envelope: Envelope

    def message(self) -> Message:
        return self.original

    def content(self) -> bytes:
        return written(self.original)


def checked_message(message: Message) -> CheckedMessage:
    """The message with its envelope. Raises Refused unless it goes to one good address and its headers are safe."""
    recipients = message.send_to
    if len(recipients) != 1:
        raise Refused(f"A mail goes to exactly one recipient, and this one has {len(recipients)}; send one for each.")
    for text in _header_texts(message):
        refuse_control_characters("header", text)
    if message.date is None:
        message.date = time.time()
    return CheckedMessage(message, Envelope(envelope_address(message.sender), envelope_address(*recipients)))


def refuse_control_characters(name: str, value: str) -> None:
    """Raises Refused if ``value`` has a line break, NUL or another control character: it could add a header."""
    if found := control_character(value):
        raise Refused(f"The mail's {name} has a control character ({found}): {value!a:.80}.")


@functools.lru_cache(maxsize=256)  # the sender's is asked for with each mail
def envelope_address(address: str | tuple[str, str]) -> str:
    """The bare ASCII address of ``user@domain``, ``Name <user@domain>`` or ``(name, address)``.

    Raises Refused for anything that ascii_email() doesn't take.
    """
    bare = address[1] if isinstance(address, tuple) else _without_name(address)
    try:
        return ascii_email(bare)
    except ValueError as problem:
        raise Refused(f"{address!a:.80} is no address to send a mail to or from: {problem}") from problem


def readable(message: Message) -> bytes:
    """The message as a person reads it: UTF-8, unencoded (RFC 6532), with LF. Raises Refused as content()."""
    plain = copy.copy(message)
    plain.charset = "utf-8"
    content = written(plain).replace(b"\r\n", b"\n")
    subject = f"Subject: {plain.subject}".encode()
    return _SUBJECT.sub(lambda _: subject, content, count=1) if plain.subject else content


def _without_name(address: str) -> str:
    """Text that is not one address stays whole, and is refused for it."""
    found = parseaddr(address)[1] if "<" in address else address
    return found if address.endswith(f"<{found}>") else address


def written(message: Message) -> bytes:
    """The message as Flask-Mail writes it, but its addresses: that breaks long names into lines before it encodes them.

    Raises Refused when it can't be written.
    """
    try:
        content = message.as_bytes()
    except (ValueError, LookupError, MessageError) as problem:  # bad surrogates, an unknown charset, a broken header
        raise Refused(f"The mail can't be written: {problem}") from problem
    head, blank, body = content.partition(b"\r\n\r\n")
    for name, addresses in (
        (b"From", [message.sender]),
        (b"To", message.recipients),
        (b"Cc", message.cc),
        (b"Reply-To", [message.reply_to] if message.reply_to else []),
    ):
        mailboxes = dict.fromkeys(encoded_mailbox(*_name_and_address(address)) for address in addresses)
        old, new = rb"(?m)^%b:[^\r\n]*(?:\r\n[ \t][^\r\n]*)*" % name, b"%b: %b" % (name, b",\r\n ".join(mailboxes))
        head = re.sub(old, new, head, count=1)
    return head + blank + body


def _name_and_address(address: str | tuple[str, str]) -> tuple[str, str]:
    name = address[0] if isinstance(address, tuple) else parseaddr(address)[0]
    return name, envelope_address(address)


def _header_texts(message: Message) -> Iterator[str]:
    """Everything that Flask-Mail writes into headers; it checks some of it, and only for line breaks."""
    headers = (message.extra_headers or {}).items()
    files = (attachment.filename for attachment in message.attachments)
    named = (message.subject, message.msgId, message.sender, message.reply_to)
    for value in (*named, *message.send_to, *headers, *files):
        yield from value if isinstance(value, tuple) else (value or "",)
