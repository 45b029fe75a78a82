"""The watchdog: a receiver that does not return is written off, and where that is not enough the process ends.

A thread can't be ended. A supervisor, such as gunicorn or systemd, starts another process.
"""

import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Protocol

from app.bus import Dispatcher, Lease, lifecycle
from app.bus.invoke import Answer, Failure, is_transactional
from app.engine.inprocess.stopwatch import LOOK_SECONDS, Stopwatch
from app.engine.inprocess.wakeup import Wakeup
from app.signal import ReceiverOptions
from app.states import Outcome

MOST_HANGING = 10
"""Threads that were written off and hang still. With more of them the process ends, to be rid of them."""

LAST_LINE_SECONDS = 1.0
"""Time that the line about the process' end has: a log that nobody reads shall not keep it from ending."""

STOP_GRACE_SECONDS = 0.5
"""Time that a stop allows for settling, beyond its wait for receivers."""


class Watched(Protocol):
    """The worker, as a watchdog sees it."""

    @property
    def alive(self) -> bool: ...

    @property
    def stopping(self) -> bool: ...

    present_round: object
    wakeup: Wakeup

    def at_work(self) -> list[Lease]: ...

    def write_off(self, lease: Lease) -> bool: ...

    def hand_back(self, *answers: tuple[Lease, Answer]) -> None: ...

    def stop(self, seconds: float) -> bool: ...

    def reporting_faults(self) -> AbstractContextManager[None]: ...


class Watchdog:
    """Looks after a worker's threads, its own loop among them. ``start()``, and ``end()`` with the worker."""

    def __init__(
        self,
        worker: Watched,
        dispatcher: Dispatcher,
        options: Mapping[str, ReceiverOptions],
        *,
        receiver_timeout: float,
        end_process: Callable[[], object],
    ) -> None:
        self._worker, self._dispatcher, self._options = worker, dispatcher, options
        self._receiver_timeout, self._end_process = receiver_timeout, end_process
        self._stopwatch: Stopwatch[object] = Stopwatch()
        self._hanging: list[Lease] = []
        """Those whose threads were written off."""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="dispatcher-watchdog", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        self._ended.set()

    def _run(self) -> None:
        while not self._ended.wait(LOOK_SECONDS):
            with self._worker.reporting_faults():
                self._look()

    def _look(self) -> None:
        worker = self._worker
        if not (worker.alive or worker.stopping):
            self._give_process_up("a thread of the dispatcher itself ended")
        running = [lease for lease in worker.at_work() if lease.running and lease not in self._hanging]
        watched: list[object] = [*running]
        if worker.present_round is not None and not any(map(is_transactional, running)):  # it may wait for these
            watched.append(worker.present_round)
        for one, seconds in self._stopwatch.look(watched).items():
            if isinstance(one, Lease):
                self._look_after_receiver(one, seconds)
            elif seconds > self._receiver_timeout + 2 * self._dispatcher.database.timeout:
                self._give_process_up(f"the dispatcher itself has been stuck for {seconds:.0f} s")

    def _look_after_receiver(self, lease: Lease, seconds: float) -> None:
        if seconds > (self._options[lease.receiver].timeout_seconds or self._receiver_timeout):
            self._give_up_on(lease, seconds)
        elif self._stopwatch.is_worth_a_warning(lease):
            lifecycle.report(lifecycle.receiver_still_runs, self._dispatcher.sender, lease=lease, seconds=seconds)

    def _give_up_on(self, lease: Lease, seconds: float) -> None:
        """Settle the delivery without its thread. But one in a transaction holds locks, which nothing else frees."""
        what = f"{lease.receiver} has not returned for order {lease.order_id} after {seconds:.0f} s"
        if not self._worker.write_off(lease):
            if lease.running:  # in the loop: it is when_dead that hangs
                self._give_process_up(what)
            return
        self._hanging = [*filter(lambda each: each.running, self._hanging), lease]
        if is_transactional(lease):
            others_can_settle = not self._dispatcher.database.dialect.one_writer
            self._give_process_up(f"{what}, and holds a transaction open", orderly=others_can_settle)
            return
        final = self._options[lease.receiver].hold_unknown
        detail = f"the receiver has not returned after {seconds:.0f} s"
        self._worker.hand_back((lease, Failure(Outcome.UNKNOWN, detail, final)))
        self._worker.wakeup.wake()
        if len(self._hanging) > MOST_HANGING:
            self._give_process_up(f"{what}, as {len(self._hanging) - 1} others before", orderly=True)

    def _give_process_up(self, reason: str, *, orderly: bool = False) -> None:
        """End the process. ``orderly``: let other receivers end before, and settle them, if that does not take long."""
        if orderly:
            stop = partial(self._worker.stop, self._receiver_timeout)
            _run_for(self._receiver_timeout + STOP_GRACE_SECONDS, stop)
        report = partial(lifecycle.report, lifecycle.process_given_up, self._dispatcher.sender, reason=reason)
        _run_for(LAST_LINE_SECONDS, report)
        self._end_process()


def _run_for(seconds: float, function: Callable[[], object]) -> None:
    """Run it, and wait no longer for its end."""
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    thread.join(seconds)
