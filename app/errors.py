"""Every error this application raises on purpose, in one tree.

A class's docstring is its default message: what went wrong, and the cure.
"""

import inspect

from app.states import Outcome


class AppError(Exception):
    """Something went wrong in the order service."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or " ".join((inspect.getdoc(type(self)) or "").split()))


class OutsideTransaction(AppError):
    """A durable signal was sent outside a transaction. Send it inside db.transact(work), so that the event is
    stored together with the change it reports."""


class NestedTransaction(AppError):
    """db.transact() was called inside a transaction. Pass the outer transaction on instead."""


class DatabaseUnavailable(AppError):
    """The database can't take it now; nothing was stored. Try again in a moment."""

    def __init__(self, message: str | None = None, *, cure: str | None = None) -> None:
        """``cure`` is what an operator can do about it, where that is known."""
        super().__init__(message)
        self.cure = cure

    @property
    def reason(self) -> str:
        """The database's own words, on one line, without the statement and its values; and the cure."""
        words = str(self._told).partition("\n")[0]
        return f"{words}; {self.cure}" if self.cure else words

    @property
    def public_reason(self) -> str | None:
        """The reason, where it can name neither host nor user: a database's answer to a statement, and our own words.

        None of a connection that could not be had or broke: of that drivers give no code.
        """
        told = self._told
        codes = (getattr(told, name, None) for name in ("sqlite_errorcode", "sqlstate"))
        return self.reason if told is self or any(code is not None for code in codes) else None

    @property
    def _told(self) -> BaseException:
        """The driver's error."""
        cause: BaseException = self
        while isinstance(cause, AppError) and cause.__cause__ is not None:
            cause = cause.__cause__
        return getattr(cause, "orig", None) or cause


class BrokerUnavailable(AppError):
    """The broker can't be reached, or does not take messages. See to what CELERY_BROKER_URL names."""


class DatabaseUnusable(AppError):
    """There is no database where DATABASE_URL and INSTANCE_PATH say, and none can be made."""


class TransactionLost(AppError):
    """The database has ended the transaction; all that was done in it is undone."""


class NoTemporaryFolder(AppError):
    """No folder takes a temporary file: /dev/shm, /tmp and INSTANCE_PATH are missing, full or read-only. Make one
    writable."""


class SchemaBehind(AppError):
    """The database schema is behind the code. Did you forget to run 'flask db upgrade'?"""


class SchemaAhead(AppError):
    """The database schema is newer than the code. Start the newer version of the code."""


class BackupFailed(AppError):
    """The backup was not made, or not restored. What was there before is as it was."""


class MoveFailed(AppError):
    """The data was not moved. The source is as it was, and the target is empty."""


class LeaseLost(AppError):
    """The lease ran out and another dispatcher has taken the delivery over; this result is not recorded."""


class OrderConflict(AppError):
    """An order with this order_id exists with other content."""


class OrderNotFound(AppError):
    """There is no order with this order_id."""


class UserNotFound(AppError):
    """There is no user with this user_id."""


class DeliveryNotFound(AppError):
    """There is no delivery with this number."""


class ActNotFound(AppError):
    """There is no operator's act with this number."""


class SpreadTooLong(AppError):
    """An act can't be spread over longer than a delivery may wait, which is RETRY_MAX_SECONDS."""


class UnknownReceiver(AppError):
    """No receiver has this name."""


class ReplayRefused(AppError):
    """The events can't be replayed to this receiver."""


class AttemptFailed(AppError):
    """An attempt at a delivery failed. Receivers raise one of the kinds below when they know why."""

    outcome = Outcome.BUG

    def __init__(self, message: str | None = None, *, code: int | None = None, enhanced: str | None = None) -> None:
        """``code`` and ``enhanced`` are the reply's, such as 450 and "4.7.1", where there was one."""
        super().__init__(message)
        self.code, self.enhanced = code, enhanced


class Refused(AttemptFailed):
    """The other side refused for good; trying again cannot help."""

    outcome = Outcome.REFUSED


class Deferred(AttemptFailed):
    """The other side can't take it now and asks to try later."""

    outcome = Outcome.DEFERRED


class Throttled(AttemptFailed):
    """The other side takes less than we send; try later, and slower."""

    outcome = Outcome.THROTTLED


class Unreachable(AttemptFailed):
    """The other side can't be reached."""

    outcome = Outcome.UNREACHABLE


class TimedOut(AttemptFailed):
    """The other side did not answer in time."""

    outcome = Outcome.TIMEOUT


class InDoubt(AttemptFailed):
    """The other side had everything and may have done it; its answer got lost."""

    outcome = Outcome.UNKNOWN
