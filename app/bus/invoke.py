"""Invoke: a delivery in, its receiver's answer out. Touches no table of the bus; any engine can use it."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from app import signal
from app.answers import Discard, Done, RetryAfter
from app.bus import lifecycle
from app.bus.leases import Lease
from app.bus.outbox import caused_by
from app.clock import Clock
from app.db import Transaction
from app.errors import AttemptFailed, DatabaseUnavailable
from app.states import Outcome
from app.text import described, storable, words_of

MISSING_RECEIVER_WAIT_SECONDS = 60.0
"""After so long a delivery without a receiver is looked at again, and after so long it counts as being without one."""

DATABASE_WAIT_SECONDS = 5.0
"""Until the next try of a delivery whose receiver could not read the database."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A failed attempt; without ``outcome`` none was made. A ``final`` one is not tried again, whatever the policy."""

    outcome: Outcome | None
    detail: str
    final: bool = False
    code: int | None = None
    """Of the other side's reply, such as SMTP's 450."""
    enhanced: str | None = None
    """Such as 4.7.1 (RFC 3463)."""


class NotBegun:
    """The receiver was not called: the delivery is due again at once, and no attempt is spent."""


UNSTORED_WAIT_SECONDS = 30.0
"""Until the next try of a delivery whose transactional receiver did what could not be stored, and so is undone."""

Answer = Done | Discard | RetryAfter | Failure | NotBegun


@dataclass(frozen=True, slots=True)
class Invoker:
    """Calls receivers. ``context`` is entered around each call: a Flask application context."""

    context: Callable[[], AbstractContextManager[Any]]
    options: Mapping[str, signal.ReceiverOptions]
    clock: Clock
    missing_after: timedelta
    sender: object
    """Of the lifecycle signals that are sent here."""

    def invoke(self, lease: Lease, transaction: Transaction | None = None) -> Answer:
        """The receiver's answer; whatever it raises is a Failure. ``transaction`` is for a receiver that takes one.

        Raises only what is the database's trouble and not the receiver's.
        """
        subscription = find_subscription(lease)
        if subscription is None:
            return self._without_receiver(lease)
        if lease.in_doubt and self.options[lease.receiver].hold_unknown:
            return Failure(None, "its last attempt's outcome is unknown; retry it, or discard it", final=True)
        if fate := self._fate(lease, lease.unknown):
            return Failure(None, fate, final=True)
        try:
            event = signal.decode(lease.type, lease.version, lease.data)
        except BaseException as error:  # decode's own ValueError, or whatever the event's class raises
            return Failure(Outcome.BUG, storable(f"undecodable event: {words_of(error)}"), final=True)
        return self._call(subscription, lease, event, transaction)

    def _failed(self, lease: Lease, error: AttemptFailed) -> Failure:
        if error.outcome is not Outcome.UNKNOWN:
            return Failure(error.outcome, storable(words_of(error)), code=error.code, enhanced=error.enhanced)
        if fate := self._fate(lease, lease.unknown + 1):
            return Failure(error.outcome, storable(f"{fate}. {words_of(error)}"), final=True)
        return Failure(error.outcome, storable(words_of(error)), final=self.options[lease.receiver].hold_unknown)

    def _fate(self, lease: Lease, unknown: int) -> str | None:
        """Why it is given up after so many unknown attempts; None where it may be tried again."""
        limit = self.options[lease.receiver].unknown_limit
        if limit is None or unknown < limit:
            return None
        return f"its fate is unknown: up to {unknown} copies may have arrived; retry it, or discard it"

    def _call(
        self, subscription: signal.Subscription, lease: Lease, event: signal.Event, transaction: Transaction | None
    ) -> Answer:
        lease.running = True
        try:
            with self.context(), caused_by(lease):
                answer = subscription.receiver(lease.source, **_arguments(subscription, lease, event, transaction))
                if transaction is not None:
                    transaction.flush()
                return _checked(answer)
        except AttemptFailed as error:
            return self._failed(lease, error)
        except DatabaseUnavailable as error:  # no fault of this delivery's
            return RetryAfter(DATABASE_WAIT_SECONDS, words_of(error))
        except BaseException as error:  # foreign code may raise SystemExit too, and this thread serves others
            if transaction is not None and transaction.dialect.is_transient(error):
                raise
            lifecycle.report(lifecycle.receiver_raised, self.sender, lease=lease, error=error)
            return bug(error)
        finally:
            lease.running = False

    def _without_receiver(self, lease: Lease) -> Answer:
        """Neither silence nor an endless loop, and no attempt spent: a newer version of the code may have it."""
        lifecycle.report(lifecycle.receiver_missing, self.sender, lease=lease)
        reason = f"no receiver named {lease.receiver!r} is connected to {lease.type}; connect it, or discard this"
        if self.clock.now() - lease.created_at > self.missing_after:
            return Failure(None, reason, final=True)
        return RetryAfter(MISSING_RECEIVER_WAIT_SECONDS, reason)


def undone(error: BaseException) -> RetryAfter:
    """The answer for a receiver whose transaction could not be committed: no attempt was spent."""
    reason = error.reason if isinstance(error, DatabaseUnavailable) else described(error)
    return RetryAfter(UNSTORED_WAIT_SECONDS, f"what it did can't be stored: {reason}".partition("\n")[0])


def bug(error: BaseException) -> Failure:
    return Failure(Outcome.BUG, storable(described(error)))


def find_subscription(lease: Lease) -> signal.Subscription | None:
    """The subscription that the delivery was recorded for, if it still exists."""
    carrier = signal.SIGNALS.get(lease.type)
    return carrier.subscriptions.get(lease.receiver) if carrier else None


def is_transactional(lease: Lease) -> bool:
    """Whether its receiver runs inside the transaction that ends its delivery."""
    subscription = find_subscription(lease)
    return subscription is not None and subscription.transactional


def _arguments(
    subscription: signal.Subscription, lease: Lease, event: signal.Event, transaction: Transaction | None
) -> dict[str, Any]:
    """The arguments that the receiver's parameters name. A session is made only for a receiver that takes one."""
    offered: dict[str, Any] = {"event": event, "delivery": lease, "transaction": transaction}
    if transaction is not None and "session" in subscription.parameters:
        offered["session"] = transaction.session
    return {name: value for name, value in offered.items() if name in subscription.parameters}


def _checked(answer: Any) -> Answer:
    match answer:
        case None:
            return Done()
        case Done() | Discard() | RetryAfter():
            return answer
    return Failure(Outcome.BUG, storable(f"it returned {answer!r}; return nothing, Done, Discard or RetryAfter"))
