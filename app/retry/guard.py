"""The guard: are the table's predictions refuted by what happens?

Each transition since a table was fitted is scored by log(p₀/p), the prior's probability of what happened over the
table's own. The sum, never below 0, is a CUSUM (E. S. Page, "Continuous inspection schemes", Biometrika 41, 1954).
Above ALARM the world is no longer the one that the table was fitted to: what was seen before the sum began to rise is
forgotten, which leaves the prior and what came since. A table that is right raises the alarm with a probability of
exp(-ALARM) = 0.7 % at most for each time that the sum leaves 0.
"""

import math
from dataclasses import dataclass

ALARM = 5.0
LARGEST_SCORE = 3.0
"""One transition alone never raises the alarm."""
FADING = 0.98
"""Of the calibration, for each attempt: some fifty attempts count."""


@dataclass(slots=True)
class Judgement:
    """A running comparison of one entry with what happens."""

    drift: float = 0.0
    since: float = 0.0
    expected: float = 0.0
    seen: float = 0.0
    judged: float = 0.0
    refuted_before: float | None = None
    """Where the alarm was raised: what is older than this is to be forgotten."""

    def take(self, learned: float, believed: float, gone: bool, at: float) -> None:
        """An attempt at ``at``: its chance by the table and by the prior, and whether it came through."""
        self.expected = FADING * self.expected + learned
        self.seen = FADING * self.seen + gone
        self.judged = FADING * self.judged + 1
        if self.refuted_before is not None:
            return  # by a table that is refuted, nothing more can be
        if self.drift == 0:
            self.since = at
        self.drift = max(0.0, self.drift + score(learned, believed, gone))
        if self.drift > ALARM:
            self.refuted_before, self.drift = self.since, 0.0


def score(learned: float, believed: float, gone: bool) -> float:
    """log(p₀/p) of what happened, bounded."""
    told = (believed, learned) if gone else (1 - believed, 1 - learned)
    ratio = math.log(max(told[0], 1e-9) / max(told[1], 1e-9))
    return max(-LARGEST_SCORE, min(LARGEST_SCORE, ratio))
