"""Dispatched deliveries: a relay leases one, a message carries its number and token, a worker takes it over.

Between the two nobody holds it: ``leased_by`` is empty. The worker swaps the token for its own by compare-and-set, so a
message that comes twice, or late, loses. A dispatched lease that runs out was not tried: it is ready again, and no
attempt is recorded.
"""

from datetime import timedelta

from app.bus import leases
from app.bus.invoke import Invoker, NotBegun
from app.bus.leases import Lease, LeaseEnd
from app.bus.retries import Retries
from app.bus.settle import settle
from app.db import Transaction


def take(
    transaction: Transaction,
    retries: Retries,
    invoker: Invoker,
    delivery_id: int,
    token: int,
    dispatcher: str,
    lease: timedelta,
) -> tuple[Lease | None, list[LeaseEnd]]:
    """Lease to ``dispatcher`` the delivery that was dispatched under ``token``.

    Returns no lease where that was taken, or ran out; and where the receiver was paused or its circuit breaker has
    opened meanwhile. Then the delivery is ready again, and its end is returned.
    """
    found = leases.find_dispatched(transaction, delivery_id, token, dispatcher)
    if found is None:
        return None, []
    taken, until = found
    admission = retries.readmit(transaction, taken.receiver, until)
    if not admission.most:
        taken.token = token
        ends, _ = settle(transaction, retries, invoker, [(taken, NotBegun())])
        return None, ends
    if admission.gate is not None:
        taken.gated = True
        taken.why = admission.why or taken.why
    taken.probe = admission.probe
    leases.hold(transaction, [taken], lease)
    if taken.probe:
        retries.extend_probe(transaction, taken.receiver, transaction.now + lease)
    return taken, []
