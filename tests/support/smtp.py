"""A real SMTP server on loopback that misbehaves on demand.

    with SmtpServer() as server:
        server.on("RCPT", "550 5.1.1 no such user", when="nobody@")
        ...
        assert server.wait_for(1)[0].message_id == "<...>"

Phases, in the order of a conversation: CONNECT EHLO STARTTLS AUTH MAIL RCPT DATA END ACCEPTED, and RSET NOOP QUIT.
END is the end of the message, not yet kept; at ACCEPTED it is kept, but the client doesn't know it. The argument of
both is the recipients.

Actions: a reply ("451 4.3.0 later"; after a 421 the server hangs up), HANG, CUT (reset the connection), CLOSE, a Hold,
a Pause, a Drip, or a function of the command's argument that gives a reply or None. Without a reply the conversation
goes on as usual.
"""

import asyncio
import atexit
import contextlib
import dataclasses
import functools
import shutil
import socket
import ssl
import tempfile
import threading
from collections.abc import Awaitable, Callable, Coroutine
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from pathlib import Path
from typing import Any, Literal, Self

import trustme
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

WAIT_SECONDS = 5.0
"""Anything here is waited for at most so long."""

COMMANDS = ("EHLO", "STARTTLS", "AUTH", "MAIL", "RCPT", "DATA", "RSET", "NOOP", "QUIT")
PHASES = ("CONNECT", *COMMANDS, "END", "ACCEPTED")


class Misdeed:
    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name


HANG = Misdeed("HANG")
CUT = Misdeed("CUT")
CLOSE = Misdeed("CLOSE")


class Hold:
    """An action that waits until the test lets it go on."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._released = asyncio.Event()
        self._arrived = threading.Semaphore(0)

    def wait_for(self, count: int = 1) -> None:
        """Wait until ``count`` more conversations have got here."""
        for _ in range(count):
            assert self._arrived.acquire(timeout=WAIT_SECONDS), "no conversation got here"

    def release(self) -> None:
        self._loop.call_soon_threadsafe(self._released.set)

    async def __call__(self) -> None:
        self._arrived.release()
        await self._released.wait()


@dataclasses.dataclass(frozen=True)
class Pause:
    """An action that takes its time."""

    seconds: float


@dataclasses.dataclass(frozen=True)
class Drip:
    """A reply, of which one byte comes every so many ``seconds``."""

    reply: str
    seconds: float


Action = str | Misdeed | Hold | Pause | Drip | Callable[[str], str | None]


@dataclasses.dataclass
class Rule:
    actions: tuple[Action, ...]
    when: str
    times: float


@dataclasses.dataclass(frozen=True)
class Received:
    """A message the server took, over which connection (the first is 1), from and to whom."""

    connection: int
    sender: str
    recipients: list[str]
    content: bytes

    @functools.cached_property
    def email(self) -> EmailMessage:
        message = message_from_bytes(self.content, policy=default)
        assert isinstance(message, EmailMessage)
        return message

    @property
    def message_id(self) -> str:
        return str(self.email["Message-ID"]).strip()  # a long one stands on a line of its own


class SmtpServer:
    """Listens on a free port from the ``with`` on; ``stop()`` and ``start()`` take it down and up on the same one."""

    def __init__(
        self,
        *,
        tls: Literal["starttls", "ssl"] | None = None,
        certificate_for: str = "localhost",
        users: dict[str, str] | None = None,
        pipelining: bool = True,
    ) -> None:
        self.host, self.port = "localhost" if tls else "127.0.0.1", 0
        self.address = "127.0.0.1"
        """Where it listens."""
        self.tls, self.users, self.pipelining = tls, users or {}, pipelining
        self.received: list[Received] = []
        self.commands: list[tuple[int, str]] = []
        self.connections = 0
        self._tls_context = _server_context(certificate_for) if tls else None
        self._rules: dict[str, list[Rule]] = {phase: [] for phase in PHASES}
        self._open: set[_Conversation] = set()
        self._changed = threading.Condition()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="smtp-server", daemon=True)
        self._server: asyncio.Server | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._run(_end_tasks())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(WAIT_SECONDS)
        self._loop.close()

    @property
    def settings(self) -> dict[str, Any]:
        """What config.Settings needs to send here."""
        given: dict[str, Any] = {"mail_backend": "smtp", "mail_server": self.host, "mail_port": self.port}
        if self.tls:
            given |= {
                "mail_use_tls": self.tls == "starttls",
                "mail_use_ssl": self.tls == "ssl",
                "mail_ca_file": ca_file(),
            }
        for name, password in self.users.items():
            given |= {"mail_username": name, "mail_password": password}
        return given

    @property
    def open_connections(self) -> int:
        return len(self._open)

    def verbs(self, connection: int | None = None) -> list[str]:
        """The commands that came, without their arguments; on all connections, or on one."""
        return [line.partition(" ")[0] for number, line in list(self.commands) if connection in (None, number)]

    def on(self, phase: str, *actions: Action, when: str = "", times: float = float("inf")) -> None:
        """At ``phase``, if its argument has ``when`` in it, do ``actions``: from now on, or only ``times`` times."""
        self._rules[phase].append(Rule(actions, when, times))

    def hold(self, phase: str) -> Hold:
        """Let conversations wait at ``phase`` until the Hold's release()."""
        hold = Hold(self._loop)
        self.on(phase, hold)
        return hold

    def greylist(self) -> None:
        """Turn every recipient down the first time."""
        seen: set[str] = set()

        def first_time(recipient: str) -> str | None:
            if recipient in seen:
                return None
            seen.add(recipient)
            return "450 4.7.1 Greylisted, come back later"

        self.on("RCPT", first_time)

    def heal(self) -> None:
        """Forget all misbehaviour."""
        for rules in self._rules.values():
            rules.clear()

    def wait_for(self, count: int) -> list[Received]:
        """The received messages, as soon as there are at least ``count``."""
        self._wait(lambda: len(self.received) >= count, f"{count} messages")
        return self.received

    def wait_until_left(self) -> None:
        """Until no client is connected any more."""
        self._wait(lambda: not self._open, "the end of all connections")

    def close_connections(self, farewell: str | None = None) -> None:
        """Close what is open now, as servers do with idle clients; returns when it is closed."""
        self._run(self._close_all(farewell))
        self.wait_until_left()

    def start(self) -> None:
        self._run(self._listen())

    def stop(self) -> None:
        """Stop listening and reset what is open."""
        self._run(self._silence())
        self.wait_until_left()

    async def _listen(self) -> None:
        self._server = await self._loop.create_server(
            lambda: _Conversation(self, self._loop),
            self.address,
            self.port,
            ssl=self._tls_context if self.tls == "ssl" else None,
            ssl_shutdown_timeout=0.1 if self.tls == "ssl" else None,
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def _silence(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for conversation in list(self._open):
            conversation.cut()

    async def _close_all(self, farewell: str | None) -> None:
        for conversation in list(self._open):
            if farewell:
                await conversation.push(farewell)
            conversation.close()

    def _run(self, coroutine: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(WAIT_SECONDS)

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, WAIT_SECONDS), (
                f"waited for {what} in vain; commands: {self.commands}"
            )

    def _came(self, conversation: "_Conversation") -> int:
        self._open.add(conversation)
        self.connections += 1
        return self.connections

    def _went(self, conversation: "_Conversation") -> None:
        with self._changed:
            self._open.discard(conversation)
            self._changed.notify_all()

    def _keep(self, received: Received) -> None:
        with self._changed:
            self.received.append(received)
            self._changed.notify_all()

    def _rule_for(self, phase: str, argument: str) -> tuple[Action, ...]:
        for rule in self._rules[phase]:
            if rule.times > 0 and rule.when in argument:
                rule.times -= 1
                return rule.actions
        return ()


_SAID = "(the reply was given)"


class _Conversation(SMTP):
    """One connection. Every command asks the server's rules before it is obeyed."""

    def __init__(self, server: SmtpServer, loop: asyncio.AbstractEventLoop) -> None:
        context = server._tls_context if server.tls == "starttls" else None
        super().__init__(
            self,
            hostname="localhost",
            loop=loop,
            tls_context=context,
            auth_require_tls=False,
            authenticator=_authenticate,
        )
        self.server = server
        self.number = 0

    async def _handle_client(self) -> None:
        self.number = self.number or self.server._came(self)
        try:
            if await self.goes_on("CONNECT"):
                await super()._handle_client()
        finally:  # also when the client has gone, which cancels us
            self.close()

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        self.server._went(self)

    async def goes_on(self, phase: str, argument: str | None = "") -> bool:
        """Do what the rules say; false when a reply was given."""
        replied = False
        for action in self.server._rule_for(phase, argument or ""):
            if isinstance(action, str):
                replied = True
                await self.say(action)
            elif isinstance(action, Hold):
                await action()
            elif isinstance(action, Pause):
                await asyncio.sleep(action.seconds)
            elif isinstance(action, Drip):
                replied = True
                await self.drip(action)
            elif isinstance(action, Misdeed):
                if action is not HANG:
                    self.cut() if action is CUT else self.close()
                await asyncio.Event().wait()  # until the connection's end cancels it
            elif reply := action(argument or ""):
                replied = True
                await self.say(reply)
        return not replied

    async def say(self, reply: str) -> None:
        await self.push(reply)
        if reply.startswith("421"):
            self.close()

    async def drip(self, slowly: Drip) -> None:
        for byte in f"{slowly.reply}\r\n".encode():
            if isinstance(self.transport, asyncio.WriteTransport) and not self.transport.is_closing():
                self.transport.write(bytes([byte]))
                await asyncio.sleep(slowly.seconds)

    async def push(self, status: Any) -> None:
        if status != _SAID:
            await super().push(status)

    def cut(self) -> None:
        """Reset the connection: what was not sent yet is lost."""
        if isinstance(self.transport, asyncio.Transport):
            with contextlib.suppress(AttributeError, OSError):
                linger = b"\1\0\0\0\0\0\0\0"
                self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.transport.abort()

    def close(self) -> None:
        if self.transport is not None:
            self.transport.close()

    async def handle_EHLO(
        self, _: SMTP, session: Session, __: Envelope, hostname: str, answers: list[str]
    ) -> list[str]:
        session.host_name = hostname
        return [*answers[:-1], *["250-PIPELINING"] * self.server.pipelining, answers[-1]]

    async def handle_DATA(self, _: SMTP, __: Session, envelope: Envelope) -> str:
        recipients = " ".join(envelope.rcpt_tos)
        if not await self.goes_on("END", recipients):
            return _SAID
        assert isinstance(envelope.content, bytes)
        assert envelope.mail_from is not None
        self.server._keep(Received(self.number, envelope.mail_from, envelope.rcpt_tos, envelope.content))
        return "250 2.0.0 OK: queued" if await self.goes_on("ACCEPTED", recipients) else _SAID


def _scripted(verb: str) -> Callable[[_Conversation, str | None], Awaitable[None]]:
    async def command(self: _Conversation, argument: str | None) -> None:
        self.server.commands.append((self.number, f"{verb} {argument or ''}".strip()))
        if verb == "MAIL" and self.server.users and not (self.session and self.session.authenticated):
            await self.push("530 5.7.0 Authentication required")
        elif await self.goes_on(verb, argument):
            await getattr(SMTP, f"smtp_{verb}")(self, argument)

    return command


for _verb in COMMANDS:
    setattr(_Conversation, f"smtp_{_verb}", _scripted(_verb))


def _authenticate(conversation: SMTP, _: Session, __: Envelope, ___: str, given: Any) -> AuthResult:
    assert isinstance(conversation, _Conversation)
    assert isinstance(given, LoginPassword)
    good = conversation.server.users.get(given.login.decode()) == given.password.decode()
    return AuthResult(success=good, handled=False)


async def _end_tasks() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@functools.cache
def authority() -> trustme.CA:
    """A certificate authority that nobody trusts who doesn't read ca_file()."""
    return trustme.CA()


@functools.cache
def ca_file() -> Path:
    """The authority's PEM file, for MAIL_CA_FILE."""
    folder = tempfile.mkdtemp(prefix="smtp-ca-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = Path(folder) / "ca.pem"
    authority().cert_pem.write_to_path(str(path))
    return path


@functools.cache
def _server_context(name: str) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority().issue_cert(name).configure_cert(context)
    return context
