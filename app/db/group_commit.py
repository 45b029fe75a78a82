"""Whose work is done in which transaction, and for how long one waits.

Who comes while another thread commits waits, and shares the next commit: SQLite has one writer at a time; PostgreSQL,
too, has many works done sooner in one transaction. The first leads: it does the work of all who have come meanwhile,
then passes the lead on to who came after. After a failure each is done by itself, so that it harms nobody else.
"""

import contextlib
import itertools
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextvars import Context, ContextVar, copy_context
from typing import Any

from app.db.engine import is_full, is_passing
from app.db.transaction import Transaction, within
from app.errors import DatabaseUnavailable

LARGEST_BATCH = 16
"""How many callers' work shares a commit: it bounds how long the write lock is held."""

COMPANY_SECONDS = 0.002
"""How long a commit is put off for those who are on their way to it."""

PATIENCE = 0.05
"""Seconds that one waits on PostgreSQL to be taken along. Then one leads beside the others, who may wait for a row."""

STUCK_SECONDS = 1.0
"""A database is stuck when transactions wait here and none has ended for so long."""

PATIENT = 3
"""How many of a process' transactions wait for a stuck database as long as ``timeout``. The others are told at once, so
that threads remain to read, and to tell."""

_expected: ContextVar[bool] = ContextVar("expected", default=False)


class Work:
    """What one caller of ``transact`` wants done, and what came of it."""

    __slots__ = ("alone", "began", "context", "done", "error", "facts", "lock_order", "result", "turn", "work")

    def __init__(self, work: Callable[[Transaction], Any], began: float, context: Context, lock_order: str) -> None:
        self.work, self.began, self.context, self.lock_order = work, began, context, lock_order
        self.alone = False
        """Whether nobody's work is to share its transaction."""
        self.done = False
        self.result: Any = None
        self.error: Exception | None = None
        self.facts: dict[str, Any] = {}
        self.turn = threading.Lock()
        self.turn.acquire()

    def do(self, session: Transaction, before: Callable[[Transaction], None] | None) -> None:
        """In the caller's context, whichever thread it is that does it."""
        self.facts = session.facts
        self.result = self.context.run(within, session, self.work, before)

    def end(self, error: Exception | None) -> None:
        """It is over; who waits for it goes on."""
        self.error, self.done = error, True
        self.turn.release()


class Commits:
    """The works of one process. ``once`` does a batch of them in one transaction; it calls fill() for more of them.

    On SQLite there is ``one_writer``. ``timeout`` is how many seconds one waits.
    """

    def __init__(self, once: Callable[[list[Work]], None], timeout: float, *, one_writer: bool) -> None:
        self._once, self._timeout, self._one_writer = once, timeout, one_writer
        self.queue: deque[Work] = deque()
        self.leads = 0
        """How many threads are committing, for themselves and for who is in the queue."""
        self._lock = threading.Lock()
        self._coming = 0  # how many threads are expected in the queue
        self._all_here = threading.Condition(self._lock)
        self._line: list[float] = []  # when each transaction that is not over began
        self._last_end = 0.0

    def do(self, work: Callable[[Transaction], Any], lock_order: str) -> tuple[Work, list[Work]]:
        """Returns the work when it is done, and all works that were done in this thread.

        Raises DatabaseUnavailable when enough wait already.
        """
        with self._in_line() as began:
            mine = Work(work, began, copy_context(), lock_order)
            if self._one_writer or _expected.get():
                return mine, self._join(mine)
            mine.alone = True  # on PostgreSQL a dispatcher's transactions run side by side
            self._persistently([mine])
            return mine, [mine]

    @contextlib.contextmanager
    def expected(self) -> Iterator[None]:
        """In the block, who commits waits a moment for this thread's work to share the commit."""
        with self._lock:
            self._coming += 1
        _expected.set(True)
        try:
            yield
        finally:
            with self._lock:
                self._arrived()

    def fill(self, batch: list[Work]) -> None:
        """Whoever waits comes along."""
        with self._lock:
            while self.queue and len(batch) < LARGEST_BATCH and not (batch[-1].alone or self.queue[0].alone):
                batch.append(self.queue.popleft())

    def _join(self, mine: Work) -> list[Work]:
        with self._lock:
            self._arrived()
            leads = not self.leads
            if leads:
                self.leads = 1
            else:
                self.queue.append(mine)
        return self._lead(mine) if leads or self._is_to_lead(mine) else []

    def _is_to_lead(self, mine: Work) -> bool:
        """Wait until my work is done, or to be done by me."""
        while not mine.turn.acquire(timeout=-1 if self._one_writer else PATIENCE):
            with self._lock:
                if mine in self.queue:
                    self.queue.remove(mine)
                    self.leads += 1
                    return True
        return not mine.done

    def _lead(self, mine: Work) -> list[Work]:
        batch = [mine]
        try:
            self._await_company()
            self._persistently(batch)
        finally:
            with self._lock:
                self.queue.extendleft(each for each in reversed(batch[1:]) if not each.done)
                if self.queue:
                    self.queue.popleft().turn.release()
                else:
                    self.leads -= 1
        return batch

    def _arrived(self) -> None:
        """Who was expected is here. Called under the lock."""
        if _expected.get():
            _expected.set(False)
            self._coming -= 1
            if not self._coming:
                self._all_here.notify_all()

    def _await_company(self) -> None:
        with self._lock:
            if self._coming:
                enough = LARGEST_BATCH - 1
                self._all_here.wait_for(lambda: not self._coming or len(self.queue) >= enough, COMPANY_SECONDS)

    def _persistently(self, batch: list[Work]) -> None:
        """Do the batch until its commit is through. What can't be done ends with DatabaseUnavailable."""
        for attempt in itertools.count():
            try:
                self._once(batch)
            except Exception as error:
                if len(batch) > 1:
                    self._part(batch)  # one of them is wrong, or waits for a row
                elif not is_passing(error):
                    self._last_end = time.monotonic()
                    batch[0].end(error)
                    return
                else:
                    pause = random.uniform(0, min(0.2, 0.002 * 2 ** min(attempt, 10)))  # noqa: S311 - no secret
                    self._give_up(batch, pause, error)
                    with self._lock:
                        self._give_up(self.queue, pause, error)
                        self.queue = deque(each for each in self.queue if not each.done)
                    if batch[0].done:
                        return
                    time.sleep(pause)
            else:
                self._last_end = time.monotonic()
                for each in batch:
                    each.end(None)
                return

    def _part(self, batch: list[Work]) -> None:
        """The leader goes on with its own work; the others come next, each alone."""
        for each in batch:
            each.alone = True
        with self._lock:
            self.queue.extendleft(reversed(batch[1:]))
        del batch[1:]

    def _give_up(self, waiting: Iterable[Work], pause: float, error: Exception) -> None:
        """End what may wait no longer."""
        for each in waiting:
            late = time.monotonic() + pause > each.began + self._timeout
            if is_full(error) or late or self._enough_wait(each.began):
                told = DatabaseUnavailable()
                told.__cause__ = error
                each.end(told)

    @contextlib.contextmanager
    def _in_line(self) -> Iterator[float]:
        """Yields when the work began to wait."""
        began = time.monotonic()
        if not self._line:
            self._last_end = began
        elif self._enough_wait(began):
            raise DatabaseUnavailable
        self._line.append(began)
        try:
            yield began
        finally:
            self._line.remove(began)

    def _enough_wait(self, began: float) -> bool:
        """Whether the database is stuck, and PATIENT transactions of this process that began earlier wait for it."""
        stuck = time.monotonic() - self._last_end > STUCK_SECONDS
        return stuck and sum(other < began for other in list(self._line)) >= PATIENT
