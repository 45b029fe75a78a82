"""The rate that a throttling backend takes: learned from its replies, kept by a token bucket. Pure."""

import math
from dataclasses import dataclass

SLOWEST = 1 / 60
"""Starts a second."""
MEASURED_SECONDS = 10.0
"""Over which the rate is measured that was taken before the first refusal."""
FIRST_CUT = 0.8
LEAST_CUT, DEEPEST_CUT = 0.98, 0.7
"""Factors of the rate at a refusal: between these, the rate that was taken since the refusal before."""
GROWTH = 0.002
"""Share by which a success raises the rate just after a refusal: a backend at its limit refuses about one in thirty."""
GROWTH_DOUBLES = 20
"""After so many successes without a refusal a success raises it by twice that share, after twice as many by thrice."""
FORGOTTEN_SECONDS = 600.0
"""So long after the latest refusal, a rate that holds nothing back is no limit any more."""
BURST_SECONDS = 1.0
"""As many may start at once as the rate allows in so long."""


@dataclass(slots=True)
class Rate:
    """Between two refusals the backend's own bucket was empty at both ends: what passed between is what it takes."""

    per_second: float | None = None
    """None: no limit."""
    remembered: float | None = None
    """The limit before it was forgotten: the first refusal after that begins there."""
    throttled_at: float = 0.0
    passed: int = 0
    """Since then."""
    tokens: float = 0.0
    tokens_at: float = 0.0

    def tokens_now(self, now: float, per_second: float) -> float:
        """A clock that was set back adds none."""
        full = max(1.0, per_second * BURST_SECONDS)
        return min(full, self.tokens + max(0.0, now - self.tokens_at) * per_second)

    def take(self, now: float, count: int, per_second: float | None) -> None:
        """So many start."""
        if per_second is None:
            return
        available = self.tokens_now(now, per_second)
        if self.per_second and available > count and now - self.throttled_at > FORGOTTEN_SECONDS:
            self.remembered, self.per_second = self.per_second, None
        self.tokens, self.tokens_at = available - count, now

    def succeed(self) -> None:
        if self.per_second is not None:
            self.passed += 1
            self.per_second *= 1 + GROWTH * (1 + self.passed / GROWTH_DOUBLES)

    def throttle(self, began: float, now: float, accepted: int) -> None:
        """A refusal. One of an attempt that began no later than the latest refusal tells nothing new."""
        if self.per_second is None:
            measured = FIRST_CUT * accepted / MEASURED_SECONDS
            self.per_second = max(SLOWEST, min(measured, self.remembered or math.inf))
        elif began > self.throttled_at:
            lasted = max(now - self.throttled_at, 1e-3)
            share = self.passed / lasted / self.per_second
            self.per_second = max(SLOWEST, self.per_second * max(DEEPEST_CUT, min(LEAST_CUT, share)))
        else:
            return
        self.throttled_at, self.passed = now, 0
        self.tokens, self.tokens_at = 0.0, now
