"""The leases that this process holds."""

import threading
from collections.abc import Collection, Iterable

from app.bus.leases import Lease


class HeldLeases:
    """Leases, each with the moments at which it was claimed and ends, by the monotonic clock. For any thread.

    The monotonic clock also counts while the process is stopped, so a process that was paused past a lease knows.
    """

    def __init__(self) -> None:
        self._ends: dict[Lease, float] = {}
        self._claims: dict[Lease, float] = {}
        self._lock = threading.Lock()

    def add(self, leases: Iterable[Lease], now: float, end: float) -> None:
        with self._lock:
            self._ends.update(dict.fromkeys(leases, end))
            self._claims.update(dict.fromkeys(leases, now))

    def extend(self, leases: Iterable[Lease], end: float) -> None:
        """Move the ends of those that are still held."""
        with self._lock:
            self._ends.update({lease: end for lease in leases if lease in self._ends})

    def drop(self, leases: Iterable[Lease]) -> None:
        with self._lock:
            for lease in leases:
                self._ends.pop(lease, None)
                self._claims.pop(lease, None)

    def all(self) -> list[Lease]:
        with self._lock:
            return list(self._ends)

    def last_claim(self, but: Collection[Lease]) -> float:
        """When the latest of them was claimed, those in ``but`` aside; minus infinity where there is none."""
        with self._lock:
            return max((at for lease, at in self._claims.items() if lease not in but), default=float("-inf"))

    def holds(self, lease: Lease, now: float) -> bool:
        with self._lock:
            return now < self._ends.get(lease, now)
