"""Backend or message? A sequential test over the failures in a row (A. Wald, "Sequential Analysis", 1947).

Each distinct message that fails, with no answer of the backend between, adds -log P(fails so | the backend is up).
Above a threshold the backend counts as down. P is a Beta posterior's mean for the kind of failure, so what often
fails alone, such as greylisting, needs a longer run: the threshold of the circuit breaker is learned.
"""

import math
from dataclasses import dataclass, field

from app.retry.causes import Cause
from app.retry.table import Table

THRESHOLD = 4.5
"""The evidence at which the backend counts as down: a run this unlikely, 1 %, while it is up."""
PRIOR_ATTEMPTS = 50.0
"""The prior of P weighs as so many attempts."""
FADING = 0.9
"""Of false alarms, at each further one."""
MOST_MESSAGES = 64
"""In a run. Where even so many in a row prove nothing, nothing will."""


@dataclass(slots=True)
class Run:
    """Failures in a row, of distinct messages."""

    evidence: float = 0.0
    since: float = 0.0
    """The start of the first."""
    failed_at: float = 0.0
    """The start of the latest."""
    ended_at: float = 0.0
    """The end of the latest: an answer after it breaks the run."""
    messages: list[int] = field(default_factory=list)

    def add(self, delivery_id: int, began: float, at: float, evidence: float, *, anybodys: bool = False) -> None:
        """A message that fails again adds nothing, because it may be its own fault; unless the failure is ``anybodys``:
        the connection was refused before anything was said of the message."""
        if not self.messages:
            self.since = self.failed_at = began
        self.since, self.failed_at = min(self.since, began), max(self.failed_at, began)
        self.ended_at = at
        if delivery_id in self.messages:
            self.evidence += evidence if anybodys else 0.0
        elif len(self.messages) < MOST_MESSAGES:
            self.messages.append(delivery_id)
            self.evidence += evidence

    def proves(self, cause: Cause, threshold: float) -> bool:
        return self.evidence >= threshold and len(self.messages) >= cause.in_a_row


def evidence(table: Table | None, receiver: str, cause: Cause, false_alarms: float) -> float:
    """-log P(an attempt fails so | the backend is up). A failure of a false alarm counts as one more that was seen."""
    failures, answers = (table.lone.get(receiver, {}).get(cause.kind, (0.0, 0.0))) if table else (0.0, 0.0)
    failures, answers = failures + false_alarms, answers + false_alarms
    return -math.log(min(0.99, (cause.lone_share * PRIOR_ATTEMPTS + failures) / (PRIOR_ATTEMPTS + answers)))
