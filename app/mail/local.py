"""The backends ``console`` (stdout) and ``memory`` (a list)."""

import collections
import sys
from datetime import datetime

from flask_mail import Message

from app.errors import Unreachable
from app.mail.backend import Backend
from app.mail.envelope import OutgoingMail, readable
from config import Settings

OUTBOX_LIMIT = 1000
"""How many messages the memory backend remembers."""


class ConsoleBackend(Backend):
    """Prints headers and text to stdout."""

    def deliver(self, mail: OutgoingMail) -> None:
        """Raises Unreachable when stdout is closed."""
        message = mail.message()
        headers = readable(message).decode().partition("\n\n")[0]
        shown = f"{'-' * 78}\n{headers}\n\n{message.body or ''}\n{'-' * 78}\n"
        encoding = sys.stdout.encoding or "utf-8"
        try:
            sys.stdout.write(shown.encode(encoding, "backslashreplace").decode(encoding))
            sys.stdout.flush()
        except (OSError, ValueError) as problem:
            raise Unreachable(f"The mail can't be printed: {problem}; set MAIL_BACKEND to file.") from problem


class MemoryBackend(Backend):
    """Remembers the latest messages."""

    def __init__(self, settings: Settings) -> None:
        self.outbox: collections.deque[Message] = collections.deque(maxlen=OUTBOX_LIMIT)

    def deliver(self, mail: OutgoingMail) -> None:
        mail.content()  # what no server could get fails here too
        self.outbox.append(mail.message())

    def find(self, message_id: str, at: datetime) -> bytes | None:
        kept = (each for each in reversed(self.outbox) if each.msgId == message_id)
        return next(map(readable, kept), None)
