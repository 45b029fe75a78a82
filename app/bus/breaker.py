"""One probe at a time to what is down, shared by all processes; and everything again once it is back.

An attempt that finds the other side unreachable, silent or overloaded closes the receiver's gate. While it is closed,
waiting deliveries spend no attempts: a single one is let through to probe, the next after a failed probe is another
one, later and later. The first probe follows at once, so one message that hangs by itself delays nobody. When a probe
comes through, the gate is gone, and those that had failed against it are due at once.
"""

from datetime import datetime, timedelta

from sqlalchemy import bindparam, delete, select, update

from app.bus.tables import UNFINISHED, Delivery, Gate
from app.db import Transaction, insert, table
from app.db.prepared import Prepared, Reader, utc
from app.retry import probe_wait
from app.states import Outcome

DOWN = (Outcome.UNREACHABLE, Outcome.TIMEOUT, Outcome.THROTTLED, Outcome.UNKNOWN)
"""Outcomes that say something about the other side rather than about this one delivery."""


ALL_GATES = Prepared(select(table(Gate).c.receiver, table(Gate).c.probe_at))
FIND_GATE = Prepared(select(table(Gate).c.probe_at).where(Gate.receiver == bindparam("name")).with_for_update())
MOVE_PROBE = Prepared(update(table(Gate)).where(Gate.receiver == bindparam("name")).values(probe_at=bindparam("at")))


def probes(reader: Reader) -> dict[str, datetime]:
    """For each receiver whose gate is closed, when the next probe may be taken."""
    return {receiver: utc(probe_at) for receiver, probe_at in ALL_GATES(reader, {}).fetchall()}


def take_probe(session: Transaction, receiver: str, lease: timedelta) -> bool | None:
    """None when the gate is open; else whether the caller may probe now. One that does not return is lost in time."""
    gate = FIND_GATE(session, {"name": receiver}).fetchone()
    if gate is None:
        return None
    if utc(gate[0]) > session.now:
        return False
    MOVE_PROBE(session, {"name": receiver, "at": session.now + lease})
    return True


def close(session: Transaction, receiver: str, *, probe: bool) -> None:
    """An attempt found the other side down. Several at once count as one; a failed probe makes the wait longer."""
    first = insert(session, Gate).values(receiver=receiver, closed_at=session.now, failures=1, probe_at=session.now)
    session.execute(first.on_conflict_do_nothing(index_elements=["receiver"]))
    if probe:
        failures = session.scalar(select(Gate.failures).where(Gate.receiver == receiver)) or 0
        probe_at = session.now + timedelta(seconds=probe_wait(failures + 1))
        longer = update(table(Gate)).where(Gate.receiver == receiver)
        session.execute(longer.values(failures=failures + 1, probe_at=probe_at))


def release_probe(session: Transaction, receiver: str) -> None:
    """The probe was not made, or says nothing: another may be taken at once."""
    MOVE_PROBE(session, {"name": receiver, "at": session.now})


def open_(session: Transaction, receiver: str) -> None:
    """The other side answers: whoever failed because it was down is due now.

    When the first probe came through, it was not down: it hung for one message, which waits as long as its policy says.
    """
    closed = delete(table(Gate)).where(Gate.receiver == receiver).returning(Gate.failures)
    if session.execute(closed).scalar() == 1:
        return
    session.execute(
        update(table(Delivery))
        .where(Delivery.receiver == receiver, UNFINISHED, Delivery.state == "ready", Delivery.due_at > session.now)
        .where(Delivery.outcome.in_(DOWN))
        .values(due_at=session.now)
    )
