"""Heartbeats: which dispatchers are alive."""

from datetime import timedelta

from app.bus.tables import DispatcherHeartbeat
from app.db import Transaction


def record(transaction: Transaction, name: str) -> None:
    """The dispatcher ``name`` is alive now."""
    now = transaction.now
    first = transaction.dialect.insert(DispatcherHeartbeat).values(name=name, started_at=now, seen_at=now)
    transaction.session.execute(first.on_conflict_do_update(index_elements=["name"], set_={"seen_at": now}))


def remove(transaction: Transaction, name: str, unseen_for: timedelta) -> None:
    """The dispatcher ``name`` ends; so have, without a word, those that were ``unseen_for`` so long, or were seen by a
    clock that ran ahead by as much."""
    now, seen_at = transaction.now, DispatcherHeartbeat.seen_at
    ended = (DispatcherHeartbeat.name == name) | ~seen_at.between(now - unseen_for, now + unseen_for)
    transaction.session.query(DispatcherHeartbeat).where(ended).delete()
