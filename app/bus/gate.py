"""One probe at a time to what is down, shared by all processes; and everything again once it is back.

An attempt that finds the other side unreachable, silent or overloaded closes the receiver's gate. While it is closed,
waiting deliveries spend no attempts: a single one is let through to probe, the next after a failed probe is another
one, later and later. The first probe follows at once, so one message that hangs by itself delays nobody. When a probe
comes through, the gate is gone, and those that had failed against it are due at once.
"""

from collections.abc import Iterable
from datetime import datetime, timedelta

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from app.bus.tables import UNFINISHED, Delivery, Gate
from app.db import Transaction, insert
from app.errors import Outcome
from app.retry import probe_wait

DOWN = (Outcome.UNREACHABLE, Outcome.TIMEOUT, Outcome.THROTTLED, Outcome.UNKNOWN)
"""Outcomes that say something about the other side rather than about this one delivery."""


def probes(session: Session, receivers: Iterable[str]) -> dict[str, datetime]:
    """For each receiver whose gate is closed, when the next probe may be taken."""
    found = session.execute(select(Gate.receiver, Gate.probe_at).where(Gate.receiver.in_(list(receivers))))
    return {row.receiver: row.probe_at for row in found}


def take_probe(session: Transaction, receiver: str, lease: timedelta) -> bool | None:
    """None when the gate is open; else whether the caller may probe now. One that does not return is lost in time."""
    gate = session.get(Gate, receiver, with_for_update=True, populate_existing=True)
    if gate is None:
        return None
    if gate.probe_at > session.now:
        return False
    gate.probe_at = session.now + lease
    return True


def close(session: Transaction, receiver: str, *, probe: bool) -> None:
    """An attempt found the other side down. Several at once count as one; a failed probe makes the wait longer."""
    first = insert(session, Gate).values(receiver=receiver, closed_at=session.now, failures=1, probe_at=session.now)
    session.execute(first.on_conflict_do_nothing(index_elements=["receiver"]))
    if probe:
        failures = session.scalar(select(Gate.failures).where(Gate.receiver == receiver)) or 0
        session.execute(
            update(Gate)
            .where(Gate.receiver == receiver)
            .values(failures=failures + 1, probe_at=session.now + timedelta(seconds=probe_wait(failures + 1)))
            .execution_options(synchronize_session=False)
        )


def release_probe(session: Transaction, receiver: str) -> None:
    """The probe was not made, or says nothing: another may be taken at once."""
    session.execute(
        update(Gate)
        .where(Gate.receiver == receiver)
        .values(probe_at=session.now)
        .execution_options(synchronize_session=False)
    )


def open_(session: Transaction, receiver: str) -> None:
    """The other side answers: whoever failed because it was down is due now.

    When the first probe came through, it was not down: it hung for one message, which waits as long as its policy says.
    """
    closed = delete(Gate).where(Gate.receiver == receiver).returning(Gate.failures)
    if session.execute(closed.execution_options(synchronize_session=False)).scalar() == 1:
        return
    session.execute(
        update(Delivery)
        .where(Delivery.receiver == receiver, UNFINISHED, Delivery.state == "ready", Delivery.due_at > session.now)
        .where(Delivery.outcome.in_(DOWN))
        .values(due_at=session.now)
        .execution_options(synchronize_session=False)
    )
