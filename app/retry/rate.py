"""The rate that a throttling backend takes: learned from its replies, kept by a token bucket. Pure."""

import math
from dataclasses import dataclass

SLOWEST = 1 / 60
"""Starts a second."""
MEASURED_SECONDS = 10.0
"""Over which the rate is measured that was taken before the first refusal."""
FIRST_CUT = 0.8
"""Factor of what was taken then and two standard deviations more: too high a rate costs a few refusals, too low a one
delays all that wait until it has grown."""
LEAST_CUT, DEEPEST_CUT = 0.98, 0.7
"""Factors of the rate at a refusal: between these, the rate that was taken since the refusal before."""
GROWTH = 0.002
"""Share by which a success raises the rate just after a refusal: a backend at its limit refuses about one in thirty."""
GROWTH_DOUBLES = 20
"""After so many successes without a refusal a success raises it by twice that share, after twice as many by thrice."""
FORGOTTEN_SECONDS = 600.0
"""So long after the latest refusal, a rate that holds nothing back is no limit any more."""
NOTHING_TAKEN = 2
"""After so many refusals in a row a backend may take nothing at all: a token bucket refuses twice in a row only what
comes at twice its rate."""
BURST_SECONDS = 1.0
"""As many may start at once as the rate allows in so long."""


@dataclass(slots=True)
class Rate:
    """Between two refusals the backend's own bucket was empty at both ends: what passed between is what it takes."""

    per_second: float | None = None
    """None: no limit."""
    before: float | None = None
    """The limit before the latest refusals in a row."""
    refused: int = 0
    """Refusals in a row, with nothing that passed between."""
    throttled_at: float = 0.0
    passed: int = 0
    """Since then."""
    tokens: float = 0.0
    tokens_at: float = 0.0

    @property
    def takes_nothing(self) -> bool:
        """Perhaps: then it is an outage, and no rate can be learned of it."""
        return self.per_second is None or self.refused >= NOTHING_TAKEN

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
            self.per_second, self.refused = None, 0
        self.tokens, self.tokens_at = available - count, now

    def succeed(self) -> None:
        self.refused = 0
        if self.per_second is not None:
            self.passed += 1
            self.per_second *= 1 + GROWTH * (1 + self.passed / GROWTH_DOUBLES)

    def throttle(self, began: float, now: float, accepted: int) -> None:
        """A refusal. One of an attempt that began no later than the latest refusal tells nothing new, and several in a
        row lower the rate once."""
        if began <= self.throttled_at or (self.per_second is None and not accepted):
            return
        self.refused += 1
        if self.refused == 1:
            self.before, self.per_second = self.per_second, max(SLOWEST, self._lowered(now, accepted))
        self.throttled_at, self.passed = now, 0
        self.tokens, self.tokens_at = 0.0, now

    def _lowered(self, now: float, accepted: int) -> float:
        if self.per_second is None:
            return FIRST_CUT * (accepted + 2 * math.sqrt(accepted)) / MEASURED_SECONDS
        share = self.passed / max(now - self.throttled_at, 1e-3) / self.per_second
        return self.per_second * max(DEEPEST_CUT, min(LEAST_CUT, share))

    def restore(self) -> None:
        """The latest refusals in a row were an outage's, and say nothing of a rate."""
        if self.refused:
            self.per_second = self.before
