"""The watchdog's stopwatch: how long each attempt has been running."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")

LOOK_SECONDS = 1.0
"""Between two looks."""

WARN_SECONDS = 10.0
"""What has gone on for so long is worth a warning, then for twice as long, and so on."""


@dataclass(slots=True)
class _Seen:
    began: float
    warn_at: float


class Stopwatch(Generic[T]):
    """Remembers since when each of some things goes on, by ``look()``, which is to be called every LOOK_SECONDS.

    While the process is stopped nobody looks, and no time passes here: nothing is found to hang because of a pause.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last_look = clock()
        self._now = 0.0
        self._seen: dict[T, _Seen] = {}

    def look(self, going_on: Iterable[T]) -> dict[T, float]:
        """For how many seconds each of them has gone on. What is missing has ended."""
        last_look, self._last_look = self._last_look, self._clock()
        self._now += min(self._last_look - last_look, 2 * LOOK_SECONDS)
        self._seen = {one: self._seen.get(one) or _Seen(self._now, WARN_SECONDS) for one in going_on}
        return {one: self._now - seen.began for one, seen in self._seen.items()}

    def is_worth_a_warning(self, one: T) -> bool:
        """Whether it has gone on for WARN_SECONDS, or twice as long as at the warning before."""
        seen = self._seen[one]
        age = self._now - seen.began
        if age < seen.warn_at:
            return False
        seen.warn_at = 2 * age
        return True
