"""Flask-Mail that sends by one of four backends."""

import collections
import contextlib

import flask_mail
from flask import Flask, current_app
from flask_mail import Message, email_dispatched

from app.mail.backend import Backend
from app.mail.envelope import OutgoingMail, checked_message
from app.mail.local import ConsoleBackend, MemoryBackend
from app.mail.maildir import FileBackend
from app.mail.smtp import SmtpBackend
from config import Settings

BACKENDS: dict[str, type[Backend]] = {
    "smtp": SmtpBackend,
    "file": FileBackend,
    "console": ConsoleBackend,
    "memory": MemoryBackend,
}


def init_app(app: Flask, settings: Settings) -> "Mailer":
    """Put a Mailer in ``app.extensions["mailer"]``, and where Flask-Mail looks, ``app.extensions["mail"]``.

    Opens no connection and no file.
    """
    app.config.update(
        {name.upper(): value for name, value in settings if name.startswith("mail_")},
        MAIL_DEBUG=False,  # true prints the password; Flask-Mail's default is the application's debug mode
        MAIL_SUPPRESS_SEND=False,  # the memory backend is for tests
    )
    mailer = Mailer(app, BACKENDS[settings.mail_backend](settings))
    # It answers for Flask-Mail's state too, so that nobody sends past the backend by app.extensions["mail"].send().
    app.extensions["mail"] = app.extensions["mailer"] = mailer
    return mailer


class Mailer(flask_mail.Mail):
    """Flask-Mail that sends by a backend. One serves all threads."""

    def __init__(self, app: Flask, backend: Backend) -> None:
        super().__init__(app)
        self.backend = backend
        self.outbox: collections.deque[Message] = getattr(backend, "outbox", collections.deque())
        """The memory backend's messages, newest last; with other backends it stays empty."""

    def send(self, message: Message | OutgoingMail) -> None:
        """Send ``message`` to its one recipient; returns when the backend has accepted it. Needs an app context.

        Raises Refused (permanent: a 5xx reply, a bad address, a header with a line break), Deferred (4xx), Throttled
        (421, 452 and replies about rate), Unreachable or TimedOut; the exception's message holds the server's own
        words. Where the reply to the whole message is missing it is InDoubt: a copy may have arrived.
        """
        mail = checked_message(message) if isinstance(message, Message) else message
        self.backend.deliver(mail)
        try:
            if email_dispatched.receivers:  # else nobody needs the Message made
                email_dispatched.send(self.app, message=mail.message())
        except Exception:  # the mail is accepted: an error from here would send it again
            current_app.logger.exception("A receiver of email_dispatched failed; the mail was sent.")

    def connect(self) -> contextlib.nullcontext["Mailer"]:  # type: ignore[override]
        """Flask-Mail's ``with mailer.connect() as connection: connection.send(message)``.

        The backend keeps its connections itself: nothing opens or closes here.
        """
        return contextlib.nullcontext(self)

    def check(self) -> None:
        """Try the backend without sending: connect and log in, or write to the folder. Raises what send() raises."""
        self.backend.check()

    def close(self, *_: object, **__: object) -> None:
        """Take leave of the server: close open connections, each with QUIT. Sending afterwards opens new ones.

        Takes what a signal's listener is given.
        """
        self.backend.close()
