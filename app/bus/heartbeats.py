"""Heartbeats: which dispatchers are alive, and what relays have to say of their broker."""

import json
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from app.bus.tables import DispatcherHeartbeat
from app.db import Transaction

LONGEST_SILENCE_SECONDS = 30
SHORTEST_SILENCE_SECONDS = 3
"""A busy machine may keep a dispatcher that is well from writing for a second."""

BEATS_WITHIN = 3
"""So many heartbeats are due within a lease, and before a dispatcher counts as gone: one may come late."""


def silence(ready_lag_seconds: float) -> timedelta:
    """After so long without a heartbeat a dispatcher counts as gone: in time for READY_LAG_SECONDS."""
    return timedelta(seconds=max(SHORTEST_SILENCE_SECONDS, min(ready_lag_seconds, LONGEST_SILENCE_SECONDS)))


def pause_seconds(lease_seconds: float, ready_lag_seconds: float) -> float:
    """Between a dispatcher's heartbeats."""
    return min(lease_seconds, silence(ready_lag_seconds).total_seconds()) / BEATS_WITHIN


def record(transaction: Transaction, name: str, settings: str | None = None) -> None:
    """The dispatcher ``name`` is alive now. ``settings`` is what it delivers by, where nobody has recorded it yet."""
    now = transaction.now
    first = transaction.dialect.insert(DispatcherHeartbeat)
    first = first.values(name=name, started_at=now, seen_at=now, settings=settings)
    transaction.session.execute(first.on_conflict_do_update(index_elements=["name"], set_={"seen_at": now}))


def tell_of_broker(transaction: Transaction, name: str, found: Mapping[str, Any]) -> None:
    """Keep what the relay ``name`` found wrong at its broker beside its settings, as it was seen last."""
    own = transaction.session.get(DispatcherHeartbeat, name)
    if own is not None and own.broker != found:
        others = {key: value for key, value in own.told.items() if key != "broker"}
        own.settings = json.dumps(others | ({"broker": dict(found)} if found else {}))


def probe(transaction: Transaction, name: str) -> None:
    """Write, and leave nothing behind: it fails as every other write would."""
    record(transaction, name)
    transaction.session.query(DispatcherHeartbeat).where(DispatcherHeartbeat.name == name).delete()
