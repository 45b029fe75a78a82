"""Threads that try deliveries."""

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass

from app.bus import Lease

QUICK_SECONDS = 0.02
"""A receiver that took no longer is handed deliveries ahead of its threads; one that took longer is not."""

STALLED_SECONDS = 0.25
"""After so long without one delivery ended, what was prefetched is given back, for other dispatchers to take."""


@dataclass(eq=False)
class Place:
    """One thread's place in a pool."""

    batch: list[Lease] | None = None
    """The deliveries that the thread is working on."""
    written_off: bool = False
    """Whether another thread is in its stead: it ends when its receiver returns."""
    ended: bool = False


class ReceiverPool:
    """Threads that try batches of deliveries: ``batch`` in each thread, and up to ``prefetch`` more that wait.

    What the pool has is what waits in its queue and what its threads are at, and nothing else: the leases of a thread
    that ended are not among them. For any thread.

    They are daemon threads of our own because an executor's are joined when the interpreter ends: one receiver that
    hangs would keep the process from ending. ``deliver`` is ``Worker._invoke`` or ``Worker._deliver_transactional``;
    ``on_free_slots`` is called after slots have become free, and when a thread ends. It wakes the worker's loop.
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
        self._name, self._deliver, self._on_free_slots = name, deliver, on_free_slots
        self._capacity = threads * batch
        self._prefetch = prefetch
        self._quick = False
        self._progress = 0.0
        self._waiting: deque[list[Lease]] = deque()
        self._calls: queue.SimpleQueue[None] = queue.SimpleQueue()
        """For each batch that waits, and for each thread that is to end, one; some are in vain."""
        self._ending = False
        self._lock = threading.Lock()
        self._places: list[Place] = []
        for _ in range(threads):
            self._places.append(self._start_thread())

    @property
    def leases(self) -> list[Lease]:
        """All that wait, and all that a thread is at."""
        with self._lock:
            return [lease for batch in (*self._waiting, *self._running()) for lease in batch]

    @property
    def free_slots(self) -> int:
        """How many more deliveries it may be handed; not above zero where it has more than it should, or is stuck."""
        if not self.idle and time.monotonic() - self._progress > STALLED_SECONDS:
            return 0
        return self._capacity + (self._prefetch if self._quick else 0) - len(self.leases)

    @property
    def running(self) -> int:
        """How many batches its threads are at."""
        with self._lock:
            return len(self._running())

    @property
    def idle(self) -> bool:
        """Whether a thread would begin at once what is submitted now."""
        return len(self._waiting) + self.running < len(self._places)

    @property
    def waiting(self) -> bool:
        return bool(self._waiting)

    @property
    def stalled(self) -> bool:
        """Whether something waits here, and nothing has ended for STALLED_SECONDS."""
        return self.waiting and time.monotonic() - self._progress > STALLED_SECONDS

    def submit(self, batch: list[Lease]) -> None:
        with self._lock:
            self._progress = time.monotonic()
            self._waiting.append(batch)
        self._calls.put(None)

    def take_back(self) -> list[Lease]:
        """Remove and return the leases that no thread has begun. Prefetching stops until a delivery is quick again."""
        with self._lock:
            unbegun = [lease for batch in self._waiting for lease in batch]
            self._waiting.clear()
            self._quick = False
        return unbegun

    def take_back_of(self, receivers: Collection[str]) -> list[Lease]:
        """Remove and return the leases of these receivers that no thread has begun."""
        with self._lock:
            unbegun = [lease for batch in self._waiting for lease in batch if lease.receiver in receivers]
            others = ([lease for lease in batch if lease.receiver not in receivers] for batch in self._waiting)
            self._waiting = deque(batch for batch in others if batch)
        return unbegun

    def write_off(self, lease: Lease) -> bool:
        """Start a thread in the stead of the one that is at ``lease``. Returns whether there was such a one."""
        with self._lock:
            for place in self._places:
                if place.batch is not None and lease in place.batch:
                    self._replace(place)
                    place.written_off = True
                    return True
        return False

    def replace_ended(self) -> list[list[Lease]]:
        """Start a thread in the stead of each that ended by itself. Returns what each of these was at."""
        with self._lock:
            ended = [place for place in self._places if place.ended and not self._ending]
            for place in ended:
                self._replace(place)
        return [place.batch or [] for place in ended]

    def end(self) -> None:
        """Let the threads end after what they are at."""
        self._ending = True
        for _ in self._places:
            self._calls.put(None)

    def _running(self) -> list[list[Lease]]:
        return [place.batch for place in self._places if place.batch is not None and not place.ended]

    def _replace(self, place: Place) -> None:
        self._places[self._places.index(place)] = self._start_thread()

    def _start_thread(self) -> Place:
        place = Place()
        threading.Thread(target=self._run, args=[place], name=self._name, daemon=True).start()
        return place

    def _run(self, place: Place) -> None:
        try:
            while not place.written_off:
                self._calls.get()
                if self._begin(place):
                    self._try(place)
                elif self._ending:
                    return
        finally:
            place.ended = True
            self._on_free_slots()

    def _begin(self, place: Place) -> list[Lease] | None:
        with self._lock:
            place.batch = self._waiting.popleft() if self._waiting else None
        return place.batch

    def _try(self, place: Place) -> None:
        assert place.batch is not None  # noqa: S101 - for the type checker
        began = time.monotonic()
        self._deliver(place.batch)
        with self._lock:
            place.batch = None
            self._progress = time.monotonic()
            self._quick = self._progress - began <= QUICK_SECONDS
        self._on_free_slots()  # only now: the loop that is woken must find the slots
