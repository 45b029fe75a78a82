"""The deliveries table as a queue: claim under a lease, extend, end under the lease's fencing token.

Every function works in a running transaction. A fencing token (Martin Kleppmann, "How to do distributed locking", 2016)
grows with each lease, so a dispatcher that was paused past its lease ends nothing: its token is no longer the row's.
"""

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Integer, String, and_, bindparam, func, insert, or_, select, update
from sqlalchemy.orm import Session

from app.bus import breaker
from app.bus.tables import UNFINISHED, Attempt, Delivery, StoredEvent
from app.db import Prepared, Reader, Transaction, table, utc
from app.errors import LeaseLost
from app.states import DeliveryState, Outcome

HELD = update(table(Delivery)).where(
    Delivery.delivery_id == bindparam("of_delivery"),
    Delivery.lease_token == bindparam("under_token"),
    Delivery.state == DeliveryState.LEASED,
)
EARLIEST = Prepared(
    select(func.min(Delivery.due_at)).where(Delivery.receiver == bindparam("name", type_=String), UNFINISHED)
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

LATEST_OUTCOMES = Prepared(
    select(table(Attempt).c.outcome)
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
        attempts=bindparam("spent"),
        due_at=bindparam("until"),
        leased_at=bindparam("now"),
        leased_by=bindparam("who"),
        outcome=bindparam("last"),
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
    """Attempts counted before this one, in the present budget."""
    unknown: int
    """Those among them whose outcome is unknown: each may have had its effect."""
    outcome: str | None
    """Of the attempt before this one."""
    created_at: datetime
    leased_at: datetime
    leased_by: str
    expired: bool
    """Whether it was taken over from a dispatcher whose lease ran out: that attempt's outcome is unknown."""
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

    @property
    def in_doubt(self) -> bool:
        """Whether nobody knows how the attempt before it ended, and no person has had it retried since."""
        return self.outcome == Outcome.UNKNOWN and self.spent > 0


@dataclass(frozen=True, slots=True)
class LeaseEnd:
    """How one lease ends: the delivery's new state and, where an attempt is counted, its outcome."""

    lease: Lease
    state: DeliveryState
    outcome: Outcome | None = None
    reason: str | None = None
    due_at: datetime | None = None


def next_due(reader: Reader, receivers: Iterable[str]) -> dict[str, datetime]:
    """For each receiver that has unfinished deliveries, when the earliest may be claimed."""
    found = {receiver: EARLIEST(reader, {"name": receiver}).fetchone()[0] for receiver in receivers}
    due = {receiver: utc(due_at) for receiver, due_at in found.items() if due_at is not None}
    probes = breaker.next_probes(reader) if due else {}
    return {receiver: max(due_at, probes.get(receiver, due_at)) for receiver, due_at in due.items()}


def claim(transaction: Transaction, receiver: str, limit: int, lease: timedelta, dispatcher: str) -> list[Lease]:
    """Lease up to ``limit`` due deliveries of ``receiver`` to the dispatcher of that name, the most overdue first.

    Rows that another dispatcher is claiming at this moment are passed over, not waited for. An open circuit breaker
    lets one through at most.
    """
    probe = breaker.take_probe(transaction, receiver, lease)
    if probe is False:
        return []
    values = {"name": receiver, "now": transaction.now, "most": 1 if probe else limit}
    due = (probe and FIND_PROBE(transaction, values).fetchall()) or FIND_DUE(transaction, values).fetchall()
    leases = [_lease(transaction, row, receiver, dispatcher, probe=bool(probe)) for row in due]
    if leases:
        until = transaction.now + lease
        CLAIM.many(transaction, [_claimed(each, until) for each in leases])
    elif probe:
        breaker.give_back_probe(transaction, receiver)
    return leases


def _claimed(lease: Lease, until: datetime) -> dict[str, Any]:
    return {
        "of_delivery": lease.delivery_id,
        "token": lease.token,
        "spent": lease.spent,
        "until": until,
        "now": lease.leased_at,
        "who": lease.leased_by,
        "last": lease.outcome,
    }


def _lease(transaction: Transaction, row: Any, receiver: str, dispatcher: str, *, probe: bool) -> Lease:
    """From a row of FIND_DUE."""
    delivery_id, token, state, attempts, outcome, created_at, leased_at, leased_by, occurred_at, data, *event = row
    expired = state == DeliveryState.LEASED
    if expired:
        record_unknown(transaction, delivery_id, token, utc(leased_at), leased_by)
    spent = attempts + expired
    return Lease(
        delivery_id=delivery_id,
        token=token + 1,
        receiver=receiver,
        spent=spent,
        unknown=_count_unknown(transaction, delivery_id, spent) if spent else 0,
        outcome=Outcome.UNKNOWN if expired else outcome,
        created_at=utc(created_at),
        leased_at=transaction.now,
        leased_by=dispatcher,
        expired=expired,
        probe=probe,
        occurred_at=utc(occurred_at),
        data=data,
        **dict(zip(EVENT, event, strict=True)),
    )


def _count_unknown(transaction: Transaction, delivery_id: int, spent: int) -> int:
    """Of the attempts in the present budget: an operator's retry begins a new one, and the attempts before it stay."""
    latest = LATEST_OUTCOMES(transaction, {"of_delivery": delivery_id, "most": spent}).fetchall()
    return [outcome for (outcome,) in latest].count(Outcome.UNKNOWN)


def record_unknown(transaction: Transaction, delivery_id: int, token: int, leased_at: datetime, leased_by: str) -> None:
    """Record the attempt of a dispatcher that did not come back: nobody knows how far it got."""
    INSERT_ATTEMPT(
        transaction,
        {
            "delivery_id": delivery_id,
            "lease_token": token,
            "outcome": Outcome.UNKNOWN,
            "detail": "the dispatcher died, or hung past its lease, before it recorded a result",
            "started_at": leased_at,
            "ended_at": transaction.now,
            "dispatcher": leased_by,
        },
    )


def extend(transaction: Transaction, leases: Iterable[Lease], lease: timedelta) -> list[Lease]:
    """Let the leases run for ``lease`` from now. Returns those that were lost meanwhile: they stay lost."""
    due_at = transaction.now + lease

    def is_lost(one: Lease) -> bool:
        values = {"of_delivery": one.delivery_id, "under_token": one.token, "due_at": due_at}
        return bool(EXTEND(transaction, values).rowcount != 1)

    return [one for one in leases if is_lost(one)]


@functools.cache
def select_tokens(count: int) -> Prepared:
    """The fencing tokens of ``count`` leased deliveries, whose rows are locked until the transaction ends."""
    ids: list[Any] = [bindparam(f"id_{n}") for n in range(count)]
    leased = select(Delivery.delivery_id, Delivery.lease_token).where(Delivery.state == DeliveryState.LEASED)
    return Prepared(leased.where(Delivery.delivery_id.in_(ids)).with_for_update())


def lock_held(transaction: Transaction, leases: list[Lease]) -> list[Lease]:
    """Those that nobody has taken over; until the transaction ends, nobody can."""
    if not leases:
        return []
    ids = {f"id_{n}": lease.delivery_id for n, lease in enumerate(leases)}
    tokens = dict(select_tokens(len(leases))(transaction, ids).fetchall())
    return [lease for lease in leases if tokens.get(lease.delivery_id) == lease.token]


def end(transaction: Transaction, ends: list[LeaseEnd]) -> None:
    """End leases as it says there; where there is an outcome, the attempt is counted and recorded.

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
        breaker.note_outcome(transaction, lease.receiver, each.outcome, probe=lease.probe, began=lease.leased_at)


def _ended(end: LeaseEnd, now: datetime) -> dict[str, Any]:
    return {
        "of_delivery": end.lease.delivery_id,
        "under_token": end.lease.token,
        "state": str(end.state),  # sqlite3 takes far longer to bind a StrEnum
        "attempts": end.lease.spent + (end.outcome is not None),
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
