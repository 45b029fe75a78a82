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

from app.bus import gate
from app.bus.queries import raw_data
from app.bus.tables import DONE, LEASED, READY, UNFINISHED, Attempt, Delivery, Dispatcher, StoredEvent
from app.db import Transaction, table
from app.db import insert as upsert
from app.db.prepared import Prepared, Reader, utc
from app.errors import LeaseLost, Outcome

HELD = update(table(Delivery)).where(
    Delivery.delivery_id == bindparam("of_delivery"),
    Delivery.lease_token == bindparam("under_token"),
    Delivery.state == LEASED,
)
EARLIEST = Prepared(
    select(func.min(Delivery.due_at)).where(Delivery.receiver == bindparam("name", type_=String), UNFINISHED)
)
FIND_DUE = Prepared(
    lambda dialect: (
        select(
            Delivery.delivery_id,
            Delivery.lease_token,
            Delivery.state,
            Delivery.attempts,
            Delivery.created_at,
            Delivery.leased_at,
            Delivery.leased_by,
            Delivery.outcome,
            StoredEvent.event_id,
            StoredEvent.type,
            StoredEvent.version,
            StoredEvent.source,
            StoredEvent.order_id,
            StoredEvent.user_id,
            StoredEvent.occurred_at,
            StoredEvent.cause_id,
            StoredEvent.correlation_id,
            raw_data(dialect).label("data"),
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
_END = HELD.values({name: bindparam(name) for name in ("state", "reason", "due_at", "settled_at")})
SETTLE = Prepared(_END)
SETTLE_WITH_OUTCOME = Prepared(_END.values({name: bindparam(name) for name in ("attempts", "outcome")}))
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
    event_id: str
    type: str
    version: int
    source: str
    order_id: str
    user_id: str
    data: bytes | str
    occurred_at: datetime
    cause_id: str | None
    correlation_id: str
    spent: int
    """Attempts counted before this one, in the present budget."""
    created_at: datetime
    leased_at: datetime
    leased_by: str
    expired: bool = False
    """Whether it was taken over from a dispatcher whose lease ran out: that attempt's outcome is unknown."""
    in_doubt: bool = False
    """Whether nobody knows how the attempt before it ended, and no person has had it retried since."""
    probe: bool = False
    """Whether it was let through a closed gate, to see whether the other side is back."""


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
    if probe is not None:
        limit = 1 if probe else 0
    if limit == 0:
        return []
    rows = FIND_DUE(session, {"name": receiver, "now": session.now, "most": limit}).fetchall()
    found = [_lease(row, receiver, session.now, who, probe=bool(probe)) for row in rows]
    if not found:
        if probe:
            gate.release_probe(session, receiver)
        return []
    for row, leased in zip(rows, found, strict=True):
        if leased.expired:
            _record_unknown(session, leased, leased_at=utc(row[5]), leased_by=row[6])
    CLAIM.many(
        session,
        [
            {
                "of_delivery": leased.delivery_id,
                "token": leased.token,
                "spent": leased.spent,
                "until": session.now + lease,
                "now": session.now,
                "who": who,
                "last": Outcome.UNKNOWN if leased.expired else row[7],
            }
            for row, leased in zip(rows, found, strict=True)
        ],
    )
    return found


def _lease(row: Any, receiver: str, now: datetime, who: str, *, probe: bool) -> Lease:
    """From a row of FIND_DUE."""
    delivery_id, token, state, attempts, created_at, _, _, outcome, *event = row
    event_id, type_, version, source, order_id, user_id, occurred_at, cause_id, correlation_id, data = event
    expired = state == LEASED
    return Lease(
        delivery_id=delivery_id,
        token=token + 1,
        receiver=receiver,
        event_id=event_id,
        type=type_,
        version=version,
        source=source,
        order_id=order_id,
        user_id=user_id,
        data=data,
        occurred_at=utc(occurred_at),
        cause_id=cause_id,
        correlation_id=correlation_id,
        spent=attempts + expired,
        created_at=utc(created_at),
        leased_at=now,
        leased_by=who,
        expired=expired,
        in_doubt=expired or (outcome == Outcome.UNKNOWN and attempts > 0),
        probe=probe,
    )


def _record_unknown(session: Transaction, lease: Lease, *, leased_at: datetime, leased_by: str) -> None:
    """The attempt of a dispatcher that did not come back: nobody knows how far it got."""
    INSERT_ATTEMPT(
        session,
        {
            "delivery_id": lease.delivery_id,
            "lease_token": lease.token - 1,
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


def settle(
    session: Transaction,
    lease: Lease,
    state: str,
    *,
    outcome: Outcome | None,
    detail: str | None = None,
    due_at: datetime | None = None,
) -> None:
    """End the lease: the delivery goes to ``state``; with an ``outcome`` the attempt is counted and recorded.

    Raises LeaseLost, having changed nothing, when the lease is no longer the delivery's.
    """
    changed = (SETTLE if outcome is None else SETTLE_WITH_OUTCOME)(
        session,
        {
            "of_delivery": lease.delivery_id,
            "under_token": lease.token,
            "state": state,
            "reason": detail,
            "due_at": due_at or session.now,
            "settled_at": None if state == READY else session.now,
        }
        | ({"attempts": lease.spent + 1, "outcome": outcome} if outcome is not None else {}),
    )
    if changed.rowcount != 1:
        raise LeaseLost
    _see_to_gate(session, lease, outcome)
    if outcome is not None:
        INSERT_ATTEMPT(session, _attempt(lease, outcome, detail, session.now))


@functools.cache
def _select_held(count: int) -> Prepared:
    ids: list[Any] = [bindparam(f"id_{n}") for n in range(count)]
    leased = select(Delivery.delivery_id, Delivery.lease_token).where(Delivery.state == LEASED)
    return Prepared(leased.where(Delivery.delivery_id.in_(ids)).with_for_update())


def held(session: Transaction, leases: list[Lease]) -> set[Lease]:
    """Those that are still their deliveries', and stay so until the transaction ends."""
    if not leases:
        return set()
    ids = {f"id_{n}": lease.delivery_id for n, lease in enumerate(leases)}
    tokens = dict(_select_held(len(leases))(session, ids).fetchall())
    return {lease for lease in leases if tokens.get(lease.delivery_id) == lease.token}


def settle_done(session: Transaction, leases: list[Lease]) -> None:
    """End all these leases, each with an attempt that was ``ok``.

    Raises LeaseLost when any is no longer its delivery's; the caller has to undo what this did to the others.
    """
    if not leases:
        return
    done = {"state": DONE, "reason": None, "due_at": session.now, "settled_at": session.now, "outcome": Outcome.OK}
    rows = [
        done | {"of_delivery": lease.delivery_id, "under_token": lease.token, "attempts": lease.spent + 1}
        for lease in leases
    ]
    if SETTLE_WITH_OUTCOME.many(session, rows) != len(rows):
        raise LeaseLost
    for lease in leases:
        _see_to_gate(session, lease, Outcome.OK)
    INSERT_ATTEMPT.many(session, [_attempt(lease, Outcome.OK, None, session.now) for lease in leases])


def _attempt(lease: Lease, outcome: Outcome, detail: str | None, ended_at: datetime) -> dict[str, Any]:
    return {
        "delivery_id": lease.delivery_id,
        "lease_token": lease.token,
        "outcome": outcome,
        "detail": detail,
        "started_at": lease.leased_at,
        "ended_at": ended_at,
        "dispatcher": lease.leased_by,
    }


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
