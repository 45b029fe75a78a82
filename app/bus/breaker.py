"""The circuit breaker of each receiver by the plain rule, shared by all processes: see ``retries``.

An attempt that finds the backend unreachable, silent or overloaded *opens* the receiver's breaker, unless the backend
has answered others since the attempt began: a message that hangs among successes is at fault itself. An open breaker
lets nothing through but one *probe* at a time, so waiting deliveries spend no attempts. The first probe may follow at
once, because a single message that hangs must delay nobody else; each failed probe makes the wait for the next one
longer. A delivery is tried at the later of its own ``due_at`` and the breaker's ``probe_at`` (``leases.next_due``). A
probe that succeeds *closes* the breaker, and deliveries that surely failed while it was open are due at once.

A receiver that a person has paused lets nothing through, not even a probe: see ``pause``. Every statement that reads
the breaker reads the pause too.
"""

from datetime import datetime, timedelta

from sqlalchemy import bindparam, delete, exists, null, select, union_all, update
from sqlalchemy.orm import Session

from app.bus import gates, queries
from app.bus.tables import (
    UNFINISHED,
    ActDelivery,
    Attempt,
    CircuitBreaker,
    Delivery,
    OperatorAct,
    PausedReceiver,
)
from app.db import Prepared, Transaction, table
from app.retry import probe_wait, why
from app.states import DeliveryState, Outcome

BACKEND_DOWN = (Outcome.UNREACHABLE, Outcome.TIMEOUT, Outcome.THROTTLED, Outcome.UNKNOWN)
"""Outcomes that say something about the backend, or, where it answers others, about this one delivery."""

SILENT = (Outcome.TIMEOUT, Outcome.UNKNOWN)
"""Outcomes that single messages have too, at a backend that works."""

ANSWERED = (Outcome.OK, Outcome.REFUSED, Outcome.DEFERRED)
"""Outcomes that show that the backend works."""

SURELY_FAILED = tuple(outcome for outcome in BACKEND_DOWN if outcome is not Outcome.UNKNOWN)
"""Outcomes that are due at once when an outage ends. ``unknown`` may have arrived: it keeps its own wait."""

FIND_HELD_BACK = Prepared(
    union_all(
        select(table(CircuitBreaker).c.receiver, table(CircuitBreaker).c.probe_at).where(
            CircuitBreaker.opened_at.is_not(None)
        ),
        select(table(PausedReceiver).c.receiver, null()),
    )
)
_locked = (
    select(table(CircuitBreaker).c.probe_at)
    .where(CircuitBreaker.receiver == bindparam("name"), CircuitBreaker.opened_at.is_not(None))
    .with_for_update()
    .subquery("breaker")
)
FIND_BREAKER = Prepared(
    union_all(
        select(_locked.c.probe_at),
        select(null()).select_from(table(PausedReceiver)).where(PausedReceiver.receiver == bindparam("name")),
    )
)
"""When the next probe may be taken, of an open breaker; and none, of a paused receiver.

On PostgreSQL it locks the breaker's row, and so the table: ``pause`` waits for those who have read it."""
MOVE_PROBE = Prepared(
    update(table(CircuitBreaker)).where(CircuitBreaker.receiver == bindparam("name")).values(probe_at=bindparam("at"))
)


FAR_AHEAD = Prepared(
    update(table(CircuitBreaker)).where(CircuitBreaker.probe_at > bindparam("latest")).values(probe_at=bindparam("at"))
)

_probe_under_way = exists().where(
    Delivery.receiver == CircuitBreaker.receiver,
    UNFINISHED,
    Delivery.state == DeliveryState.LEASED,
    Delivery.due_at == CircuitBreaker.probe_at,  # what takes or extends a probe sets it to its lease's end
)

_spread_by_act = exists().where(
    ActDelivery.delivery_id == Delivery.delivery_id,
    ActDelivery.lease_token == Delivery.lease_token,
    ActDelivery.taken_back_at.is_(None),
    OperatorAct.act_id == ActDelivery.act_id,
    OperatorAct.over_seconds.is_not(None),
)


def probe_now(transaction: Transaction, receiver: str) -> None:
    """Where the receiver's breaker is open, its next probe may be taken now, unless one is under way."""
    gates.ask_for_probe(transaction, receiver)
    due = update(table(CircuitBreaker)).where(CircuitBreaker.receiver == receiver)
    due = due.where(CircuitBreaker.probe_at > transaction.now, ~_probe_under_way)
    transaction.session.execute(due.values(probe_at=transaction.now))


def next_probes_later(session: Session, now: datetime) -> dict[str, datetime]:
    """For each receiver whose breaker is open, and lets no probe through before then."""
    later = select(CircuitBreaker.receiver, CircuitBreaker.probe_at)
    later = later.where(CircuitBreaker.opened_at.is_not(None), CircuitBreaker.probe_at > now, ~_probe_under_way)
    return {row.receiver: row.probe_at for row in session.execute(later)}


def note_outcome(
    transaction: Transaction, receiver: str, outcome: Outcome | None, *, probe: bool, began: datetime
) -> None:
    """Open, keep open, or close the receiver's breaker, as the end of an attempt that ``began`` then demands.

    The attempts that end together are to be recorded before.
    """
    answers_others = outcome in SILENT and _answered_since(transaction, receiver, began)
    if outcome in BACKEND_DOWN and not answers_others:
        _open(transaction, receiver, probe=probe)
    elif probe and outcome in (None, Outcome.BUG):
        MOVE_PROBE(transaction, {"name": receiver, "at": transaction.now})  # another may be taken at once
    elif probe:
        _close(transaction, receiver)


def _answered_since(transaction: Transaction, receiver: str, began: datetime) -> bool:
    """Answers of the future, from before a clock was set back, say nothing."""
    answers = queries.latest_attempts(Attempt.attempt_id, receiver, ANSWERED)
    since = answers.where(Attempt.ended_at > began, Attempt.ended_at <= transaction.now)
    return transaction.session.scalar(since.limit(1)) is not None


def _open(transaction: Transaction, receiver: str, *, probe: bool) -> None:
    """Several failures at once count as one; a failed probe makes the wait longer."""
    now, session = transaction.now, transaction.session
    first = transaction.dialect.insert(CircuitBreaker)
    first = first.values(receiver=receiver, opened_at=now, failures=1, probe_at=now)
    anew = {"opened_at": now, "failures": 1, "probe_at": now}  # a row that the learned policy left, of a closed one
    closed = CircuitBreaker.opened_at.is_(None)
    session.execute(first.on_conflict_do_update(index_elements=["receiver"], set_=anew, where=closed))
    if probe:
        failures = session.scalar(select(CircuitBreaker.failures).where(CircuitBreaker.receiver == receiver)) or 0
        probe_at = now + timedelta(seconds=probe_wait(failures + 1))
        longer = update(table(CircuitBreaker)).where(CircuitBreaker.receiver == receiver)
        session.execute(longer.values(failures=failures + 1, probe_at=probe_at))


def _close(transaction: Transaction, receiver: str) -> None:
    """The backend answers: what surely failed because it was down is due now.

    Where the first probe came through, the backend was not down: one message hung, and it waits as its policy says. So
    does what had failed before the breaker opened, and what an operator's act has spread.
    """
    now, session = transaction.now, transaction.session
    closed = delete(table(CircuitBreaker)).where(
        CircuitBreaker.receiver == receiver, CircuitBreaker.opened_at.is_not(None)
    )
    found = session.execute(closed.returning(CircuitBreaker.failures, CircuitBreaker.opened_at)).first()
    if found is None or found.failures == 1:
        return
    waiting = (Delivery.receiver == receiver, UNFINISHED, Delivery.state == DeliveryState.READY, Delivery.due_at > now)
    failed_meanwhile = exists().where(Attempt.delivery_id == Delivery.delivery_id, Attempt.ended_at >= found.opened_at)
    due = update(table(Delivery)).where(*waiting, Delivery.outcome.in_(SURELY_FAILED), failed_meanwhile)
    due = due.where(~_spread_by_act)
    session.execute(due.values(due_at=now, due_because=why.CLOSED))
