"""The threads that a worker has: lanes that try deliveries, and one thread that stores what receivers answered."""

import contextlib
import queue
import threading
import time
from collections.abc import Callable

from app.bus.dispatcher import BATCH, Answer
from app.bus.leases import Lease

AHEAD_SECONDS = 0.1
"""How much work, by the time that tries have taken lately, may be claimed ahead of the threads that are to do it."""

LATE_SECONDS = 0.25
"""After so long without one being done, what was claimed ahead is given back, for others to take."""

GATHER_SECONDS = 0.02
"""How long what is done may wait for more to be stored with it, while others queue for the write lock."""

MOST_UNSTORED = 2 * BATCH
"""Answers that wait to be stored: what a process claims must not run away from what it can store. Should it die, the
work behind each of them is done again."""


class Lane:
    """Threads that try deliveries, and how many more these may be handed. ``freed`` is called when it is more again."""

    def __init__(
        self,
        name: str,
        threads: int,
        room: int,
        attempt: Callable[[list[Lease]], None],
        freed: Callable[[], None],
        most_ahead: int = 0,
    ) -> None:
        self.name = name
        self.most_ahead = most_ahead
        self._room = room
        self._ahead = 0
        self._seconds: float | None = None  # that one try takes
        self._progress = 0.0
        self._attempt, self._freed = attempt, freed
        self._work: queue.SimpleQueue[list[Lease] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run, name=f"{name}-{n}", daemon=True) for n in range(threads)]
        for thread in self._threads:
            thread.start()

    @property
    def room(self) -> int:
        return self._room + self._ahead

    def learn(self, seconds: float) -> None:
        """A try took so long: be handed as many ahead as are done in no time. One that takes long ends that at once."""
        with self._lock:
            usual = seconds if self._seconds is None else self._seconds
            self._seconds = max(seconds, usual + (seconds - usual) / 8)
            self._ahead = min(self.most_ahead, int(AHEAD_SECONDS / max(self._seconds, 0.0001)))

    def put(self, batch: list[Lease]) -> None:
        with self._lock:
            self._room -= len(batch)
            self._progress = time.monotonic()
        self._work.put(batch)

    def is_late(self) -> bool:
        """Whether something waits here, and nothing has been done for long."""
        return not self._work.empty() and time.monotonic() - self._progress > LATE_SECONDS

    def waits(self) -> bool:
        return not self._work.empty()

    def take_back(self) -> list[Lease]:
        """What no thread has begun."""
        taken: list[list[Lease] | None] = []
        with contextlib.suppress(queue.Empty):
            while True:
                taken.append(self._work.get_nowait())
        for _ in range(taken.count(None)):  # that a thread is to end is not to be taken back
            self._work.put(None)
        unbegun = [lease for batch in taken if batch for lease in batch]
        with self._lock:
            self._room += len(unbegun)
            self._ahead, self._seconds = 0, None
        return unbegun

    def end(self) -> None:
        """Let the threads end after what they are at."""
        for _ in self._threads:
            self._work.put(None)

    def join(self, seconds: float) -> bool:
        """Wait for the threads to end. Returns whether all did."""
        deadline = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _run(self) -> None:
        while (batch := self._work.get()) is not None:
            try:
                self._attempt(batch)
            finally:
                with self._lock:
                    self._room += len(batch)
                    self._progress = time.monotonic()
                if self._work.empty():
                    self._freed()  # only now: whoever is woken must find the room


class Settler:
    """A thread that stores what receivers answered: as much in one transaction as there is."""

    def __init__(
        self,
        settle: Callable[[list[tuple[Lease, Answer]]], None],
        give_way: Callable[[float], None],
        freed: Callable[[], None],
    ) -> None:
        self._settle, self._give_way, self._freed = settle, give_way, freed
        self._unstored = 0
        self._answers: queue.SimpleQueue[tuple[Lease, Answer] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="settler", daemon=True)
        self._thread.start()

    def put(self, lease: Lease, answer: Answer) -> None:
        with self._lock:
            if not self._ended:
                self._unstored += 1
                self._answers.put((lease, answer))
                return
        self._settle([(lease, answer)])  # it took longer than the stop waited, but its lease may hold still

    @property
    def room(self) -> int:
        """How many more answers there may be."""
        return MOST_UNSTORED - self._unstored

    def end(self, seconds: float) -> bool:
        """Store what there is, then end. Returns whether it did so in time."""
        with self._lock:
            self._ended = True
            self._answers.put(None)
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        ends = False
        while not ends:
            gathered = [self._answers.get()]
            self._give_way(GATHER_SECONDS)
            with contextlib.suppress(queue.Empty):
                while len(gathered) < BATCH:
                    gathered.append(self._answers.get_nowait())
            ends = None in gathered
            if answers := [each for each in gathered if each is not None]:
                self._settle(answers)
                with self._lock:
                    was_full = self.room <= 0
                    self._unstored -= len(answers)
                if was_full:
                    self._freed()  # only now: whoever is woken must find the room
