"""Claim: due deliveries in, leases out.

A lease that ran out is settled first, in place of the dispatcher that left no result. Nobody knows whose fault that
was: a receiver may have killed the process, and all that the process held ran out together. So a delivery whose last
outcome is unknown is *in doubt* and is claimed alone, and only what was tried alone is charged.
"""

from dataclasses import dataclass, field
from datetime import timedelta

from app.bus import breaker, leases
from app.bus.leases import Lease, LeaseEnd
from app.bus.settle import settle_expired
from app.db import Transaction
from app.retry import Policy


@dataclass(slots=True)
class Claim:
    """What one transaction claims for a dispatcher: deliveries that are not in doubt, or ``alone`` one that is."""

    transaction: Transaction
    policy: Policy
    lease: timedelta
    dispatcher: str
    alone: bool
    leases: list[Lease] = field(default_factory=list)
    expired: list[LeaseEnd] = field(default_factory=list)
    """The ends of leases that had run out."""
    in_doubt_waits: bool = False
    """Whether a delivery in doubt is due, and was not claimed."""

    def take(self, receiver: str, limit: int) -> None:
        """Lease up to ``limit`` due deliveries of ``receiver``, the most overdue first.

        An open circuit breaker lets one through at most.
        """
        if self.alone and self.leases:
            return
        probe = breaker.take_probe(self.transaction, receiver, self.lease)
        if probe is False:
            return
        due = self._find_due(receiver, limit, probe=bool(probe))
        chosen = [lease for lease in due if lease.in_doubt == self.alone and not lease.expired]
        chosen = chosen[:1] if self.alone else chosen
        self.in_doubt_waits |= len(chosen) < len(due)
        if chosen:
            leases.hold(self.transaction, chosen, self.lease)
            self.leases += chosen
        elif probe:
            breaker.give_back_probe(self.transaction, receiver)

    def _find_due(self, receiver: str, limit: int, *, probe: bool) -> list[Lease]:
        most = 1 if probe else limit
        due = leases.find_due(self.transaction, receiver, most, self.dispatcher, probe=probe)
        if expired := [lease for lease in due if lease.expired]:
            self.expired += settle_expired(self.transaction, self.policy, expired)
            due = leases.find_due(self.transaction, receiver, most, self.dispatcher, probe=probe)
        return due
