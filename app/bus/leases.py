"""The deliveries table as a queue: what is due, held under a lease, extended, ended under the lease's fencing token.

Every function works in a running transaction. A fencing token (Martin Kleppmann, "How to do distributed locking", 2016)
grows with each lease, so a dispatcher that was paused past its lease ends nothing: its token is no longer the row's.
"""

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from operator import attrgetter
from typing import Any

from sqlalchemy import Integer, String, and_, bindparam, func, insert, or_, select, update
from sqlalchemy.orm import Session

from app.bus import breaker
from app.bus.tables import UNFINISHED, Attempt, Delivery, StoredEvent
from app.db import Prepared, Reader, Transaction, table, utc
from app.errors import LeaseLost, TransactionLost
from app.states import DeliveryState, Outcome

NO_RESULT = "no result: its process died, or was held up past the lease"
"""Of an attempt whose lease ran out."""

HELD = update(table(Delivery)).where(
    Delivery.delivery_id == bindparam("of_delivery"),
    Delivery.lease_token == bindparam("under_token"),
    Delivery.state == DeliveryState.LEASED,
)
EARLIEST = Prepared(
    select(func.min(Delivery.due_at)).where(Delivery.receiver == bindparam("name", type_=String), UNFINISHED)
)
FAR_AHEAD = Prepared(
    update(table(Delivery))
    .where(
        Delivery.receiver == bindparam("of_receiver", type_=String),
        UNFINISHED,
        Delivery.state == bindparam("in_state"),
        Delivery.due_at > bindparam("latest"),
    )
    .values(due_at=bindparam("at"))
)
EVENT = ("event_id", "type", "version", "source", "order_id", "user_id", "correlation_id")
"""The event's columns that a lease takes over unchanged."""


def _find_due(*which: Any, order: tuple[Any, ...]) -> Prepared:
    """Due deliveries of a receiver, with their events."""
    return Prepared(
        lambda dialect: (
            select(
                Delivery.delivery_id,
                Delivery.lease_token,
                Delivery.state,
                Delivery.attempts,
                Delivery.outcome,
                Delivery.created_at,
                Delivery.leased_at,
                Delivery.leased_by,
                StoredEvent.occurred_at,
                dialect.raw_text(StoredEvent.data).label("data"),
                *(table(StoredEvent).c[name] for name in EVENT),
            )
            .join(StoredEvent, StoredEvent.event_id == Delivery.event_id)
            .where(Delivery.receiver == bindparam("name"), Delivery.due_at <= bindparam("now"), UNFINISHED, *which)
            .order_by(*order)
            .limit(bindparam("most", type_=Integer))
            .with_for_update(of=Delivery, skip_locked=True)
        )
    )


FIND_DUE = _find_due(order=(Delivery.due_at, Delivery.delivery_id))  # what was made due at one moment keeps its order
FIND_PROBE = _find_due(
    Delivery.state == DeliveryState.READY,
    or_(Delivery.outcome.is_(None), and_(*(Delivery.outcome != outcome for outcome in breaker.BACKEND_DOWN))),
    order=(Delivery.due_at.desc(), Delivery.delivery_id.desc()),
)
"""What has not failed yet as if the backend were down, the newest first: so the probe is least likely to be one of
those that hang for their own sake, alone or in a row at the head of the queue."""

LATEST_ATTEMPTS = Prepared(
    select(table(Attempt).c.outcome, table(Attempt).c.detail)
    .where(Attempt.delivery_id == bindparam("of_delivery"))
    .order_by(Attempt.attempt_id.desc())
    .limit(bindparam("most", type_=Integer))
)
CLAIM = Prepared(
    update(table(Delivery))
    .where(Delivery.delivery_id == bindparam("of_delivery"))
    .values(
        state=DeliveryState.LEASED,
        lease_token=bindparam("token"),
        due_at=bindparam("until"),
        leased_at=bindparam("now"),
        leased_by=bindparam("who"),
    )
)
EXTEND = Prepared(HELD.values(due_at=bindparam("due_at")))
END = Prepared(
    HELD.values({name: bindparam(name) for name in ("state", "attempts", "outcome", "reason", "due_at", "settled_at")})
)
INSERT_ATTEMPT = Prepared(
    insert(table(Attempt)).inline(),
    *("delivery_id", "lease_token", "outcome", "detail", "started_at", "ended_at", "dispatcher"),
)


@dataclass(slots=True, eq=False)
class Lease:
    """The right to try a delivery. Receivers see it as ``delivery``."""

    delivery_id: int
    token: int
    receiver: str
    spent: int
    """Attempts charged before this one, in the present budget."""
    unknown: int
    """Attempts before this one, in the present budget, whose outcome is unknown: each may have had its effect."""
    outcome: str | None
    """Of the attempt before this one."""
    created_at: datetime
    leased_at: datetime
    leased_by: str
    expired: bool
    """Whether it ran out, and its dispatcher has left no result."""
    probe: bool
    """Whether an open circuit breaker let it through, to see whether the backend is back."""
    event_id: str
    type: str
    version: int
    source: str
    order_id: str
    user_id: str
    correlation_id: str
    occurred_at: datetime
    data: bytes | str
    running: bool = False
    """Whether code of its receiver runs at this moment, in whichever thread."""

    @property
    def in_doubt(self) -> bool:
        """Whether nobody knows how the attempt before it ended: then it is tried alone."""
        return self.outcome == Outcome.UNKNOWN


@dataclass(frozen=True, slots=True)
class LeaseEnd:
    """How one lease ends: the delivery's new state and, where an attempt is counted, its outcome."""

    lease: Lease
    state: DeliveryState
    outcome: Outcome | None = None
    reason: str | None = None
    due_at: datetime | None = None

    @property
    def charged(self) -> bool:
        """Whether an attempt is spent. Not where others shared the process that died, and it may be their fault."""
        return self.outcome is not None and (self.lease.in_doubt or not self.lease.expired)


LOCK_ORDER = attrgetter("delivery_id")
"""Of leases: transactions that lock several deliveries do so in this order, and so cause no deadlock."""


def next_due(reader: Reader, receivers: Iterable[str]) -> dict[str, datetime]:
    """For each receiver that has unfinished deliveries, when the earliest may be claimed."""
    found = {receiver: EARLIEST(reader, {"name": receiver}).fetchone()[0] for receiver in receivers}
    due = {receiver: utc(due_at) for receiver, due_at in found.items() if due_at is not None}
    probes = breaker.next_probes(reader) if due else {}
    return {receiver: max(due_at, probes.get(receiver, due_at)) for receiver, due_at in due.items()}


def find_due(transaction: Transaction, receiver: str, limit: int, dispatcher: str, *, probe: bool) -> list[Lease]:
    """Up to ``limit`` due deliveries of ``receiver``, the most overdue first, and locked until the transaction ends.

    Each as the lease that the dispatcher of that name may ``hold``; one that is ``expired`` as the lease that ran out.
    Rows that another dispatcher is claiming at this moment are passed over, not waited for.
    """
    values = {"name": receiver, "now": transaction.now, "most": limit}
    due = (probe and FIND_PROBE(transaction, values).fetchall()) or FIND_DUE(transaction, values).fetchall()
    return [_lease(transaction, row, receiver, dispatcher, probe) for row in due]


def hold(transaction: Transaction, leases: list[Lease], lease: timedelta) -> None:
    """From now on, and for so long, the deliveries are leased."""
    until = transaction.now + lease
    CLAIM.many(transaction, [_held(each, until) for each in leases])


def _held(lease: Lease, until: datetime) -> dict[str, Any]:
    return {
        "of_delivery": lease.delivery_id,
        "token": lease.token,
        "until": until,
        "now": lease.leased_at,
        "who": lease.leased_by,
    }


def _lease(transaction: Transaction, row: Any, receiver: str, dispatcher: str, probe: bool) -> Lease:
    """From a row of FIND_DUE."""
    delivery_id, token, state, attempts, outcome, created_at, leased_at, leased_by, occurred_at, data, *event = row
    expired = state == DeliveryState.LEASED
    return Lease(
        delivery_id=delivery_id,
        token=token if expired else token + 1,
        receiver=receiver,
        spent=attempts,
        unknown=_count_unknown(transaction, delivery_id, attempts) if attempts or outcome == Outcome.UNKNOWN else 0,
        outcome=outcome,
        created_at=utc(created_at),
        leased_at=utc(leased_at) if expired else transaction.now,
        leased_by=leased_by if expired else dispatcher,
        expired=expired,
        probe=probe,
        occurred_at=utc(occurred_at),
        data=data,
        **dict(zip(EVENT, event, strict=True)),
    )


def _count_unknown(transaction: Transaction, delivery_id: int, spent: int) -> int:
    """Of the attempts in the present budget: an operator's retry begins a new one, and the attempts before it stay.

    Before those that were charged there may be one that was not, because its process died under others as well.
    """
    latest = LATEST_ATTEMPTS(transaction, {"of_delivery": delivery_id, "most": spent + 1}).fetchall()
    counted = latest if [detail for _, detail in latest[spent:]] == [NO_RESULT] else latest[:spent]
    return [outcome for outcome, _ in counted].count(Outcome.UNKNOWN)


def extend(transaction: Transaction, leases: list[Lease], lease: timedelta) -> dict[Lease, bool]:
    """Let the leases run for ``lease`` from now. Returns for each whether it holds: those that were lost stay lost.

    Of a row that can't be written nothing is returned; it keeps no other from being extended. Raises TransactionLost.
    """
    due_at = transaction.now + lease

    def holds(one: Lease) -> bool:
        values = {"of_delivery": one.delivery_id, "under_token": one.token, "due_at": due_at}
        return bool(EXTEND(transaction, values).rowcount == 1)

    if not leases:
        return {}
    try:
        with transaction.savepoint():
            found = {one: holds(one) for one in sorted(leases, key=LOCK_ORDER)}
            for one in leases:
                if one.probe and found[one]:
                    breaker.extend_probe(transaction, one.receiver, due_at)
            return found
    except TransactionLost:
        raise
    except Exception:
        if len(leases) == 1:
            return {}
    return {one: holds for each in leases for one, holds in extend(transaction, [each], lease).items()}


def pull_back(transaction: Transaction, receivers: Iterable[str], longest_wait: timedelta, lease: timedelta) -> int:
    """Due times further ahead than any wait or lease: the clock ran ahead when they were set. Returns how many.

    A delivery that waits is due now. A lease ends one lease from now: its holder, where it lives, extends it before.
    """
    now = transaction.now
    longest = ((DeliveryState.READY, longest_wait, now), (DeliveryState.LEASED, lease, now + lease))
    count = breaker.pull_back(transaction, lease)
    for receiver in receivers:
        for state, longest_time, due_at in longest:
            values = {"of_receiver": receiver, "in_state": str(state), "latest": now + longest_time, "at": due_at}
            count += FAR_AHEAD(transaction, values).rowcount
    return count


@functools.cache
def select_tokens(count: int) -> Prepared:
    """The fencing tokens of ``count`` leased deliveries, whose rows are locked until the transaction ends."""
    ids: list[Any] = [bindparam(f"id_{n}") for n in range(count)]
    leased = select(Delivery.delivery_id, Delivery.lease_token).where(Delivery.state == DeliveryState.LEASED)
    return Prepared(leased.where(Delivery.delivery_id.in_(ids)).order_by(Delivery.delivery_id).with_for_update())


def lock_held(transaction: Transaction, leases: list[Lease]) -> list[Lease]:
    """Those that nobody has taken over; until the transaction ends, nobody can."""
    if not leases:
        return []
    ids = {f"id_{n}": lease.delivery_id for n, lease in enumerate(leases)}
    tokens = dict(select_tokens(len(leases))(transaction, ids).fetchall())
    return [lease for lease in leases if tokens.get(lease.delivery_id) == lease.token]


def end(transaction: Transaction, ends: list[LeaseEnd]) -> None:
    """End leases as it says there; where there is an outcome, the attempt is recorded.

    Raises LeaseLost when any has been taken over; the caller has to undo what this did to the others.
    """
    if not ends:
        return
    if END.many(transaction, [_ended(each, transaction.now) for each in ends]) != len(ends):
        raise LeaseLost
    attempts = [_attempt(each, transaction.now) for each in ends if each.outcome is not None]
    if attempts:
        INSERT_ATTEMPT.many(transaction, attempts)
    for each in ends:
        lease = each.lease
        if not lease.expired:  # the death of a process says nothing of the receiver's backend
            breaker.note_outcome(transaction, lease.receiver, each.outcome, probe=lease.probe, began=lease.leased_at)


def _ended(end: LeaseEnd, now: datetime) -> dict[str, Any]:
    return {
        "of_delivery": end.lease.delivery_id,
        "under_token": end.lease.token,
        "state": str(end.state),  # sqlite3 takes far longer to bind a StrEnum
        "attempts": end.lease.spent + end.charged,
        "outcome": str(end.outcome) if end.outcome else end.lease.outcome,
        "reason": end.reason,
        "due_at": end.due_at or now,
        "settled_at": None if end.state == DeliveryState.READY else now,
    }


def _attempt(end: LeaseEnd, now: datetime) -> dict[str, Any]:
    return {
        "delivery_id": end.lease.delivery_id,
        "lease_token": end.lease.token,
        "outcome": str(end.outcome),
        "detail": end.reason,
        "started_at": end.lease.leased_at,
        "ended_at": now,
        "dispatcher": end.lease.leased_by,
    }


def receivers_left_waiting(session: Session, known: Iterable[str], before: datetime) -> list[str]:
    """Receivers that are not ``known`` here, but have deliveries that were due ``before`` and that nobody took."""
    waiting = select(Delivery.receiver).where(UNFINISHED, Delivery.due_at < before)
    return list(session.scalars(waiting.where(Delivery.receiver.not_in(list(known))).distinct()))
