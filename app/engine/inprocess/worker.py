"""The loop around the dispatcher's step: wait until something is due, claim it, hand it to threads, settle the answers.

Transactional receivers share one thread, because they share the database's write lock. Every other receiver has threads
of its own, so one that hangs holds up nobody else's deliveries. Their answers go back to the loop, which settles them
in the transaction in which it claims the next deliveries.
"""

import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta

from app.bus import Dispatcher, Lease, lifecycle
from app.bus.breaker import BACKEND_DOWN
from app.bus.dispatcher import BATCH
from app.bus.invoke import MISSING_RECEIVER_WAIT_SECONDS, Answer, Failure, NotBegun
from app.engine.inprocess.pool import STALLED_SECONDS, ReceiverPool
from app.engine.inprocess.wakeup import Wakeup
from app.errors import DatabaseUnavailable
from app.signal import ReceiverOptions, subscriptions

TRANSACTIONAL = "(transactional)"
"""The pool of all receivers that run in a transaction."""

PREFETCH = 20
"""Deliveries claimed ahead for a receiver's threads. Should the process die, each of them reads ``unknown``; so a
receiver that holds such for a person gets none."""

RETRY_SECONDS = 1.0
"""Between tries while the database is away, and after a fault of ours."""

PASSED_OVER_SECONDS = 0.01
"""Until the next look when another dispatcher was at the rows that are due."""

PRUNE_SECONDS = 3600.0
"""Between looks for events that are old enough to be deleted."""

HIGH_CONTENTION = 0.5
"""Another process held the write lock half of the times that this one wanted it."""

DEFER_SECONDS = 0.2
"""How long a claim is put off, at full write contention, because requests come first."""

STOP_GRACE_SECONDS = 0.5
"""Time that a stop allows for settling, beyond its wait for receivers."""

SIGN_OFF_SECONDS = 1.0
"""Time that a stop allows for the dispatcher's removal from those that are alive."""


class Worker:
    """Runs a dispatcher until it is stopped. ``poll_seconds`` is the safety net beneath the wake-up."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        options: Mapping[str, ReceiverOptions],
        wakeup: Wakeup,
        *,
        poll_seconds: float,
        wake_others: Callable[[], None],
        prune: Callable[[], int],
    ) -> None:
        self.dispatcher = dispatcher
        self.options = options
        self.wakeup = wakeup
        self.poll_seconds = poll_seconds
        self.wake_others = wake_others
        self.prune = prune
        self._pools: dict[str, ReceiverPool] = {}
        self._answers: list[tuple[Lease, Answer]] = []
        """From receivers' threads, to be settled."""
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._stop_by = float("inf")
        self._ended = threading.Event()
        self._next_look = 0.0
        self._next_prune = time.monotonic() + random.uniform(0, PRUNE_SECONDS)  # noqa: S311 - no secret
        self._database_lost = False
        self._saturated = False
        self._loop = threading.Thread(target=self._run, name="dispatcher", daemon=True)
        self._heart = threading.Thread(target=self._beat, name="dispatcher-heartbeat", daemon=True)

    @property
    def alive(self) -> bool:
        return self._loop.is_alive()

    @property
    def stopping(self) -> bool:
        """Whether it claims no more."""
        return self._stopping.is_set()

    def start(self) -> None:
        self.wakeup.open()
        self._loop.start()
        self._heart.start()
        lifecycle.report(lifecycle.dispatcher_started, self.dispatcher.sender, name=self.dispatcher.name)

    def stop(self, seconds: float) -> bool:
        """Claim no more, give back what was not begun, wait for receivers that run. Returns whether all ended.

        One that does not end in time keeps its lease, which runs out: another dispatcher then records its attempt as
        ``unknown`` and tries again.
        """
        self._stop_by = time.monotonic() + seconds
        self._stopping.set()
        self.wakeup.wake()
        self._loop.join(seconds + STOP_GRACE_SECONDS)
        unfinished = sum(pool.running for pool in self._pools.values()) + len(self._answers)
        for pool in self._pools.values():
            pool.end()
        signing_off = threading.Thread(target=self._sign_off, name="dispatcher-sign-off", daemon=True)
        signing_off.start()
        signing_off.join(SIGN_OFF_SECONDS)
        self._ended.set()
        self.wakeup.close()
        name = self.dispatcher.name
        lifecycle.report(lifecycle.dispatcher_stopped, self.dispatcher.sender, name=name, unfinished=unfinished)
        return not unfinished

    def _sign_off(self) -> None:
        """In a thread, because the database may never answer; a dispatcher that is seen no more counts as gone, too."""
        with self._reporting_faults(), contextlib.suppress(DatabaseUnavailable):
            self.dispatcher.sign_off()

    # The loop

    def _run(self) -> None:
        self._beat_once()
        while not self._is_done():
            try:
                if self._database_lost:
                    self._recover()
                if pause := self._round():
                    self.wakeup.wait(pause)
            except DatabaseUnavailable as error:
                self._note_database_lost(error)
                self._rest()
            except Exception as error:  # a fault of ours must not end all dispatching
                self._report_fault(error)
                self._rest()

    def _round(self) -> float:
        """Settle what is answered, claim what is due. Returns for how many seconds there is nothing to do."""
        self._take_back_unbegun()
        if self.stopping:
            if self._answers:
                self._settle_and_claim({})
            return 0 if self._is_done() else max(0.0, self._stop_by - time.monotonic())
        self._keep_house()
        due = self.dispatcher.next_due()
        now = self.dispatcher.clock.now()
        overdue = [receiver for receiver, due_at in due.items() if due_at <= now]
        capacity = {receiver: slots for receiver in overdue if (slots := self._pool(receiver).free_slots) > 0}
        if self._answers or capacity:
            self._defer_to_requests()
            return 0 if self._settle_and_claim(capacity) else PASSED_OVER_SECONDS
        self._share_load(saturated=bool(overdue))
        return self._seconds_until([due_at - now for due_at in due.values() if due_at > now])

    def _settle_and_claim(self, capacity: dict[str, int]) -> bool:
        """Returns whether anything was settled or claimed. Answers wait while the database can't store them."""
        with self._lock:
            answers = self._answers[:]
        try:
            _, claimed = self.dispatcher.settle_and_claim(answers, capacity)
        except DatabaseUnavailable:
            raise
        except Exception:  # a fault of ours: let the leases run out rather than try the same for ever
            self._forget(answers)
            self.dispatcher.abandon([lease for lease, _ in answers])
            raise
        self._forget(answers)
        self._hand_out(claimed)
        return bool(answers or claimed)

    def _forget(self, settled: list[tuple[Lease, Answer]]) -> None:
        with self._lock:
            del self._answers[: len(settled)]

    def _hand_out(self, claimed: list[Lease]) -> None:
        for batch in self.dispatcher.batches(claimed):
            self._pool(batch[0].receiver).submit(batch)

    def _seconds_until(self, waits: list[timedelta]) -> float:
        soonest = min([timedelta(seconds=self.poll_seconds), *waits]).total_seconds()
        if any(pool.waiting for pool in self._pools.values()):
            soonest = min(soonest, STALLED_SECONDS)
        return min(soonest, max(0.0, self._next_prune - time.monotonic()))

    def _defer_to_requests(self) -> None:
        """Under write contention wait a little: orders come first, and deliveries catch up."""
        if (contention := self.dispatcher.database.write_contention) > HIGH_CONTENTION:
            self._stopping.wait(DEFER_SECONDS * contention)

    def _share_load(self, *, saturated: bool) -> None:
        """More is due than there are slots for here: wake the other dispatchers, once."""
        if saturated and not self._saturated:
            self.wake_others()
        self._saturated = saturated

    def _keep_house(self) -> None:
        """Now and then: deliveries without a receiver shall become visible, and old events be deleted."""
        now = time.monotonic()
        if now >= self._next_look:
            self._next_look = now + MISSING_RECEIVER_WAIT_SECONDS
            self._hand_out(self.dispatcher.claim_without_receiver())
        if now >= self._next_prune:
            count = self.prune()
            self._next_prune = now + (1 if count else PRUNE_SECONDS)
            if count:
                lifecycle.report(lifecycle.events_pruned, self.dispatcher.sender, count=count)

    def _take_back_unbegun(self) -> None:
        """Prefetched deliveries: behind a receiver that hangs, and all of them at a stop."""
        for pool in self._pools.values():
            if self.stopping or pool.stalled:
                self._hand_back(*[(lease, NotBegun()) for lease in pool.take_back()])

    def _is_done(self) -> bool:
        if not self.stopping:
            return False
        busy = self._answers or any(pool.running or pool.waiting for pool in self._pools.values())
        return not busy or time.monotonic() >= self._stop_by

    # Receivers' threads

    def _pool(self, receiver: str) -> ReceiverPool:
        known = subscriptions().get(receiver)
        name = TRANSACTIONAL if known and known.transactional else receiver
        if name not in self._pools:
            self._pools[name] = self._new_pool(name)
        return self._pools[name]

    def _new_pool(self, name: str) -> ReceiverPool:
        if name == TRANSACTIONAL:
            return ReceiverPool(name, 1, self._deliver_transactional, self.wakeup.wake, batch=BATCH)
        options = self.options[name]
        prefetch = 0 if options.hold_unknown else PREFETCH
        return ReceiverPool(name, options.concurrency, self._invoke, self.wakeup.wake, prefetch=prefetch)

    def _invoke(self, batch: list[Lease]) -> None:
        for lease in batch:
            with self._reporting_faults():
                answer = self.dispatcher.invoke(lease)
                if answer is None:
                    continue
                unbegun = self._pool(lease.receiver).take_back() if _finds_backend_down(answer) else []
                self._hand_back((lease, answer), *[(each, NotBegun()) for each in unbegun])

    def _hand_back(self, *answers: tuple[Lease, Answer]) -> None:
        """To the loop, which settles them."""
        with self._lock:
            if not self._ended.is_set():
                self._answers += answers
                return
        self.dispatcher.settle(list(answers))  # stop() did not wait so long, but the lease may hold still

    def _deliver_transactional(self, batch: list[Lease]) -> None:
        """Until it is stored: an outage of the database undoes the receivers' work together with its record."""
        with self._reporting_faults():
            try:
                while True:
                    try:
                        self.dispatcher.deliver_transactional(batch)
                        return
                    except DatabaseUnavailable as error:
                        self._note_database_lost(error)
                        if self._stopping.wait(RETRY_SECONDS):
                            return
            finally:
                self.dispatcher.abandon(batch)

    # Heartbeat, outages and faults

    def _beat(self) -> None:
        pause = min(self.dispatcher.lease.total_seconds() / 3, 10)
        while not self._ended.wait(pause):
            self._beat_once()

    def _beat_once(self) -> None:
        with self._reporting_faults():
            try:
                self.dispatcher.heartbeat()
            except DatabaseUnavailable as error:
                self._note_database_lost(error)

    @contextlib.contextmanager
    def _reporting_faults(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._report_fault(error)

    def _report_fault(self, error: Exception) -> None:
        lifecycle.report(lifecycle.dispatcher_failed, self.dispatcher.sender, error=error)

    def _rest(self) -> None:
        """Before the next try. While stopping there is less time for it."""
        if self._stopping.wait(RETRY_SECONDS):
            time.sleep(min(RETRY_SECONDS / 10, max(0.0, self._stop_by - time.monotonic())))

    def _note_database_lost(self, error: DatabaseUnavailable) -> None:
        """Say so once, and have the loop see when it is back, even if it is idle until then."""
        with self._lock:
            if self._database_lost:
                return
            self._database_lost = True
        lifecycle.report(lifecycle.database_lost, self.dispatcher.sender, error=error)
        self.wakeup.wake()

    def _recover(self) -> None:
        """Only a write tells that the database is back: a full disk can still be read.

        Leases ran out that nobody could extend, though their receivers still run. So each dispatcher extends its own
        first, and gives the others time to do the same before it takes anything over.
        """
        self.dispatcher.heartbeat()
        with self._lock:
            self._database_lost = False
        lifecycle.report(lifecycle.database_back, self.dispatcher.sender)
        self._stopping.wait(2 * RETRY_SECONDS)


def _finds_backend_down(answer: Answer) -> bool:
    """Whether the deliveries that wait for the same backend should spend no attempt on it now."""
    return isinstance(answer, Failure) and answer.outcome in BACKEND_DOWN
