"""The backend that sends to an SMTP server (RFC 5321), by the standard library's smtplib.

Each sending thread has a connection to itself, taken from those that lie idle or newly opened, and leaves it for the
next mail. Until the server has accepted DATA nothing was handed over: so when a *reused* connection breaks before, the
mail silently goes on a new one.
"""

import collections
import contextlib
import functools
import math
import os
import re
import smtplib
import socket
import ssl
import time
from collections.abc import Iterator, Sequence
from typing import Any

from app.errors import AttemptFailed, InDoubt, Throttled, TimedOut, Unreachable
from app.mail import replies
from app.mail.envelope import Backend, Parcel
from app.text import one_line
from config import Settings

IDLE_SECONDS = 30
"""A connection unused for longer is not used again; servers close it after minutes (RFC 5321, section 4.5.3.2.7)."""

PROBE_SECONDS = 1
"""A connection unused for longer is asked by RSET whether it lives: some servers' farewell isn't a 421."""

MAILS_PER_CONNECTION = 100

PATIENCE = 3
"""How many times MAIL_TIMEOUT a conversation may last: a server can be slow at every step, or drip byte by byte."""

LONGEST_REPLY = 8192
"""Bytes of all lines of one reply: sixteen lines as long as RFC 5321 has them, or a hundred usual ones."""

RUNNING = "check that it runs, MAIL_SERVER and MAIL_PORT"

CURES: tuple[tuple[type[Exception], str], ...] = (
    (ssl.SSLCertVerificationError, "set MAIL_CA_FILE to its authority's PEM file, MAIL_SERVER to the name it is for"),
    (ssl.SSLEOFError, RUNNING),
    (ssl.SSLError, "check MAIL_USE_SSL, MAIL_USE_TLS and MAIL_PORT"),
    (smtplib.SMTPAuthenticationError, "check MAIL_USERNAME and MAIL_PASSWORD"),
    (smtplib.SMTPNotSupportedError, "check MAIL_USE_TLS and MAIL_USERNAME"),
    (smtplib.SMTPResponseException, "if it stays so, ask those who run it whether it takes mail from here"),
    (socket.gaierror, "check the name in MAIL_SERVER"),
    (TimeoutError, "if it is only slow, raise MAIL_TIMEOUT; a server on port 465 wants MAIL_USE_SSL"),
    (Exception, RUNNING),
)
"""What to do about a connection that failed; the first that fits."""

IN_DOUBT = " It had the whole message: a copy may have arrived, and the next try carries the same Message-ID."


class Refusal(Exception):
    """The server answered 4xx or 5xx. Its ``args`` are the step, the code and the text."""


class Conversation(smtplib.SMTP):
    """smtplib's client, used by one thread at a time, with limits to how long an answer is and may be waited for.

    A socket's own timeout begins anew with every byte. Raises Refusal, which leaves it usable after RSET unless the
    code is 421; or OSError, as which SMTPException counts too, after which it is not.
    """

    unread = b""
    mails = 0
    idle_since = 0.0
    refused = False
    in_doubt = False
    step = ""

    def begin(self) -> None:
        """From now on the conversation may last PATIENCE times the timeout, and each read one timeout."""
        self.pid = os.getpid()
        self.deadline = time.monotonic() + PATIENCE * self.timeout
        self.patience = self.timeout
        if self.sock is not None:
            self.sock.settimeout(self.timeout)

    def connect(self, *address: Any) -> tuple[int, bytes]:
        self.begin()
        try:
            return super().connect(*address)
        except OSError:
            self.drop()
            raise

    def getreply(self) -> tuple[int, bytes]:
        """A whole reply: its code, -1 where that is no number, and its lines' texts."""
        texts: list[bytes] = []
        room = LONGEST_REPLY
        while True:
            line = self._line(room)
            room -= len(line)
            texts.append(line[4:].strip())
            if not line[:3].isdigit():
                return -1, b"\n".join(texts)
            if line[3:4] != b"-":
                return int(line[:3]), b"\n".join(texts)

    def offer(self, sender: str, recipient: str) -> None:
        """Say who sends to whom, until the server waits for the message. Nothing is handed over yet."""
        self.in_doubt = False
        commands = f"MAIL FROM:<{sender}>\r\n", f"RCPT TO:<{recipient}>\r\n", "DATA\r\n"
        at_once = len(commands) if self.has_extn("pipelining") else 1
        for first in range(0, len(commands), at_once):
            self._exchange(commands[first : first + at_once])
        if self.unread:
            raise smtplib.SMTPException(f"{one_line(self.unread)!r} answers nothing that was asked")

    def finish(self, content: bytes) -> None:
        """Hand the message over. From its end to an answer that makes sense, its fate is in doubt."""
        self.step = "the message"
        self.send(content)
        self.in_doubt = True
        self.patience = math.inf  # RFC 5321, section 4.5.3.2.6: giving up early makes copies
        self.expect(self.step)
        self.mails += 1

    def ask(self, command: str) -> None:
        self.send(f"{command}\r\n")
        self.expect(command)

    def expect(self, step: str, wanted: int = 2) -> None:
        """Read the answer to ``step``, which is good if its code begins with ``wanted``."""
        self.step = step
        code, text = self.getreply()
        if code == replies.CLOSING:
            self.drop()
        if code // 100 in (4, 5):
            raise Refusal(step, code, one_line(text))
        if code // 100 != wanted:
            raise smtplib.SMTPException(f"{code} {one_line(text)!r} is no answer that SMTP knows")

    def lives(self) -> bool:
        """Ask, and forget what a refused mail left behind. Never raises."""
        self.refused = True
        with contextlib.suppress(Refusal, OSError):
            self.ask("RSET")
            self.refused = False
        return not self.refused

    def leave(self) -> None:
        """Say QUIT and close, without waiting for the answer. Never raises."""
        with contextlib.suppress(OSError):
            self.send("QUIT\r\n")
        self.drop()

    def drop(self) -> None:
        """Close without a word, as is right for a connection that broke or belongs to a parent process."""
        with contextlib.suppress(OSError):
            self.close()

    def _exchange(self, commands: Sequence[str]) -> None:
        """Send them in one packet (RFC 2920). The first refusal counts, even if the connection breaks after it."""
        self.step = commands[0][:4]
        self.send("".join(commands))
        refusals: list[Refusal] = []
        try:
            for command in commands:
                try:
                    self.expect(command[:4], wanted=3 if command == "DATA\r\n" else 2)
                except Refusal as refusal:
                    refusals.append(refusal)
            refused = [refusal.args[0] for refusal in refusals]
            if refused[-1:] == ["RCPT"] and self.step == "DATA":
                with contextlib.suppress(Refusal):
                    self.ask(".")  # section 3.1: the server waits for a message, to nobody
            elif refused == ["MAIL"] and self.step == "DATA":
                self.drop()  # it took the recipient, who must not get an empty mail
        except OSError:
            self.drop()
            if not refusals:
                raise
        if refusals:
            raise refusals[0]

    def _line(self, room: int) -> bytes:
        while b"\n" not in self.unread[: room + 1]:
            left = self.deadline - time.monotonic()
            if len(self.unread) > room:
                raise smtplib.SMTPException("its answer doesn't end")
            if left <= 0:
                raise TimeoutError
            if self.sock is None:
                raise smtplib.SMTPServerDisconnected("Connection is closed")
            self.sock.settimeout(min(left, self.patience))
            if not (received := self.sock.recv(LONGEST_REPLY)):
                raise smtplib.SMTPServerDisconnected("Connection unexpectedly closed")
            self.unread += received
        line, _, self.unread = self.unread.partition(b"\n")
        return line


class EncryptedConversation(Conversation, smtplib.SMTP_SSL):
    """The same, with TLS from the first byte."""


class SmtpBackend(Backend):
    """Sends to MAIL_SERVER. Certificates are always verified, with STARTTLS and with TLS from the first byte."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.where = f"{settings.mail_server}:{settings.mail_port}"
        self.monotonic = time.monotonic
        self._idle: collections.deque[Conversation] = collections.deque()

    def deliver(self, parcel: Parcel) -> None:
        content = _with_dots(parcel.content())
        conversation = self._offered(parcel)
        with self._explaining(conversation):
            conversation.finish(content)
        self._lay_aside(conversation)

    def check(self) -> None:
        """Connect, greet, encrypt and log in as for a mail; then NOOP and QUIT."""
        conversation = self._open()
        with self._explaining(conversation):
            conversation.ask("NOOP")
        conversation.leave()

    def close(self) -> None:
        while (conversation := self._pop()) is not None:
            conversation.leave()

    def _offered(self, parcel: Parcel) -> Conversation:
        """A conversation in which the server waits for the message."""
        if (reused := self._reusable()) is not None:
            try:
                return self._offer(reused, parcel)
            except AttemptFailed:
                if reused.sock is not None:
                    raise  # the server's answer to this mail; otherwise only the old connection's end
        return self._offer(self._open(), parcel)

    def _offer(self, conversation: Conversation, parcel: Parcel) -> Conversation:
        with self._explaining(conversation):
            conversation.offer(parcel.sender, parcel.recipient)
        return conversation

    def _reusable(self) -> Conversation | None:
        while (conversation := self._pop()) is not None:
            conversation.begin()
            idle = self.monotonic() - conversation.idle_since
            if idle > IDLE_SECONDS or conversation.mails >= MAILS_PER_CONNECTION:
                conversation.leave()
            elif (idle <= PROBE_SECONDS and not conversation.refused) or conversation.lives():
                return conversation
            else:
                conversation.drop()
        return None

    def _pop(self) -> Conversation | None:
        """The conversation used last; those of a parent process are closed, in silence, for it still uses them."""
        with contextlib.suppress(IndexError):
            while (conversation := self._idle.pop()).pid != os.getpid():
                conversation.drop()
            return conversation
        return None

    def _lay_aside(self, conversation: Conversation) -> None:
        conversation.idle_since = self.monotonic()
        self._idle.append(conversation)

    def _open(self) -> Conversation:
        try:
            return self._connected()
        except smtplib.SMTPResponseException as answer:
            text = one_line(answer.smtp_error)
            kind = Throttled if 400 <= answer.smtp_code < 500 else Unreachable  # it says nothing about this mail
            reason = f"{self.where} turned the connection down: {answer.smtp_code} {text}; {_cure(answer)}."
            raise kind(reason) from answer
        except (OSError, UnicodeError) as problem:
            raise self._broken(problem, "connecting") from problem

    def _connected(self) -> Conversation:
        settings = self.settings
        address = (str(settings.mail_server), settings.mail_port, _own_name())
        if settings.mail_use_ssl:
            smtp: Conversation = EncryptedConversation(*address, timeout=settings.mail_timeout, context=self._tls)
        else:
            smtp = Conversation(*address, timeout=settings.mail_timeout)
        try:
            _greet(smtp)
            if settings.mail_use_tls:
                smtp.starttls(context=self._tls)
                smtp.unread = b""  # RFC 3207, section 4.2: what it said before may have been forged
                _greet(smtp)
            if settings.mail_username:
                smtp.login(settings.mail_username, settings.mail_password or "")
        except BaseException:
            smtp.drop()
            raise
        return smtp

    @functools.cached_property
    def _tls(self) -> ssl.SSLContext:
        try:
            return ssl.create_default_context(cafile=self.settings.mail_ca_file)
        except OSError as problem:
            path = self.settings.mail_ca_file
            raise Unreachable(f"{path} can't be read: {problem}; set MAIL_CA_FILE to a PEM file.") from problem

    @contextlib.contextmanager
    def _explaining(self, conversation: Conversation) -> Iterator[None]:
        """Turn what a conversation raises into the application's errors, and lay it aside or drop it."""
        try:
            yield
        except Refusal as answer:
            step, code, text = answer.args
            conversation.refused = True
            if conversation.sock is not None:
                self._lay_aside(conversation)
            raise replies.meaning(code, text)(f"{self.where} answered {step} with {code} {text}") from None
        except BaseException as problem:
            conversation.drop()
            if not isinstance(problem, OSError):
                raise
            raise self._broken(problem, conversation.step, in_doubt=conversation.in_doubt) from problem

    def _broken(self, problem: Exception, step: str, *, in_doubt: bool = False) -> AttemptFailed:
        kind: type[AttemptFailed] = Unreachable
        what = f"failed ({step}): {one_line(str(problem))}"
        if isinstance(problem, TimeoutError):
            limit = self.settings.mail_timeout
            what = f"gave no answer within {limit:g} s, or not all of them within {PATIENCE * limit:g} s ({step})"
            kind = TimedOut
        reason = f"{self.where} {what}; {_cure(problem)}."
        return InDoubt(reason + IN_DOUBT) if in_doubt else kind(reason)


def _cure(problem: BaseException) -> str:
    return next(cure for kind, cure in CURES if isinstance(problem, kind))


def _greet(smtp: smtplib.SMTP) -> None:
    code, text = smtp.ehlo()
    if code // 100 != 2:
        raise smtplib.SMTPHeloError(code, text)


def _own_name() -> str:
    """What we call ourselves in EHLO; never socket.getfqdn(), which asks DNS."""
    name = socket.gethostname()
    return name if "." in name and name.isascii() else "[127.0.0.1]"


def _with_dots(content: bytes) -> bytes:
    """The content with CRLF line ends, its dots doubled, and the end mark (RFC 5321, section 4.5.2)."""
    if not content.count(b"\r\n") == content.count(b"\r") == content.count(b"\n"):
        content = re.sub(rb"\r\n|\r|\n", b"\r\n", content)
    lines = (b"\r\n" + content.removesuffix(b"\r\n")).replace(b"\r\n.", b"\r\n..")
    return lines[2:] + b"\r\n.\r\n"
