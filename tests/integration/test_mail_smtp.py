"""Sending to a real SMTP server, in good times and bad."""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask_mail import email_dispatched

from app import mail
from app.errors import AttemptFailed, Deferred, InDoubt, Refused, Throttled, TimedOut, Unreachable
from app.mail import Mailer, OrderNotification
from app.mail.smtp import SmtpBackend
from config import Settings
from tests.support.smtp import CLOSE, CUT, HANG, Pause, SmtpServer

SHORT_SECONDS = 0.4
"""The MAIL_TIMEOUT of tests in which the server hangs."""


class Sender:
    """An application with a mailer, its backend's clock in hand."""

    def __init__(self, **given: Any) -> None:
        self.now = 1000.0
        self.app = Flask("mail-test")
        self.mailer = mail.init_app(self.app, Settings.of(**{"mail_backend": "smtp", "mail_timeout": 5, **given}))
        assert isinstance(self.mailer.backend, SmtpBackend)
        self.mailer.backend.monotonic = lambda: self.now

    def notification(self, order_id: str = "1001", recipient: str = "user@example.com") -> OrderNotification:
        return OrderNotification(
            order_id=order_id,
            user_id="7",
            total_price=Decimal("19.99"),
            created_at=datetime(2026, 11, 23, 18, 7, 5, tzinfo=UTC),
            recipient=recipient,
            event_id=f"event-{order_id}",
            locale="zh",
            sender="orders@shop.example",
        )

    def send(self, order_id: str = "1001", recipient: str = "user@example.com") -> None:
        with self.app.app_context():
            self.mailer.send(self.notification(order_id, recipient))

    def fails(self, kind: type[AttemptFailed], order_id: str = "1001", recipient: str = "user@example.com") -> str:
        """Send, expecting to fail with exactly this kind; returns the reason."""
        with pytest.raises(AttemptFailed) as failed:
            self.send(order_id, recipient)
        assert type(failed.value) is kind, failed.value
        return str(failed.value)


@pytest.fixture(params=[True, False], ids=["pipelining", "one by one"])
def server(request: pytest.FixtureRequest) -> Iterator[SmtpServer]:
    with SmtpServer(pipelining=request.param) as server:
        yield server


MakeSender = Callable[..., Sender]


@pytest.fixture
def sender_to() -> Iterator[MakeSender]:
    """Makes Senders, and closes their connections."""
    made: list[Sender] = []

    def make(server: SmtpServer, **given: Any) -> Sender:
        made.append(Sender(**(server.settings | given)))
        return made[-1]

    yield make
    for sender in made:
        sender.mailer.close()


@pytest.fixture
def sender(server: SmtpServer, sender_to: MakeSender) -> Sender:
    return sender_to(server)


@pytest.fixture
def hasty(server: SmtpServer, sender_to: MakeSender) -> Sender:
    return sender_to(server, mail_timeout=SHORT_SECONDS)


# ---------------------------------------------------------------- a mail arrives


def test_a_mail_arrives_as_it_was_built(server: SmtpServer, sender: Sender) -> None:
    sender.send()

    (received,) = server.received
    assert (received.sender, received.recipients) == ("orders@shop.example", ["user@example.com"])
    assert received.email["Subject"] == "订单 1001 已创建"
    assert received.message_id == "<event-1001.order@shop.example>"
    body = received.email.get_body(("plain",))
    assert body is not None
    assert "总金额：19.99" in body.get_content()
    assert received.content.isascii()


def test_lines_that_begin_with_a_dot_arrive_whole(server: SmtpServer, sender: Sender) -> None:
    message = sender.notification().message()
    message.charset, message.html, message.body = "us-ascii", None, ".\n..\n.end\n\n.\r\nQUIT\r\n"
    with sender.app.app_context():
        sender.mailer.send(message)

    assert server.received[0].email.get_content().splitlines() == [".", "..", ".end", "", ".", "QUIT"]


def test_an_international_domain_is_written_to_as_idna(server: SmtpServer, sender: Sender) -> None:
    sender.send(recipient="user@bücher.example")

    assert server.received[0].recipients == ["user@xn--bcher-kva.example"]
    assert server.received[0].email["To"] == "user@xn--bcher-kva.example"


def test_a_sent_mail_is_announced_once_and_a_failed_one_never(server: SmtpServer, sender: Sender) -> None:
    server.on("RCPT", "550 5.1.1 no such user", when="bad@")
    with sender.mailer.record_messages() as sent:
        sender.send("1")
        sender.fails(Refused, "2", "bad@example.com")

    assert [message.msgId for message in sent] == ["<event-1.order@shop.example>"]


def test_a_listener_that_fails_does_not_undo_what_was_sent(server: SmtpServer, sender: Sender) -> None:
    """An error now would have the mail sent again."""

    def listener(*_: object, **__: object) -> None:
        raise RuntimeError("listener")

    with email_dispatched.connected_to(listener):
        sender.send()
    assert len(server.received) == 1


def test_flask_mails_own_ways_of_sending_go_the_same_way(server: SmtpServer, sender: Sender) -> None:
    with sender.app.app_context():
        with sender.mailer.connect() as connection:
            connection.send(sender.notification("1"))
            sender.notification("2").message().send(connection)
        sender.app.extensions["mail"].send(sender.notification("3"))
        sender.mailer.send_message("Hello", ["user@example.com"], "text")

    assert len(server.received) == 4
    assert server.connections == 1


# ---------------------------------------------------------------- the server says no


@pytest.mark.parametrize("phase", ["MAIL", "RCPT", "DATA", "END"])
@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        ("550 5.7.1 not wanted", Refused),
        ("451 4.3.0 come back later", Deferred),
        ("452 4.3.1 no room", Throttled),
        ("421 4.7.0 too much mail", Throttled),
    ],
)
def test_a_reply_decides_wherever_it_comes(
    server: SmtpServer, sender: Sender, phase: str, reply: str, kind: type[AttemptFailed]
) -> None:
    server.on(phase, reply, times=1)

    reason = sender.fails(kind)
    assert reply in reason
    assert "copy may have arrived" not in reason
    assert server.received == []

    sender.send()
    assert len(server.received) == 1


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        ("554 5.3.2 no mail taken here", Unreachable),  # it turns us down, not this mail
        ("450 4.3.0 starting", Throttled),
        ("421 4.3.2 too busy", Throttled),
        ("HTTP/1.1 400 Bad Request", Unreachable),
    ],
)
@pytest.mark.parametrize("phase", ["CONNECT", "EHLO"])
def test_a_server_that_turns_the_connection_down_says_why(
    server: SmtpServer, sender: Sender, phase: str, reply: str, kind: type[AttemptFailed]
) -> None:
    server.on(phase, reply)
    reason = sender.fails(kind)
    assert f"127.0.0.1:{server.port}" in reason


def test_the_servers_words_are_in_the_reason(server: SmtpServer, sender: Sender) -> None:
    server.on("RCPT", "550-5.1.1 The user \x1b[31mnobody\r\n550 5.1.1 is not here")

    assert sender.fails(Refused) == (
        f"127.0.0.1:{server.port} answered RCPT with 550 5.1.1 The user [31mnobody 5.1.1 is not here"
    )


def test_a_refused_recipient_is_not_a_broken_connection(server: SmtpServer, sender: Sender) -> None:
    server.on("RCPT", "550 5.1.1 no such user", when="bad@")

    sender.send("1")
    sender.fails(Refused, "2", "bad@example.com")
    sender.send("3")

    assert [received.connection for received in server.received] == [1, 1]
    assert server.verbs().count("RSET") == 1


def test_a_refused_content_is_not_a_broken_connection(server: SmtpServer, sender: Sender) -> None:
    server.on("END", "554 5.7.1 spam", times=1)

    sender.fails(Refused, "1")
    sender.send("2")

    assert [received.connection for received in server.received] == [1]


def test_greylisting_defers_the_first_try_only(server: SmtpServer, sender: Sender) -> None:
    server.greylist()
    sender.fails(Deferred)
    sender.send()


def test_a_reply_that_is_not_smtp_is_no_verdict_on_the_mail(server: SmtpServer, sender: Sender) -> None:
    """smtplib calls an overlong line a 500: taken at its word, the mail would be given up."""
    for reply in ("250 " + "x" * 10_000, "hello", "999 what", "100 hm"):
        server.on("MAIL", reply, times=1)
        sender.fails(Unreachable)
    server.on("DATA", "250 no 354")
    sender.fails(Unreachable)
    server.heal()
    server.on("ACCEPTED", "hello", times=1)
    assert "copy may have arrived" in sender.fails(InDoubt)


def test_a_bad_address_is_refused_before_a_connection_is_made(server: SmtpServer, sender: Sender) -> None:
    sender.fails(Refused, recipient="用户@example.com")
    sender.fails(Refused, recipient="a@example.com>\r\nRCPT TO:<evil@example.com")
    assert server.connections == 0


# ---------------------------------------------------------------- the server can't be reached, or hangs


def test_a_server_that_is_down_is_unreachable_until_it_is_back(server: SmtpServer, sender: Sender) -> None:
    server.stop()
    reason = sender.fails(Unreachable)
    assert "refused the connection" in reason
    assert "MAIL_SERVER" in reason

    server.start()
    sender.send()


def test_a_name_that_dns_does_not_know_is_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    reason = Sender(mail_server="mail.invalid").fails(Unreachable)
    assert "mail.invalid:25" in reason
    assert "MAIL_SERVER" in reason


def test_a_name_that_cannot_be_a_hosts_is_unreachable() -> None:
    Sender(mail_server="mail..example").fails(Unreachable)


@pytest.mark.parametrize("phase", ["CONNECT", "EHLO", "MAIL", "RCPT", "DATA", "END", "ACCEPTED"])
def test_a_server_that_hangs_holds_nobody_longer_than_the_timeout(
    server: SmtpServer, hasty: Sender, phase: str
) -> None:
    server.on(phase, HANG)
    reason = hasty.fails(InDoubt if phase in ("END", "ACCEPTED") else TimedOut)
    assert f"within {SHORT_SECONDS} s" in reason
    assert ("copy may have arrived" in reason) == (phase in ("END", "ACCEPTED"))


@pytest.mark.parametrize("misdeed", [CUT, CLOSE])
@pytest.mark.parametrize("phase", ["CONNECT", "EHLO", "MAIL", "RCPT", "DATA", "END", "ACCEPTED"])
def test_a_connection_that_is_cut_is_unreachable(server: SmtpServer, sender: Sender, phase: str, misdeed: Any) -> None:
    """Only after the message's end can a copy have arrived, and then the reason says so."""
    server.on(phase, misdeed)
    reason = sender.fails(InDoubt if phase in ("END", "ACCEPTED") else Unreachable)
    assert ("copy may have arrived" in reason) == (phase in ("END", "ACCEPTED"))


def test_a_copy_is_recognised_by_its_message_id(server: SmtpServer, sender: Sender) -> None:
    server.on("ACCEPTED", CUT, times=1)
    sender.fails(InDoubt)
    sender.send()

    first, second = server.received
    assert first.message_id == second.message_id


def test_a_mail_accepted_before_the_connection_breaks_is_sent(server: SmtpServer, sender: Sender) -> None:
    """Stock Flask-Mail says QUIT, fails, and has the mail sent twice."""
    server.on("ACCEPTED", "250 2.0.0 queued", CUT)
    sender.send("1")
    sender.send("2")
    sender.mailer.close()
    assert len(server.received) == 2


# ---------------------------------------------------------------- all commands in one packet


class Script:
    """A server of one connection, which says its lines whatever it hears. ``heard`` is what came before each."""

    def __init__(self, *answers: str, pipelining: bool = True) -> None:
        self.answers = ["220 hello", "250-me\r\n250 PIPELINING" if pipelining else "250 me", *answers]
        self.heard: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.settings = {"mail_server": "127.0.0.1", "mail_port": self._listener.getsockname()[1]}
        self._thread = threading.Thread(target=self._play, daemon=True)
        self._thread.start()

    def _play(self) -> None:
        with self._listener, self._listener.accept()[0] as connection:
            connection.settimeout(5)
            for number, answer in enumerate(self.answers):
                if number:
                    self.heard.append(connection.recv(1_000_000))
                connection.sendall(f"{answer}\r\n".encode())
            self.heard.append(connection.recv(1_000_000))

    def wait(self) -> None:
        self._thread.join(5)
        assert not self._thread.is_alive()


MAIL_RCPT_DATA = b"MAIL FROM:<orders@shop.example>\r\nRCPT TO:<user@example.com>\r\nDATA\r\n"


def test_three_commands_go_in_one_packet_where_the_server_takes_them(sender_to: MakeSender) -> None:
    server: Any = Script("250 ok\r\n250 ok\r\n354 go", "250 queued")
    sender = sender_to(server)
    sender.send()
    sender.mailer.close()
    server.wait()
    assert server.heard[1] == MAIL_RCPT_DATA
    assert server.heard[2].endswith(b"\r\n.\r\n")


def test_three_commands_go_one_by_one_where_the_server_does_not_offer_more(sender_to: MakeSender) -> None:
    server: Any = Script("250 ok", "250 ok", "354 go", "250 queued", pipelining=False)
    sender = sender_to(server)
    sender.send()
    sender.mailer.close()
    server.wait()
    assert [*server.heard[1:4]] == MAIL_RCPT_DATA.splitlines(keepends=True)


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ("250 ok\r\n550 5.1.1 nobody\r\n354 go", "RCPT with 550 5.1.1 nobody"),
        ("550 5.7.1 not you\r\n503 MAIL first\r\n354 go", "MAIL with 550 5.7.1 not you"),
    ],
)
@pytest.mark.parametrize("end", ["554 no recipients", "250 queued"])
def test_a_server_that_waits_for_a_message_to_nobody_gets_an_empty_one(
    sender_to: MakeSender, answers: str, reason: str, end: str
) -> None:
    """RFC 2920, section 3.1. The connection is used again."""
    server: Any = Script(answers, end, "250 reset", "250 ok\r\n250 ok\r\n354 go", "250 queued")
    sender = sender_to(server)
    assert reason in sender.fails(Refused)
    sender.send()
    sender.mailer.close()
    server.wait()
    assert server.heard[1:5] == [MAIL_RCPT_DATA, b".\r\n", b"RSET\r\n", MAIL_RCPT_DATA]


@pytest.mark.parametrize(
    ("answers", "kind"),
    [
        ("250 ok\r\n250 ok\r\n354 go\r\n250 what for?", Unreachable),  # it would pass for the message's acceptance
        ("250 ok\r\n250 ok\r\n250 ok\r\n354 go", Unreachable),
        ("250 ok\r\n354 go", Unreachable),
        ("250 ok\r\n250 ok", TimedOut),
        ("250 ok\r\n550 nobody", Refused),  # the answer that came counts
        ("250 ok\r\n550 nobody\r\nnonsense", Refused),
        ("550 not you\r\n250 ok\r\n354 go", Refused),  # an empty message would reach somebody
        ("421 4.3.2 closing\r\n503 what", Throttled),
    ],
)
def test_a_wrong_number_of_answers_hands_nothing_over(
    sender_to: MakeSender, answers: str, kind: type[AttemptFailed]
) -> None:
    server: Any = Script(answers)
    sender_to(server, mail_timeout=SHORT_SECONDS).fails(kind)
    server.wait()
    assert server.heard == [server.heard[0], MAIL_RCPT_DATA, b""]


def test_a_refusal_before_the_connection_ends_is_the_answer(server: SmtpServer, sender: Sender) -> None:
    server.on("RCPT", "550 5.1.1 no such user", CLOSE)
    assert "550 5.1.1" in sender.fails(Refused)


# ---------------------------------------------------------------- long answers, and late ones


@pytest.mark.parametrize("reply", ["250-wait\r\n" * 100_000 + "250 ok", "250 " + "x" * 1_000_000])
@pytest.mark.parametrize("phase", ["EHLO", "MAIL", "END"])
def test_an_answer_without_end_is_not_heard_out(server: SmtpServer, sender: Sender, phase: str, reply: str) -> None:
    server.on(phase, reply)
    assert "answer doesn't end" in sender.fails(InDoubt if phase == "END" else Unreachable)


def test_the_answer_to_the_whole_message_may_take_what_is_left_of_the_conversation(
    server: SmtpServer, sender_to: MakeSender
) -> None:
    """Giving up early would make a copy (RFC 5321, section 4.5.3.2.6)."""
    server.on("END", Pause(0.6))
    sender_to(server, mail_timeout=0.4).send()
    assert len(server.received) == 1


# ---------------------------------------------------------------- TLS and login


@pytest.mark.parametrize("tls", ["starttls", "ssl"])
def test_a_verified_server_gets_the_mail_encrypted(sender_to: MakeSender, tls: Any) -> None:
    with SmtpServer(tls=tls) as server:
        sender = sender_to(server)
        sender.send("1")
        sender.send("2")
        assert [received.connection for received in server.received] == [1, 1]
        sender.mailer.close()


@pytest.mark.parametrize("tls", ["starttls", "ssl"])
def test_a_server_that_nobody_vouches_for_gets_nothing(sender_to: MakeSender, tls: Any) -> None:
    with SmtpServer(tls=tls) as server:
        reason = sender_to(server, mail_ca_file=None).fails(Unreachable)
        assert "certificate verify failed" in reason
        assert "MAIL_CA_FILE" in reason
        assert server.received == []


@pytest.mark.parametrize("tls", ["starttls", "ssl"])
def test_a_certificate_for_another_name_is_not_taken(sender_to: MakeSender, tls: Any) -> None:
    with SmtpServer(tls=tls, certificate_for="other.example") as server:
        assert "localhost" in sender_to(server).fails(Unreachable)
        assert server.received == []


def test_a_server_without_starttls_gets_nothing_when_it_is_wanted(server: SmtpServer, sender_to: MakeSender) -> None:
    assert "MAIL_USE_TLS" in sender_to(server, mail_use_tls=True).fails(Unreachable)
    assert server.received == []


def test_tls_to_a_server_that_speaks_plainly_names_the_cure(server: SmtpServer, sender_to: MakeSender) -> None:
    assert "MAIL_USE_SSL" in sender_to(server, mail_use_ssl=True).fails(Unreachable)


def test_plain_words_to_a_server_that_speaks_tls_name_the_cure(sender_to: MakeSender) -> None:
    with SmtpServer(tls="ssl") as server:
        assert "MAIL_USE_SSL" in sender_to(server, mail_use_ssl=False, mail_timeout=SHORT_SECONDS).fails(TimedOut)


def test_a_ca_file_that_has_gone_names_the_setting(server: SmtpServer, sender_to: MakeSender, tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.touch()
    sender = sender_to(server, mail_use_ssl=True, mail_ca_file=file)
    file.unlink()
    assert "ca.pem can't be read" in sender.fails(Unreachable)


@pytest.mark.parametrize("tls", ["starttls", "ssl", None])
def test_a_username_logs_in(sender_to: MakeSender, tls: Any) -> None:
    with SmtpServer(tls=tls, users={"shop": "secret"}) as server:
        sender_to(server).send()
        assert len(server.received) == 1


def test_a_wrong_password_condemns_no_mail(sender_to: MakeSender) -> None:
    """It is a setting's fault: once corrected, the mail goes."""
    with SmtpServer(users={"shop": "secret"}) as server:
        reason = sender_to(server, mail_password="wrong-one").fails(Unreachable)
        assert "535 5.7.8" in reason
        assert "MAIL_PASSWORD" in reason
        assert "wrong-one" not in reason

        assert "530 5.7.0" in sender_to(server, mail_username=None, mail_password=None).fails(Unreachable)


# ---------------------------------------------------------------- one connection, used again


def test_a_connection_is_used_again(server: SmtpServer, sender: Sender) -> None:
    for number in range(5):
        sender.send(str(number))
    assert server.connections == 1


@pytest.mark.parametrize(
    ("idle", "farewell"),
    [
        (0, None),
        (10, None),
        (0, "421 4.4.2 idle too long"),
        (10, "421 4.4.2 idle too long"),
        (10, "451 4.4.2 Timeout - closing connection"),  # Exchange and Gmail; as a reply to MAIL it would defer
    ],
)
def test_a_connection_that_was_closed_while_idle_is_no_failed_attempt(
    server: SmtpServer, sender: Sender, idle: int, farewell: str | None
) -> None:
    sender.send("1")
    server.close_connections(farewell)
    sender.now += idle
    sender.send("2")

    assert [received.connection for received in server.received] == [1, 2]


@pytest.mark.parametrize("misdeed", [CUT, CLOSE, "421 4.3.2 shutting down", "nonsense"])
@pytest.mark.parametrize("phase", ["MAIL", "RCPT", "DATA"])
def test_a_used_connection_that_breaks_before_the_message_costs_no_attempt(
    server: SmtpServer, sender: Sender, phase: str, misdeed: Any
) -> None:
    sender.send("1")
    server.on(phase, misdeed, times=1)
    sender.send("2")

    assert [received.connection for received in server.received] == [1, 2]


def test_a_used_connection_that_hangs_costs_no_attempt(server: SmtpServer, hasty: Sender) -> None:
    hasty.send("1")
    server.on("MAIL", HANG, times=1)
    hasty.send("2")
    assert server.connections == 2


def test_a_used_connection_that_breaks_is_replaced_only_once(server: SmtpServer, sender: Sender) -> None:
    sender.send("1")
    server.on("MAIL", CUT)
    sender.fails(Unreachable, "2")
    assert server.connections == 2


def test_a_message_that_may_have_arrived_is_not_sent_again_silently(server: SmtpServer, sender: Sender) -> None:
    sender.send("1")
    server.on("ACCEPTED", CUT, times=1)
    assert "copy may have arrived" in sender.fails(InDoubt, "2")
    assert len(server.received) == 2


def test_a_no_on_a_used_connection_is_an_answer(server: SmtpServer, sender: Sender) -> None:
    """Asking a new connection the same would only get the same."""
    sender.send("1")
    server.on("MAIL", "451 4.3.0 later", times=1)
    sender.fails(Deferred, "2")
    assert server.connections == 1


@pytest.mark.parametrize(("seconds", "connections"), [(30, 1), (31, 2)])
def test_a_connection_idle_for_more_than_thirty_seconds_is_left(
    server: SmtpServer, sender: Sender, seconds: int, connections: int
) -> None:
    sender.send("1")
    sender.now += seconds
    sender.send("2")
    assert server.connections == connections


def test_a_connection_is_left_after_a_hundred_mails(server: SmtpServer, sender: Sender) -> None:
    for number in range(100):
        sender.send(str(number))
    assert server.connections == 1

    sender.send("last")
    sender.mailer.close()
    server.wait_until_left()
    assert server.connections == 2
    assert server.verbs(1)[-1] == "QUIT"


def test_a_connection_idle_for_a_moment_is_asked_first(server: SmtpServer, sender: Sender) -> None:
    sender.send("1")
    sender.now += 1
    sender.send("2")
    assert "RSET" not in server.verbs()

    sender.now += 2
    sender.send("3")
    assert server.verbs().count("RSET") == 1
    assert server.connections == 1


def test_threads_that_send_at_once_have_a_connection_each(server: SmtpServer, sender: Sender) -> None:
    hold = server.hold("DATA")
    threads = [threading.Thread(target=sender.send, args=(str(number),)) for number in range(4)]
    for thread in threads:
        thread.start()
    hold.wait_for(4)
    assert server.connections == 4
    hold.release()
    for thread in threads:
        thread.join()

    assert sorted(received.connection for received in server.received) == [1, 2, 3, 4]
    assert len({received.message_id for received in server.received}) == 4

    sender.send("more")
    assert server.connections == 4


def test_a_child_process_leaves_its_parents_connection_alone(server: SmtpServer, sender: Sender) -> None:
    sender.send("parent")
    child = os.fork()
    if child == 0:
        try:
            sender.send("child")
            sender.mailer.close()
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    sender.send("parent again")

    assert [received.connection for received in server.wait_for(3)] == [1, 2, 1]
    assert "QUIT" not in server.verbs(1)


def test_close_says_quit_and_sending_may_go_on(server: SmtpServer, sender: Sender) -> None:
    sender.send("1")
    sender.mailer.close()
    sender.mailer.close()
    server.wait_until_left()
    sender.send("2")
    assert "QUIT" in server.verbs(1)
    assert server.connections == 2


@pytest.mark.parametrize("misdeed", [CUT, HANG, "500 no"])
def test_close_never_fails_and_never_waits(server: SmtpServer, sender: Sender, misdeed: Any) -> None:
    server.on("QUIT", misdeed)
    sender.send()
    sender.mailer.close()


def test_the_host_is_never_asked_for_its_full_name(sender: Sender, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a DNS lookup, which can take seconds."""
    with sender.app.app_context():
        message = sender.notification()
        monkeypatch.setattr(socket, "getfqdn", lambda *_: pytest.fail("asked DNS"))
        sender.mailer.send(message)


# ---------------------------------------------------------------- flask doctor


def test_check_connects_and_sends_nothing(sender_to: MakeSender) -> None:
    with SmtpServer(tls="starttls", users={"shop": "secret"}) as server:
        sender_to(server).mailer.check()
        server.wait_until_left()
        assert server.verbs() == ["EHLO", "STARTTLS", "EHLO", "AUTH", "NOOP", "QUIT"]
        assert server.received == []


@pytest.mark.parametrize(
    ("phase", "misdeed", "kind"),
    [
        ("CONNECT", HANG, TimedOut),
        ("CONNECT", "554 5.3.2 not here", Unreachable),
        ("NOOP", CUT, Unreachable),
        ("NOOP", "451 4.3.0 later", Deferred),
    ],
)
def test_check_says_what_is_wrong(
    server: SmtpServer, hasty: Sender, phase: str, misdeed: Any, kind: type[AttemptFailed]
) -> None:
    server.on(phase, misdeed)
    mailer: Mailer = hasty.mailer
    with pytest.raises(kind, match=str(server.port)):
        mailer.check()


# ---------------------------------------------------------------- who we say we are


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"mail_default_sender": "Shop <orders@shop.example>"}, "shop.example"),
        ({"mail_default_sender": "书店 <orders@bücher.example>"}, "xn--bcher-kva.example"),
        ({}, "localhost"),  # of orders@localhost, from which a fresh checkout sends
        ({"mail_ehlo_name": "out.shop.example", "mail_default_sender": "orders@shop.example"}, "out.shop.example"),
        ({"mail_ehlo_name": "[192.0.2.1]"}, "[192.0.2.1]"),
    ],
)
def test_a_server_is_told_the_senders_domain_or_the_name_that_is_set(
    sender_to: MakeSender, monkeypatch: pytest.MonkeyPatch, given: dict[str, str], name: str
) -> None:
    """Whatever this host is called: many servers turn down a client that gives a bare name or a loopback address."""
    monkeypatch.setattr(socket, "gethostname", lambda: "web-1")
    monkeypatch.setattr(socket, "getfqdn", lambda *_: pytest.fail("asked DNS"))
    with SmtpServer(tls="starttls") as server:
        sender = sender_to(server, **given)
        sender.send()
        sender.mailer.check()
        said = [line for _, line in server.commands if line.startswith("EHLO")]
    assert said == [f"EHLO {name}"] * 4, "twice on each connection, before and after STARTTLS"


# ---------------------------------------------------------------- a name with several addresses


@pytest.fixture
def dead_port() -> Iterator[int]:
    """A port at which 127.0.0.2, 127.0.0.3 and 127.0.0.4 answer no connection: their queues are full."""
    with contextlib.ExitStack() as opened:
        port = 0
        for host in ("127.0.0.2", "127.0.0.3", "127.0.0.4"):
            listener = opened.enter_context(socket.socket())
            listener.bind((host, port))
            listener.listen(0)
            port = listener.getsockname()[1]
            for _ in range(4):
                client = opened.enter_context(socket.socket())
                client.setblocking(False)
                client.connect_ex((host, port))
        yield port


def named(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """Let mail.example have these addresses."""
    real = socket.getaddrinfo

    def getaddrinfo(host: str, port: int, *how: Any, **more: Any) -> Any:
        hosts = addresses if host == "mail.example" else (host,)
        return [found for each in hosts for found in real(each, port, *how, **more)]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


@pytest.mark.parametrize("tls", [{}, {"mail_use_ssl": True}], ids=str)
def test_all_addresses_of_a_name_share_one_timeout(
    dead_port: int, monkeypatch: pytest.MonkeyPatch, tls: dict[str, Any]
) -> None:
    named(monkeypatch, "127.0.0.2", "127.0.0.3", "127.0.0.4")
    sender = Sender(mail_server="mail.example", mail_port=dead_port, mail_timeout=0.9, **tls)
    began = time.monotonic()
    assert "(connecting)" in sender.fails(TimedOut)
    assert 0.8 < time.monotonic() - began < 1.6


def test_an_address_that_does_not_answer_leaves_time_for_the_next(
    dead_port: int, sender_to: MakeSender, monkeypatch: pytest.MonkeyPatch
) -> None:
    named(monkeypatch, "127.0.0.2", "127.0.0.3", "127.0.0.1")
    with SmtpServer() as server:
        server.stop()
        server.port = dead_port
        server.start()
        sender_to(server, mail_server="mail.example", mail_timeout=0.9).send()
        assert len(server.wait_for(1)) == 1


def test_a_server_that_takes_the_connection_and_says_nothing_is_not_asked_at_its_other_addresses(
    server: SmtpServer, sender_to: MakeSender, monkeypatch: pytest.MonkeyPatch
) -> None:
    named(monkeypatch, "127.0.0.1", "127.0.0.2")
    server.on("CONNECT", HANG)
    sender_to(server, mail_server="mail.example", mail_timeout=SHORT_SECONDS).fails(TimedOut)
    assert server.connections == 1
