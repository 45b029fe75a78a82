"""Settle: receivers' answers in, the ends of their leases out. Any engine can use it.

Events that an answer publishes are recorded in the transaction that ends the lease.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta

from app import signal
from app.answers import Discard, Done, RetryAfter
from app.bus import leases
from app.bus.invoke import Answer, Failure, Invoker, NotBegun, bug, find_subscription
from app.bus.leases import NO_RESULT, Lease, LeaseEnd
from app.bus.outbox import caused_by, recording_savepoint
from app.db import Transaction
from app.errors import AppError, LeaseLost, TransactionLost
from app.retry import Policy
from app.states import DeliveryState, Outcome
from app.text import storable

SHORTEST_WAIT_SECONDS = 1.0
"""Of a receiver that asks to be tried again: less would be a busy loop."""

GIVEN_UP = (
    "given up: tried alone, its attempts end without a result, as if the receiver killed its process or never returned"
)


@dataclass(frozen=True, slots=True)
class Unstored:
    """An answer that the database did not take, and why. What its receiver did is done, so it is to be kept."""

    lease: Lease
    answer: Answer
    error: BaseException


def settle(
    transaction: Transaction, policy: Policy, answers: list[tuple[Lease, Answer]]
) -> tuple[list[LeaseEnd], list[Unstored]]:
    """End the leases as their receivers answered; in one go, and where that can't be, one by one.

    Of a lease that was lost nothing stays, and none is returned. An answer that is wrong by itself, because it
    publishes what is no event, say, is a failed attempt. Raises TransactionLost.
    """
    if not answers:
        return [], []
    answers = sorted(answers, key=lambda each: leases.LOCK_ORDER(each[0]))
    try:
        with recording_savepoint(transaction):
            ends = [conclude(transaction, policy, lease, answer) for lease, answer in answers]
            leases.end(transaction, ends)
            return ends, []
    except TransactionLost:
        raise
    except BaseException as error:  # an answer is foreign code too: what it publishes is encoded here
        if len(answers) == 1:
            return _settle_otherwise(transaction, policy, *answers[0], error)
    each_by_itself = [settle(transaction, policy, [each]) for each in answers]
    return [end for ends, _ in each_by_itself for end in ends], [one for _, left in each_by_itself for one in left]


def _settle_otherwise(
    transaction: Transaction, policy: Policy, lease: Lease, answer: Answer, error: BaseException
) -> tuple[list[LeaseEnd], list[Unstored]]:
    """The lease could not be ended by its own answer."""
    if isinstance(error, LeaseLost):
        return [], []
    is_of_the_answer = transaction.dialect.trouble(error) is None and not isinstance(error, AppError)
    if is_of_the_answer and not isinstance(answer, Failure):
        return settle(transaction, policy, [(lease, bug(error))])
    return [], [Unstored(lease, answer, error)]


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
    except BaseException as error:  # the same
        if transaction.dialect.is_transient(error):
            raise
        answer = bug(error)
    try:
        return conclude(transaction, policy, lease, answer)
    except BaseException as error:  # RetryAfter("soon"), say: it must not fail the others of the batch
        if isinstance(answer, Failure) or transaction.dialect.is_transient(error):
            raise
        return conclude(transaction, policy, lease, bug(error))


class _Undo(Exception):
    def __init__(self, answer: Answer) -> None:
        self.answer = answer


def settle_expired(transaction: Transaction, policy: Policy, expired: list[Lease]) -> list[LeaseEnd]:
    """End leases that ran out, in place of the dispatchers that left no result. Their rows are locked."""
    ends = [_conclude_expired(transaction, policy, lease) for lease in expired]
    leases.end(transaction, ends)
    return ends


def _conclude_expired(transaction: Transaction, policy: Policy, lease: Lease) -> LeaseEnd:
    """What was tried alone has failed. What was not is due at once, and then alone."""
    if lease.in_doubt and find_subscription(lease) is not None:
        return _conclude_failure(transaction, policy, lease, Failure(Outcome.UNKNOWN, NO_RESULT), given_up=GIVEN_UP)
    return LeaseEnd(lease, DeliveryState.READY, Outcome.UNKNOWN, NO_RESULT)


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
            seconds = max(SHORTEST_WAIT_SECONDS, min(answer.seconds, policy.maximum))
            due_at = transaction.now + timedelta(seconds=seconds)
            return LeaseEnd(lease, DeliveryState.READY, reason=storable(answer.reason), due_at=due_at)
        case NotBegun():
            return LeaseEnd(lease, DeliveryState.READY)
        case Failure():
            return _conclude_failure(transaction, policy, lease, answer)


def _conclude_failure(
    transaction: Transaction, policy: Policy, lease: Lease, failure: Failure, given_up: str | None = None
) -> LeaseEnd:
    """``given_up`` is the reason of a delivery that goes dead, where it is not the failure's own detail."""
    outcome, detail = failure.outcome, failure.detail
    seconds = None if failure.final else policy.wait(lease.spent + 1, str(outcome))
    if seconds is not None:
        return LeaseEnd(lease, DeliveryState.READY, outcome, detail, transaction.now + timedelta(seconds=seconds))
    detail = given_up or detail
    try:
        with recording_savepoint(transaction):
            _publish(lease, _death_notice(lease, detail))
    except BaseException as error:  # when_dead is foreign code
        if transaction.dialect.trouble(error) is not None:
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
    except BaseException:  # as in Invoker.invoke
        return []
    lease.running = True
    try:
        notice = subscription.when_dead(event, reason)
    finally:
        lease.running = False
    if type(notice).__name__ not in signal.SIGNALS:
        raise TypeError(f"it returned {notice!r}, which is no event that a signal carries")
    return [notice]


def _publish(lease: Lease, events: Iterable[signal.Event]) -> None:
    with caused_by(lease):
        for event in events:
            signal.SIGNALS[type(event).__name__].send(lease.receiver, event=event)
