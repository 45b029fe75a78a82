"""A bus with a gate: the service's own policy and gate code, driven as its bus drives it.

What the real bus keeps in rows is kept in objects here. The breaker of today's service, and our own simplest version,
are beside it.
"""

import heapq
import random
from array import array
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from app.retry import ExponentialBackoff, probe_wait
from app.retry.causes import Cause, Scope, classify
from app.retry.fit import CAUSES, Key, Transitions, fit
from app.retry.gate import Change, Failed, Gate, Noted, Phase
from app.retry.learned import LearnedPolicy, Obstacle
from app.retry.rate import MEASURED_SECONDS
from app.retry.table import Entry, Table
from benchmarks.retry.backends import DAY, START, Backend, Message, Reply
from benchmarks.retry.simulate import Loop

RECEIVER = "send_email_notification"
LEASE = 60.0
REFIT_SECONDS = 3600.0
REFIT_NEW = 30
"""Refitted after so long, or after so many new obstacles' ends, but not more often than SHORTEST_REFIT."""
SHORTEST_REFIT = 120.0
KEPT = 20_000
LONE_FADING = 0.998


@dataclass
class Memory:
    """What the database keeps: transitions, and answers counted by kind. It outlives a day."""

    table: Table | None = None
    seen: dict[Key, tuple["array[float]", ...]] = field(default_factory=dict)
    """The columns of ``fit.Transitions``."""
    lone: dict[str, float] = field(default_factory=dict)
    answers: float = 0.0
    ends: int = 0
    unfitted: int = 0
    """Transitions since the latest fit."""
    gate: str | None = None
    """Its row, between days."""

    def add(self, scope: Scope, kind: str, age_from: float, age_to: float, gone: bool, at: float) -> None:
        if (columns := self.seen.get((RECEIVER, scope, kind))) is None:
            columns = self.seen[RECEIVER, scope, kind] = tuple(array("d") for _ in range(4))
        for column, number in zip(columns, (age_from, age_to, gone, at), strict=True):
            column.append(number)
        self.ends += gone
        self.unfitted += 1

    def answered(self, kind: str | None) -> None:
        self.answers = self.answers * LONE_FADING + 1
        for known in self.lone:
            self.lone[known] *= LONE_FADING
        if kind is not None:
            self.lone[kind] = self.lone.get(kind, 0.0) + 1

    def refit(self, now: float) -> Table:
        columns = {
            key: Transitions(*(np.array(column[-KEPT:]) for column in columns)) for key, columns in self.seen.items()
        }
        lone = {RECEIVER: {kind: (failures, self.answers) for kind, failures in self.lone.items()}}
        self.table, self.unfitted = fit(columns, now, previous=self.table, lone=lone), 0
        return self.table

    @classmethod
    def garbage(cls, seed: int) -> "Memory":
        """Attempts that say anything at all, and a backend that fails half the time."""
        rng = random.Random(seed)
        memory = cls(lone=dict.fromkeys(CAUSES, 100.0), answers=500.0)
        for kind in CAUSES:
            for scope in Scope:
                for _ in range(300):
                    age_from = rng.choice((0.0, 10 ** rng.uniform(-1, 5)))
                    age_to = age_from + 10 ** rng.uniform(-1, 5)
                    memory.add(scope, kind, age_from, age_to, rng.random() < 0.5, START - rng.uniform(0, DAY))
        return memory

    def yesterday(self) -> "Memory":
        """What was known at the end of the day, as if that day had been the one before."""
        seen = {}
        for key, columns in self.seen.items():
            today = [row for row in zip(*columns, strict=True) if row[3] <= START + DAY]
            if today:
                seen[key] = tuple(array("d", column) for column in zip(*today, strict=True))
                seen[key][3][:] = array("d", (at - DAY for at in seen[key][3]))
        ends = round(sum(sum(gone) for _, _, gone, _ in seen.values()))
        table = self.table and replace(
            self.table,
            fitted_at=self.table.fitted_at - DAY,
            entries={key: _a_day_before(entry) for key, entry in self.table.entries.items()},
        )
        return Memory(table, seen, dict(self.lone), self.answers, ends, gate=self.gate)


def _a_day_before(entry: Entry) -> Entry:
    at = ("fitted_at", "forget_before", "forgotten_at", "drift_since")
    return replace(entry, **{name: getattr(entry, name) - DAY for name in at if getattr(entry, name)})


@dataclass(slots=True, eq=False)
class Waiting:
    """A delivery's row."""

    message: Message
    due: float
    first_failed: float | None = None
    """Of its own obstacle."""
    last_failed: float = 0.0
    kind: str = ""
    failed: bool = False
    behind_gate: bool = False
    """It failed as the backend's obstacle, or in the run that proved it."""


class LearnedBus:
    def __init__(
        self, backend: Backend, loop: Loop, memory: Memory, seed: int = 0, *, learns: bool = True, explain: bool = False
    ) -> None:
        self.backend, self.loop, self.memory, self.learns = backend, loop, memory, learns
        memory.refit(loop.now)
        self.policy = LearnedPolicy(memory.table, rng=random.Random(seed))
        self.gate = Gate(RECEIVER)
        if memory.gate is not None:
            known = Gate.from_json(memory.gate)
            self.gate.drain_rate, self.gate.false_alarms = known.drain_rate, known.false_alarms
            self.gate.mistaken, self.gate.outages = known.mistaken, known.outages
        self.due: list[tuple[float, int, Waiting]] = []
        self.rows: dict[int, Waiting] = {}
        self.accepted: deque[float] = deque()
        self.answered_at = 0.0
        self.wake_at = float("inf")
        self.fitted_at = loop.now
        self.new_ends = 0
        self.sentences: list[str] | None = [] if explain else None
        if learns:
            loop.at(loop.now + REFIT_SECONDS, self.refit_in_time)

    # Deliveries

    def arrive(self, message: Message) -> None:
        row = Waiting(message, self.loop.now)
        self.rows[message.number] = row
        self.wait_for(row)
        self.dispatch()

    def wait_for(self, row: Waiting) -> None:
        heapq.heappush(self.due, (row.due, row.message.number, row))

    def wake(self, when: float) -> None:
        """Sleep until then, unless woken earlier."""
        if when < self.wake_at:
            self.wake_at = when
            self.loop.at(when, self.woken, when)

    def woken(self, when: float) -> None:
        if when == self.wake_at:
            self.wake_at = float("inf")
            self.dispatch()

    def ready(self) -> list[Waiting]:
        """All that is due, the most overdue first."""
        now, found = self.loop.now, dict[int, Waiting]()
        while self.due and self.due[0][0] <= now:
            due, number, row = heapq.heappop(self.due)
            if row.due == due and number in self.rows:
                found[number] = row
        return list(found.values())

    def dispatch(self) -> None:
        """Claim what is due, as far as the gate lets it start."""
        now = self.loop.now
        ready = self.ready()
        if ready:
            if self.gate.is_wide_open:
                started = ready
            else:
                count = self.gate.may_start(self.policy, now, len(ready), len(ready))
                started = self.chosen(ready, count)
            probe = self.gate.phase is Phase.OPEN
            if started and not self.gate.is_wide_open:
                self.gate.start(now, len(started), LEASE)
            taken = set(map(id, started))
            for row in started:
                self.start(row, probe=probe)
            left = [row for row in ready if id(row) not in taken]
            for row in left:
                self.wait_for(row)
            if left:
                self.wake(max(now + 1e-3, self.gate.next_start(self.policy, now, len(left))))
        else:
            self.gate.run_dry(now)
        if self.due and self.due[0][0] > now:
            self.wake(self.due[0][0])

    def chosen(self, ready: list[Waiting], count: int) -> list[Waiting]:
        """The probe is the newest that has not failed yet."""
        if self.gate.phase is not Phase.OPEN or count == 0:
            return ready[:count]
        return [max(ready, key=lambda row: (not row.failed, row.message.number))]

    def start(self, row: Waiting, *, probe: bool) -> None:
        row.message.attempts += 1
        row.due = float("inf")
        reply = self.backend.answer(row.message, self.loop.now)
        self.loop.at(self.loop.now + reply.seconds, self.ended, row, reply, self.loop.now, probe)

    # How attempts end

    def ended(self, row: Waiting, reply: Reply, began: float, probe: bool) -> None:
        now = self.loop.now
        if reply.outcome in ("ok", "refused"):
            if reply.outcome == "ok":
                row.message.delivered = began
                self.accepted.append(now)
            else:
                row.message.lost = True
            del self.rows[row.message.number]
            self.memory.answered(None)
            self.own_transition(row, began, gone=True)
            if not self.gate.is_wide_open:
                self.act(self.gate.succeed(began, now, probe=probe))
            self.answered_at = now
        else:
            self.failed(row, classify(reply.outcome, reply.code, reply.enhanced), began, probe)
        self.dispatch()

    def failed(self, row: Waiting, cause: Cause, began: float, probe: bool) -> None:
        now = self.loop.now
        while self.accepted and self.accepted[0] < now - MEASURED_SECONDS:
            self.accepted.popleft()
        failed = Failed(row.message.number, cause, began, now, probe, self.answered_at, len(self.accepted))
        noted = self.gate.fail(failed, self.policy)
        row.failed = True
        if noted.own:
            self.own_failure(row, cause, began)
        else:
            row.due = now
            row.behind_gate = not cause.rate
        if not cause.backend and not cause.rate:
            self.answered_at = now
        self.act(noted)
        if row.message.number in self.rows:
            self.wait_for(row)

    def own_transition(self, row: Waiting, began: float, *, gone: bool) -> None:
        if row.first_failed is not None:
            ages = row.last_failed - row.first_failed, began - row.first_failed
            self.memory.add(Scope.MESSAGE, row.kind, *ages, gone, self.loop.now)
            self.new_ends += gone
            self.refit_when_new()

    def own_failure(self, row: Waiting, cause: Cause, began: float) -> None:
        if row.first_failed is None or row.kind != cause.kind:
            row.first_failed = None
            self.memory.answered(cause.kind)
        self.own_transition(row, began, gone=False)
        if row.first_failed is None:
            row.first_failed = began
        row.last_failed, row.kind = began, cause.kind
        decision = self.policy.decide(Obstacle(RECEIVER, Scope.MESSAGE, cause, began - row.first_failed))
        if self.sentences is not None:
            self.sentences.append(decision.sentence())
        if decision.wait is None:
            row.message.lost = True
            del self.rows[row.message.number]
        else:
            row.due = max(self.loop.now, began + decision.wait)

    def act(self, noted: Noted) -> None:
        """As the bus does with what the gate found."""
        if noted.tried is not None:
            tried = noted.tried
            self.memory.add(Scope.BACKEND, tried.kind, tried.age_from, tried.age_to, tried.gone, self.loop.now)
            self.new_ends += tried.gone
            self.refit_when_new()
        if noted.change is Change.OPENED:
            for number in self.gate.run.messages:
                if (row := self.rows.get(number)) and row.due < float("inf"):
                    self.behind(row)
        if noted.change is Change.BACK:
            for row in self.rows.values():
                if row.behind_gate:
                    row.first_failed, row.behind_gate = None, False

    def behind(self, row: Waiting) -> None:
        """Due as soon as the gate lets it through."""
        row.behind_gate, row.due = True, self.loop.now
        self.wait_for(row)

    # Learning

    def refit_in_time(self) -> None:
        if self.memory.unfitted:
            self.refit()
        if self.rows or self.loop.now < START + DAY:
            self.loop.at(self.loop.now + REFIT_SECONDS, self.refit_in_time)

    def refit_when_new(self) -> None:
        if (
            self.learns
            and self.new_ends >= max(REFIT_NEW, 0.1 * self.memory.ends)
            and self.loop.now > self.fitted_at + SHORTEST_REFIT
        ):
            self.refit()

    def refit(self) -> None:
        self.policy.table = self.memory.refit(self.loop.now)
        self.fitted_at, self.new_ends = self.loop.now, 0
        self.memory.gate = self.gate.to_json()


class BreakerBus:
    """A shared breaker that opens at a failure that is the backend's, with probes at ``probe_after(failures)`` seconds;
    messages' refusals wait by ``backoff(n)``. By the rules of app/bus/breaker.py, without its rows."""

    def __init__(
        self,
        backend: Backend,
        loop: Loop,
        probe_after: Callable[[int], float],
        backoff: Callable[[int, str], float | None],
    ) -> None:
        self.backend, self.loop, self.probe_after, self.backoff = backend, loop, probe_after, backoff
        self.failures = 0
        """0: closed."""
        self.probe_at = self.woken_at = self.opened_at = self.answered_at = 0.0
        self.queue: list[tuple[bool, int, Message]] = []
        """A heap: the newest that has not failed yet comes first, then the newest."""
        self.tried: set[int] = set()
        self.surely: dict[int, Message] = {}
        """What failed while it is open."""

    def arrive(self, message: Message) -> None:
        self.claim(message)

    def claim(self, message: Message) -> None:
        if message.delivered is not None or message.lost or message.number in self.tried:
            return
        if not self.failures:
            self.start(message, probe=False)
        else:
            heapq.heappush(self.queue, (message.number in self.surely, -message.number, message))
            self.probe()

    def probe(self) -> None:
        if not self.failures or not self.queue:
            return
        if self.probe_at > self.loop.now:
            if self.probe_at != self.woken_at:
                self.woken_at = self.probe_at
                self.loop.at(self.probe_at, self.probe)
            return
        _, _, message = heapq.heappop(self.queue)
        self.probe_at = self.loop.now + 60
        self.start(message, probe=True)

    def start(self, message: Message, *, probe: bool) -> None:
        self.tried.add(message.number)
        message.attempts += 1
        reply = self.backend.answer(message, self.loop.now)
        self.loop.at(self.loop.now + reply.seconds, self.ended, message, reply, self.loop.now, probe)

    def ended(self, message: Message, reply: Reply, began: float, probe: bool) -> None:
        self.tried.discard(message.number)
        now, down = self.loop.now, reply.outcome in ("unreachable", "timeout", "throttled")
        answers_others = reply.outcome == "timeout" and self.answered_at > began
        if down and not answers_others:
            if not self.failures:
                self.failures, self.opened_at, self.probe_at = 1, now, now
            if probe:
                self.failures += 1
                self.probe_at = now + self.probe_after(self.failures)
            self.surely[message.number] = message
        elif probe:
            self.close()
        if not down:
            self.answered_at = now
        if reply.outcome == "ok":
            message.delivered = began
            return
        wait = self.backoff(message.attempts, reply.outcome)
        if wait is None:
            message.lost = True
        else:
            self.loop.at(now + wait, self.claim, message)
        self.probe()

    def close(self) -> None:
        first, self.failures = self.failures, 0
        queue, self.queue = sorted(self.queue, key=lambda each: each[2].number), []
        surely, self.surely = self.surely, {}
        for message in (*(message for _, _, message in queue), *(surely.values() if first > 1 else ())):
            self.claim(message)


def today(backend: Backend, loop: Loop, seed: int = 0) -> BreakerBus:
    """What the service does today: app/retry/policy.py with its defaults."""
    rng = random.Random(seed)
    policy = ExponentialBackoff(rng=rng)
    return BreakerBus(backend, loop, lambda failures: probe_wait(failures, rng), policy.wait)


def simplest(backend: Backend, loop: Loop, seed: int = 0) -> BreakerBus:
    """Our own simplest version: a probe every 10 s; exponential backoff with full jitter, 5 s to 1 h, without limit."""
    policy = ExponentialBackoff(max_attempts=10**9, rng=random.Random(seed))
    return BreakerBus(backend, loop, lambda _: 10.0, policy.wait)
