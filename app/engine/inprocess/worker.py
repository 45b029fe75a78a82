"""The loop around the dispatcher's step: wait until something is due, claim it, hand it to threads, settle the answers.

Transactional receivers share one thread, because they share the database's write lock. Every other receiver has threads
of its own, so one that hangs holds up nobody else's deliveries. Their answers go back to the loop, which settles them
in the transaction in which it claims the next deliveries.

A thread that ended is replaced; those that hang are the watchdog's.
"""

import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta

from app.bus import Bus, Dispatcher, Lease, lifecycle
from app.bus.breaker import BACKEND_DOWN
from app.bus.dispatcher import BATCH
from app.bus.invoke import MISSING_RECEIVER_WAIT_SECONDS, Answer, Failure, NotBegun, undone
from app.engine.inprocess.pool import STALLED_SECONDS, ReceiverPool
from app.engine.inprocess.unsettled import UnsettledAnswers
from app.engine.inprocess.wakeup import Wakeup
from app.errors import DatabaseUnavailable
from app.signal import subscriptions

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

MOST_UNSTORED = 20
"""Answers that can't be stored: with so many it is hardly the answers' fault, and nothing more is claimed."""

REFUSED_SECONDS = 2.0
"""Between looks whether a dispatcher that refuses to start may start now."""

STOP_GRACE_SECONDS = 0.5
"""Time that a stop allows for settling, beyond its wait for receivers."""

SIGN_OFF_SECONDS = 1.0
"""Time that a stop allows for the dispatcher's removal from those that are alive."""


class Worker:
    """Runs a dispatcher until it is stopped."""

    def __init__(
        self,
        bus: Bus,
        dispatcher: Dispatcher,
        wake_others: Callable[[], None],
        *,
        anyway: bool,
        waits: bool,
    ) -> None:
        """``anyway``: deliver also where mail went otherwise before; see ``delivers_by``. ``waits``: where it refuses
        to, look again now and then; else it ends."""
        self.bus = bus
        self.dispatcher = dispatcher
        self.wakeup = Wakeup(bus.database)
        self.poll_seconds = bus.settings.poll_seconds
        """The safety net beneath the wake-up."""
        self.wake_others = wake_others
        self.anyway = anyway
        self.waits = waits
        self.refusal: str | None = None
        """Why it does not deliver."""
        self._signed_on = False
        self._pools: dict[str, ReceiverPool] = {}
        self._answers = UnsettledAnswers(dispatcher)
        """From receivers' threads."""
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._stop_by = float("inf")
        self.ended = threading.Event()
        self._next_look = 0.0
        self._next_prune = time.monotonic() + random.uniform(0, PRUNE_SECONDS)  # noqa: S311 - no secret
        self._database_lost = False
        self._saturated = False
        self._loop = threading.Thread(target=self._run, name="dispatcher", daemon=True)
        self._heart = threading.Thread(target=self._beat, name="dispatcher-heartbeat", daemon=True)
        self.present_round: object = None
        """Another one each time that the loop comes round; None while it waits."""

    @property
    def alive(self) -> bool:
        return self._loop.is_alive() and self._heart.is_alive()

    @property
    def stopping(self) -> bool:
        """Whether it claims no more."""
        return self._stopping.is_set()

    def start(self) -> None:
        self.wakeup.open()
        self._loop.start()
        self._heart.start()

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
        signing_off = threading.Thread(target=self._sign_off, name="dispatcher-sign-off", daemon=True)
        signing_off.start()
        signing_off.join(SIGN_OFF_SECONDS)
        self.ended.set()
        self.wakeup.close()
        if self._signed_on:
            name = self.dispatcher.name
            lifecycle.report(lifecycle.dispatcher_stopped, self.dispatcher.sender, name=name, unfinished=unfinished)
        return not unfinished

    def _sign_off(self) -> None:
        """In a thread, because the database may never answer; a dispatcher that is seen no more counts as gone, too."""
        with self.reporting_faults(), contextlib.suppress(DatabaseUnavailable):
            self.dispatcher.sign_off()

    # The loop

    def _run(self) -> None:
        while not (self._signed_on or self.stopping):
            with self.reporting_faults():
                self._sign_on()
        while self._signed_on and not self._is_done():
            self.present_round = object()
            try:
                if self._database_lost:
                    self._recover()
                pause = self._round()
                self.present_round = None
                if pause:
                    self.wakeup.wait(pause)
            except DatabaseUnavailable as error:
                self._note_database_lost(error)
                self._rest()
            except BaseException as error:  # a fault of ours must not end all dispatching
                self._report_fault(error)
                self._rest()
        for pool in self._pools.values():
            pool.end()

    def _sign_on(self) -> None:
        """Once nothing speaks against it; meanwhile nothing is claimed."""
        try:
            refusal, differs = self.dispatcher.sign_on(anyway=self.anyway)
        except DatabaseUnavailable as error:
            self._note_database_lost(error)
            self._rest()
            return
        except BaseException:
            self._rest()
            raise
        sender, name = self.dispatcher.sender, self.dispatcher.name
        if refusal is None:
            self._signed_on = True
            lifecycle.report(lifecycle.dispatcher_started, sender, name=name, differs=differs)
        elif self.waits:
            if self.refusal is None:
                lifecycle.report(lifecycle.dispatcher_refused, sender, name=name, reason=refusal)
            self._stopping.wait(REFUSED_SECONDS)
        else:
            self._stopping.set()
        self.refusal = refusal

    def _round(self) -> float:
        """Settle what is answered, claim what is due. Returns for how many seconds there is nothing to do."""
        self._replace_ended_threads()
        self._take_back_unbegun()
        if self.stopping:
            if not (pause := self._answers.seconds_until_due()):
                self._settle_and_claim({})
            return 0 if self._is_done() else max(0.0, min(pause, self._stop_by - time.monotonic()))
        self._keep_house()
        due = self.dispatcher.next_due()
        if self.dispatcher.paused:
            self._take_back_paused(self.dispatcher.paused)
        now = self.dispatcher.clock.now()
        overdue = [receiver for receiver, due_at in due.items() if due_at <= now]
        capacity = {receiver: slots for receiver in overdue if (slots := self._pool(receiver).free_slots) > 0}
        if self._answers.separated >= MOST_UNSTORED:
            capacity = {}
        idle = {receiver: slots for receiver, slots in capacity.items() if self._pool(receiver).idle}
        alone = self.dispatcher.in_doubt_waits and bool(idle)
        rest = self.dispatcher.rest_seconds(self._answers.all(), alone=alone) if capacity else 0
        if (capacity and not rest) or not self._answers.seconds_until_due():
            self._defer_to_requests()
            return 0 if self._settle_and_claim(idle if alone else capacity, alone) else PASSED_OVER_SECONDS
        self._share_load(saturated=bool(overdue))
        return rest or self._seconds_until([due_at - now for due_at in due.values() if due_at > now])

    def _settle_and_claim(self, capacity: dict[str, int], alone: bool = False) -> bool:
        """Returns whether anything was settled or claimed."""
        worked, claimed = self._answers.settle_and_claim(capacity, alone)
        self._hand_out(claimed)
        return worked

    def _hand_out(self, claimed: list[Lease]) -> None:
        for batch in self.dispatcher.batches(claimed):
            self._pool(batch[0].receiver).submit(batch)

    def _seconds_until(self, waits: list[timedelta]) -> float:
        soonest = min([timedelta(seconds=self.poll_seconds), *waits]).total_seconds()
        if any(pool.waiting for pool in self._pools.values()):
            soonest = min(soonest, STALLED_SECONDS)
        return min(soonest, max(0.0, self._next_prune - time.monotonic()), self._answers.seconds_until_due())

    def _defer_to_requests(self) -> None:
        """Under write contention wait a little: orders come first, and deliveries catch up."""
        if (contention := self.dispatcher.database.dialect.write_contention) > HIGH_CONTENTION:
            self._stopping.wait(DEFER_SECONDS * contention)

    def _share_load(self, *, saturated: bool) -> None:
        """More is due than there are slots for here: wake the other dispatchers, once."""
        if saturated and not self._saturated:
            self.wake_others()
        self._saturated = saturated

    def _keep_house(self) -> None:
        """Now and then: due times that can't be are pulled back, deliveries without a receiver become visible, and old
        events are deleted."""
        now = time.monotonic()
        if now >= self._next_look:
            self._next_look = now + MISSING_RECEIVER_WAIT_SECONDS
            self.dispatcher.pull_back()
            self._hand_out(self.dispatcher.claim_without_receiver())
        if now >= self._next_prune:
            count = self.bus.prune(batches=1)
            self._next_prune = now + (1 if count else PRUNE_SECONDS)
            if count:
                lifecycle.report(lifecycle.events_pruned, self.dispatcher.sender, count=count)

    def _take_back_unbegun(self) -> None:
        """Prefetched deliveries: behind a receiver that hangs, before one in doubt, and all of them at a stop."""
        for pool in self._pools.values():
            if self.stopping or pool.stalled or self.dispatcher.in_doubt_waits:
                self.hand_back(*[(lease, NotBegun()) for lease in pool.take_back()])

    def _take_back_paused(self, receivers: set[str]) -> None:
        for pool in self._pools.values():
            self.hand_back(*[(lease, NotBegun()) for lease in pool.take_back_of(receivers)])

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
        options = self.bus.options[name]
        prefetch = 0 if options.hold_unknown else PREFETCH
        return ReceiverPool(name, options.concurrency, self._invoke, self.wakeup.wake, prefetch=prefetch)

    def _invoke(self, batch: list[Lease]) -> None:
        for lease in batch:
            with self.reporting_faults():
                answer = self.dispatcher.invoke(lease)
                if answer is None:
                    continue
                unbegun = self._pool(lease.receiver).take_back() if _finds_backend_down(answer) else []
                self.hand_back((lease, answer), *[(each, NotBegun()) for each in unbegun])

    def hand_back(self, *answers: tuple[Lease, Answer]) -> None:
        """To the loop, which settles them."""
        with self._lock:
            if not self.ended.is_set():
                self._answers.add(*answers)
                return
        self.dispatcher.settle(list(answers))  # stop() did not wait so long, but the lease may hold still

    def _deliver_transactional(self, batch: list[Lease]) -> None:
        """Together, and where that can't be stored, one by one: what can't be stored holds up no other.

        Trouble of the database undoes the receivers' work together with its record, so they are called again.
        """
        if self._try_transactional(batch) is None:
            return
        for n, lease in enumerate(batch):
            if not self._await_database():
                self.dispatcher.abandon(batch[n:])
                return
            if (error := self._try_transactional([lease])) is not None:
                self._answers.report_unstored(lease, error, 1)
                self.hand_back((lease, undone(error)))

    def _try_transactional(self, batch: list[Lease]) -> BaseException | None:
        """Returns why it could not be stored; the leases are held then."""
        try:
            self.dispatcher.deliver_transactional(batch)
        except DatabaseUnavailable as error:
            self._note_database_lost(error)
            return error
        except BaseException as error:
            return error
        return None

    def _await_database(self) -> bool:
        """Until the loop has found it back; False at a stop."""
        while self._database_lost:
            if self._stopping.wait(RETRY_SECONDS):
                return False
        return True

    # Receivers' threads, to the watchdog and the heartbeat

    def at_work(self) -> list[Lease]:
        """What a thread is at or will begin, and what is answered. Read in this order, as one becomes the other."""
        begun = [lease for pool in list(self._pools.values()) for lease in pool.leases]
        return begun + [lease for lease, _ in self._answers.all()]

    def write_off(self, lease: Lease) -> bool:
        """Start a thread in the stead of the one that is at ``lease``. Returns whether there was such a one."""
        return self._pool(lease.receiver).write_off(lease)

    def _replace_ended_threads(self) -> None:
        """No fault of a receiver's ends a thread, but one of ours may: what it was at runs out, for others to take."""
        for name, pool in self._pools.items():
            for lost in pool.replace_ended():
                self.dispatcher.abandon(lost)
                what = f"a thread for {name} ended by itself, with {len(lost)} deliveries that are not settled"
                self._report_fault(RuntimeError(what))

    # Heartbeat, outages and faults

    def _beat(self) -> None:
        while not self.ended.wait(self.dispatcher.heartbeat_seconds):
            self._beat_once()

    def _beat_once(self) -> None:
        if not self._signed_on:
            return
        with self.reporting_faults():
            try:
                self.dispatcher.heartbeat(self.at_work())
            except DatabaseUnavailable as error:
                self._note_database_lost(error)

    @contextlib.contextmanager
    def reporting_faults(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            self._report_fault(error)

    def _report_fault(self, error: BaseException) -> None:
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
        self.dispatcher.heartbeat(self.at_work())
        with self._lock:
            self._database_lost = False
        lifecycle.report(lifecycle.database_back, self.dispatcher.sender)
        self._stopping.wait(2 * RETRY_SECONDS)


def _finds_backend_down(answer: Answer) -> bool:
    """Whether the deliveries that wait for the same backend should spend no attempt on it now."""
    return isinstance(answer, Failure) and answer.outcome in BACKEND_DOWN
