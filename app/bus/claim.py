"""Claim: due deliveries in, leases out.

A lease that ran out is settled first, in place of the dispatcher that left no result. The fault is unknown: one
receiver may have killed the process, and all that the process held ran out together. So a delivery whose last outcome
is unknown is *in doubt* and is claimed alone, and only a delivery that was tried alone spends an attempt.
"""

from dataclasses import dataclass, field
from datetime import timedelta

from app.bus import leases
from app.bus.leases import Lease, LeaseEnd
from app.bus.retries import Admission, Retries
from app.bus.settle import settle_expired
from app.db import Transaction
from app.signal import ordering_of


@dataclass(slots=True)
class Claim:
    """One transaction's claim for a dispatcher: deliveries that are not in doubt, or ``alone`` one that is."""

    transaction: Transaction
    retries: Retries
    lease: timedelta
    dispatcher: str | None
    """None of a relay, which dispatches what it claims."""
    alone: bool
    leases: list[Lease] = field(default_factory=list)
    expired: list[LeaseEnd] = field(default_factory=list)
    """The ends of leases that had run out."""
    in_doubt_waits: bool = False
    """Whether a delivery in doubt is due, and was not claimed."""

    def take(self, receiver: str, limit: int) -> None:
        """Lease up to ``limit`` due deliveries of ``receiver``, the most overdue first.

        As many as its circuit breaker lets through: while that is open, one.
        """
        if self.alone and self.leases:
            return
        admission = self.retries.admit(self.transaction, receiver, limit, self.lease)
        if not admission.most:
            return
        due = self._find_due(receiver, admission)
        chosen = [lease for lease in due if lease.in_doubt == self.alone and not lease.expired]
        chosen = chosen[:1] if self.alone else chosen
        self.in_doubt_waits |= len(chosen) < len(due)
        if chosen:
            leases.hold(self.transaction, chosen, self.lease)
            self.leases += chosen
        self.retries.begun(self.transaction, admission, receiver, len(chosen), self.lease)

    def _find_due(self, receiver: str, admission: Admission) -> list[Lease]:
        def find() -> list[Lease]:
            return leases.find_due(
                *(self.transaction, receiver, admission.most, self.dispatcher),
                probe=admission.probe,
                fresh=admission.gate is not None,
                ordered_by=ordering_of(receiver),
            )

        due = find()
        if expired := [lease for lease in due if lease.expired]:
            self.expired += settle_expired(self.transaction, self.retries, expired)
            due = find()
        if admission.gate is not None or admission.probe:
            for lease in due:
                admission.admits(lease)
        return due
