"""Gates as rows: the circuit breakers of the learned policy, each locked while it moves.

A gate that holds nothing back has no ``probe_at``; then neither a claim nor a success reads or locks it.
"""

import logging
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Integer, bindparam, insert, literal, null, select, union_all, update

from app.bus.queries import count_up_to
from app.bus.tables import UNFINISHED, CircuitBreaker, Delivery, PausedReceiver, RetryTransition
from app.db import Prepared, Runner, Transaction, table, utc
from app.retry import Gate, LearnedPolicy, Phase
from app.retry.ages import LEVELS
from app.states import DeliveryState

log = logging.getLogger(__name__)

PROVED_BY = 2
"""Failures at least: no gate opens at the first."""

_row = table(CircuitBreaker).c
_columns = (_row.receiver, _row.opened_at, _row.failures, _row.probe_at, _row.gate)
_nothing: Any = (null(), null(), null(), null())

FIND_HOLDING = Prepared(
    union_all(
        select(*_columns).where(CircuitBreaker.probe_at.is_not(None)),
        select(table(PausedReceiver).c.receiver, *_nothing),
    )
)
_holding = select(*_columns).where(CircuitBreaker.receiver == bindparam("name"), CircuitBreaker.probe_at.is_not(None))
_locked = _holding.with_for_update().subquery("breaker")
FIND_FOR_CLAIM = Prepared(
    union_all(
        select(*_locked.c),
        select(table(PausedReceiver).c.receiver, *_nothing).where(PausedReceiver.receiver == bindparam("name")),
    )
)
"""On PostgreSQL it locks the row of a gate that holds something back, and so the table: see ``pause``."""
LOCK = Prepared(select(*_columns).where(CircuitBreaker.receiver == bindparam("name")).with_for_update())
INSERT = Prepared(
    lambda dialect: (
        dialect.insert(table(CircuitBreaker))
        .values(receiver=bindparam("name"), failures=literal(0))
        .on_conflict_do_nothing(index_elements=["receiver"])
    )
)
SAVE = Prepared(
    update(table(CircuitBreaker))
    .where(CircuitBreaker.receiver == bindparam("name"))
    .values({each: bindparam(each) for each in ("opened_at", "failures", "probe_at", "gate")})
)
_due = (Delivery.receiver == bindparam("name"), UNFINISHED, Delivery.due_at <= bindparam("now"))
COUNT_DUE = Prepared(count_up_to(select(Delivery.due_at).where(*_due), bindparam("most", type_=Integer)))
FIND_READY = Prepared(
    select(table(Delivery).c.delivery_id).where(*_due, Delivery.state == DeliveryState.READY).limit(1)
)
INSERT_TRANSITION = Prepared(
    insert(table(RetryTransition)).inline(), "receiver", "scope", "kind", "age_from", "age_to", "gone", "at"
)


def lock(transaction: Transaction, receiver: str, *, make: bool = False) -> Gate | None:
    """The receiver's gate; nobody else moves it until the transaction ends. None without a row, unless ``make``."""
    rows = LOCK(transaction, {"name": receiver}).fetchall()
    if not rows and make:
        INSERT(transaction, {"name": receiver})
        rows = LOCK(transaction, {"name": receiver}).fetchall()
    return _gate(rows[0], transaction.now) if rows else None


def save(transaction: Transaction, gate: Gate, policy: LearnedPolicy, *, probe_until: datetime | None = None) -> None:
    """``probe_until``: a probe starts now, and counts as lost then."""
    now, is_open = transaction.now, gate.phase is Phase.OPEN
    probe_at = probe_until
    if probe_at is None and not gate.is_wide_open:
        probe_at = next_start(transaction, gate, policy, now)
    values = {
        "name": gate.receiver,
        "opened_at": moment(gate.since) if is_open else None,
        "failures": max(PROVED_BY, len(gate.run.messages) + gate.probes) if is_open else 0,
        "probe_at": probe_at,
        "gate": gate.to_json(),
    }
    SAVE(transaction, values)


def holding(reader: Runner, now: datetime) -> tuple[list[Gate], set[str]]:
    """The gates that hold something back, and the receivers that are paused."""
    rows = FIND_HOLDING(reader, {}).fetchall()
    return [_gate(row, now) for row in rows if row[2] is not None], {row[0] for row in rows if row[2] is None}


def for_claim(transaction: Transaction, receiver: str) -> tuple[Gate | None, bool]:
    """The receiver's gate, where it holds something back; and whether the receiver is paused."""
    rows = FIND_FOR_CLAIM(transaction, {"name": receiver}).fetchall()
    gates = [_gate(row, transaction.now) for row in rows if row[2] is not None]
    return gates[0] if gates else None, len(rows) > len(gates)


def count_waiting(reader: Runner, gate: Gate, now: datetime) -> int:
    """How many deliveries wait behind the gate, as far as the policy tells numbers apart. 1 where it is not open: then
    its decision does not depend on them."""
    if gate.phase is not Phase.OPEN:
        return 1
    return int(COUNT_DUE(reader, {"name": gate.receiver, "now": now, "most": LEVELS[-1]}).fetchone()[0])


def next_start(reader: Runner, gate: Gate, policy: LearnedPolicy, now: datetime) -> datetime:
    """When the next delivery may start."""
    return not_before(gate.next_start(policy, seconds(now), count_waiting(reader, gate, now)), now)


def anything_ready(reader: Runner, receiver: str, now: datetime) -> bool:
    return FIND_READY(reader, {"name": receiver, "now": now}).fetchone() is not None


def ask_for_probe(transaction: Transaction, receiver: str) -> None:
    """A person wants the next probe of an open gate made at once."""
    gate = lock(transaction, receiver)
    if gate is not None and gate.phase is Phase.OPEN:
        gate.asked = True
        update_gate = update(table(CircuitBreaker)).where(CircuitBreaker.receiver == receiver)
        transaction.session.execute(update_gate.where(CircuitBreaker.gate.is_not(None)).values(gate=gate.to_json()))


def receivers(transaction: Transaction) -> list[str]:
    """Those that have a gate, by name."""
    query = select(CircuitBreaker.receiver).where(CircuitBreaker.gate.is_not(None))
    return list(transaction.session.scalars(query.order_by(CircuitBreaker.receiver)))


def _gate(row: Any, now: datetime) -> Gate:
    receiver, opened_at, failures, probe_at, stored = row
    if stored is not None:
        try:
            return Gate.from_json(stored)
        except (ValueError, TypeError, KeyError, AttributeError):
            log.warning("gate ignored", extra={"facts": {"receiver": receiver, "reason": "its row can't be read"}})
    if opened_at is None:
        return Gate(receiver)
    # A breaker that the plain rule opened.
    since = seconds(utc(opened_at))
    failed_at = min(max(since, seconds(utc(probe_at))), seconds(now)) if probe_at else since
    return Gate(receiver, Phase.OPEN, "unreachable", since, max(since, failed_at), probes=failures)


def seconds(at: datetime) -> float:
    """Since 1970."""
    return at.timestamp()


def moment(at: float) -> datetime:
    return datetime.fromtimestamp(at, UTC)


def not_before(at: float, now: datetime) -> datetime:
    """The first moment, as it is stored, that is not before ``at``; ``now`` where that is past."""
    return now if at <= seconds(now) else moment(at) + timedelta(microseconds=1)
