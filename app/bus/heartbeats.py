"""Heartbeats: which dispatchers are alive."""

from datetime import datetime

from app.bus.tables import DispatcherHeartbeat
from app.db import Transaction


def record(transaction: Transaction, name: str) -> None:
    """The dispatcher ``name`` is alive now."""
    now = transaction.now
    first = transaction.dialect.insert(DispatcherHeartbeat).values(name=name, started_at=now, seen_at=now)
    transaction.session.execute(first.on_conflict_do_update(index_elements=["name"], set_={"seen_at": now}))


def remove(transaction: Transaction, name: str, unseen_since: datetime) -> None:
    """The dispatcher ``name`` ends; so have, without a word, those ``unseen_since`` then."""
    ended = (DispatcherHeartbeat.name == name) | (DispatcherHeartbeat.seen_at < unseen_since)
    transaction.session.query(DispatcherHeartbeat).where(ended).delete()
