"""Settle: receivers' answers in, the ends of their leases out. Any engine can use it.

Events that an answer publishes are recorded in the transaction that ends the lease.
"""

from collections.abc import Iterable
from datetime import timedelta

from app import signal
from app.answers import Discard, Done, RetryAfter
from app.bus import leases
from app.bus.invoke import Answer, Failure, Invoker, NotBegun, bug, find_subscription
from app.bus.leases import Lease, LeaseEnd
from app.bus.outbox import caused_by, recording_savepoint
from app.db import Transaction
from app.errors import AppError, LeaseLost
from app.retry import Policy
from app.states import DeliveryState, Outcome
from app.text import storable

SHORTEST_WAIT_SECONDS = 1.0
"""Of a receiver that asks to be tried again: less would be a busy loop."""


def settle(transaction: Transaction, policy: Policy, answers: list[tuple[Lease, Answer]]) -> list[LeaseEnd]:
    """End the leases as their receivers answered; in one go, and where that can't be, one by one.

    Of a lease that was lost nothing stays, and none is returned. An answer that can't be stored, because it publishes
    what is no event, say, is a failed attempt.
    """
    if not answers:
        return []
    answers = sorted(answers, key=lambda each: leases.LOCK_ORDER(each[0]))
    try:
        with recording_savepoint(transaction):
            ends = [conclude(transaction, policy, lease, answer) for lease, answer in answers]
            leases.end(transaction, ends)
            return ends
    except Exception as error:
        if transaction.dialect.is_transient(error):
            raise
        if len(answers) > 1:
            return [end for each in answers for end in settle(transaction, policy, [each])]
        return _settle_otherwise(transaction, policy, *answers[0], error)


def _settle_otherwise(
    transaction: Transaction, policy: Policy, lease: Lease, answer: Answer, error: Exception
) -> list[LeaseEnd]:
    """The lease could not be ended by its own answer."""
    if isinstance(error, LeaseLost):
        return []
    if isinstance(error, AppError) or isinstance(answer, Failure):
        raise error
    return settle(transaction, policy, [(lease, bug(error))])


def deliver_within(transaction: Transaction, policy: Policy, invoker: Invoker, batch: list[Lease]) -> list[LeaseEnd]:
    """Call transactional receivers: their writes and their deliveries' ends stand or fall together.

    Leases that were lost are passed over; none of the others can be lost before the transaction ends. Of one user's
    deliveries, those of one transaction run at a time: each locks rows of the user and of the user's orders.
    """
    transaction.dialect.lock_keys(transaction.driver, [lease.user_id for lease in batch])
    held = leases.lock_held(transaction, batch)
    ends = [_deliver_one(transaction, policy, invoker, lease) for lease in held]
    leases.end(transaction, ends)
    return ends


def _deliver_one(transaction: Transaction, policy: Policy, invoker: Invoker, lease: Lease) -> LeaseEnd:
    """A savepoint around the receiver: of a failed attempt nothing stays."""
    answer: Answer
    try:
        with recording_savepoint(transaction):
            answer = invoker.invoke(lease, transaction)
            if isinstance(answer, Failure | RetryAfter):
                raise _Undo(answer)
            return conclude(transaction, policy, lease, answer)
    except _Undo as undo:
        answer = undo.answer
    except Exception as error:
        if transaction.dialect.is_transient(error):
            raise
        answer = bug(error)
    return conclude(transaction, policy, lease, answer)


class _Undo(Exception):
    def __init__(self, answer: Answer) -> None:
        self.answer = answer


def conclude(transaction: Transaction, policy: Policy, lease: Lease, answer: Answer) -> LeaseEnd:
    """The end of one lease by its answer. Published events are recorded here; leases.end() stores the end itself."""
    match answer:
        case Done():
            _publish(lease, answer.publish)
            return LeaseEnd(lease, DeliveryState.DONE, Outcome.OK)
        case Discard():
            _publish(lease, answer.publish)
            return LeaseEnd(lease, DeliveryState.DISCARDED, reason=storable(answer.reason))
        case RetryAfter():
            due_at = transaction.now + timedelta(seconds=max(SHORTEST_WAIT_SECONDS, answer.seconds))
            return LeaseEnd(lease, DeliveryState.READY, reason=storable(answer.reason), due_at=due_at)
        case NotBegun():
            return LeaseEnd(lease, DeliveryState.READY)
        case Failure():
            return _conclude_failure(transaction, policy, lease, answer)


def _conclude_failure(transaction: Transaction, policy: Policy, lease: Lease, failure: Failure) -> LeaseEnd:
    outcome, detail = failure.outcome, failure.detail
    seconds = None if failure.final else policy.wait(lease.spent + 1, str(outcome))
    if seconds is not None:
        return LeaseEnd(lease, DeliveryState.READY, outcome, detail, transaction.now + timedelta(seconds=seconds))
    try:
        with recording_savepoint(transaction):
            _publish(lease, _death_notice(lease, detail))
    except Exception as error:
        if transaction.dialect.is_transient(error):
            raise
        detail = f"{detail}; and when_dead failed: {bug(error).detail}"
    return LeaseEnd(lease, DeliveryState.DEAD, outcome, detail)


def _death_notice(lease: Lease, reason: str) -> list[signal.Event]:
    """What ``when_dead`` publishes: nothing when the event itself can't be read."""
    subscription = find_subscription(lease)
    if subscription is None or subscription.when_dead is None:
        return []
    try:
        event = signal.decode(lease.type, lease.version, lease.data)
    except ValueError:
        return []
    notice = subscription.when_dead(event, reason)
    if type(notice).__name__ not in signal.SIGNALS:
        raise TypeError(f"it returned {notice!r}, which is no event that a signal carries")
    return [notice]


def _publish(lease: Lease, events: Iterable[signal.Event]) -> None:
    with caused_by(lease):
        for event in events:
            signal.SIGNALS[type(event).__name__].send(lease.receiver, event=event)
