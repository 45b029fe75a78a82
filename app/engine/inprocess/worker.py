"""The loop around the dispatcher's step: wait until something is due, claim it, hand it to threads, settle the answers.

Transactional receivers share one thread, because they share the database's write lock. Every other receiver has threads
of its own, so one that hangs holds up nobody else's deliveries. Their answers go back to the loop, which settles them
in the transaction in which it claims the next deliveries.

A watchdog looks after the threads. One that ended is replaced, one whose receiver does not return is written off, and
where that is not enough the process ends: a thread can't be ended, and whoever watches the process starts another.
"""

import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from functools import partial

from app.bus import Dispatcher, Lease, lifecycle
from app.bus.breaker import BACKEND_DOWN
from app.bus.dispatcher import BATCH
from app.bus.invoke import MISSING_RECEIVER_WAIT_SECONDS, Answer, Failure, NotBegun, is_transactional, undone
from app.engine.inprocess.pool import STALLED_SECONDS, ReceiverPool
from app.engine.inprocess.unsettled import UnsettledAnswers
from app.engine.inprocess.wakeup import Wakeup
from app.engine.inprocess.watch import LOOK_SECONDS, Watch
from app.errors import DatabaseUnavailable
from app.signal import ReceiverOptions, subscriptions
from app.states import Outcome

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

MOST_HANGING = 10
"""Threads that were written off and hang still. With more of them the process ends, to be rid of them."""

LAST_LINE_SECONDS = 1.0
"""Time that the line about the process' end has: a log that nobody reads shall not keep it from ending."""

STOP_GRACE_SECONDS = 0.5
"""Time that a stop allows for settling, beyond its wait for receivers."""

SIGN_OFF_SECONDS = 1.0
"""Time that a stop allows for the dispatcher's removal from those that are alive."""


class Worker:
    """Runs a dispatcher until it is stopped. ``poll_seconds`` is the safety net beneath the wake-up.

    ``receiver_timeout`` is how many seconds a receiver may take that has no other limit in its options;
    ``end_process`` is called when only the process' end helps, and does not return.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        options: Mapping[str, ReceiverOptions],
        wakeup: Wakeup,
        *,
        poll_seconds: float,
        receiver_timeout: float,
        end_process: Callable[[], object],
        wake_others: Callable[[], None],
        prune: Callable[[], int],
    ) -> None:
        self.dispatcher = dispatcher
        self.options = options
        self.wakeup = wakeup
        self.poll_seconds = poll_seconds
        self.receiver_timeout = receiver_timeout
        self.end_process = end_process
        self.wake_others = wake_others
        self.prune = prune
        self._pools: dict[str, ReceiverPool] = {}
        self._answers = UnsettledAnswers()
        """From receivers' threads."""
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
        self._watchdog = threading.Thread(target=self._watch, name="dispatcher-watchdog", daemon=True)
        self._watch_of: Watch[object] = Watch()
        self._present_round: object = None
        """Another one each time that the loop comes round; None while it waits."""
        self._hanging: list[Lease] = []
        """Those whose threads were written off."""

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
        self._watchdog.start()
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
            self._present_round = object()
            try:
                if self._database_lost:
                    self._recover()
                pause = self._round()
                self._present_round = None
                if pause:
                    self.wakeup.wait(pause)
            except DatabaseUnavailable as error:
                self._note_database_lost(error)
                self._rest()
            except BaseException as error:  # a fault of ours must not end all dispatching
                self._report_fault(error)
                self._rest()

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
        """Returns whether anything was settled or claimed. What can't be stored waits, whatever the reason."""
        answers, by_itself = self._answers.take()
        try:
            wanted = {} if by_itself else capacity
            _, claimed, unstored = self.dispatcher.settle_and_claim(answers, wanted, alone=alone)
        except BaseException as error:
            if not by_itself:
                self._answers.separate(answers)
                raise
            self._step_back(*answers[0], error)
            if isinstance(error, DatabaseUnavailable):
                raise
            return True
        for each in unstored:
            self._step_back(each.lease, each.answer, each.error)
        left = {each.lease for each in unstored}
        self._answers.settled([each for each in answers if each[0] not in left])
        self._hand_out(claimed)
        return bool(answers or claimed)

    def _step_back(self, lease: Lease, answer: Answer, error: BaseException) -> None:
        """Say so, the more rarely the more often it has failed."""
        failures = self._answers.step_back(lease, answer)
        if failures.bit_count() == 1:
            self._report_unstored(lease, error, failures)

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
        if (contention := self.dispatcher.database.write_contention) > HIGH_CONTENTION:
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
            count = self.prune()
            self._next_prune = now + (1 if count else PRUNE_SECONDS)
            if count:
                lifecycle.report(lifecycle.events_pruned, self.dispatcher.sender, count=count)

    def _take_back_unbegun(self) -> None:
        """Prefetched deliveries: behind a receiver that hangs, before one in doubt, and all of them at a stop."""
        for pool in self._pools.values():
            if self.stopping or pool.stalled or self.dispatcher.in_doubt_waits:
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
                self._report_unstored(lease, error, 1)
                self._hand_back((lease, undone(error)))

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

    # Threads that end or hang

    def _at_work(self) -> list[Lease]:
        """What a thread is at or will begin, and what is answered. Read in this order, as one becomes the other."""
        begun = [lease for pool in list(self._pools.values()) for lease in pool.leases]
        return begun + [lease for lease, _ in self._answers.all()]

    def _replace_ended_threads(self) -> None:
        """No fault of a receiver's ends a thread, but one of ours may: what it was at runs out, for others to take."""
        for name, pool in self._pools.items():
            for lost in pool.replace_ended():
                self.dispatcher.abandon(lost)
                what = f"a thread for {name} ended by itself, with {len(lost)} deliveries that are not settled"
                self._report_fault(RuntimeError(what))

    def _watch(self) -> None:
        while not self._ended.wait(LOOK_SECONDS):
            with self._reporting_faults():
                self._look_after_threads()

    def _look_after_threads(self) -> None:
        if not (self.alive or self.stopping):
            self._give_process_up("a thread of the dispatcher itself ended")
        running = [lease for lease in self._at_work() if lease.running and lease not in self._hanging]
        watched: list[object] = [*running]
        if self._present_round is not None and not any(map(is_transactional, running)):  # it may wait for these
            watched.append(self._present_round)
        for one, seconds in self._watch_of.look(watched).items():
            if isinstance(one, Lease):
                self._look_after_receiver(one, seconds)
            elif seconds > self.receiver_timeout + 2 * self.dispatcher.database.timeout:
                self._give_process_up(f"the dispatcher itself has been stuck for {seconds:.0f} s")

    def _look_after_receiver(self, lease: Lease, seconds: float) -> None:
        if seconds > (self.options[lease.receiver].timeout_seconds or self.receiver_timeout):
            self._give_up_on(lease, seconds)
        elif self._watch_of.is_worth_a_warning(lease):
            lifecycle.report(lifecycle.receiver_still_runs, self.dispatcher.sender, lease=lease, seconds=seconds)

    def _give_up_on(self, lease: Lease, seconds: float) -> None:
        """Settle the delivery without its thread. But one in a transaction holds locks, which nothing else frees."""
        what = f"{lease.receiver} has not returned for order {lease.order_id} after {seconds:.0f} s"
        if not self._pool(lease.receiver).write_off(lease):
            if lease.running:  # in the loop: it is when_dead that hangs
                self._give_process_up(what)
            return
        self._hanging = [*filter(lambda each: each.running, self._hanging), lease]
        if is_transactional(lease):
            others_can_settle = not self.dispatcher.database.dialect.one_writer
            self._give_process_up(f"{what}, and holds a transaction open", orderly=others_can_settle)
            return
        final = self.options[lease.receiver].hold_unknown
        detail = f"the receiver has not returned after {seconds:.0f} s"
        self._hand_back((lease, Failure(Outcome.UNKNOWN, detail, final)))
        self.wakeup.wake()
        if len(self._hanging) > MOST_HANGING:
            self._give_process_up(f"{what}, as {len(self._hanging) - 1} others before", orderly=True)

    def _give_process_up(self, reason: str, *, orderly: bool = False) -> None:
        """End the process. ``orderly``: let other receivers end before, and settle them, if that does not take long."""
        if orderly:
            _run_for(self.receiver_timeout + STOP_GRACE_SECONDS, partial(self.stop, self.receiver_timeout))
        report = partial(lifecycle.report, lifecycle.process_given_up, self.dispatcher.sender, reason=reason)
        _run_for(LAST_LINE_SECONDS, report)
        self.end_process()

    # Heartbeat, outages and faults

    def _beat(self) -> None:
        while not self._ended.wait(self.dispatcher.heartbeat_seconds):
            self._beat_once()

    def _beat_once(self) -> None:
        with self._reporting_faults():
            try:
                self.dispatcher.heartbeat(self._at_work())
            except DatabaseUnavailable as error:
                self._note_database_lost(error)

    @contextlib.contextmanager
    def _reporting_faults(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            self._report_fault(error)

    def _report_unstored(self, lease: Lease, error: BaseException, failures: int) -> None:
        sender = self.dispatcher.sender
        lifecycle.report(lifecycle.answer_unstored, sender, lease=lease, error=error, failures=failures)

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
        self.dispatcher.heartbeat(self._at_work())
        with self._lock:
            self._database_lost = False
        lifecycle.report(lifecycle.database_back, self.dispatcher.sender)
        self._stopping.wait(2 * RETRY_SECONDS)


def _run_for(seconds: float, function: Callable[[], object]) -> None:
    """Run it, and wait no longer for its end."""
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    thread.join(seconds)


def _finds_backend_down(answer: Answer) -> bool:
    """Whether the deliveries that wait for the same backend should spend no attempt on it now."""
    return isinstance(answer, Failure) and answer.outcome in BACKEND_DOWN
