"""A change mark of the bus's state: it differs after an event, an attempt, an end, a pause or a correction.

Pages that show the state compare marks, and read the state only where they differ: a mark costs a few steps in indexes.
It does not change with the clock alone, nor with some rare acts, such as the abort of an older act: so read the state
now and then all the same.
"""

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import bindparam, func, select

from app.bus import breaker, queries
from app.bus.tables import GIVEN_UP, Attempt, Delivery, DispatcherHeartbeat, OperatorAct, StoredEvent
from app.db import Database, Prepared, Reader

MOST_COUNTED = 1000

_last_act = select(func.max(OperatorAct.act_id)).scalar_subquery()

FIND_LATEST = Prepared(
    select(
        select(func.max(StoredEvent.position)).scalar_subquery(),
        select(func.max(Attempt.attempt_id)).scalar_subquery(),
        select(func.max(Delivery.settled_at)).where(GIVEN_UP).scalar_subquery(),
        _last_act,
        select(OperatorAct.deliveries).where(OperatorAct.act_id == _last_act).scalar_subquery(),
    )
)
COUNT_SOON = Prepared(queries.count_up_to(select(Delivery.due_at).where(*queries.DUE_SOON), MOST_COUNTED))
"""A claim, and a lease that is given back, changes it."""

FIND_ALIVE = Prepared(
    select(DispatcherHeartbeat.name, DispatcherHeartbeat.settings).where(
        DispatcherHeartbeat.seen_at > bindparam("since")
    )
)


def of(database: Database, receivers: Iterable[str], lease: timedelta, silence: timedelta) -> tuple[Any, ...]:
    """The mark now. ``silence`` is that of ``heartbeats``. Raises DatabaseUnavailable."""
    now: datetime = database.clock.now()

    def look(reader: Reader) -> tuple[Any, ...]:
        latest = tuple(FIND_LATEST(reader, {}).fetchone())
        held = sorted(map(tuple, breaker.FIND_HELD_BACK(reader, {}).fetchall()), key=repr)
        alive = sorted(map(tuple, FIND_ALIVE(reader, {"since": now - silence}).fetchall()))
        window = {"now": now, "until": now + 2 * lease}
        soon = [COUNT_SOON(reader, window | {"receiver": name}).fetchone()[0] for name in sorted(receivers)]
        return latest, held, alive, soon

    return database.query(look)
