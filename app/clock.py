"""The one clock of the application, injected wherever time matters, and the ids made from it."""

import os
import threading
import time
from datetime import UTC, datetime


class Clock:
    """Wall-clock time in UTC, and time-ordered ids. Tests inject a subclass that stands still until it is moved."""

    def now(self) -> datetime:
        """The time now, aware, in UTC, to the microsecond."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Seconds that never run backwards, for measuring how long something took."""
        return time.monotonic()


_lock = threading.Lock()
_last = 0
_drawn: list[bytes] = []
"""Random bytes for the next ids: the system is asked for many at a time, for each time another thread may cut in."""

AT_ONCE = 256

os.register_at_fork(after_in_child=_drawn.clear)  # they are the parent's


def uuid7() -> str:
    """The text of a version 7 UUID (RFC 9562, section 5.7): 48 bits of Unix milliseconds, then random bits.

    The twelve bits after the version count fractions of the millisecond (method 3 of section 6.2), and never
    repeat or fall back within one process: ids made here sort in the order they were made.
    """
    global _last
    with _lock:
        ticks = max(time.time_ns() * 4096 // 1_000_000, _last + 1)
        _last = ticks
        if not _drawn:
            drawn = os.urandom(8 * AT_ONCE)
            _drawn.extend(drawn[at : at + 8] for at in range(0, len(drawn), 8))
        random = _drawn.pop()
    milliseconds, fraction = divmod(ticks, 4096)
    tail = int.from_bytes(random) & (2**62 - 1) | 0b10 << 62
    text = f"{milliseconds:012x}7{fraction:03x}{tail:016x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
