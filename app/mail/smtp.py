"""The SMTP backend: its connections are kept open and used again.

A thread that sends takes an idle connection or opens one, and leaves it for the next mail. Until the server has
accepted DATA no message was handed over: so when a *reused* connection breaks before, the mail silently goes on a new
one.
"""

import collections
import contextlib
import functools
import os
import re
import smtplib
import ssl
import time
from collections.abc import Iterator, Mapping
from typing import Any

from app.errors import AttemptFailed, InDoubt, Unreachable
from app.mail import smtp_failures
from app.mail.backend import Backend
from app.mail.envelope import Envelope, OutgoingMail, envelope_address
from app.mail.smtp_client import NegativeReply, SmtpClient, TlsSmtpClient
from config import Settings

MAX_IDLE_SECONDS = 30
"""A connection unused for longer is not used again; servers close it after minutes (RFC 5321, section 4.5.3.2.7)."""

UNPROBED_SECONDS = 1
"""A connection unused for longer is probed by RSET: some servers close an idle one with a reply other than 421."""

MAILS_PER_CONNECTION = 100


class SmtpBackend(Backend):
    """Sends to MAIL_SERVER. Certificates are always verified, with STARTTLS and with TLS from the first byte."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.server = f"{settings.mail_server}:{settings.mail_port}"
        self.ehlo_name = settings.mail_ehlo_name or envelope_address(settings.mail_default_sender).rpartition("@")[2]
        self.monotonic = time.monotonic
        self._idle: collections.deque[SmtpClient] = collections.deque()

    def deliver(self, mail: OutgoingMail) -> None:
        content = _with_dots(mail.content())
        client = self._client_for(mail.envelope)
        with self._failures(client):
            client.send_content(content)
        self._keep(client)

    def check(self) -> None:
        """Connect, greet, encrypt and log in as for a mail; then NOOP and QUIT."""
        client = self._open()
        with self._failures(client):
            client.command("NOOP")
        client.leave()

    def close(self) -> None:
        while (client := self._pop()) is not None:
            client.leave()

    def _client_for(self, envelope: Envelope) -> SmtpClient:
        """A client whose server waits for the message."""
        if (reused := self._reusable()) is not None:
            try:
                return self._started(reused, envelope)
            except AttemptFailed:
                if reused.sock is not None:
                    raise  # the server's answer to this mail; otherwise only the old connection's end
        return self._started(self._open(), envelope)

    def _started(self, client: SmtpClient, envelope: Envelope) -> SmtpClient:
        with self._failures(client):
            client.start_mail(*envelope)
        return client

    def _reusable(self) -> SmtpClient | None:
        while (client := self._pop()) is not None:
            client.start_deadline()
            idle_seconds = self.monotonic() - client.idle_since
            if idle_seconds > MAX_IDLE_SECONDS or client.mails_sent >= MAILS_PER_CONNECTION:
                client.leave()
            elif (idle_seconds <= UNPROBED_SECONDS and not client.needs_reset) or client.reset():
                return client
            else:
                client.abort()
        return None

    def _pop(self) -> SmtpClient | None:
        """The client used last. Those of a parent process, which still uses them, are closed without QUIT."""
        with contextlib.suppress(IndexError):
            while (client := self._idle.pop()).pid != os.getpid():
                client.abort()
            return client
        return None

    def _keep(self, client: SmtpClient) -> None:
        client.idle_since = self.monotonic()
        self._idle.append(client)

    def _open(self) -> SmtpClient:
        try:
            return self._connected()
        except smtplib.SMTPResponseException as reply:
            raise smtp_failures.session_rejected(self.server, reply) from reply
        except (OSError, UnicodeError) as problem:
            raise self._broken(problem, "connecting") from problem

    def _connected(self) -> SmtpClient:
        host, port, timeout = str(self.settings.mail_server), self.settings.mail_port, self.settings.mail_timeout
        if self.settings.mail_use_ssl:
            client: SmtpClient = TlsSmtpClient(host, port, self.ehlo_name, timeout=timeout, context=self._tls)
        else:
            client = SmtpClient(host, port, self.ehlo_name, timeout=timeout)
        try:
            client.greet()
            if self.settings.mail_use_tls:
                client.encrypt(self._tls)
            if self.settings.mail_username:
                client.login(self.settings.mail_username, self.settings.mail_password or "")
        except BaseException:
            client.abort()
            raise
        return client

    @functools.cached_property
    def _tls(self) -> ssl.SSLContext:
        path = self.settings.mail_ca_file
        try:
            return ssl.create_default_context(cafile=path)
        except OSError as problem:
            raise Unreachable(f"{path} can't be read: {problem}; set MAIL_CA_FILE to a PEM file.") from problem

    @contextlib.contextmanager
    def _failures(self, client: SmtpClient) -> Iterator[None]:
        """Turn what a client raises into the application's errors, and keep it or close it."""
        try:
            yield
        except NegativeReply as reply:
            client.needs_reset = True
            if client.sock is not None:
                self._keep(client)
            raise smtp_failures.mail_refused(self.server, reply) from None
        except OSError as problem:
            client.abort()
            failure = self._broken(problem, client.step)
            raise (InDoubt(f"{failure}{smtp_failures.IN_DOUBT}") if client.in_doubt else failure) from problem
        except BaseException:
            client.abort()
            raise

    def _broken(self, problem: Exception, step: str) -> AttemptFailed:
        return smtp_failures.connection_broken(self.server, problem, step, self.settings.mail_timeout)


def _with_dots(content: bytes) -> bytes:
    """The content with CRLF line ends, its dots doubled, and the end mark (RFC 5321, section 4.5.2)."""
    if not content.count(b"\r\n") == content.count(b"\r") == content.count(b"\n"):
        content = re.sub(rb"\r\n|\r|\n", b"\r\n", content)
    lines = (b"\r\n" + content.removesuffix(b"\r\n")).replace(b"\r\n.", b"\r\n..")
    return lines[2:] + b"\r\n.\r\n"


def reach(settings: Settings, used: Mapping[str, Any]) -> None:
    """See whether the mail server answers that another process has ``used`` with those settings of its own.

    It does not log in: nobody has recorded a password. Raises as ``SmtpBackend.check``.
    """
    theirs = {name: used[name] for name in ("mail_server", "mail_port", "mail_use_tls", "mail_use_ssl")}
    SmtpBackend(settings.model_copy(update={**theirs, "mail_username": None})).check()
