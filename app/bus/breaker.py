"""The circuit breaker of each receiver, shared by all processes.

An attempt that finds the backend unreachable, silent or overloaded *opens* the receiver's breaker, unless the backend
has answered others since the attempt began: a message that hangs among successes hangs for its own sake. An open
breaker lets nothing through but one *probe* at a time, so waiting deliveries spend no attempts. The first probe may
follow at once, because a single message that hangs must delay nobody else; each failed probe makes the wait for the
next one longer. A delivery is tried at the later of its own ``due_at`` and the breaker's ``probe_at``
(``leases.next_due``). A probe that comes through *closes* the breaker, and what surely failed while it was open is due
at once.
"""

from datetime import datetime, timedelta

from sqlalchemy import bindparam, delete, exists, func, select, update

from app.bus.tables import UNFINISHED, Attempt, CircuitBreaker, Delivery
from app.db import Prepared, Reader, Transaction, table, utc
from app.retry import probe_wait
from app.states import DeliveryState, Outcome

BACKEND_DOWN = (Outcome.UNREACHABLE, Outcome.TIMEOUT, Outcome.THROTTLED, Outcome.UNKNOWN)
"""Outcomes that say something about the backend, or, where it answers others, about this one delivery."""

SILENT = (Outcome.TIMEOUT, Outcome.UNKNOWN)
"""Outcomes that single messages have too, at a backend that works."""

ANSWERED = (Outcome.OK, Outcome.REFUSED, Outcome.DEFERRED)
"""Outcomes that show that the backend works."""

SURELY_FAILED = tuple(outcome for outcome in BACKEND_DOWN if outcome is not Outcome.UNKNOWN)
"""Outcomes that an outage's end makes due at once. What is ``unknown`` may have come through: it keeps its own wait."""

LATEST_ATTEMPTS = 1000
"""Among so many, of all receivers, an answer of the backend is looked for: it bounds what a failure costs."""

FIND_OPEN = Prepared(select(table(CircuitBreaker).c.receiver, table(CircuitBreaker).c.probe_at))
FIND_BREAKER = Prepared(
    select(table(CircuitBreaker).c.probe_at).where(CircuitBreaker.receiver == bindparam("name")).with_for_update()
)
MOVE_PROBE = Prepared(
    update(table(CircuitBreaker)).where(CircuitBreaker.receiver == bindparam("name")).values(probe_at=bindparam("at"))
)


def next_probes(reader: Reader) -> dict[str, datetime]:
    """For each receiver whose breaker is open, when the next probe may be taken."""
    return {receiver: utc(probe_at) for receiver, probe_at in FIND_OPEN(reader, {}).fetchall()}


def take_probe(transaction: Transaction, receiver: str, lease: timedelta) -> bool | None:
    """None when the breaker is closed; else whether the caller may probe now.

    The next probe is due when this one's ``lease`` ends: one whose process died is lost in time.
    """
    breaker = FIND_BREAKER(transaction, {"name": receiver}).fetchone()
    if breaker is None:
        return None
    if utc(breaker[0]) > transaction.now:
        return False
    MOVE_PROBE(transaction, {"name": receiver, "at": transaction.now + lease})
    return True


def give_back_probe(transaction: Transaction, receiver: str) -> None:
    """The probe was not made, or says nothing of the backend: another may be taken at once."""
    MOVE_PROBE(transaction, {"name": receiver, "at": transaction.now})


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
        give_back_probe(transaction, receiver)
    elif probe:
        _close(transaction, receiver)


def _answered_since(transaction: Transaction, receiver: str, began: datetime) -> bool:
    """Answers of the future, from before a clock was set back, say nothing."""
    latest = select(func.max(Attempt.attempt_id)).scalar_subquery() - LATEST_ATTEMPTS
    answers = select(Attempt.attempt_id).join(Delivery, Delivery.delivery_id == Attempt.delivery_id)
    answers = answers.where(Attempt.attempt_id > latest, Attempt.outcome.in_(ANSWERED), Delivery.receiver == receiver)
    since = answers.where(Attempt.ended_at > began, Attempt.ended_at <= transaction.now)
    return transaction.session.scalar(since.limit(1)) is not None


def _open(transaction: Transaction, receiver: str, *, probe: bool) -> None:
    """Several failures at once count as one; a failed probe makes the wait longer."""
    now, session = transaction.now, transaction.session
    first = transaction.dialect.insert(CircuitBreaker)
    first = first.values(receiver=receiver, opened_at=now, failures=1, probe_at=now)
    session.execute(first.on_conflict_do_nothing(index_elements=["receiver"]))
    if probe:
        failures = session.scalar(select(CircuitBreaker.failures).where(CircuitBreaker.receiver == receiver)) or 0
        probe_at = now + timedelta(seconds=probe_wait(failures + 1))
        longer = update(table(CircuitBreaker)).where(CircuitBreaker.receiver == receiver)
        session.execute(longer.values(failures=failures + 1, probe_at=probe_at))


def _close(transaction: Transaction, receiver: str) -> None:
    """The backend answers: what surely failed because it was down is due now.

    Where the first probe came through, the backend was not down: one message hung, and it waits as its policy says. So
    does what had failed before the breaker opened.
    """
    now, session = transaction.now, transaction.session
    closed = delete(table(CircuitBreaker)).where(CircuitBreaker.receiver == receiver)
    found = session.execute(closed.returning(CircuitBreaker.failures, CircuitBreaker.opened_at)).first()
    if found is None or found.failures == 1:
        return
    waiting = (Delivery.receiver == receiver, UNFINISHED, Delivery.state == DeliveryState.READY, Delivery.due_at > now)
    failed_meanwhile = exists().where(Attempt.delivery_id == Delivery.delivery_id, Attempt.ended_at >= found.opened_at)
    due = update(table(Delivery)).where(*waiting, Delivery.outcome.in_(SURELY_FAILED), failed_meanwhile)
    session.execute(due.values(due_at=now))
