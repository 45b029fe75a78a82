"""Pause: no process delivers to a receiver until a person resumes it.

A claim reads the pause where it reads the circuit breaker (``breaker.FIND_BREAKER``), so a claim after the pause's
commit takes nothing. On PostgreSQL the pause also waits for the claims that read before it: once it returns, no further
delivery is leased. A process that hears of the pause, at once or by the next poll (``Worker``), gives back the leases
that it has not begun; running attempts end as usual.
"""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import delete
from sqlalchemy.orm import Session

from app.bus import operate, queries
from app.bus.tables import CircuitBreaker, PausedReceiver
from app.db import Transaction, table
from app.errors import UnknownReceiver
from app.signal import SIGNALS, subscriptions
from app.text import shortened, storable


@dataclass(frozen=True, slots=True)
class ReceiverState:
    """A receiver as people see it."""

    receiver: str
    state: str
    """``delivering``; ``paused``, by a person; or ``breaker_open``."""
    event_types: tuple[str, ...]
    transactional: bool
    connected: bool
    paused_at: datetime | None = None
    paused_by: str | None = None
    reason: str | None = None
    breaker_opened_at: datetime | None = None


def receivers(session: Session) -> list[ReceiverState]:
    """All receivers that are connected here, and those that are paused, by name."""
    known, paused, breakers = subscriptions(), queries.paused_receivers(session), queries.open_breakers(session)
    found = []
    for name in sorted({*known, *paused}):
        pause, breaker = paused.get(name), breakers.get(name)
        found.append(
            ReceiverState(
                receiver=name,
                state="paused" if pause else "breaker_open" if breaker else "delivering",
                event_types=tuple(kind for kind, signal in SIGNALS.items() if name in signal.subscriptions),
                transactional=name in known and known[name].transactional,
                connected=name in known,
                paused_at=pause.paused_at if pause else None,
                paused_by=pause.paused_by if pause else None,
                reason=pause.reason if pause else None,
                breaker_opened_at=breaker.opened_at if breaker else None,
            )
        )
    return found


def pause(transaction: Transaction, receiver: str, by: str, reason: str) -> bool:
    """Let nothing more be claimed for the receiver. Returns whether that is new: an earlier pause stays as it is.

    Raises UnknownReceiver.
    """
    _demand_known(receiver)
    transaction.dialect.lock_table(transaction.driver, CircuitBreaker.__tablename__)
    first = transaction.dialect.insert(table(PausedReceiver)).values(
        receiver=receiver, paused_at=transaction.now, paused_by=operate.name_of(by), reason=storable(reason)
    )
    first = first.on_conflict_do_nothing(index_elements=["receiver"]).returning(PausedReceiver.receiver)
    is_new = transaction.session.execute(first).first() is not None
    if is_new:
        operate.record_act(transaction, "pause", operate.Filter(receiver=receiver), by, storable(reason))
    return is_new


def resume(transaction: Transaction, receiver: str, by: str, reason: str | None) -> bool:
    """Let the receiver's deliveries be claimed again. Returns whether it was paused. Raises UnknownReceiver."""
    if receiver not in queries.paused_receivers(transaction.session):
        _demand_known(receiver)
        return False
    transaction.session.execute(delete(table(PausedReceiver)).where(PausedReceiver.receiver == receiver))
    operate.record_act(transaction, "resume", operate.Filter(receiver=receiver), by, storable(reason or "") or None)
    return True


def _demand_known(receiver: str) -> None:
    known = subscriptions()
    if receiver not in known:
        raise UnknownReceiver(
            f"there is no receiver {shortened(receiver)!r}; there are: {', '.join(sorted(known)) or 'none'}"
        )
