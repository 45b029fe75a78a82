"""The one clock of the application, injected wherever time matters, and the ids made from it."""

import functools
import os
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime


class Clock:
    """Wall-clock time in UTC, and time-ordered ids. Tests inject a subclass that stands still until it is moved."""

    def now(self) -> datetime:
        """The time now, aware, in UTC, to the microsecond."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Seconds that never run backwards, for measuring how long something took."""
        return time.monotonic()


@functools.lru_cache(maxsize=64)  # a transaction stores its own time several times
def iso(moment: datetime) -> str:
    """ISO 8601 in UTC, always with microseconds, so that text order is time order."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


DRAWN_AT_ONCE = 256
"""The system is asked for the random bits of so many ids at a time, because each call lets another thread cut in."""


class TimeOrderedIds:
    """Makes version 7 UUIDs (RFC 9562, section 5.7): 48 bits of Unix milliseconds, then random bits.

    The twelve bits after the version count fractions of the millisecond (method 3 of section 6.2), and never repeat or
    fall back: ids made here sort in the order they were made. For any thread.
    """

    def __init__(
        self, time_ns: Callable[[], int] = time.time_ns, random_bytes: Callable[[int], bytes] = os.urandom
    ) -> None:
        self._time_ns, self._random_bytes = time_ns, random_bytes
        self._lock = threading.Lock()
        self._last = 0
        self._drawn: list[str] = []

    def make(self) -> str:
        """The text of a new id, in lower case with dashes."""
        with self._lock:
            ticks = self._last = max(self._time_ns() * 4096 // 1_000_000, self._last + 1)
            if not self._drawn:
                drawn = self._random_bytes(8 * DRAWN_AT_ONCE).hex()
                self._drawn = [_tail(drawn[at : at + 16]) for at in range(0, len(drawn), 16)]
            tail = self._drawn.pop()
        head = f"{ticks:015x}"
        return f"{head[:8]}-{head[8:12]}-7{head[12:]}-{tail}"

    def forget_drawn(self) -> None:
        """After a fork: what was drawn before is the parent's."""
        self._lock = threading.Lock()
        self._drawn = []


def _tail(digits: str) -> str:
    """The random part: of 64 bits the variant takes two."""
    return f"{'89ab'[int(digits[0], 16) % 4]}{digits[1:4]}-{digits[4:]}"


ids = TimeOrderedIds()
os.register_at_fork(after_in_child=lambda: ids.forget_drawn())


def uuid7() -> str:
    """A new version 7 UUID: see TimeOrderedIds."""
    return ids.make()
