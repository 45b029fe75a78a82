"""Retry policies. A policy says how long a delivery waits after a failed attempt, or that it is given up."""

import random
from dataclasses import dataclass, field
from typing import Protocol


class Policy(Protocol):
    @property
    def maximum(self) -> float:
        """The longest that it lets a delivery wait, in seconds. A receiver's RetryAfter is bounded by it too."""

    def wait(self, spent: int, outcome: str) -> float | None:
        """Seconds until the next try, or None to give up, after ``spent`` attempts, the last of which ended so."""


PROBE_BASE = 0.5
PROBE_MAXIMUM = 30.0


def probe_wait(failures: int, rng: random.Random | None = None) -> float:
    """Seconds until the next probe of something that was found down ``failures`` times in a row.

    None at all after the first, for that may have been the one message's fault; then half a second, doubled each
    time up to half a minute, less a random tenth.
    """
    if failures <= 1:
        return 0
    longest = min(PROBE_MAXIMUM, PROBE_BASE * 2.0 ** min(failures - 2, 64))
    return longest * (rng or random).uniform(0.9, 1)


UNKNOWN_WEIGHT = 7
"""An attempt whose outcome is unknown counts for so many in the wait: three copies are spread as twenty tries are."""


@dataclass(frozen=True)
class ExponentialBackoff:
    """Exponential backoff with full jitter: a uniform draw from 0 to min(maximum, base * 2 ** (spent - 1)) seconds.

    The jitter keeps thousands of deliveries that failed together from coming back together (Marc Brooker,
    "Exponential Backoff And Jitter", AWS Architecture Blog, 2015). A ``refused`` delivery is not tried again. With the
    default settings the twenty attempts spread over about five hours.

    One whose outcome is ``unknown`` may have had its effect, and few may be repeated: the wait doubles UNKNOWN_WEIGHT
    times as fast, and is drawn from the upper half. With the default settings that is 160 to 320 s, then 30 to 60 min.
    """

    base: float = 5
    maximum: float = 3600
    max_attempts: int = 20
    rng: random.Random = field(default_factory=random.Random, repr=False, compare=False)

    def wait(self, spent: int, outcome: str) -> float | None:
        if outcome == "refused" or spent >= self.max_attempts:
            return None
        if outcome == "unknown":
            longest = self._longest(spent * UNKNOWN_WEIGHT)
            return self.rng.uniform(longest / 2, longest)
        return self.rng.uniform(0, self._longest(spent))

    def _longest(self, spent: int) -> float:
        doublings = min(spent - 1, 64)  # 2.0 ** 1024 overflows; long before that every wait is the maximum
        return min(self.maximum, self.base * 2.0**doublings)
