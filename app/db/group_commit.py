"""Group commit: threads of one process share a transaction, and its fsync (leader/followers).

The first thread that submits a work leads: once it holds the write lock, it runs the works of all threads that have
queued meanwhile, and commits. Then the first of those that queued later leads. No extra thread is needed, and a lone
caller waits for no other.

After a failure the works run again, each in a transaction of its own, so that one harms no other.
"""

import itertools
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from contextvars import copy_context
from datetime import datetime
from functools import partial
from typing import Any

from app.db.admission import Admission
from app.db.dialect import Dialect, Trouble, Unanswered, driver_error, unavailable
from app.db.transaction import FirstRow, Transaction, run_within

LARGEST_BATCH = 16
"""How many works share a transaction: it bounds how long the write lock is held."""

QUEUE_SECONDS = 0.05
"""How long a work queues on PostgreSQL. Then its thread leads beside the present leader, which may wait for a row."""

LONGEST_BACKOFF_SECONDS = 0.2
"""Between tries while the database has transient trouble."""


class Work:
    """A function that one caller wants run in a transaction, and what came of it."""

    def __init__(
        self,
        function: Callable[[Transaction], Any],
        lock_order: str | None,
        began: float,
        first: Callable[[datetime], FirstRow] | None = None,
    ) -> None:
        self.function, self.lock_order, self.began, self.first = function, lock_order, began, first
        self.context = copy_context()
        self.alone = False
        """Whether no other work may share its transaction."""
        self.queued = self.leads = False
        self.woken = threading.Lock()
        """Released when the work is done, or its thread is to lead."""
        self.woken.acquire()
        self.done = False
        self.result: Any = None
        self.error: BaseException | None = None
        self.facts: dict[str, Any] = {}

    def run(self, transaction: Transaction, before: Callable[[Transaction], None] | None) -> None:
        """Run it in its caller's context, in whichever thread leads."""
        self.facts = transaction.facts
        self.result = self.context.run(run_within, transaction, self.function, before)

    def finish(self, error: BaseException | None = None) -> None:
        self.error, self.done = error, True
        self.woken.release()

    def outcome(self) -> Any:
        """The function's result. Raises its exception."""
        if self.error is not None:
            raise self.error
        if not self.done:
            raise RuntimeError("the transaction ended without a commit and without an error")
        return self.result


class GroupCommit:
    """Runs submitted works in as few transactions as it can. For any thread.

    ``run_batch(take_works)`` is ``Database.run_batch``: it runs one transaction. Once it holds the write lock, it calls
    ``take_works()``, which is ``_fill`` here.
    """

    def __init__(
        self, run_batch: Callable[[Callable[[], list[Work]]], None], dialect: Dialect, admission: Admission
    ) -> None:
        self.leaders = 0
        """How many threads lead. On PostgreSQL it may be several."""
        self.trouble: BaseException | None = None
        """The latest error of the works that wait; None since a transaction was committed."""
        self._run_batch, self._dialect, self._admission = run_batch, dialect, admission
        self._lock = threading.Lock()
        self._queue: deque[Work] = deque()

    @property
    def waiting(self) -> int:
        """How many works queue."""
        return len(self._queue)

    def submit(self, work: Work) -> None:
        """Queue the work; where nobody leads, its thread does.

        On PostgreSQL only works with a lock order share transactions. The others, a dispatcher's batches, run side by
        side, each in its own thread.
        """
        if not (self._dialect.one_writer or work.lock_order is not None):
            work.alone = True
            return
        with self._lock:
            if self.leaders:
                work.queued = True
                self._queue.append(work)
            else:
                self.leaders += 1
                work.leads = True

    def wait(self, work: Work) -> list[Work]:
        """Return when the submitted work is done. The works that this thread ran, as a leader, are its to report."""
        if work.leads:
            return self._lead(work)
        if not work.queued:
            return self._run([work])
        self._await_wakening(work)
        return [] if work.done else self._lead(work)

    def _add_leader(self, work: Work) -> None:
        """Called under the lock."""
        self.leaders += 1
        self._queue.remove(work)
        work.woken.release()

    def _await_wakening(self, work: Work) -> None:
        while not work.woken.acquire(timeout=-1 if self._dialect.one_writer else QUEUE_SECONDS):
            with self._lock:
                if work in self._queue:
                    self._add_leader(work)

    def _lead(self, work: Work) -> list[Work]:
        batch = [work]
        try:
            return self._run(batch)
        finally:
            self._hand_on([each for each in batch if each is not work and not each.done])

    def _hand_on(self, unfinished: list[Work]) -> None:
        """The next in the queue leads; an error that stops this thread leaves works unfinished."""
        with self._lock:
            self._queue.extendleft(reversed(unfinished))
            self.leaders -= 1
            if self._queue:
                self._add_leader(self._queue[0])

    def _run(self, batch: list[Work]) -> list[Work]:
        """Try until the batch, to which the queue is added, is committed or given up."""
        attempts = itertools.count()
        trouble: BaseException | None = None
        while not batch[0].done:
            try:
                self._run_batch(partial(self._fill, batch))
            except BaseException as error:  # SystemExit from another thread's work is that thread's
                trouble = trouble if trouble and isinstance(driver_error(error), Unanswered) else error
                self.trouble = trouble if self._dialect.is_transient(error) else None
                if len(batch) > 1:
                    self._separate(batch)
                    if self._dialect.is_transient(error):
                        self._give_up(batch[0], trouble, self._admission.is_overdue)
                elif self._dialect.is_transient(error):
                    self._retry_later(batch[0], trouble, next(attempts))
                else:
                    self._finish(batch, error)
            else:
                self.trouble = None
                self._finish(batch)
        return batch

    def _fill(self, batch: list[Work]) -> list[Work]:
        with self._lock:
            while self._queue and len(batch) < LARGEST_BATCH and not (batch[-1].alone or self._queue[0].alone):
                batch.append(self._queue.popleft())
        return batch

    def _separate(self, batch: list[Work]) -> None:
        """One of the works is wrong, or waits for a row: each runs alone from now on, the leader's own first."""
        for each in batch:
            each.alone = True
        with self._lock:
            self._queue.extendleft(reversed(batch[1:]))
        del batch[1:]

    def _retry_later(self, work: Work, error: BaseException, attempt: int) -> None:
        """Give up what may wait no longer, and back off before the next try."""
        seconds = random.uniform(0, min(LONGEST_BACKOFF_SECONDS, 0.002 * 2 ** min(attempt, 10)))  # noqa: S311 - no secret
        hopeless = self._dialect.trouble(error) is Trouble.LASTING
        self._give_up(work, error, lambda began: hopeless or not self._admission.may_wait(began, seconds))
        if not work.done:
            time.sleep(seconds)

    def _give_up(self, work: Work, error: BaseException, is_hopeless: Callable[[float], bool]) -> None:
        """Tell whoever began to wait at a hopeless time; in the queue too, which waits for the same database."""
        with self._lock:
            for each in [work, *self._queue]:
                if is_hopeless(each.began):
                    each.finish(unavailable(self._dialect, error))
            self._queue = deque(each for each in self._queue if not each.done)

    def _finish(self, batch: list[Work], error: BaseException | None = None) -> None:
        self._admission.transaction_ended()
        for each in batch:
            each.finish(error)
