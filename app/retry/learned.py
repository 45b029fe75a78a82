"""The learned policy: an obstacle in, *wait* or *give up* out, with its reasons. Standard library only."""

import math
import random
from dataclasses import dataclass, field

from app.retry import prior, why
from app.retry.ages import BUCKETS, EDGES, HORIZON, bucket_of, level_of
from app.retry.causes import Cause, Scope
from app.retry.costs import Costs
from app.retry.table import Table
from app.retry.why import seconds_told

JITTER = 0.005
"""One message's wait is longer by a random share up to this: those that failed together come apart. The shared probe,
of which there is one, has none."""

SHORTEST_SECONDS = EDGES[1]
"""Of a wait."""

EXPLORED_ENDS = 25.0
EXPLORED_MOST = 0.25
EXPLORED_COST = 0.002
"""Looking earlier than planned happens with probability 25 / (ends seen), a quarter at most; later on so rarely that it
costs this share of what the wait itself costs."""


@dataclass(frozen=True, slots=True)
class Obstacle:
    """What stands in the way of a delivery."""

    receiver: str
    scope: Scope
    cause: Cause
    age: float
    """Seconds from its first failure to its latest, by the starts of the attempts; negative counts as 0."""
    waiting: int = 1
    """Deliveries behind it."""


@dataclass(frozen=True, slots=True)
class Decision:
    """When to try again, and why."""

    obstacle: Obstacle
    wait: float | None
    """Seconds from the latest failure's start; None: give up."""
    chance: float
    """Of the attempt then: the probability that the obstacle is gone."""
    version: int
    """Of the table; 0 where none was at hand."""
    ends: int = 0
    """Obstacles of this kind whose end the table has seen; 0: by the prior alone."""
    explored: bool = False
    """Whether it is an earlier look than planned, to learn."""

    def sentence(self) -> str:
        """For a person, in one sentence."""
        what, source = self._what(), self._source()
        if self.wait is None:
            return why.GIVEN_UP % {"what": what, "source": source}
        template = why.LOOKED_EARLIER if self.explored else why.WAITED
        waited, chance = seconds_told(self.wait), f"{max(0.0, self.chance):.0%}"
        return template % {"wait": waited, "what": what, "chance": chance, "source": source}

    def _what(self) -> str:
        obstacle, told = self.obstacle, seconds_told(max(0.0, self.obstacle.age))
        if obstacle.scope is Scope.MESSAGE:
            return (why.OWN if obstacle.age > 0 else why.OWN_FIRST) % {"kind": obstacle.cause.kind, "age": told}
        template = why.BACKEND_OF_MANY if obstacle.waiting > 1 else why.BACKEND
        return template % {"kind": obstacle.cause.kind, "age": told, "waiting": obstacle.waiting}

    def _source(self) -> str:
        if not self.version:
            return why.NO_TABLE
        return (why.ENDS if self.ends else why.NO_END) % {"ends": self.ends, "version": self.version}


@dataclass(slots=True)
class LearnedPolicy:
    """Reads a table. Without one it waits by the prior's square-root rule (``prior.square_root_wait``)."""

    table: Table | None = None
    costs: Costs = field(default_factory=Costs)
    """Only for when there is no table."""
    rng: random.Random = field(default_factory=random.Random, repr=False)

    maximum: float = HORIZON
    """The longest that it lets a delivery wait, in seconds."""

    explores: bool = True
    """Whether it draws: a message's looks that are earlier than planned, and the jitter. To be shown, it does not."""

    @property
    def costs_now(self) -> Costs:
        """Those that it decides by."""
        return self.table.costs if self.table else self.costs

    def decide(self, obstacle: Obstacle) -> Decision:
        """Costs some microseconds. At the horizon's end a message is given up; a backend never is."""
        table, alone = self.table, obstacle.scope is Scope.MESSAGE
        entry = table.find(obstacle.receiver, obstacle.scope, obstacle.cause.kind) if table else None
        if alone and (obstacle.age >= HORIZON or obstacle.cause.final):
            return Decision(obstacle, None, 0.0, table.version if table else 0, entry.ends if entry else 0)
        if table is None or entry is None:
            return self._by_prior(obstacle)
        level = 0 if alone else level_of(obstacle.waiting)
        bucket = min(bucket_of(obstacle.age), BUCKETS - 1)
        steps = entry.plan[level][bucket]
        if not steps:
            return Decision(obstacle, None, 0.0, table.version, entry.ends)
        age = max(0.0, obstacle.age)
        wait, explored = planned_wait(steps, bucket, age), False
        if alone and self.explores:
            if age == 0:
                wait, explored = self._look_earlier(wait, entry.ends, obstacle.cause, table.costs)
            wait *= 1 + JITTER * self.rng.random()
        return Decision(obstacle, wait, entry.gone_between(age, age + wait), table.version, entry.ends, explored)

    def _by_prior(self, obstacle: Obstacle) -> Decision:
        t0 = prior.scale(obstacle.scope, obstacle.cause)
        age = max(0.0, obstacle.age)
        wait = prior.square_root_wait(age, t0, obstacle.waiting, self.costs, copies=obstacle.cause.copies)
        wait = max(SHORTEST_SECONDS, wait)
        chance = -math.expm1(prior.cumulated_hazard(age, t0) - prior.cumulated_hazard(age + wait, t0))
        if obstacle.scope is Scope.MESSAGE and self.explores:
            wait *= 1 + JITTER * self.rng.random()
        return Decision(obstacle, wait, chance, 0)

    def _look_earlier(self, wait: float, ends: int, cause: Cause, costs: Costs) -> tuple[float, bool]:
        """Sometimes: else the attempts could never show that such obstacles go away sooner than is believed.

        A third of these looks are at once, a third uniform in time, a third in its logarithm.
        """
        one_more = costs.of_attempt(copies=cause.copies)
        seldom = EXPLORED_COST * costs.beta * wait / one_more
        at_first = EXPLORED_ENDS / (ends + 1) * costs.of_attempt(copies=False) / one_more
        probability = min(EXPLORED_MOST, max(seldom, at_first))
        if wait <= 2 * SHORTEST_SECONDS or self.rng.random() >= probability:
            return wait, False
        share = self.rng.random()
        looks = (SHORTEST_SECONDS, wait * share, SHORTEST_SECONDS * (wait / SHORTEST_SECONDS) ** share)
        return max(SHORTEST_SECONDS, self.rng.choice(looks)), True


def planned_wait(steps: int, bucket: int, age: float) -> float:
    """Seconds, from a plan's number for this bucket: an attempt at an edge ahead, or one of several within the bucket.

    An age late in its bucket shortens the wait for the edge, but never to less than half of what was planned.
    """
    if steps < 0:
        return (EDGES[bucket + 1] - EDGES[bucket]) / -steps
    target = EDGES[min(bucket + steps, BUCKETS)]
    return max(SHORTEST_SECONDS, target - age, (target - EDGES[bucket]) / 2)
