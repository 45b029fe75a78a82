"""The watchdog: a receiver that does not return is written off, and where that is not enough the process ends.

A thread can't be ended. A supervisor, such as gunicorn or systemd, starts another process.
"""

import threading
from collections.abc import Callable
from functools import partial

from app.bus import Lease, lifecycle
from app.bus.invoke import Failure, is_transactional
from app.engine.inprocess.stopwatch import LOOK_SECONDS, Stopwatch
from app.engine.inprocess.worker import STOP_GRACE_SECONDS, Worker
from app.states import Outcome

MOST_HANGING = 10
"""Threads that were written off and hang still. With more of them the process ends, to be rid of them."""

LAST_LINE_SECONDS = 1.0
"""Time that the line about the process' end has: a log that nobody reads shall not keep it from ending."""


class Watchdog:
    """Looks after a worker's threads, its own loop among them."""

    def __init__(self, worker: Worker, end_process: Callable[[], object]) -> None:
        """``end_process`` is called when only the process' end helps, and does not return."""
        self._worker, self._dispatcher, self._end_process = worker, worker.dispatcher, end_process
        self._receiver_timeout = worker.bus.settings.receiver_timeout
        """How many seconds a receiver may take that has no other limit in its options."""
        self._stopwatch: Stopwatch[object] = Stopwatch()
        self._hanging: list[Lease] = []
        """Those whose threads were written off."""

    def run(self) -> None:
        """Look until the worker has ended."""
        while not self._worker.ended.wait(LOOK_SECONDS):
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
        if seconds > (self._worker.bus.options[lease.receiver].timeout_seconds or self._receiver_timeout):
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
        final = self._worker.bus.options[lease.receiver].hold_unknown
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
