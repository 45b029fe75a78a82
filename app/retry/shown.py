"""A table's entry for people: what is known of one obstacle, and what is done about it. Standard library only.

``flask bus policy show`` and the console ask the same policy that decides about deliveries, without its random draws.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from app.retry import prior
from app.retry.ages import EDGES
from app.retry.causes import Scope, named
from app.retry.guard import ALARM
from app.retry.learned import Decision, LearnedPolicy, Obstacle
from app.retry.table import Entry

BAND = 2.0
"""Standard deviations of the cumulated hazard, above and below it."""


@dataclass(frozen=True, slots=True)
class Survives:
    """The probability that an obstacle is still there at an ``age`` in seconds."""

    age: float
    share: float
    low: float
    high: float
    prior: float


@dataclass(frozen=True, slots=True)
class Shown:
    """An obstacle's receiver, scope and kind, and the policy's part about it."""

    policy: LearnedPolicy
    scope: Scope
    kind: str
    receiver: str

    @property
    def entry(self) -> Entry | None:
        """Of the receiver, or the prior's; None where no table is fitted yet."""
        return self.policy.table.find(self.receiver, self.scope, self.kind) if self.policy.table else None

    @property
    def is_learned(self) -> bool:
        return self.entry is not None and self.entry.transitions > 0

    def decide(self, age: float, waiting: int = 1) -> Decision:
        """At an age in seconds. A delivery's own wait is bounded by RETRY_MAX_SECONDS, as it is when it is tried."""
        policy = replace(self.policy, explores=False)
        decision = policy.decide(Obstacle(self.receiver, self.scope, named(self.kind), age, waiting))
        if self.scope is Scope.BACKEND or decision.wait is None or decision.wait <= policy.maximum:
            return decision
        return replace(decision, wait=policy.maximum, chance=self.gone_between(age, age + policy.maximum))

    def gone_between(self, age: float, later: float) -> float:
        """The probability that it is gone at ``later`` if it is there at ``age``; both in seconds."""
        entry = self.entry
        return entry.gone_between(age, later) if entry else -math.expm1(self._believed(age) - self._believed(later))

    def survival(self) -> Iterator[Survives]:
        """At each edge of age."""
        entry = self.entry
        for number, age in enumerate(EDGES):
            believed = self._believed(age)
            cumulated, spread = (entry.cumulated[number], BAND * entry.deviation[number]) if entry else (believed, 0.0)
            learned, low, high = (math.exp(-max(0.0, cumulated + each)) for each in (0.0, spread, -spread))
            yield Survives(age, learned, low, high, math.exp(-believed))

    def median(self) -> float | None:
        """The first edge of age at which half of them are gone; None where fewer are gone at the last."""
        return next((each.age for each in self.survival() if each.share <= 0.5), None)

    def evidence(self) -> float:
        """Against the table, as a share of what refutes it: see guard.py."""
        return self.entry.drift / ALARM if self.entry else 0.0

    def _believed(self, age: float) -> float:
        return prior.cumulated_hazard(age, prior.scale(self.scope, named(self.kind)))


def learned(policy: LearnedPolicy) -> list[Shown]:
    """Those of which a table has an entry of its own, the most attempts first."""
    entries = policy.table.entries if policy.table else {}
    keys = sorted(entries, key=lambda key: entries[key].transitions, reverse=True)
    parts = (key.split("/", 2) for key in keys)
    return [Shown(policy, Scope(scope), kind, receiver) for scope, kind, receiver in parts if receiver]
