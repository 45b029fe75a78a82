"""Settle: receivers' answers in, the ends of their leases out. Any engine can use it.

Events that an answer publishes are recorded in the transaction that ends the lease.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

from app import signal
from app.answers import Discard, Done, RetryAfter
from app.bus import leases
from app.bus.invoke import Answer, Failure, Invoker, NotBegun, bug, find_subscription
from app.bus.leases import NO_RESULT, Lease, LeaseEnd
from app.bus.outbox import Owed, caused_by, insert_done, insert_ready, recording_savepoint, setting_apart
from app.bus.retries import Retries
from app.db import Transaction
from app.errors import AppError, LeaseLost, TransactionLost
from app.states import DeliveryState, Outcome
from app.text import storable

SHORTEST_WAIT_SECONDS = 1.0
"""Of a receiver that asks to be tried again: less would be a busy loop."""

GIVEN_UP = (
    "given up: tried alone, its attempts end without a result, as if the receiver killed its process or never returned"
)


@dataclass(frozen=True, slots=True)
class Unstored:
    """An answer that the database did not take, and why. It is kept, because its receiver's effects have happened."""

    lease: Lease
    answer: Answer
    error: BaseException


def settle(
    transaction: Transaction, retries: Retries, invoker: Invoker, answers: list[tuple[Lease, Answer]]
) -> tuple[list[LeaseEnd], list[Unstored]]:
    """End the leases as their receivers answered; in one go, and where that can't be, one by one.

    Transactional receivers of what the answers publish run at once: see _deliver_published.

    Of a lease that was lost nothing stays, and none is returned. An answer that is wrong by itself, because it
    publishes what is no event, say, is a failed attempt. Raises TransactionLost.
    """
    if not answers:
        return [], []
    answers = sorted(answers, key=lambda each: leases.LOCK_ORDER(each[0]))
    if not transaction.dialect.one_writer:
        leases.lock_held(transaction, [lease for lease, _ in answers])
    try:
        with recording_savepoint(transaction):
            with setting_apart() as published:
                ends = [conclude(transaction, retries, lease, answer) for lease, answer in answers]
            _end(transaction, retries, ends)
    except TransactionLost:
        raise
    except BaseException as error:  # an answer is foreign code too: what it publishes is encoded here
        if len(answers) == 1:
            return _settle_otherwise(transaction, retries, invoker, *answers[0], error)
    else:
        return ends + _deliver_published(transaction, retries, invoker, published), []
    each_by_itself = [settle(transaction, retries, invoker, [each]) for each in answers]
    return [end for ends, _ in each_by_itself for end in ends], [one for _, left in each_by_itself for one in left]


def _end(transaction: Transaction, retries: Retries, ends: list[LeaseEnd]) -> None:
    leases.end(transaction, ends)
    retries.ended(transaction, ends)


def _deliver_published(
    transaction: Transaction, retries: Retries, invoker: Invoker, owed: list[Owed]
) -> list[LeaseEnd]:
    """Call transactional receivers in the transaction that publishes their events, and store their deliveries as done:
    that saves a claim, a settle and a wake-up.

    Where one of them does not succeed, what all of them did is undone, no attempt is spent, and their deliveries are
    due like any other. So are those of a receiver whose circuit breaker is open, or that is paused.
    """
    if not owed:
        return []
    probes, paused = retries.held_back(transaction, transaction.now)
    at_once = [each for each in owed if each.receiver not in probes and each.receiver not in paused]
    try:
        with recording_savepoint(transaction):
            ends = [_done(transaction, retries, invoker, lease) for lease in insert_done(transaction, at_once)]
            leases.record_attempts(transaction, ends)
    except TransactionLost:
        raise
    except BaseException as error:  # foreign code
        if transaction.dialect.is_transient(error):
            raise
        ends, at_once = [], []
    for each in owed:
        if each not in at_once:
            insert_ready(transaction, each.event["event_id"], each.receiver)
    return ends


def _done(transaction: Transaction, retries: Retries, invoker: Invoker, lease: Lease) -> LeaseEnd:
    answer = invoker.invoke(lease, transaction)
    if not isinstance(answer, Done):
        raise _Undo(lease, answer)
    return conclude(transaction, retries, lease, answer)


def _settle_otherwise(
    transaction: Transaction,
    retries: Retries,
    invoker: Invoker,
    lease: Lease,
    answer: Answer,
    error: BaseException,
) -> tuple[list[LeaseEnd], list[Unstored]]:
    """The lease could not be ended by its own answer."""
    if isinstance(error, LeaseLost):
        return [], []
    is_of_the_answer = transaction.dialect.trouble(error) is None and not isinstance(error, AppError)
    if is_of_the_answer and not isinstance(answer, Failure):
        return settle(transaction, retries, invoker, [(lease, bug(error))])
    return [], [Unstored(lease, answer, error)]


def deliver_within(transaction: Transaction, retries: Retries, invoker: Invoker, batch: list[Lease]) -> list[LeaseEnd]:
    """Call transactional receivers: their writes and their deliveries' ends stand or fall together.

    Leases that were lost are passed over; none of the others can be lost before the transaction ends. Of one user's
    deliveries, those of one transaction run at a time: each locks rows of the user and of the user's orders.
    """
    transaction.dialect.lock_keys(transaction.driver, [lease.user_id for lease in batch])
    ends = _deliver(transaction, retries, invoker, leases.lock_held(transaction, batch))
    _end(transaction, retries, ends)
    return ends


def _deliver(transaction: Transaction, retries: Retries, invoker: Invoker, held: list[Lease]) -> list[LeaseEnd]:
    """A savepoint around the receivers: of a failed attempt nothing stays. Those that came before it are called again;
    where nobody knows whose fault it was, each is called by itself."""
    if not held:
        return []
    try:
        with recording_savepoint(transaction):
            return [_answered(transaction, retries, invoker, lease) for lease in held]
    except _Undo as undo:
        place = held.index(undo.lease)
        before = _deliver(transaction, retries, invoker, held[:place])
        end = _conclude_undone(transaction, retries, undo.lease, undo.answer)
        return [*before, end, *_deliver(transaction, retries, invoker, held[place + 1 :])]
    except BaseException as error:  # foreign code
        if transaction.dialect.is_transient(error):
            raise
        if len(held) == 1:
            return [_conclude_undone(transaction, retries, held[0], bug(error))]
    return [end for lease in held for end in _deliver(transaction, retries, invoker, [lease])]


def _answered(transaction: Transaction, retries: Retries, invoker: Invoker, lease: Lease) -> LeaseEnd:
    answer = invoker.invoke(lease, transaction)
    if isinstance(answer, Failure | RetryAfter):
        raise _Undo(lease, answer)
    try:
        return conclude(transaction, retries, lease, answer)
    except BaseException as error:  # what it publishes may be no event
        if transaction.dialect.is_transient(error):
            raise
        raise _Undo(lease, bug(error)) from error


def _conclude_undone(transaction: Transaction, retries: Retries, lease: Lease, answer: Answer) -> LeaseEnd:
    try:
        return conclude(transaction, retries, lease, answer)
    except BaseException as error:  # RetryAfter("soon"), say: it must not fail the others of the batch
        if isinstance(answer, Failure) or transaction.dialect.is_transient(error):
            raise
        return conclude(transaction, retries, lease, bug(error))


class _Undo(Exception):
    def __init__(self, lease: Lease, answer: Answer) -> None:
        self.lease, self.answer = lease, answer


def settle_expired(transaction: Transaction, retries: Retries, expired: list[Lease]) -> list[LeaseEnd]:
    """End leases that ran out, in place of the dispatchers that left no result. Their rows are locked."""
    ends = [_conclude_expired(transaction, retries, lease) for lease in expired]
    _end(transaction, retries, ends)
    return ends


def _conclude_expired(transaction: Transaction, retries: Retries, lease: Lease) -> LeaseEnd:
    """What was tried alone has failed. What was not is due at once, and then alone. What was dispatched, and no worker
    took, was not tried at all."""
    if lease.leased_by is None:
        return LeaseEnd(lease, DeliveryState.READY)
    if lease.in_doubt and find_subscription(lease) is not None:
        return _conclude_failure(transaction, retries, lease, Failure(Outcome.UNKNOWN, NO_RESULT), given_up=GIVEN_UP)
    return LeaseEnd(lease, DeliveryState.READY, Outcome.UNKNOWN, NO_RESULT)


def conclude(transaction: Transaction, retries: Retries, lease: Lease, answer: Answer) -> LeaseEnd:
    """The end of one lease by its answer. Published events are recorded here; leases.end() stores the end itself."""
    match answer:
        case Done():
            _publish(lease, answer.publish)
            return LeaseEnd(lease, DeliveryState.DONE, Outcome.OK)
        case Discard():
            _publish(lease, answer.publish)
            return LeaseEnd(lease, DeliveryState.DISCARDED, reason=storable(answer.reason))
        case RetryAfter():
            seconds = max(SHORTEST_WAIT_SECONDS, min(answer.seconds, retries.maximum))
            due_at = transaction.now + timedelta(seconds=seconds)
            return LeaseEnd(lease, DeliveryState.READY, reason=storable(answer.reason), due_at=due_at)
        case NotBegun():
            return LeaseEnd(lease, DeliveryState.READY)
        case Failure():
            return _conclude_failure(transaction, retries, lease, answer)


def _conclude_failure(
    transaction: Transaction, retries: Retries, lease: Lease, failure: Failure, given_up: str | None = None
) -> LeaseEnd:
    """``given_up`` is the reason of a delivery that goes dead, where it is not the failure's own detail."""
    outcome, detail = failure.outcome, failure.detail
    following = replace(retries.next_try(transaction, lease, failure), code=failure.code, enhanced=failure.enhanced)
    if following.due_at is not None:
        return LeaseEnd(lease, DeliveryState.READY, outcome, detail, following.due_at, following)
    detail = given_up or detail
    try:
        with recording_savepoint(transaction):
            _publish(lease, _death_notice(lease, detail))
    except BaseException as error:  # when_dead is foreign code
        if transaction.dialect.trouble(error) is not None:
            raise
        detail = f"{detail}; and when_dead failed: {bug(error).detail}"
    return LeaseEnd(lease, DeliveryState.DEAD, outcome, detail, None, following)


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


def _publish(lease: Lease, events: Sequence[signal.Event]) -> None:
    if events:  # mostly there are none
        with caused_by(lease):
            for event in events:
                signal.SIGNALS[type(event).__name__].send(lease.receiver, event=event)
