"""The backend that sends to an SMTP server (RFC 5321), by the standard library's smtplib.

Each sending thread has a connection to itself, taken from those that lie idle or newly opened, and leaves it for the
next mail. Until the server has accepted DATA nothing was handed over: so when a *reused* connection breaks before, the
mail silently goes on a new one.
"""

import collections
import contextlib
import functools
import io
import os
import re
import smtplib
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from app.errors import AttemptFailed, InDoubt, Throttled, TimedOut, Unreachable
from app.mail import replies
from app.mail.parcel import Backend, Parcel

if TYPE_CHECKING:
    from config import Settings

IDLE_SECONDS = 30
"""A connection unused for longer is not used again; servers close it after minutes (RFC 5321, section 4.5.3.2.7)."""

PROBE_SECONDS = 1
"""A connection unused for longer is asked by RSET whether it lives: some servers' farewell isn't a 421."""

MAILS_PER_CONNECTION = 100

PATIENCE = 3
"""How many times MAIL_TIMEOUT a conversation may last: a server can be slow at every step, or drip byte by byte."""

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


class ReplyError(Exception):
    """The server answered a command with 4xx or 5xx."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(code, text)
        self.code, self.text = code, text


class Replies(io.RawIOBase):
    """What the server says, until the deadline: a socket's own timeout begins anew with every byte."""

    def __init__(self, smtp: "Conversation") -> None:
        self.smtp = smtp

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left = self.smtp.deadline - time.monotonic()
        if left <= 0 or self.smtp.sock is None:
            raise TimeoutError
        self.smtp.sock.settimeout(min(left, self.smtp.timeout))
        return self.smtp.sock.recv_into(buffer)


class Conversation(smtplib.SMTP):
    """smtplib's client, with a deadline."""

    deadline = 0.0

    def begin(self) -> None:
        self.deadline = time.monotonic() + PATIENCE * self.timeout
        if self.sock is not None:
            self.sock.settimeout(self.timeout)

    def connect(self, *address: Any) -> tuple[int, bytes]:
        self.begin()
        return super().connect(*address)

    def getreply(self) -> tuple[int, bytes]:
        if self.file is None:
            self.file = io.BufferedReader(Replies(self))
        return super().getreply()


class EncryptedConversation(Conversation, smtplib.SMTP_SSL):
    """The same, with TLS from the first byte."""


class Session:
    """One connection to the server, used by one thread at a time.

    Its methods raise ReplyError, which leaves it usable after RSET unless the code is 421; or OSError or SMTPException,
    after which it is not.
    """

    def __init__(self, smtp: Conversation, now: float) -> None:
        self.smtp = smtp
        self.pid = os.getpid()
        self.idle_since = now
        self.mails = 0
        self.refused = False
        self.broke = False
        self.in_doubt = False
        self.step = ""

    def offer(self, sender: str, recipient: str) -> None:
        """Say who sends to whom, until the server waits for the message. Nothing is handed over yet."""
        self.in_doubt = False
        self.command("MAIL", f"FROM:<{sender}>")
        self.command("RCPT", f"TO:<{recipient}>")
        self.command("DATA", wanted=3)

    def finish(self, content: bytes) -> None:
        """Hand the message over. From its end to an answer that makes sense, its fate is in doubt."""
        self.step = "the message"
        self.smtp.send(_with_dots(content))
        self.in_doubt = True
        self._expect(2, *self.smtp.getreply())
        self.mails += 1

    def command(self, verb: str, rest: str = "", wanted: int = 2) -> None:
        self.step = verb
        self._expect(wanted, *self.smtp.docmd(verb, rest))

    def lives(self) -> bool:
        """Ask, and forget what a refused mail left behind. Never raises."""
        try:
            self.command("RSET")
        except (ReplyError, OSError, smtplib.SMTPException):
            return False
        self.refused = False
        return True

    def leave(self) -> None:
        """Say QUIT and close, without waiting for the answer. Never raises."""
        with contextlib.suppress(OSError, smtplib.SMTPException):
            self.smtp.putcmd("QUIT")
        self.drop()

    def drop(self) -> None:
        """Close without a word, as is right for a connection that broke or belongs to a parent process."""
        with contextlib.suppress(OSError):
            self.smtp.close()

    def give_up(self) -> None:
        self.broke = True
        self.drop()

    def _expect(self, wanted: int, code: int, text: bytes) -> None:
        if code // 100 in (4, 5):
            raise ReplyError(code, replies.words(text))
        if code // 100 != wanted:
            raise smtplib.SMTPException(f"{code} {replies.words(text)!r} is no answer that SMTP knows")


class SmtpBackend(Backend):
    """Sends to MAIL_SERVER. Certificates are always verified, with STARTTLS and with TLS from the first byte."""

    def __init__(self, settings: "Settings", monotonic: Callable[[], float] = time.monotonic) -> None:
        self.settings = settings
        self.where = f"{settings.mail_server}:{settings.mail_port}"
        self.monotonic = monotonic
        self._idle: collections.deque[Session] = collections.deque()

    def deliver(self, parcel: Parcel) -> None:
        content = parcel.content()
        session = self._offered(parcel)
        with self._explaining(session):
            session.finish(content)
        self._lay_aside(session)

    def check(self) -> None:
        """Connect, greet, encrypt and log in as for a mail; then NOOP and QUIT."""
        session = self._open()
        with self._explaining(session):
            session.command("NOOP")
        session.leave()

    def close(self) -> None:
        while (session := self._pop()) is not None:
            session.leave()

    def _offered(self, parcel: Parcel) -> Session:
        """A session whose server waits for the message."""
        reused = self._reusable()
        if reused is not None:
            try:
                return self._offer(reused, parcel)
            except AttemptFailed:
                if not reused.broke:
                    raise  # the server's answer to this mail; otherwise only the old connection's end
        return self._offer(self._open(), parcel)

    def _offer(self, session: Session, parcel: Parcel) -> Session:
        with self._explaining(session):
            session.offer(parcel.sender, parcel.recipient)
        return session

    def _reusable(self) -> Session | None:
        while (session := self._pop()) is not None:
            session.smtp.begin()
            idle = self.monotonic() - session.idle_since
            if idle > IDLE_SECONDS or session.mails >= MAILS_PER_CONNECTION:
                session.leave()
            elif (idle <= PROBE_SECONDS and not session.refused) or session.lives():
                return session
            else:
                session.drop()
        return None

    def _pop(self) -> Session | None:
        """The session used last; those of a parent process are closed, in silence, for it still uses them."""
        with contextlib.suppress(IndexError):
            while True:
                session = self._idle.pop()
                if session.pid == os.getpid():
                    return session
                session.drop()
        return None

    def _lay_aside(self, session: Session) -> None:
        session.idle_since = self.monotonic()
        self._idle.append(session)

    def _open(self) -> Session:
        try:
            return Session(self._connect(), self.monotonic())
        except smtplib.SMTPResponseException as answer:
            text = replies.words(answer.smtp_error)
            kind = Throttled if 400 <= answer.smtp_code < 500 else Unreachable  # it says nothing about this mail
            reason = f"{self.where} turned the connection down: {answer.smtp_code} {text}; {_cure(answer)}."
            raise kind(reason) from answer
        except (OSError, UnicodeError, smtplib.SMTPException) as problem:
            raise self._broken(problem, "connecting") from problem

    def _connect(self) -> Conversation:
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
                _greet(smtp)  # RFC 3207, section 4.2: what it said before may have been forged
            if settings.mail_username:
                smtp.login(settings.mail_username, settings.mail_password or "")
        except BaseException:
            smtp.close()
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
    def _explaining(self, session: Session) -> Iterator[None]:
        """Turn what a session raises into the application's errors, and lay it aside or drop it."""
        try:
            yield
        except ReplyError as answer:
            if answer.code == replies.CLOSING:
                session.give_up()
            else:
                session.refused = True
                self._lay_aside(session)
            reason = f"{self.where} answered {session.step} with {answer.code} {answer.text}"
            raise replies.meaning(answer.code, answer.text)(reason) from None
        except (OSError, smtplib.SMTPException) as problem:
            session.give_up()
            raise self._broken(problem, session.step, in_doubt=session.in_doubt) from problem
        except BaseException:
            session.give_up()
            raise

    def _broken(self, problem: Exception, step: str, *, in_doubt: bool = False) -> AttemptFailed:
        cause = problem.__context__ if isinstance(problem.__context__, OSError) else problem  # smtplib hides timeouts
        kind: type[AttemptFailed] = Unreachable
        what = f"failed ({step}): {replies.words(str(cause))}"
        if isinstance(cause, TimeoutError):
            limit = self.settings.mail_timeout
            what = f"gave no answer within {limit:g} s, or not all of them within {PATIENCE * limit:g} s ({step})"
            kind = TimedOut
        reason = f"{self.where} {what}; {_cure(cause)}."
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
    lines = re.sub(rb"\r\n|\r|\n", b"\r\n", content).removesuffix(b"\r\n") + b"\r\n"
    return re.sub(rb"(?m)^\.", b"..", lines) + b".\r\n"
