"""Retries by the learned policy: each obstacle is a delivery's own, or its backend's, which the gate represents.

Its numbers come from the gate's row, from a delivery's columns ``obstacle…``, and from the successes that this process
has seen. A delivery that succeeds at once, through a gate that holds nothing back, reads and writes none of it.
"""

import math
from collections import defaultdict, deque
from collections.abc import Iterable
from datetime import datetime, timedelta

from sqlalchemy import bindparam, func, select, update

from app.answers import Done
from app.bus import gates
from app.bus.gates import seconds
from app.bus.invoke import Answer, Failure
from app.bus.leases import Lease, LeaseEnd, NextTry, OwnObstacle
from app.bus.retries import Admission
from app.bus.tables import Delivery
from app.clock import Clock
from app.db import Prepared, Runner, Transaction, table
from app.retry import Cause, Change, Failed, Gate, LearnedPolicy, Noted, Obstacle, Phase, Scope, classify, why
from app.retry.gate import RELAPSE_PASSED
from app.retry.rate import MEASURED_SECONDS
from app.states import DeliveryState, Outcome

OK = Outcome.OK

LOOKED_AT = 1000
"""The newest deliveries, among which one receiver's latest successes are looked for: it bounds what that costs."""

REPLIED = (Outcome.REFUSED, Outcome.DEFERRED)
"""Where such a failure is not the backend's own trouble, it shows that the backend answers. What a throttling reply
shows is for the gate to find out."""

MOST_HEARD = 4096
"""Answers that are remembered: more in MEASURED_SECONDS tell no more."""

CLOCK_TICK_SECONDS = 1e-3
"""Moments that differ by less are the same: one was computed as a float."""

NOTE_NEXT_TRY = Prepared(
    update(table(Delivery))
    .where(Delivery.delivery_id == bindparam("number"))
    .values({name: bindparam(name) for name in ("obstacle", "obstacle_since", "obstacle_seen_at", "due_because")})
)


class LearnedRetries:
    """One for each dispatcher. ``policy`` may be given a newer table at any time."""

    def __init__(self, policy: LearnedPolicy, clock: Clock) -> None:
        self.policy, self.maximum, self._clock = policy, policy.maximum, clock
        self._accepted: defaultdict[str, deque[float]] = defaultdict(lambda: deque(maxlen=MOST_HEARD))
        self._answered_at: dict[str, float] = {}
        """By the monotonic clock, as the times in _accepted."""
        self._holding: set[str] = set()
        """Receivers whose gates held something back when last looked at: successes are told to these."""

    # Who may start

    def held_back(self, reader: Runner, now: datetime) -> tuple[dict[str, datetime], set[str]]:
        found, paused = gates.holding(reader, now)
        self._holding = {gate.receiver for gate in found}
        return {gate.receiver: gates.next_start(reader, gate, self.policy, now) for gate in found}, paused

    def admit(self, transaction: Transaction, receiver: str, limit: int, lease: timedelta) -> Admission:
        gate, is_paused = gates.for_claim(transaction, receiver)
        if gate is None or is_paused:
            return Admission(0 if is_paused else limit)
        self._holding.add(receiver)
        waiting = gates.count_waiting(transaction, gate, transaction.now)
        most = gate.may_start(self.policy, seconds(transaction.now), waiting, limit)
        return Admission(most, gate.phase is Phase.OPEN, gate, self._why(gate, waiting) if most else None)

    def readmit(self, transaction: Transaction, receiver: str, until: datetime) -> Admission:
        gate, is_paused = gates.for_claim(transaction, receiver)
        if gate is None or is_paused:
            return Admission(0 if is_paused else 1)
        self._holding.add(receiver)
        is_open = gate.phase is Phase.OPEN
        if is_open and abs(gate.probing_until - seconds(until)) > CLOCK_TICK_SECONDS:
            return Admission(0)
        return Admission(1, is_open, gate, self._why(gate, gates.count_waiting(transaction, gate, transaction.now)))

    def _why(self, gate: Gate, waiting: int) -> str | None:
        if gate.phase is Phase.OPEN:
            return why.ASKED_FOR if gate.asked else gate.decide(self.policy, waiting).sentence()
        if gate.limit is not None:
            return _slowed(gate.limit)
        lasted = why.seconds_told(round(gate.failed_at - gate.since))
        return why.BACK % {"lasted": lasted} if gate.phase is Phase.RAMP else None

    def begun(
        self, transaction: Transaction, admission: Admission, receiver: str, count: int, lease: timedelta
    ) -> None:
        gate = admission.gate
        if gate is None or not admission.most:
            return
        if count:
            gate.start(seconds(transaction.now), count, lease.total_seconds())
            until = transaction.now + lease if admission.probe else None
            gates.save(transaction, gate, self.policy, probe_until=until)
        elif not gates.anything_ready(transaction, receiver, transaction.now):
            gate.run_dry(seconds(transaction.now))
            gates.save(transaction, gate, self.policy)

    def extend_probe(self, transaction: Transaction, receiver: str, until: datetime) -> None:
        gate = gates.lock(transaction, receiver)
        if gate is not None and gate.phase is Phase.OPEN:
            gate.probing_until = seconds(until)
            gates.save(transaction, gate, self.policy, probe_until=until)

    def pull_back(self, transaction: Transaction, lease: timedelta) -> int:
        count = 0
        for receiver in gates.receivers(transaction):
            gate = gates.lock(transaction, receiver)
            if gate is not None and gate.pull_back(seconds(transaction.now), lease.total_seconds()):
                gates.save(transaction, gate, self.policy)
                count += 1
        return count

    # How attempts end

    def heard(self, lease: Lease, answer: Answer) -> None:
        """Cheap, because every delivery comes here."""
        if type(answer) is Done:
            receiver = lease.receiver
            at = self._answered_at[receiver] = self._clock.monotonic()
            self._accepted[receiver].append(at)
        elif isinstance(answer, Failure) and answer.outcome in REPLIED and not _cause(answer).backend:
            self._answered_at[lease.receiver] = self._clock.monotonic()

    def next_try(self, transaction: Transaction, lease: Lease, failure: Failure) -> NextTry:
        if failure.outcome is None:
            return NextTry(None)
        cause = _cause(failure)
        noted = Noted(own=True) if lease.expired else self._note_failure(transaction, lease, cause)
        if not noted.own and not cause.copies and not failure.final:
            limit = self._limit(transaction, lease.receiver) if cause.rate else None
            because = _slowed(limit) if limit else why.WAITS_FOR_BACKEND
            return NextTry(transaction.now, because, lease.obstacle if limit else None)
        obstacle = self._own(transaction, lease, cause)
        age = seconds(lease.leased_at) - seconds(obstacle.since)
        decision = self.policy.decide(Obstacle(lease.receiver, Scope.MESSAGE, cause, age))
        if failure.final or decision.wait is None:
            return NextTry(None, decision.sentence() if decision.wait is None else None, obstacle)
        due_at = max(transaction.now, lease.leased_at + timedelta(seconds=min(decision.wait, self.maximum)))
        return NextTry(due_at, decision.sentence(), obstacle)

    def _limit(self, transaction: Transaction, receiver: str) -> float | None:
        gate = gates.lock(transaction, receiver)
        return gate.rate.per_second if gate and gate.phase is not Phase.OPEN else None

    def _own(self, transaction: Transaction, lease: Lease, cause: Cause) -> OwnObstacle:
        """The delivery's own obstacle, seen by this attempt."""
        known = lease.obstacle
        if known is not None and known.kind == cause.kind:
            self._record_own(transaction, lease, known, gone=False)
            return OwnObstacle(cause.kind, known.since, lease.leased_at)
        if not cause.final:
            _record(transaction, lease.receiver, Scope.MESSAGE, cause.kind, (None, 0.0), gone=False)
        return OwnObstacle(cause.kind, lease.leased_at, lease.leased_at)

    @staticmethod
    def _record_own(transaction: Transaction, lease: Lease, known: OwnObstacle, *, gone: bool) -> None:
        ages = (known.seen_at - known.since).total_seconds(), (lease.leased_at - known.since).total_seconds()
        _record(transaction, lease.receiver, Scope.MESSAGE, known.kind, ages, gone=gone)

    def _note_failure(self, transaction: Transaction, lease: Lease, cause: Cause) -> Noted:
        if cause.kind == "bug":  # the backend may never have been asked
            self._give_back(transaction, lease)
            return Noted(own=True)
        if cause.final:
            self._note_success(transaction, lease)
            return Noted(own=True)
        gate = gates.lock(transaction, lease.receiver, make=True)
        assert gate is not None  # noqa: S101 - for the type checker: its row was made
        answered_at, accepted = self._answers(transaction, lease.receiver)
        began, now = seconds(lease.leased_at), seconds(transaction.now)
        failed = Failed(lease.delivery_id, cause, began, now, lease.probe, answered_at, accepted)
        noted = gate.fail(failed, self.policy)
        self._act(transaction, gate, noted)
        gates.save(transaction, gate, self.policy)
        return noted

    def _answers(self, transaction: Transaction, receiver: str) -> tuple[float, int]:
        """When the backend last answered, and how many it takes in MEASURED_SECONDS: as this process has heard, and as
        the deliveries tell of others. Answers of the future, from before a clock was set back, say nothing."""
        now = seconds(transaction.now)
        newest = select(func.max(Delivery.delivery_id)).scalar_subquery() - LOOKED_AT
        done = select(Delivery.settled_at).where(
            Delivery.delivery_id > newest, Delivery.receiver == receiver, Delivery.state == DeliveryState.DONE
        )
        stored = [seconds(at) for at in transaction.session.scalars(done) if at is not None]
        monotonic = self._clock.monotonic()
        heard = now - (monotonic - self._answered_at.get(receiver, -math.inf))
        answered = [at for at in (heard, *stored) if at <= now]
        accepted = max(_accepted(list(self._accepted[receiver]), monotonic), _accepted(stored, now))
        return max(answered, default=0.0), accepted

    def _act(self, transaction: Transaction, gate: Gate, noted: Noted) -> None:
        """As the gate found: its transition is kept, and the messages of a run that proved it down wait at it."""
        if (tried := noted.tried) is not None:
            ages = tried.age_from, tried.age_to
            _record(transaction, gate.receiver, Scope.BACKEND, tried.kind, ages, gone=tried.gone)
        if noted.change is Change.OPENED:
            waiting = select(Delivery.delivery_id).where(
                Delivery.delivery_id.in_(gate.run.messages),
                Delivery.receiver == gate.receiver,
                Delivery.state == DeliveryState.READY,
                Delivery.due_at > transaction.now,
                Delivery.outcome.is_not(None),
                Delivery.outcome != Outcome.UNKNOWN,  # what may have come through keeps its own wait
            )
            ids = list(transaction.session.scalars(waiting.with_for_update(skip_locked=True)))
            moved = update(table(Delivery)).where(Delivery.delivery_id.in_(ids))
            behind = {"due_at": transaction.now, "due_because": why.WAITS_FOR_BACKEND}
            transaction.session.execute(moved.values(**behind, **_columns(None)))

    def _note_success(self, transaction: Transaction, lease: Lease) -> None:
        """Not of a gate that holds nothing back."""
        if not lease.gated and lease.receiver not in self._holding:
            return
        gate = gates.lock(transaction, lease.receiver)
        if gate is None or gate.is_wide_open:
            return
        noted = gate.succeed(seconds(lease.leased_at), seconds(transaction.now), probe=lease.probe)
        self._act(transaction, gate, noted)
        if gate.phase is Phase.RAMP and not gates.anything_ready(transaction, lease.receiver, transaction.now):
            gate.run_dry(seconds(transaction.now))
        gates.save(transaction, gate, self.policy)

    def _give_back(self, transaction: Transaction, lease: Lease) -> None:
        if not lease.gated:
            return
        gate = gates.lock(transaction, lease.receiver)
        if gate is not None and (lease.probe or gate.phase is Phase.RAMP):
            gate.give_back(seconds(transaction.now))
            gates.save(transaction, gate, self.policy)

    def ended(self, transaction: Transaction, ends: Iterable[LeaseEnd]) -> None:
        """The gate was told of failures before, when their next try was asked for."""
        for end in ends:
            lease = end.lease
            if end.outcome is OK and not lease.spent and not lease.gated and lease.receiver not in self._holding:
                continue
            if end.outcome is OK:
                self._note_success(transaction, lease)
            elif end.outcome is None and not lease.expired:
                self._give_back(transaction, lease)
            if lease.obstacle is not None and end.outcome in (OK, Outcome.REFUSED):
                self._record_own(transaction, lease, lease.obstacle, gone=True)
            if end.next_try is not None or (end.state is DeliveryState.READY and lease.spent):
                following = end.next_try or NextTry(None, None, lease.obstacle)
                values = {"number": lease.delivery_id, "due_because": following.why, **_columns(following.obstacle)}
                NOTE_NEXT_TRY(transaction, values)


def _columns(obstacle: OwnObstacle | None) -> dict[str, object]:
    return {
        "obstacle": obstacle.kind if obstacle else None,
        "obstacle_since": obstacle.since if obstacle else None,
        "obstacle_seen_at": obstacle.seen_at if obstacle else None,
    }


def _accepted(times: list[float], now: float) -> int:
    """How many were accepted in the last MEASURED_SECONDS, or would have been, had it gone on for so long as it did: a
    backlog is refused within a second. Of a few nothing can be said but how many they are."""
    lately = [at for at in times if now - MEASURED_SECONDS <= at <= now]
    if len(lately) < RELAPSE_PASSED:
        return len(lately)
    return round(len(lately) * MEASURED_SECONDS / max(1.0, now - min(lately)))


def _slowed(limit: float) -> str:
    return why.SLOWED % {"rate": f"{limit:.3g}"}


def _cause(failure: Failure) -> Cause:
    return classify(str(failure.outcome), failure.code, failure.enhanced)


def _record(
    transaction: Transaction, receiver: str, scope: Scope, kind: str, ages: tuple[float | None, float], *, gone: bool
) -> None:
    """``ages`` are the obstacle's: at its latest failure before this attempt, and at this attempt."""
    row = {"receiver": receiver, "scope": str(scope), "kind": kind, "age_from": ages[0], "age_to": ages[1]}
    gates.INSERT_TRANSITION(transaction, row | {"gone": gone, "at": transaction.now})
