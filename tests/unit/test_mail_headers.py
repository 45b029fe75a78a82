"""A sender's name, of any length and script, reads as it was written."""

import re
from datetime import UTC, datetime
from decimal import Decimal
from email import message_from_bytes
from email.header import decode_header, make_header
from email.message import EmailMessage
from email.policy import default
from email.utils import parseaddr, quote
from typing import Any

import pytest
from flask_mail import Message
from hypothesis import example, given
from hypothesis import strategies as st

from app.mail import OrderNotification
from app.mail.envelope import checked_message
from app.mail.headers import encoded_mailbox, encoded_text
from config import Settings

ADDRESS = "shop@example.com"

WHOLE = [
    "北京某某信息技术有限公司官方旗舰店",
    "Shop",
    "Ann's Shop & Co - 24/7",
    "Books, Inc. (Paris)",
    'The "Shop"',
    "back\\slash",
    "a@b.example",
    "@text@ 100% %(date)b",
    "=?utf-8?q?x?=",
    "Zoë",
    "متجر الكتب",
    "חנות",
    "می‌خواهم",
    "👨‍👩‍👧 Shop",
    "e\u0301tude",
    "北京\u3000公司",
]
"""Names that fit into one encoded word, or need none."""

LONG = [
    "two  blanks",
    "x" * 500,
    "Long Words " * 40 + "End",
    "株式会社" * 40,
    "👨‍👩‍👧 " * 30 + "!",
    "Größe, " * 30 + "x",
]

characters = st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp"))
names = st.text(characters, min_size=1, max_size=200).map(str.strip).filter(bool)


pytestmark = pytest.mark.usefixtures("mail_app")


def notification(sender: str, **changes: Any) -> bytes:
    facts: dict[str, Any] = {
        "order_id": "1",
        "user_id": "7",
        "total_price": Decimal(1),
        "created_at": datetime(2026, 11, 23, tzinfo=UTC),
        "recipient": "user@example.com",
        "event_id": "e",
        "locale": "zh",
        "sender": sender,
    }
    return OrderNotification(**(facts | changes)).content()


def name_read(content: bytes, header: str = "From") -> str:
    """As RFC 2047 has it: white space between two encoded words is none of the name's."""
    name, address = parseaddr(re.sub(r"\r\n(?=[ \t])", "", str(message_from_bytes(content)[header])))
    assert address == ADDRESS
    return str(make_header(decode_header(name)))


def name_shown(content: bytes) -> str:
    """As Python's email package shows it, which before 3.12.9 puts a blank between two encoded words."""
    message = message_from_bytes(content, policy=default)
    assert isinstance(message, EmailMessage)
    (address,) = message["From"].addresses
    assert (address.addr_spec, message["From"].defects, message.defects) == (ADDRESS, (), [])
    return str(address.display_name)


def sender_named(name: str) -> str:
    """As an operator writes it into MAIL_DEFAULT_SENDER."""
    return Settings.load({"MAIL_DEFAULT_SENDER": f'"{quote(name)}" <{ADDRESS}>'}).mail_default_sender


@pytest.mark.parametrize("name", WHOLE)
def test_a_senders_name_reads_as_it_was_written(name: str) -> None:
    content = notification(sender_named(name))
    assert (name_read(content), name_shown(content)) == (name, name)


@pytest.mark.parametrize("name", LONG)
def test_a_long_senders_name_reads_as_it_was_written(name: str) -> None:
    assert name_read(notification(sender_named(name))) == name


def test_a_name_needs_no_quotes_where_it_is_words() -> None:
    name = "北京某某信息技术有限公司官方旗舰店"
    sender = Settings.load({"MAIL_DEFAULT_SENDER": f"{name} <{ADDRESS}>"}).mail_default_sender
    assert name_shown(notification(sender)) == name


@given(name=names)
@example("\u3000x")
@example("=?")
@example("?=" * 30)
def test_any_name_is_written_in_short_lines_and_read_back(name: str) -> None:
    header = b"From: " + encoded_mailbox(name, ADDRESS) + b"\r\n\r\n"
    assert header.isascii()
    assert max(map(len, header.split(b"\r\n"))) <= 76
    assert all(len(word) <= 75 for word in re.findall(rb"=\?\S+\?=", header))
    assert name_read(header) == name
    assert re.sub(r"\s", "", name_shown(header)) == re.sub(r"\s", "", name)


@given(name=names, address=st.sampled_from(["a@b.example", "x" * 64 + "@" + "long-name." * 16 + "example"]))
def test_no_line_is_longer_than_smtp_takes(name: str, address: str) -> None:
    lines = (b"From: " + encoded_mailbox(name, address)).split(b"\r\n")
    assert max(map(len, lines)) <= 78 or max(lines, key=len) == b" <%b>" % address.encode()


@given(text=st.text(characters, min_size=1, max_size=200))
def test_any_subject_is_read_back(text: str) -> None:
    header = b"Subject: " + encoded_text(text) + b"\r\n\r\n"
    unfolded = re.sub(r"\r\n(?=[ \t])", "", str(message_from_bytes(header)["Subject"]))
    assert str(make_header(decode_header(unfolded))) == text or text.isascii()
    assert max(map(len, header.split(b"\r\n"))) <= 76


@pytest.mark.parametrize("name", [*WHOLE, *LONG])
def test_the_names_of_any_message_read_as_they_were_written(name: str) -> None:
    """Not only of a notification: sender, recipient and Reply-To of whatever is sent with Flask-Mail."""
    message = Message("subject", [(name, ADDRESS)], "From: nobody\r\n x\r\n", sender=ADDRESS, reply_to=(name, ADDRESS))
    message.sender = (name, ADDRESS)
    content = checked_message(message).content()
    for header in ("From", "To", "Reply-To"):
        assert name_read(content, header) == name
    assert b"From: nobody" in content


def test_a_header_names_the_domain_that_the_envelope_names() -> None:
    """IDNA 2003 would write to strasse.de, somebody else's."""
    assert b"From: Shop <orders@xn--strae-oqa.de>\r\n" in notification("Shop <orders@straße.de>")
