"""The interface of mail backends."""

from datetime import datetime

from app.mail.envelope import OutgoingMail
from config import Settings


class Backend:
    """Hands mails over. One object serves all threads."""

    def __init__(self, settings: Settings) -> None: ...

    def deliver(self, mail: OutgoingMail) -> None:
        """Hand the mail over for good. Raises one of app.errors' kinds of AttemptFailed."""
        raise NotImplementedError

    def check(self) -> None:
        """See whether deliver() would work, without delivering. Raises as it does."""

    def find(self, message_id: str, at: datetime) -> bytes | None:
        """The mail that was delivered about then, as a person reads it; None where it is not kept, or not any more."""
        return None

    def close(self) -> None:
        """Give up what is held open."""
