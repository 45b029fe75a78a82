"""Retries: how many deliveries may start now, and when one that failed is tried again.

By the plain rule (``PlainRetries``) a policy answers the second question for each delivery alone, and ``breaker`` the
first. By the learned policy (``learned_retries.LearnedRetries``) the solution of a decision process answers both.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from sqlalchemy import bindparam, update

from app.bus import breaker
from app.bus.invoke import Answer, Failure
from app.bus.leases import Lease, LeaseEnd, NextTry
from app.bus.tables import Delivery
from app.db import Prepared, Runner, Transaction, table, utc
from app.retry import PROBE_MAXIMUM, Gate, Policy, why
from app.states import DeliveryState

NOTE_WHY = Prepared(
    update(table(Delivery))
    .where(Delivery.delivery_id == bindparam("number"))
    .values(due_because=bindparam("due_because"))
)


@dataclass(frozen=True, slots=True)
class Admission:
    """How many deliveries of a receiver may start now."""

    most: int
    probe: bool = False
    """Whether it is the one that looks whether the backend is back."""
    gate: Gate | None = None
    """By the learned policy: what held others back, and is to be told of how this one ends."""
    why: str | None = None
    """Why now and not before."""

    def admits(self, lease: Lease) -> None:
        """The lease is one of these deliveries'."""
        lease.gated = self.gate is not None
        lease.why = self.why or lease.why


class Retries(Protocol):
    """Every method but ``heard`` works in a running transaction or on a reader."""

    maximum: float
    """The longest wait, in seconds."""

    def held_back(self, reader: Runner, now: datetime) -> tuple[dict[str, datetime], set[str]]:
        """For each receiver whose deliveries are held back, when the next may start; and the receivers that are
        paused."""

    def admit(self, transaction: Transaction, receiver: str, limit: int, lease: timedelta) -> Admission:
        """How many may start now, ``limit`` at most. The caller says by ``begun`` how many do."""

    def begun(
        self, transaction: Transaction, admission: Admission, receiver: str, count: int, lease: timedelta
    ) -> None:
        """So many start, of those that were admitted."""

    def readmit(self, transaction: Transaction, receiver: str, until: datetime) -> Admission:
        """Whether the delivery that a relay dispatched, under a lease ``until`` then, may start still."""

    def extend_probe(self, transaction: Transaction, receiver: str, until: datetime) -> None:
        """The probe runs on."""

    def heard(self, lease: Lease, answer: Answer) -> None:
        """A receiver answered; called once for each answer, from any thread, before that is settled."""

    def next_try(self, transaction: Transaction, lease: Lease, failure: Failure) -> NextTry:
        """When a delivery that failed is tried again."""

    def ended(self, transaction: Transaction, ends: Iterable[LeaseEnd]) -> None:
        """These leases were ended, and their attempts recorded."""

    def pull_back(self, transaction: Transaction, lease: timedelta) -> int:
        """No moment lies further ahead than any wait or lease. Returns how many were changed."""


class PlainRetries:
    """The plain rule, ``RETRY_POLICY=exponential``."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.maximum = policy.maximum

    def held_back(self, reader: Runner, now: datetime) -> tuple[dict[str, datetime], set[str]]:
        found = breaker.FIND_HELD_BACK(reader, {}).fetchall()
        probes = {receiver: utc(probe_at) for receiver, probe_at in found if probe_at is not None}
        return probes, {receiver for receiver, probe_at in found if probe_at is None}

    def admit(self, transaction: Transaction, receiver: str, limit: int, lease: timedelta) -> Admission:
        found = breaker.FIND_BREAKER(transaction, {"name": receiver}).fetchall()
        if not found:
            return Admission(limit)
        if (None,) in found or utc(found[0][0]) > transaction.now:
            return Admission(0)
        # The next probe is due when this one's lease ends: one whose process died is lost in time.
        breaker.MOVE_PROBE(transaction, {"name": receiver, "at": transaction.now + lease})
        return Admission(1, probe=True, why=why.PROBE)

    def begun(
        self, transaction: Transaction, admission: Admission, receiver: str, count: int, lease: timedelta
    ) -> None:
        if admission.probe and not count:
            breaker.MOVE_PROBE(transaction, {"name": receiver, "at": transaction.now})

    def readmit(self, transaction: Transaction, receiver: str, until: datetime) -> Admission:
        found = breaker.FIND_BREAKER(transaction, {"name": receiver}).fetchall()
        if not found:
            return Admission(1)
        is_probe = (None,) not in found and utc(found[0][0]) == until
        return Admission(int(is_probe), probe=is_probe)

    def extend_probe(self, transaction: Transaction, receiver: str, until: datetime) -> None:
        breaker.MOVE_PROBE(transaction, {"name": receiver, "at": until})

    def heard(self, lease: Lease, answer: Answer) -> None: ...

    def next_try(self, transaction: Transaction, lease: Lease, failure: Failure) -> NextTry:
        seconds = None if failure.final else self.policy.wait(lease.spent + 1, str(failure.outcome))
        if seconds is None:
            return NextTry(None)
        told = {"wait": why.seconds_told(seconds), "count": lease.spent + 1}
        return NextTry(transaction.now + timedelta(seconds=seconds), why.DRAWN % told)

    def ended(self, transaction: Transaction, ends: Iterable[LeaseEnd]) -> None:
        for each in ends:
            lease = each.lease
            if each.state is DeliveryState.READY and (each.next_try is not None or lease.spent):
                because = each.next_try.why if each.next_try else None
                NOTE_WHY(transaction, {"number": lease.delivery_id, "due_because": because})
            if not lease.expired:  # the death of a process says nothing of the receiver's backend
                breaker.note_outcome(
                    transaction, lease.receiver, each.outcome, probe=lease.probe, began=lease.leased_at
                )

    def pull_back(self, transaction: Transaction, lease: timedelta) -> int:
        latest = transaction.now + max(lease, timedelta(seconds=PROBE_MAXIMUM))
        return int(breaker.FAR_AHEAD(transaction, {"latest": latest, "at": transaction.now}).rowcount)
