"""What a notification says, and that nothing in it can do harm."""

import os
import re
import socket
import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from pathlib import Path
from typing import Any

import pytest
from flask_mail import Attachment, Message

from app.errors import Refused
from app.mail import OrderNotification
from app.mail.envelope import checked_message, envelope_address
from app.mail.messages import templates

CHECKOUT = Path(__file__).resolve().parents[2]

ORDER: dict[str, Any] = {
    "order_id": "1001",
    "user_id": "7",
    "total_price": Decimal("19.99"),
    "created_at": datetime(2026, 11, 23, 18, 7, 5, tzinfo=UTC),
    "recipient": "user@example.com",
    "event_id": "0190a0b0-0000-7000-8000-000000000001",
    "locale": "zh",
    "sender": "orders@shop.example",
}


pytestmark = pytest.mark.usefixtures("mail_app")


def notification(**changes: Any) -> OrderNotification:
    return OrderNotification(**(ORDER | changes))


def parsed(message: OrderNotification | Message) -> EmailMessage:
    written = message.content() if isinstance(message, OrderNotification) else message.as_bytes()
    read = message_from_bytes(written, policy=default)
    assert isinstance(read, EmailMessage)
    return read


def parts(message: OrderNotification | Message) -> tuple[str, str]:
    read = parsed(message)
    text, html = read.get_body(("plain",)), read.get_body(("html",))
    assert text is not None
    assert html is not None
    return text.get_content().replace("\r\n", "\n"), html.get_content()


def test_a_notification_is_in_chinese_by_its_locale() -> None:
    message = notification().message()
    text, html = parts(message)

    assert parsed(message)["Subject"] == "订单 1001 已创建"
    assert parsed(message)["Content-Language"] == "zh-CN"
    assert "总金额：19.99\n" in text
    assert "创建时间：2026-11-23 18:07:05 UTC\n" in text
    assert '<html lang="zh-CN">' in html


def test_a_notification_is_in_english_by_its_locale() -> None:
    message = notification(locale="en")
    text, html = parts(message)

    assert parsed(message)["Subject"] == "Order 1001 was created"
    assert parsed(message)["Content-Language"] == "en"
    assert "Total: 19.99\n" in text
    assert "Created: 2026-11-23 18:07:05 UTC\n" in text
    assert '<html lang="en">' in html


@pytest.mark.parametrize("locale", ["zh", "en"])
def test_text_and_html_tell_the_same_facts(locale: str) -> None:
    for part in parts(notification(locale=locale, user_id="user-7")):
        for fact in ("1001", "user-7", "19.99", "2026-11-23 18:07:05 UTC"):
            assert fact in part


@pytest.mark.parametrize(
    ("price", "shown"),
    [
        ("19.99", "19.99"),
        ("0", "0.00"),
        ("5.5", "5.50"),
        ("9999999999.99", "9999999999.99"),
        ("1E+3", "1000.00"),
    ],
)
def test_a_price_is_shown_exactly(price: str, shown: str) -> None:
    assert f"总金额：{shown}\n" in parts(notification(total_price=Decimal(price)))[0]


def test_the_time_is_shown_in_utc_wherever_it_was_taken() -> None:
    taken = datetime(2026, 11, 24, 2, 7, 5, tzinfo=timezone(timedelta(hours=8)))
    assert "2026-11-23 18:07:05 UTC" in parts(notification(created_at=taken))[0]


def test_a_copy_has_the_same_headers() -> None:
    first, second = parsed(notification()), parsed(notification())
    for header in ("Message-ID", "Date", "Subject", "From", "To"):
        assert first[header] == second[header]


def test_the_message_id_is_a_function_of_the_event_and_the_senders_domain() -> None:
    event_id, domain = ORDER["event_id"], "a-long-name-for-a-shop." * 4 + "example"
    message = notification(sender=f"orders@{domain}")

    assert parsed(message)["Message-ID"] == f"<{event_id}.order@{domain}>"
    assert parsed(notification(event_id="other"))["Message-ID"] != parsed(notification())["Message-ID"]


def test_the_message_id_is_ascii_where_the_senders_domain_is_not() -> None:
    assert notification(sender="orders@bücher.example").message_id.endswith("@xn--bcher-kva.example>")


def test_the_date_is_the_events() -> None:
    assert parsed(notification())["Date"].datetime == ORDER["created_at"]


def test_a_notification_says_that_no_machine_should_answer() -> None:
    assert parsed(notification())["Auto-Submitted"] == "auto-generated"


@pytest.mark.parametrize("locale", ["zh", "en"])
def test_seven_bit_servers_take_a_notification(locale: str) -> None:
    """No octet above 127, and no line longer than RFC 5322's 998 octets, with the longest ids."""
    content = notification(locale=locale, order_id="x" * 64, user_id="y" * 64).content()

    assert content.isascii()
    assert max(len(line) for line in content.split(b"\r\n")) <= 998
    assert not re.search(rb"(?<!\r)\n", content)


@pytest.mark.parametrize("locale", ["zh", "en"])
def test_the_longest_ids_arrive_whole(locale: str) -> None:
    order_id = "order." * 10 + "9999"
    message = notification(locale=locale, order_id=order_id)

    assert order_id in parsed(message)["Subject"]
    assert order_id in parts(message)[0]


LONG_ID = "a.b_c:d-E" * 7 + "9"
LONG_ADDRESS = "x" * 64 + "@" + "long-name-of-a-domain." * 8 + "example.shop"


@pytest.mark.parametrize("locale", ["zh", "en"])
@pytest.mark.parametrize(
    "sender", ["orders@shop.example", "Shop %s <orders@shop.example>", "书店 <orders@bücher.example>"]
)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"order_id": LONG_ID, "user_id": LONG_ID},
        {"order_id": ".", "user_id": "..", "event_id": "e"},
        {"order_id": "?=%d", "user_id": "100%s %(x)s [[order_id]] = <b>&amp; '\""},
        {"order_id": "订单\N{GRINNING FACE}" * 20, "user_id": "用户"},
        {"total_price": Decimal(0)},
        {"total_price": Decimal("9999999999.99")},
        {"recipient": LONG_ADDRESS},
        {"recipient": "user@bücher.example"},
        {"created_at": datetime(2026, 6, 1, 0, 0, 0, 999999, tzinfo=timezone(timedelta(hours=8)))},
        {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"},
    ],
    ids=str,
)
def test_a_notification_reads_as_flask_mail_writes_it(locale: str, sender: str, changes: dict[str, Any]) -> None:
    """The fast way and Flask-Mail's: the same headers, the same parts."""
    written = notification(locale=locale, sender=sender, **changes).content()

    def read(content: bytes) -> Any:
        message = message_from_bytes(content, policy=default)
        boundaries = [part.get_boundary() for part in message.walk() if part.get_boundary()]
        for number, boundary in enumerate(boundaries):
            content = content.replace(boundary.encode(), f"boundary-{number}".encode())
        parts = list(message_from_bytes(content, policy=default).walk())
        headers = [sorted((name.lower(), str(value).strip()) for name, value in part.items()) for part in parts]
        return headers, [part.get_payload(decode=True) for part in parts]

    assert read(written) == read(notification(locale=locale, sender=sender, **changes).message().as_bytes())
    assert written.isascii()
    lines = [line for line in written.split(b"\r\n") if not line.startswith((b"To: ", b"Message-ID: "))]
    assert max(map(len, lines)) <= 78
    assert b"\n" not in b"".join(lines)


@pytest.mark.parametrize("locale", ["zh", "en"])
def test_a_notification_says_what_its_templates_say(locale: str) -> None:
    """They are rendered once, with marks for the facts, so they may only place facts."""
    facts = {"order_id": "<1>", "user_id": "u%7", "total_price": "1.50", "created_at": "2026-11-23 18:07:05 UTC"}
    language = {"zh": "zh-CN", "en": "en"}[locale]
    text, html = (
        templates().get_template(f"order_notification.{locale}.{kind}").render(facts, language=language)
        for kind in ("txt", "html")
    )
    message = notification(locale=locale, order_id="<1>", user_id="u%7", total_price=Decimal("1.5")).message()
    assert (f"{message.subject}\n\n{message.body}", message.html) == (text, html)


@pytest.mark.parametrize("locale", ["zh", "en"])
def test_an_id_that_looks_encoded_stays_as_it_is(locale: str) -> None:
    assert "=?utf-8?q?x?=" in parsed(notification(order_id="=?utf-8?q?x?=", locale=locale))["Subject"]


def test_its_message_may_be_changed_and_the_notification_stays() -> None:
    original = notification()
    written = original.content()
    message = original.message()
    assert message.extra_headers is not None
    message.body, message.extra_headers["X-Shop"] = "other text", "7"

    assert parts(message)[0] == "other text"
    assert parsed(message)["Subject"] == parsed(original)["Subject"]
    assert parsed(message)["X-Shop"] == "7"
    assert original.content() == written
    assert original.message().body != "other text"


def test_the_message_id_stands_on_one_line() -> None:
    written = notification(sender="orders@a-long-shop.example").content()
    assert f"\r\nMessage-ID: <{ORDER['event_id']}.order@a-long-shop.example>\r\n".encode() in written


def test_markup_in_an_id_stays_text() -> None:
    text, html = parts(notification(order_id="<script>&", user_id="<img src=x>"))

    assert "<script>&" in text
    assert "<script>" not in html
    assert "<img" not in html
    assert "&lt;script&gt;&amp;" in html


def test_building_does_not_ask_for_the_hosts_full_name_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a DNS lookup, which can take seconds."""
    notification().message()
    monkeypatch.setattr(socket, "getfqdn", lambda *_: pytest.fail("asked DNS"))
    notification().message()


def test_messages_share_nothing() -> None:
    first, second = notification().message(), notification(recipient="other@example.com", locale="en").message()
    first.recipients.append("third@example.com")
    first.alts["calendar"] = "x"

    assert second.recipients == ["other@example.com"]
    assert list(second.alts) == ["html"]
    assert notification().message().recipients == ["user@example.com"]


CONTROL = [
    "\r\nBcc: evil@example.com",
    "\nBcc: evil@example.com",
    "\rBcc: x",
    "\x00",
    "\x1b[2J",
    "\u2028",
    "\x85",
    "\ud800",
]


@pytest.mark.parametrize("evil", CONTROL)
@pytest.mark.parametrize("field", ["order_id", "user_id", "event_id", "recipient", "sender"])
def test_a_control_character_in_a_notification_is_refused(field: str, evil: str) -> None:
    with pytest.raises(Refused):
        notification(**{field: ORDER[field] + evil})


@pytest.mark.parametrize("evil", CONTROL)
@pytest.mark.parametrize("field", ["subject", "sender", "reply_to", "msgId"])
def test_a_control_character_in_a_header_is_refused(field: str, evil: str) -> None:
    message = notification().message()
    setattr(message, field, f"user@example.com{evil}")
    with pytest.raises(Refused, match="control character"):
        checked_message(message)


@pytest.mark.parametrize("evil", CONTROL)
def test_a_control_character_in_a_name_is_refused(evil: str) -> None:
    message = notification().message()
    message.recipients = [(f"User{evil}", "user@example.com")]
    with pytest.raises(Refused, match="control character"):
        checked_message(message)

    message = notification().message()
    message.sender = (f"Shop{evil}", "orders@shop.example")
    with pytest.raises(Refused, match="control character"):
        checked_message(message)


def test_a_control_character_in_an_extra_header_or_a_file_name_is_refused() -> None:
    for extra in ({"X-A": "1\r\nBcc: e@x.org"}, {"X-A: 1\r\nBcc": "e@x.org"}):
        message = notification().message()
        message.extra_headers = extra
        with pytest.raises(Refused, match="control character"):
            checked_message(message)

    message = notification().message()
    message.attachments = [Attachment("a.txt\r\nX: y", "text/plain", "x")]
    with pytest.raises(Refused, match="control character"):
        checked_message(message)


def test_a_refusal_names_the_cause_but_not_raw() -> None:
    with pytest.raises(Refused) as refused:
        notification(order_id="1\r\nBcc: evil@example.com")
    assert str(refused.value) == r"The mail's order_id has a control character (U+000D): '1\r\nBcc: evil@example.com'."


@pytest.mark.parametrize(
    ("address", "plain"),
    [
        ("user@example.com", "user@example.com"),
        ("first.last+tag@sub.example.com", "first.last+tag@sub.example.com"),
        ("orders@localhost", "orders@localhost"),
        ("user@bücher.example", "user@xn--bcher-kva.example"),
        ("user@straße.de", "user@xn--strae-oqa.de"),  # IDNA 2003 would write to strasse.de, somebody else's
        ("User Name <user@example.com>", "user@example.com"),
        ('"Name, User" <user@example.com>', "user@example.com"),
        (("用户", "user@example.com"), "user@example.com"),
        ("x" * 64 + "@example.com", "x" * 64 + "@example.com"),
    ],
)
def test_an_address_becomes_what_smtp_takes(address: Any, plain: str) -> None:
    assert envelope_address(address) == plain


@pytest.mark.parametrize(
    "address",
    [
        "",
        "user",
        "@example.com",
        "user@",
        "us er@example.com",
        "user@exam ple.com",
        "a@x.example, b@x.example",
        "a@x.example,b@x.example",
        "b@x.example, Name <a@x.example>",
        "Name <a@x.example>, b@x.example",
        "a@x.example>\r\nRCPT TO:<b@x.example",
        "a@x.example> SIZE=1",
        "a@b@x.example",
        "用户@example.com",
        '"quoted local"@example.com',
        ".a@example.com",
        "a..b@example.com",
        "a@example..com",
        "a@.example.com",
        "a@[127.0.0.1]",
        "a@\u2028.example",
        "a@ex\u3002..ample",
        "x" * 65 + "@example.com",
        "a@" + "x." * 130 + "com",
        "a:b@example.com",
        ("name", "a@x.example, b@x.example"),
        ("name", ""),
    ],
)
def test_what_is_not_one_address_is_refused(address: Any) -> None:
    with pytest.raises(Refused):
        envelope_address(address)


def test_a_mail_goes_to_exactly_one_recipient() -> None:
    several: list[dict[str, list[str]]] = [{"recipients": []}, {"cc": ["b@example.com"]}, {"bcc": ["b@example.com"]}]
    for changes in several:
        message = notification().message()
        vars(message).update(changes)
        with pytest.raises(Refused, match="exactly one recipient"):
            checked_message(message)


def test_a_body_that_no_charset_can_write_is_refused() -> None:
    message = notification().message()
    message.body = "\ud800"
    with pytest.raises(Refused, match="can't be written"):
        checked_message(message).content()


def test_refusals_do_not_lean_on_assertions() -> None:
    """Flask-Mail checks with assert, which python -O leaves out."""
    program = """
from flask import Flask
from app import errors, mail
from config import Settings
app = Flask("o"); mailer = mail.init_app(app, Settings.of(mail_backend="memory"))
with app.app_context():
    from flask_mail import Message
    for message in (Message("s", []), Message("s\\nBcc: x", ["a@b.c"]), Message("s", ["a@b.c\\n"])):
        try: mailer.send(message)
        except errors.Refused: print("refused", end=" ")
print(len(mailer.outbox), end="")
"""
    command = [sys.executable, "-O", "-c", program]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, cwd=CHECKOUT, env={**os.environ, "PYTHONPATH": "."}
    )
    assert done.stdout == "refused refused refused 0", done.stderr
