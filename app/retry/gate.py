"""The gate in front of a receiver's backend: the circuit breaker's state and moves, and the rate at which it sends.

Pure: times are seconds since 1970, and every call says the time. One gate is shared by all processes: the bus keeps it
as a row, and calls it only where an attempt failed or the gate holds something back; a success through an open way
neither reads nor writes it.

- *closed*, as everybody means it: all pass, unless the backend throttles: then at a learned rate (``rate.Rate``).
- *open*: the backend counts as down. One probe at a time, when the policy says so; all others wait and spend nothing.
- *ramp* (half-open): a probe came through. Each success lets two more start, so twice as many flow after each round,
  until WIDE_OPEN (slow start, as TCP has it: RFC 5681); at most at the rate that a backend stood which fell over under
  its backlog before.
"""

import enum
import json
import math
from dataclasses import asdict, dataclass, field, replace

from app.retry import prior, suspicion
from app.retry.causes import BY_KIND, BY_OUTCOME, Cause, Scope
from app.retry.costs import Costs
from app.retry.learned import SHORTEST_SECONDS, Decision, LearnedPolicy, Obstacle
from app.retry.rate import MEASURED_SECONDS, SLOWEST, Rate
from app.retry.suspicion import Run

WIDE_OPEN = 64
"""Starts in credit at which a ramp ends."""
RELAPSE_SECONDS = 120.0
"""A backend that goes down again so soon after its backlog was let through may have fallen under it."""
RELAPSE_PASSED = 5
"""If at least so many had come through in the last MEASURED_SECONDS."""
HALVED = 0.5
FASTER = 1.25
"""Factors of the drain rate: after a relapse, and after a drain that went well."""
FASTEST = 50.0
"""A drain rate that has grown to this many a second is no limit any more."""


class Phase(enum.StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    RAMP = "ramp"


class Change(enum.StrEnum):
    """A change of the gate on which the bus has to act, after an attempt's end."""

    OPENED = "opened"  # the messages of the run wait behind the gate from now on, not by their own waits
    BACK = "back"  # what waits behind the gate is due at once; its messages' own obstacles begin anew


@dataclass(frozen=True, slots=True)
class Tried:
    """A transition of the backend's obstacle, to be stored with the attempt. Ages in seconds."""

    kind: str
    age_from: float
    age_to: float
    gone: bool


@dataclass(frozen=True, slots=True)
class Noted:
    """The result of noting an attempt's end."""

    change: Change | None = None
    tried: Tried | None = None
    own: bool = False
    """Whether a failure counts as the message's own: then it waits as the policy says. Else it waits at the gate."""


@dataclass(frozen=True, slots=True)
class Failed:
    """A failed attempt, as the gate sees it."""

    delivery_id: int
    cause: Cause
    began: float
    at: float
    probe: bool = False
    answered_at: float = -math.inf
    """When the backend last answered another attempt of this receiver, in whatever way."""
    accepted: int = 0
    """Attempts of this receiver that came through in the last MEASURED_SECONDS."""


@dataclass(slots=True)
class Gate:
    """The state and its moves."""

    receiver: str
    phase: Phase = Phase.CLOSED
    kind: str = ""
    """Of the obstacle's latest failure."""
    since: float = 0.0
    """The start of the obstacle's first failure."""
    failed_at: float = 0.0
    """The start of the latest."""
    probes: int = 0
    """That failed since it opened."""
    probing_until: float = 0.0
    """Until then an attempt counts as under way: the probe, or those that a ramp let start."""
    asked: bool = False
    """Whether a person asked for the next probe: it may be made at once."""
    run: Run = field(default_factory=Run)
    false_alarms: dict[str, float] = field(default_factory=dict)
    """By kind: failures that looked like an outage and were none, fading."""
    outages: float = 0.0
    """That a probe confirmed, fading; beside ``mistaken``, the alarms that none did."""
    mistaken: float = 0.0
    credit: int = 0
    """Starts that a ramp allows."""
    ramp_at: float = 0.0
    """When the latest ramp began."""
    drained: int = 0
    """Successes of the ramp under the present drain rate."""
    drain_rate: float | None = None
    """Starts a second that a ramp may have: the backend fell over under more. Kept when the gate closes."""
    fell_at: float | None = None
    """Starts a second under which it seems to have fallen over, until a probe shows whether it did."""
    rate: Rate = field(default_factory=Rate)

    # What may start

    @property
    def is_wide_open(self) -> bool:
        """Whether it holds nothing back: then successes need not be told."""
        return self.phase is Phase.CLOSED and self.rate.per_second is None

    @property
    def limit(self) -> float | None:
        """Starts a second."""
        limits = (self.rate.per_second, self.drain_rate if self.phase is Phase.RAMP else None)
        return min((limit for limit in limits if limit is not None), default=None)

    def next_start(self, policy: LearnedPolicy, now: float, waiting: int) -> float:
        """When the next of ``waiting`` deliveries may start; ``now`` where one may at once."""
        if self.phase is Phase.OPEN:
            wait = 0.0 if self.asked else self.decide(policy, waiting).wait or 0.0
            return max(now, self.probing_until, self.failed_at + wait)
        if self.phase is Phase.RAMP and self.credit < 1:
            return max(now, self.probing_until)
        if self.limit is None:
            return now
        return now + max(0.0, 1 - self.rate.tokens_now(now, self.limit)) / self.limit

    def may_start(self, policy: LearnedPolicy, now: float, waiting: int, most: int) -> int:
        """How many may start now, ``most`` at most; while it is open one, as the probe."""
        if self.next_start(policy, now, waiting) > now:
            return 0
        if self.phase is Phase.OPEN:
            return min(1, most)
        if self.phase is Phase.RAMP:
            most = min(most, max(1, self.credit))  # one where the processes died that had the credit
        return most if self.limit is None else min(most, int(self.rate.tokens_now(now, self.limit) + 1e-6))

    def decide(self, policy: LearnedPolicy, waiting: int) -> Decision:
        """Of an open gate: how long after the latest failure the next probe follows. More that wait make it earlier."""
        age, cause, waiting = self.failed_at - self.since, cause_named(self.kind), max(1, waiting)
        decision = policy.decide(Obstacle(self.receiver, Scope.BACKEND, cause, age, waiting))
        return decision if self.probes else self._unless_mistaken(decision, policy.costs_now)

    @property
    def _share_mistaken(self) -> float:
        """Of alarms; a quarter, before there were any."""
        return (0.5 + self.mistaken) / (2 + self.mistaken + self.outages)

    def _mistaken(self, tried: Tried) -> float:
        """The probability that an alarm was, whose first probe came through: an outage may have ended by then."""
        t0 = prior.SCALE_SECONDS[Scope.BACKEND]
        ended = -math.expm1(prior.cumulated_hazard(tried.age_from, t0) - prior.cumulated_hazard(tried.age_to, t0))
        share = self._share_mistaken
        return share / (share + (1 - share) * ended)

    def _unless_mistaken(self, decision: Decision, costs: Costs) -> Decision:
        """Of the first probe: at once, where so many alarms were mistaken that the wait costs more than a probe."""
        share, obstacle = self._share_mistaken, decision.obstacle
        saved = share * costs.beta * (decision.wait or 0.0) * obstacle.waiting
        if saved <= (1 - share) * costs.of_attempt(copies=obstacle.cause.copies):
            return decision
        return replace(decision, wait=SHORTEST_SECONDS, chance=share)

    def start(self, now: float, count: int, lease: float) -> None:
        """So many start now, and end within ``lease`` seconds unless their process dies. Not of a gate wide open."""
        if self.phase is not Phase.CLOSED:
            self.probing_until = now + lease
            self.credit = max(0, self.credit - count)
            self.asked = False
        self.rate.take(now, count, self.limit)

    # How attempts end

    def succeed(self, began: float, at: float, *, probe: bool = False) -> Noted:
        """An attempt came through. Not to be told of a gate that is wide open."""
        self.rate.succeed()
        if self.phase is Phase.OPEN and (probe or began > self.failed_at):
            return self._back(began, at)
        if self.phase is Phase.RAMP:
            self.credit += 2
            self.drained += 1
            if self.drain_rate is None and self.credit >= WIDE_OPEN:
                self.phase = Phase.CLOSED
            elif at - self.ramp_at > RELAPSE_SECONDS:
                self._drained_well(at)
        return Noted()

    def fail(self, failed: Failed, policy: LearnedPolicy) -> Noted:
        """An attempt failed."""
        if failed.cause.rate:
            self.rate.throttle(failed.began, failed.at, failed.accepted)
            if self.rate.takes_nothing:
                failed = replace(failed, cause=replace(failed.cause, rate=False, backend=True))
        if self.phase is Phase.OPEN:
            return self._fail_open(failed)
        self.credit = max(1, self.credit)
        if failed.cause.rate:
            self.run = Run()
            return Noted()
        if not failed.cause.backend or (failed.cause.silent and failed.answered_at >= failed.began):
            return Noted(own=True)
        return self._suspect(failed, policy)

    def run_dry(self, at: float) -> None:
        """Nothing more waits: a ramp is over."""
        if self.phase is Phase.RAMP:
            if self.drained >= RELAPSE_PASSED:
                self._drained_well(at)
            self.phase = Phase.CLOSED

    def give_back(self, at: float) -> None:
        """One that started was not tried, or says nothing of the backend: another may start at once."""
        self.probing_until = at
        self.credit += self.phase is Phase.RAMP

    def pull_back(self, now: float, lease: float) -> bool:
        """No moment lies ahead, and no lease ends later than one from now: the clock was set back since they were kept.
        Returns whether any had to be changed. Ages stay what they are."""
        before = asdict(self)
        if (ahead := self.failed_at - now) > 0:
            self.since, self.failed_at = self.since - ahead, now
        self.probing_until = min(self.probing_until, now + lease)
        self.ramp_at = min(self.ramp_at, now)
        self.run.ended_at = min(self.run.ended_at, now)
        self.rate.throttled_at, self.rate.tokens_at = min(self.rate.throttled_at, now), min(self.rate.tokens_at, now)
        return before != asdict(self)

    def _fail_open(self, failed: Failed) -> Noted:
        cause = failed.cause
        if not failed.probe:
            if cause.backend:
                self.failed_at = max(self.failed_at, failed.began)
            return Noted(own=not (cause.backend or cause.rate))
        self.probing_until = failed.at
        if not cause.backend or (cause_named(self.kind).connection and not cause.connection):
            return replace(self._back(failed.began, failed.at), own=not cause.rate)
        if self.fell_at is not None:
            self.drain_rate, self.fell_at = max(SLOWEST, HALVED * min(self.fell_at, self.drain_rate or math.inf)), None
        self.rate.restore()
        tried = Tried(cause.kind, self.failed_at - self.since, failed.began - self.since, gone=False)
        self.failed_at = max(self.failed_at, failed.began)
        self.kind = cause.kind
        self.probes += 1
        return Noted(tried=tried)

    def _suspect(self, failed: Failed, policy: LearnedPolicy) -> Noted:
        if failed.answered_at > self.run.ended_at:
            self.run = Run()
        cause = failed.cause
        alarms = self.false_alarms.get(cause.kind, 0.0)
        weight = suspicion.evidence(policy.table, self.receiver, cause, alarms)
        anybodys = cause.connection and not cause.silent
        self.run.add(failed.delivery_id, failed.began, failed.at, weight, anybodys=anybodys)
        threshold = suspicion.THRESHOLD / (2 if self.phase is Phase.RAMP else 1)
        if not self.run.proves(cause, threshold):
            return Noted(own=True)
        self._open(failed)
        return Noted(Change.OPENED)

    def _open(self, failed: Failed) -> None:
        relapsed = failed.at - self.ramp_at <= RELAPSE_SECONDS and failed.accepted >= RELAPSE_PASSED
        self.fell_at = failed.accepted / MEASURED_SECONDS if relapsed else None
        self.phase, self.kind, self.probes, self.credit = Phase.OPEN, failed.cause.kind, 0, 0
        self.since, self.failed_at = self.run.since, self.run.failed_at
        self.probing_until = 0.0

    def _back(self, began: float, at: float) -> Noted:
        """The obstacle is gone. Where no probe had failed, there may have been none."""
        tried = Tried(self.kind, self.failed_at - self.since, began - self.since, gone=True)
        mistaken = 0.0 if self.probes else self._mistaken(tried)
        self.mistaken = self.mistaken * suspicion.FADING + mistaken
        self.outages = self.outages * suspicion.FADING + 1 - mistaken
        if not self.probes:
            alarms = {kind: number * suspicion.FADING for kind, number in self.false_alarms.items()}
            self.false_alarms = {**alarms, self.kind: alarms.get(self.kind, 0.0) + len(self.run.messages)}
        self.phase, self.run, self.credit, self.drained, self.ramp_at = Phase.RAMP, Run(), 2, 0, at
        self.rate.refused = 0
        return Noted(Change.BACK, tried)

    def _drained_well(self, at: float) -> None:
        self.ramp_at, self.drained = at, 0
        if self.drain_rate is not None:
            faster = self.drain_rate * FASTER
            self.drain_rate = faster if faster < FASTEST else None

    # As a row

    def to_json(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> "Gate":
        told = json.loads(text)
        return cls(**{**told, "phase": Phase(told["phase"]), "run": Run(**told["run"]), "rate": Rate(**told["rate"])})


def cause_named(kind: str) -> Cause:
    """Of an open gate; before it ever opened it has no kind."""
    return BY_KIND.get(kind, BY_OUTCOME["unreachable"])
