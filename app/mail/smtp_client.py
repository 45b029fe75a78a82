"""An SMTP client with deadlines: smtplib's, for one connection that is used again."""

import contextlib
import math
import os
import smtplib
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from typing import Any

from app.mail import replies
from app.text import one_line

TIMEOUTS_PER_CONVERSATION = 3
"""A conversation may last this many times MAIL_TIMEOUT: a server can be slow at every step, or drip byte by byte."""

MAX_REPLY_BYTES = 8192
"""All lines of one reply: sixteen lines as long as RFC 5321 has them, or a hundred usual ones."""


class NegativeReply(Exception):
    """The server answered ``step`` with 4xx or 5xx."""

    def __init__(self, step: str, code: int, text: str) -> None:
        super().__init__(step, code, text)
        self.step, self.code, self.text = step, code, text


class SmtpClient(smtplib.SMTP):
    """smtplib's client with limits to how long a reply is and how long it may take; one thread uses it at a time.

    A socket's own timeout begins anew with every byte. Raises NegativeReply, after which RSET makes the connection
    usable again unless the code is 421; or OSError, as which SMTPException counts too, after which nothing does.
    """

    unread = b""
    mails_sent = 0
    idle_since = 0.0
    needs_reset = False
    in_doubt = False
    step = ""

    def start_deadline(self) -> None:
        """Give the conversation its whole time from now on, and each read one timeout."""
        self.pid = os.getpid()
        self.deadline = time.monotonic() + TIMEOUTS_PER_CONVERSATION * self.timeout
        self.read_timeout_seconds = self.timeout
        if self.sock is not None:
            self.sock.settimeout(self.timeout)

    def connect(self, host: str, port: int, *_: Any) -> tuple[int, bytes]:  # type: ignore[override]
        """Connect to the first of the host's addresses that takes the connection, and read its greeting.

        The addresses share one timeout: smtplib would give it to each. What a name server takes is not in it.
        """
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = list(dict.fromkeys(str(address[0]) for *_, address in found))
        self.start_deadline()
        timeout, connected_by = self.timeout, time.monotonic() + self.timeout
        while True:
            self.sock = None
            self.timeout = max(0.001, connected_by - time.monotonic()) / len(addresses)
            try:
                return super().connect(addresses.pop(0), port)
            except OSError:
                if self.sock is not None or not addresses:
                    self.abort()
                    raise
            finally:
                self.timeout = timeout

    def greet(self) -> None:
        code, text = self.ehlo()
        if code // 100 != 2:
            raise smtplib.SMTPHeloError(code, text)

    def encrypt(self, tls: ssl.SSLContext) -> None:
        self.starttls(context=tls)
        self.unread = b""  # RFC 3207, section 4.2: what came before may have been forged
        self.greet()

    def start_mail(self, sender: str, recipient: str) -> None:
        """MAIL, RCPT and DATA, until the server waits for the message. Nothing is handed over yet."""
        self.in_doubt = False
        commands = f"MAIL FROM:<{sender}>", f"RCPT TO:<{recipient}>", "DATA"
        if self.has_extn("pipelining"):
            self._pipeline(commands)
        else:
            for command in commands:
                self.command(command)
        if self.unread:
            raise smtplib.SMTPException(f"{one_line(self.unread)!r} answers nothing that was asked")

    def send_content(self, content: bytes) -> None:
        """Hand the message over. From its end to a reply that makes sense, its fate is in doubt."""
        self.step = "the message"
        self.send(content)
        self.in_doubt = True
        self.read_timeout_seconds = math.inf  # RFC 5321, section 4.5.3.2.6: giving up early makes copies
        self.read_reply(self.step)
        self.mails_sent += 1

    def command(self, command: str) -> None:
        self.step = command[:4]
        self.send(f"{command}\r\n")
        self.read_reply(self.step)

    def read_reply(self, step: str) -> None:
        """Read the reply to ``step``: 3xx is what DATA wants, 2xx all others."""
        self.step = step
        code, text = self.getreply()
        if code == replies.CLOSING:
            self.abort()
        if code // 100 in (4, 5):
            raise NegativeReply(step, code, one_line(text))
        if code // 100 != (3 if step == "DATA" else 2):
            raise smtplib.SMTPException(f"{code} {one_line(text)!r} is no answer that SMTP knows")

    def getreply(self) -> tuple[int, bytes]:
        """A whole reply: its code, -1 where that is no number, and its lines' texts. smtplib reads replies by this."""
        texts: list[bytes] = []
        bytes_left = MAX_REPLY_BYTES
        while True:
            line = self._line(bytes_left)
            bytes_left -= len(line)
            texts.append(line[4:].strip())
            if not line[:3].isdigit():
                return -1, b"\n".join(texts)
            if line[3:4] != b"-":
                return int(line[:3]), b"\n".join(texts)

    def reset(self) -> bool:
        """Forget what a refused mail left behind (RSET). False where the connection is not alive. Never raises."""
        self.needs_reset = True
        with contextlib.suppress(NegativeReply, OSError):
            self.command("RSET")
            self.needs_reset = False
        return not self.needs_reset

    def leave(self) -> None:
        """Say QUIT and close, without waiting for the reply. Never raises."""
        with contextlib.suppress(OSError):
            self.send("QUIT\r\n")
        self.abort()

    def abort(self) -> None:
        """Close without QUIT, as is right for a connection that broke or belongs to a parent process."""
        with contextlib.suppress(OSError):
            self.close()

    def _pipeline(self, commands: Sequence[str]) -> None:
        """Send the commands in one packet (RFC 2920). The first refusal counts, even if the connection breaks."""
        self.step = "MAIL"
        self.send("".join(f"{command}\r\n" for command in commands))
        refusals: list[NegativeReply] = []
        try:
            for command in commands:
                refusals += _refusal_of(self.read_reply, command[:4])
            self._end_data([refusal.step for refusal in refusals])
        except OSError:
            self.abort()
            if not refusals:
                raise
        if refusals:
            raise refusals[0]

    def _end_data(self, refused: Sequence[str]) -> None:
        """Where DATA was accepted after a refusal, the server waits for a message all the same (section 3.1)."""
        if refused and "DATA" not in refused:
            if "RCPT" in refused:
                _refusal_of(self.command, ".")  # an empty message, to nobody
            else:
                self.abort()  # it took the recipient, who must not get an empty mail

    def _line(self, limit: int) -> bytes:
        while b"\n" not in self.unread[: limit + 1]:
            if len(self.unread) > limit:
                raise smtplib.SMTPException("its answer doesn't end")
            self.unread += self._receive()
        line, _, self.unread = self.unread.partition(b"\n")
        return line

    def _receive(self) -> bytes:
        seconds_left = self.deadline - time.monotonic()
        if seconds_left <= 0:
            raise TimeoutError
        if self.sock is None:
            raise smtplib.SMTPServerDisconnected("Connection is closed")
        self.sock.settimeout(min(seconds_left, self.read_timeout_seconds))
        if not (received := self.sock.recv(MAX_REPLY_BYTES)):
            raise smtplib.SMTPServerDisconnected("Connection unexpectedly closed")
        return received


class TlsSmtpClient(SmtpClient, smtplib.SMTP_SSL):
    """The same, with TLS from the first byte."""


def _refusal_of(ask: Callable[[str], None], step: str) -> list[NegativeReply]:
    try:
        ask(step)
    except NegativeReply as refusal:
        return [refusal]
    return []
