"""Threads that try deliveries."""

import contextlib
import queue
import threading
import time
from collections.abc import Callable

from app.bus import Lease

QUICK_SECONDS = 0.02
"""A receiver that took no longer is handed deliveries ahead of its threads; one that took longer is not."""

STALLED_SECONDS = 0.25
"""After so long without one delivery ended, what was prefetched is given back, for other dispatchers to take."""


class ReceiverPool:
    """Threads that try batches of deliveries: ``batch`` in each thread, and up to ``prefetch`` more that wait.

    They are daemon threads of our own because an executor's are joined when the interpreter ends: one receiver that
    hangs would keep the process from ending. ``deliver`` is ``Worker._invoke`` or ``Worker._deliver_transactional``;
    ``on_free_slots`` is called after slots have become free, and wakes the worker's loop.
    """

    def __init__(
        self,
        name: str,
        threads: int,
        deliver: Callable[[list[Lease]], None],
        on_free_slots: Callable[[], None],
        *,
        batch: int = 1,
        prefetch: int = 0,
    ) -> None:
        self._deliver, self._on_free_slots = deliver, on_free_slots
        self._slots = threads * batch
        self._prefetch = prefetch
        self._quick = False
        self._running = 0
        self._progress = 0.0
        self._work: queue.SimpleQueue[list[Lease] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run, name=f"{name}-{n}", daemon=True) for n in range(threads)]
        for thread in self._threads:
            thread.start()

    @property
    def free_slots(self) -> int:
        """How many more deliveries it may be handed; not above zero where it has more than it should."""
        return self._slots + (self._prefetch if self._quick else 0)

    @property
    def running(self) -> int:
        """How many batches its threads are at."""
        return self._running

    @property
    def waiting(self) -> bool:
        return not self._work.empty()

    @property
    def stalled(self) -> bool:
        """Whether something waits here, and nothing has ended for STALLED_SECONDS."""
        return self.waiting and time.monotonic() - self._progress > STALLED_SECONDS

    def submit(self, batch: list[Lease]) -> None:
        with self._lock:
            self._slots -= len(batch)
            self._progress = time.monotonic()
        self._work.put(batch)

    def take_back(self) -> list[Lease]:
        """Remove and return the leases that no thread has begun. Prefetching stops until a delivery is quick again."""
        taken: list[list[Lease] | None] = []
        with contextlib.suppress(queue.Empty):
            while True:
                taken.append(self._work.get_nowait())
        for _ in range(taken.count(None)):  # that a thread is to end is not to be taken back
            self._work.put(None)
        unbegun = [lease for batch in taken if batch for lease in batch]
        with self._lock:
            self._slots += len(unbegun)
            self._quick = False
        return unbegun

    def end(self) -> None:
        """Let the threads end after what they are at."""
        for _ in self._threads:
            self._work.put(None)

    def _run(self) -> None:
        while (batch := self._work.get()) is not None:
            began = time.monotonic()
            with self._lock:
                self._running += 1
            try:
                self._deliver(batch)
            finally:
                with self._lock:
                    self._running -= 1
                    self._slots += len(batch)
                    self._progress = time.monotonic()
                    self._quick = self._progress - began <= QUICK_SECONDS
                self._on_free_slots()  # only now: the loop that is woken must find the slots
