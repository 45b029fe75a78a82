"""The interface of mail backends."""

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

    def close(self) -> None:
        """Give up what is held open."""
