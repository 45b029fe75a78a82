"""The deliveries table as a queue: claim under a lease, extend, settle under the lease's token.

Every function works on the session of a running transaction. A fencing token (Martin Kleppmann, "How to do
distributed locking", 2016) grows with each lease, so a dispatcher that was paused past its lease finds nothing to
settle: its token is no longer the row's.
"""

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Integer, String, bindparam, func, insert, select, update
from sqlalchemy.orm import Session

from app.bus import breaker as gate
from app.bus.queries import raw_data
from app.bus.tables import LEASED, READY, UNFINISHED, Attempt, Delivery, Dispatcher, StoredEvent
from app.db import Transaction, table
from app.db import insert as upsert
from app.db.prepared import Prepared, Reader, utc
from app.errors import LeaseLost
from app.states import Outcome

HELD = update(table(Delivery)).where(
    Delivery.delivery_id == bindparam("of_delivery"),
    Delivery.lease_token == bindparam("under_token"),
    Delivery.state == LEASED,
)
EARLIEST = Prepared(
    select(func.min(Delivery.due_at)).where(Delivery.receiver == bindparam("name", type_=String), UNFINISHED)
)
EVENT = ("event_id", "type", "version", "source", "order_id", "user_id", "correlation_id")
"""What a lease takes over from its event as it is."""

FIND_DUE = Prepared(
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
            raw_data(dialect).label("data"),
            *(table(StoredEvent).c[name] for name in EVENT),
        )
        .join(StoredEvent, StoredEvent.event_id == Delivery.event_id)
        .where(Delivery.receiver == bindparam("name"), Delivery.due_at <= bindparam("now"), UNFINISHED)
        .order_by(Delivery.due_at, Delivery.delivery_id)  # what was made due at one moment keeps its order
        .limit(bindparam("most", type_=Integer))
        .with_for_update(of=Delivery, skip_locked=True)
    )
)
CLAIM = Prepared(
    update(table(Delivery))
    .where(Delivery.delivery_id == bindparam("of_delivery"))
    .values(
        state=LEASED,
        lease_token=bindparam("token"),
        attempts=bindparam("spent"),
        due_at=bindparam("until"),
        leased_at=bindparam("now"),
        leased_by=bindparam("who"),
        outcome=bindparam("last"),
    )
)
EXTEND = Prepared(HELD.values(due_at=bindparam("due_at")))
SETTLE = Prepared(
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
    outcome: str | None
    """Of the attempt before this one."""
    created_at: datetime
    leased_at: datetime
    leased_by: str
    expired: bool
    """Whether it was taken over from a dispatcher whose lease ran out: that attempt's outcome is unknown."""
    probe: bool
    """Whether it was let through a closed gate, to see whether the other side is back."""
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
class Settled:
    """What becomes of one lease: the delivery's new state and, where an attempt was counted, its outcome."""

    lease: Lease
    state: str
    outcome: Outcome | None = None
    reason: str | None = None
    due_at: datetime | None = None


def next_due(reader: Reader, receivers: Iterable[str]) -> dict[str, datetime]:
    """For each receiver that has unfinished deliveries, when the earliest may be claimed."""
    found = {receiver: EARLIEST(reader, {"name": receiver}).fetchone()[0] for receiver in receivers}
    due = {receiver: utc(due_at) for receiver, due_at in found.items() if due_at is not None}
    probes = gate.probes(reader) if due else {}
    return {receiver: max(due_at, probes.get(receiver, due_at)) for receiver, due_at in due.items()}


def claim(session: Transaction, receiver: str, limit: int, lease: timedelta, who: str) -> list[Lease]:
    """Lease up to ``limit`` due deliveries of ``receiver`` to the dispatcher ``who``, the most overdue first.

    Rows that another dispatcher is claiming at this moment are passed over, not waited for. While the receiver's gate
    is closed, it is one at the most.
    """
    probe = gate.take_probe(session, receiver, lease)
    if probe is False:
        return []
    due = FIND_DUE(session, {"name": receiver, "now": session.now, "most": 1 if probe else limit})
    leases = [_lease(session, row, receiver, who, probe=bool(probe)) for row in due.fetchall()]
    if leases:
        CLAIM.many(
            session,
            [
                {
                    "of_delivery": each.delivery_id,
                    "token": each.token,
                    "spent": each.spent,
                    "until": session.now + lease,
                    "now": session.now,
                    "who": who,
                    "last": each.outcome,
                }
                for each in leases
            ],
        )
    elif probe:
        gate.release_probe(session, receiver)
    return leases


def _lease(session: Transaction, row: Any, receiver: str, who: str, *, probe: bool) -> Lease:
    """From a row of FIND_DUE."""
    delivery_id, token, state, attempts, outcome, created_at, leased_at, leased_by, occurred_at, data, *event = row
    expired = state == LEASED
    if expired:
        _record_unknown(session, delivery_id, token, utc(leased_at), leased_by)
    return Lease(
        delivery_id=delivery_id,
        token=token + 1,
        receiver=receiver,
        spent=attempts + expired,
        outcome=Outcome.UNKNOWN if expired else outcome,
        created_at=utc(created_at),
        leased_at=session.now,
        leased_by=who,
        expired=expired,
        probe=probe,
        occurred_at=utc(occurred_at),
        data=data,
        **dict(zip(EVENT, event, strict=True)),
    )


def _record_unknown(session: Transaction, delivery_id: int, token: int, leased_at: datetime, leased_by: str) -> None:
    """The attempt of a dispatcher that did not come back: nobody knows how far it got."""
    INSERT_ATTEMPT(
        session,
        {
            "delivery_id": delivery_id,
            "lease_token": token,
            "outcome": Outcome.UNKNOWN,
            "detail": "the dispatcher died, or hung past its lease, before it recorded a result",
            "started_at": leased_at,
            "ended_at": session.now,
            "dispatcher": leased_by,
        },
    )


def extend(session: Transaction, leases: Iterable[Lease], lease: timedelta) -> list[Lease]:
    """Let the leases end ``lease`` from now. Returns those that were lost meanwhile: they stay lost."""
    due_at = session.now + lease
    return [
        one
        for one in leases
        if EXTEND(session, {"of_delivery": one.delivery_id, "under_token": one.token, "due_at": due_at}).rowcount != 1
    ]


@functools.cache
def _select_held(count: int) -> Prepared:
    ids: list[Any] = [bindparam(f"id_{n}") for n in range(count)]
    leased = select(Delivery.delivery_id, Delivery.lease_token).where(Delivery.state == LEASED)
    return Prepared(leased.where(Delivery.delivery_id.in_(ids)).with_for_update())


def held(session: Transaction, leases: list[Lease]) -> list[Lease]:
    """Those that are still their deliveries', and stay so until the transaction ends."""
    if not leases:
        return []
    ids = {f"id_{n}": lease.delivery_id for n, lease in enumerate(leases)}
    tokens = dict(_select_held(len(leases))(session, ids).fetchall())
    return [lease for lease in leases if tokens.get(lease.delivery_id) == lease.token]


def settle(session: Transaction, ends: list[Settled]) -> None:
    """End leases as it says there; where there is an outcome, the attempt is counted and recorded.

    Raises LeaseLost when any is no longer its delivery's; the caller has to undo what this did to the others.
    """
    if not ends:
        return
    rows = [
        {
            "of_delivery": end.lease.delivery_id,
            "under_token": end.lease.token,
            "state": end.state,
            "attempts": end.lease.spent + (end.outcome is not None),
            "outcome": end.outcome or end.lease.outcome,
            "reason": end.reason,
            "due_at": end.due_at or session.now,
            "settled_at": None if end.state == READY else session.now,
        }
        for end in ends
    ]
    if SETTLE.many(session, rows) != len(rows):
        raise LeaseLost
    for end in ends:
        _see_to_gate(session, end.lease, end.outcome)
    attempts = [
        {
            "delivery_id": end.lease.delivery_id,
            "lease_token": end.lease.token,
            "outcome": end.outcome,
            "detail": end.reason,
            "started_at": end.lease.leased_at,
            "ended_at": session.now,
            "dispatcher": end.lease.leased_by,
        }
        for end in ends
        if end.outcome is not None
    ]
    if attempts:
        INSERT_ATTEMPT.many(session, attempts)


def _see_to_gate(session: Transaction, lease: Lease, outcome: Outcome | None) -> None:
    if outcome in gate.DOWN:
        gate.close(session, lease.receiver, probe=lease.probe)
    elif lease.probe and outcome in (None, Outcome.BUG):
        gate.release_probe(session, lease.receiver)  # it ended without an answer from the other side
    elif lease.probe:
        gate.open_(session, lease.receiver)


def unclaimed_receivers(session: Session, known: Iterable[str], before: datetime) -> list[str]:
    """Receivers that are not ``known`` here, but have deliveries that were due ``before`` and that nobody took."""
    return list(
        session.scalars(
            select(Delivery.receiver)
            .where(UNFINISHED, Delivery.due_at < before, Delivery.receiver.not_in(list(known)))
            .distinct()
        )
    )


def sign_of_life(session: Transaction, name: str) -> None:
    """The dispatcher ``name`` is alive now."""
    session.execute(
        upsert(session, Dispatcher)
        .values(name=name, started_at=session.now, seen_at=session.now)
        .on_conflict_do_update(index_elements=["name"], set_={"seen_at": session.now})
    )


def sign_off(session: Transaction, name: str, forget_before: datetime) -> None:
    """The dispatcher ``name`` ends; those not seen since ``forget_before`` ended without a word."""
    session.query(Dispatcher).where((Dispatcher.name == name) | (Dispatcher.seen_at < forget_before)).delete()
