"""Deliver: claim what is due, call its receivers, settle the results. One step at a time, and no waiting in it."""

import os
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from operator import attrgetter
from typing import Any, TypeVar

from app import signal
from app.answers import Discard, Done, RetryAfter
from app.bus import leases as store
from app.bus import lifecycle as signals
from app.bus.leases import Lease, Settled
from app.bus.options import ReceiverOptions
from app.bus.outbox import because_of
from app.bus.tables import DEAD, DISCARDED, DONE, READY
from app.clock import uuid7
from app.db import Database, Transaction, is_passing
from app.errors import AppError, AttemptFailed, DatabaseUnavailable, LeaseLost
from app.retry import Policy
from app.states import Outcome
from app.text import storable

T = TypeVar("T")

BATCH = 20
"""How many deliveries to receivers with a session share a transaction: it bounds how long one holds the write lock."""

MISSING_RECEIVER_WAIT = 60.0
"""Seconds after which a delivery without a receiver is looked at again, and after which it counts as being so."""


DATABASE_WAIT = 5.0
"""Seconds until the next try of a delivery whose receiver could not read the database."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A failed attempt; without ``outcome`` none was made. A ``final`` one is not tried again, whatever the policy."""

    outcome: Outcome | None
    detail: str
    final: bool = False


Answer = Done | Discard | RetryAfter | Failure


class Dispatcher:
    """Takes due deliveries under a lease, calls their receivers and settles the results.

    ``context`` is entered around every call of a receiver: a Flask application context. ``outlast(error)`` is asked
    when a result can't be stored because the database is away: it waits and answers whether to try again. Without a
    worker, which sets it, nobody waits.
    """

    def __init__(
        self,
        database: Database,
        policy: Policy,
        *,
        context: Callable[[], AbstractContextManager[Any]],
        sender: object = None,
        options: Callable[[str], ReceiverOptions] = lambda _: ReceiverOptions(),
        lease_seconds: float = 30,
        missing_receiver_seconds: float = 86400,
    ) -> None:
        self.database = database
        self.clock = database.clock
        self.policy = policy
        self.context = context
        self.sender = sender or self
        self.options = options
        self.lease = timedelta(seconds=lease_seconds)
        self.missing_after = timedelta(seconds=missing_receiver_seconds)
        self.outlast: Callable[[DatabaseUnavailable], bool] = lambda _: False
        self.name = f"{socket.gethostname()}:{os.getpid()}:{uuid7()[-6:]}"
        self._held: dict[Lease, float] = {}
        self._held_lock = threading.Lock()

    def run_once(self) -> list[Settled]:
        """One round in the calling thread: claim a batch for each receiver, call, settle. Returns what it did."""
        leases = self.claim(dict.fromkeys(subscriptions(), BATCH))
        return [settled for batch in self.batches(leases) for settled in self.attempt(batch)]

    def next_due(self) -> dict[str, datetime]:
        """For each receiver with unfinished deliveries, when the earliest is due. Takes no write lock."""
        with self.database.autocommit() as reader:
            return store.next_due(reader, subscriptions())

    def claim(self, capacity: Mapping[str, int]) -> list[Lease]:
        """Lease due deliveries, for each receiver as many as ``capacity`` says, in one transaction."""

        def work(session: Transaction) -> list[Lease]:
            return [
                lease
                for receiver, limit in capacity.items()
                for lease in store.claim(session, receiver, limit, self.lease, self.name)
            ]

        deadline = self.clock.monotonic() + self.lease.total_seconds()
        leases = self.database.transact(work)
        with self._held_lock:
            self._held.update(dict.fromkeys(leases, deadline))
        for lease in leases:
            if lease.expired:
                signals.report(signals.lease_expired, self.sender, lease=lease)
        return leases

    def claim_unknown(self) -> list[Lease]:
        """Lease what has been overdue for a while because no process knows its receiver: it shall become visible."""
        with self.database.read() as session:
            before = self.clock.now() - timedelta(seconds=MISSING_RECEIVER_WAIT)
            unknown = store.unclaimed_receivers(session, subscriptions(), before)
        return self.claim(dict.fromkeys(unknown, BATCH)) if unknown else []

    @staticmethod
    def batches(leases: list[Lease]) -> list[list[Lease]]:
        """Leases that are settled together: those of receivers with a session share a transaction.

        They come in the order of users, whose rows they may lock: see Database.transact().
        """
        shared = sorted(filter(_takes_session, leases), key=attrgetter("user_id"))
        alone = [[lease] for lease in leases if not _takes_session(lease)]
        return [shared[i : i + BATCH] for i in range(0, len(shared), BATCH)] + alone

    def attempt(self, batch: list[Lease]) -> list[Settled]:
        """Try the deliveries of one batch and settle them. Raises DatabaseUnavailable; then their leases run out."""
        if not _takes_session(batch[0]):
            return self.settle([(lease, answer) for lease in batch if (answer := self.call(lease)) is not None])
        held = [lease for lease in batch if self._still_held(lease)]
        return self._report(held, self._store(batch, lambda session: self._attempt_all(session, held)))

    def call(self, lease: Lease) -> Answer | None:
        """Call a receiver that has its effects elsewhere, outside any transaction. None: the lease was lost before.

        Whatever it answers is to be settled.
        """
        answer = None
        try:
            if self._still_held(lease):
                answer = self._call(lease)
            return answer
        finally:
            if answer is None:
                self._let_go([lease])

    def settle(self, answers: list[tuple[Lease, Answer]]) -> list[Settled]:
        """Store what receivers answered, in one transaction. Raises DatabaseUnavailable; then their leases run out."""
        leases = [lease for lease, _ in answers]
        return self._report(leases, self._store(leases, lambda session: self._settle_all(session, answers)))

    def _let_go(self, leases: Iterable[Lease]) -> None:
        with self._held_lock:
            for lease in leases:
                self._held.pop(lease, None)

    def _report(self, leases: list[Lease], settled: list[Settled]) -> list[Settled]:
        ends = {each.lease: each for each in settled}
        for lease in leases:
            if lease in ends:
                signals.report(signals.delivery_settled, self.sender, settled=ends[lease])
            else:
                self._report_lost(lease)
        return [ends[lease] for lease in leases if lease in ends]

    def extend(self) -> None:
        """Say that this dispatcher is alive, and let every lease it holds run on from now."""
        with self._held_lock:
            held = list(self._held)
        deadline = self.clock.monotonic() + self.lease.total_seconds()

        def work(session: Transaction) -> set[Lease]:
            store.sign_of_life(session, self.name)
            return set(store.extend(session, held, self.lease))

        lost = self.database.transact(work)
        with self._held_lock:
            for lease in held:
                if lease in lost:
                    self._held.pop(lease, None)
                elif lease in self._held:
                    self._held[lease] = deadline

    def release(self, leases: list[Lease]) -> None:
        """Give back leases whose receivers were not called: due again at once, no attempt spent.

        Raises DatabaseUnavailable; then they run out, for nobody holds them any more.
        """

        def work(session: Transaction) -> None:
            for lease in leases:
                try:
                    store.settle(session, [Settled(lease, READY)])
                except LeaseLost:
                    self._report_lost(lease)

        if leases:
            self._store(leases, work)

    def sign_off(self) -> None:
        """Remove this dispatcher from those that are alive, and others that were not seen for a day."""
        self.database.transact(lambda s: store.sign_off(s, self.name, s.now - timedelta(days=1)))

    def _still_held(self, lease: Lease) -> bool:
        """A process that was paused past its lease must not begin: another dispatcher may be at it."""
        with self._held_lock:
            deadline = self._held.get(lease)
        if deadline is not None and self.clock.monotonic() < deadline:
            return True
        self._report_lost(lease)
        return False

    def _store(self, leases: list[Lease], work: Callable[[Transaction], T]) -> T:
        """The end of these leases, in a transaction that must not get lost: the receivers have done their work."""
        try:
            while True:
                try:
                    return self.database.transact(work)
                except DatabaseUnavailable as error:
                    if not self.outlast(error):
                        raise
        finally:
            self._let_go(leases)

    def _attempt_all(self, session: Transaction, leases: list[Lease]) -> list[Settled]:
        """Receivers with a session: their writes and their deliveries' ends stand or fall together.

        Whose lease holds is looked up first; until the transaction ends, nobody else can take it.
        """
        settled: list[Settled] = []
        done: list[Settled] = []
        for lease in store.held(session, leases):
            try:
                with _savepoint(session):
                    answer = self._call(lease, session)
                    if isinstance(answer, Failure | RetryAfter):
                        raise _RolledBack(answer)
                    end = self._end(session, lease, answer)
            except _RolledBack as rolled_back:
                settled += self._settle_all(session, [(lease, rolled_back.answer)])
            except Exception as error:
                if is_passing(error):
                    raise
                settled += self._settle_all(session, [(lease, _bug(error))])
            else:
                done.append(end)
            if lease.probe:  # what it found must not undo what those after it find
                store.settle(session, done)
                settled += done
                done = []
        store.settle(session, done)
        return settled + done

    def _settle_all(self, session: Transaction, answers: list[tuple[Lease, Answer]]) -> list[Settled]:
        """All in one go; where that can't be, one by one. Of a lease that was lost nothing stays, and none is returned.

        An answer that can't be stored, for it publishes what is no event, say, is a failed attempt.
        """
        if not answers:
            return []
        try:
            with _savepoint(session):
                settled = [self._end(session, lease, answer) for lease, answer in answers]
                store.settle(session, settled)
                return settled
        except Exception as error:
            if is_passing(error):
                raise
            if len(answers) > 1:
                return [settled for each in answers for settled in self._settle_all(session, [each])]
            ((lease, answer),) = answers
            if isinstance(error, LeaseLost):
                return []
            if isinstance(error, AppError) or isinstance(answer, Failure):
                raise
            return self._settle_all(session, [(lease, _bug(error))])

    def _call(self, lease: Lease, session: Transaction | None = None) -> Answer:
        """The receiver's answer. Lets through only what is the database's trouble and not the receiver's."""
        subscription = find(lease)
        if subscription is None:
            return self._without_receiver(lease)
        if lease.in_doubt and self.options(lease.receiver).hold_unknown:
            return Failure(None, "its last attempt's outcome is unknown; retry it, or discard it", final=True)
        if lease.expired and self.policy.wait(lease.spent, Outcome.UNKNOWN) is None:
            return Failure(None, "given up: its attempts end without a result, as if it killed the process", final=True)
        try:
            event = signal.decode(lease.type, lease.version, lease.data)
        except ValueError as error:
            return Failure(Outcome.BUG, storable(f"undecodable event: {error}"), final=True)
        offered = {"event": event, "delivery": lease, "session": session and session.session, "transaction": session}
        arguments = {name: value for name, value in offered.items() if name in subscription.parameters}
        try:
            with self.context(), because_of(lease):
                answer = subscription.receiver(lease.source, **arguments)
                if session is not None:
                    session.write_out()
        except AttemptFailed as error:
            held = error.outcome is Outcome.UNKNOWN and self.options(lease.receiver).hold_unknown
            return Failure(error.outcome, storable(str(error)), final=held)
        except DatabaseUnavailable as error:  # no fault of this delivery's
            return RetryAfter(DATABASE_WAIT, str(error))
        except Exception as error:
            if session is not None and is_passing(error):
                raise
            signals.report(signals.receiver_raised, self.sender, lease=lease, error=error)
            return _bug(error)
        match answer:
            case None:
                return Done()
            case Done() | Discard() | RetryAfter():
                return answer
        return Failure(Outcome.BUG, storable(f"it returned {answer!r}; return nothing, Done, Discard or RetryAfter"))

    def _without_receiver(self, lease: Lease) -> Answer:
        """Neither silence nor an endless loop, and no attempt spent: a newer version of the code may have it."""
        signals.report(signals.receiver_missing, self.sender, lease=lease)
        reason = f"no receiver named {lease.receiver!r} is connected to {lease.type}; connect it, or discard this"
        if self.clock.now() - lease.created_at > self.missing_after:
            return Failure(None, reason, final=True)
        return RetryAfter(MISSING_RECEIVER_WAIT, reason)

    def _end(self, session: Transaction, lease: Lease, answer: Answer) -> Settled:
        """How the lease is to end. What is published with that is stored here, the end itself by store.settle()."""
        match answer:
            case Done():
                self._publish(lease, answer.publish)
                return Settled(lease, DONE, Outcome.OK)
            case Discard():
                self._publish(lease, answer.publish)
                return Settled(lease, DISCARDED, reason=storable(answer.reason))
            case RetryAfter():
                due_at = session.now + timedelta(seconds=max(1.0, answer.seconds))
                return Settled(lease, READY, reason=storable(answer.reason), due_at=due_at)
            case Failure():
                return self._end_failed(session, lease, answer)

    def _end_failed(self, session: Transaction, lease: Lease, failure: Failure) -> Settled:
        outcome, detail = failure.outcome, failure.detail
        seconds = None if failure.final else self.policy.wait(lease.spent + 1, str(outcome))
        if seconds is not None:
            return Settled(lease, READY, outcome, detail, session.now + timedelta(seconds=seconds))
        try:
            with _savepoint(session):
                self._publish(lease, self._last_words(lease, detail))
        except Exception as error:
            if is_passing(error):
                raise
            detail = f"{detail}; and when_dead failed: {_bug(error).detail}"
        return Settled(lease, DEAD, outcome, detail)

    @staticmethod
    def _last_words(lease: Lease, reason: str) -> list[signal.Event]:
        """What is published when the delivery is given up: nothing when the event itself can't be read."""
        subscription = find(lease)
        if subscription is None or subscription.when_dead is None:
            return []
        try:
            event = signal.decode(lease.type, lease.version, lease.data)
        except ValueError:
            return []
        last_words = subscription.when_dead(event, reason)
        if type(last_words).__name__ not in signal.SIGNALS:
            raise TypeError(f"it returned {last_words!r}, which is no event that a signal carries")
        return [last_words]

    @staticmethod
    def _publish(lease: Lease, published: Iterable[signal.Event]) -> None:
        with because_of(lease):
            for event in published:
                signal.SIGNALS[type(event).__name__].send(lease.receiver, event=event)

    def _report_lost(self, lease: Lease) -> None:
        signals.report(signals.lease_lost, self.sender, lease=lease)


@contextmanager
def _savepoint(session: Transaction) -> Iterator[None]:
    """What is rolled back in it is not reported as recorded either."""
    recorded = len(session.facts.get("recorded", ()))
    try:
        with session.savepoint():
            yield
    except Exception:
        del session.facts.get("recorded", [])[recorded:]
        raise


class _RolledBack(Exception):
    def __init__(self, answer: Answer) -> None:
        self.answer = answer


def _bug(error: Exception) -> Failure:
    return Failure(Outcome.BUG, storable(f"{type(error).__name__}: {error}"))


def subscriptions() -> dict[str, signal.Subscription]:
    """Every connected receiver, by its name."""
    return {name: found for each in signal.SIGNALS.values() for name, found in each.subscriptions.items()}


def find(lease: Lease) -> signal.Subscription | None:
    """The subscription that the delivery was recorded for, if it still exists."""
    found = signal.SIGNALS.get(lease.type)
    return found.subscriptions.get(lease.receiver) if found else None


def _takes_session(lease: Lease) -> bool:
    subscription = find(lease)
    return subscription is not None and subscription.transactional
