"""Replay: recorded events are given to one receiver, a new one, or one whose effect was lost.

All events to replay are found first, then replayed in batches, each a transaction, so that none holds the write lock
for long. Events that were not found are not touched, whatever happens meanwhile. The unique index on event and receiver
keeps an event from being given to a receiver twice.
"""

from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import Select, bindparam, select, update

from app.bus import operate, queries
from app.bus.operate import CarriedOut
from app.bus.tables import Delivery, OperatorAct, StoredEvent
from app.db import Database, Transaction, table
from app.errors import ReplayRefused
from app.signal import SIGNALS, ordering_of, subscriptions
from app.states import DeliveryState
from app.text import shortened

WINDOW = 10_000
"""Events that one query looks at: no index finds those of a type and a time."""

FINISHED = (DeliveryState.DONE, DeliveryState.DEAD, DeliveryState.DISCARDED)

UNTRIED = "made by a replay that was aborted before it was tried"
"""The reason of a replayed delivery that becomes ``discarded`` when the act is aborted."""

AGAIN = (
    update(table(Delivery))
    .where(Delivery.delivery_id == bindparam("of_delivery"))
    .values(due_at=bindparam("due"), **operate.DUE_ANEW)
)


@dataclass(frozen=True)
class Replay(operate.Selection):
    """Which recorded events to give to which receiver."""

    receiver: str
    event_type: str
    since: datetime | None = None
    until: datetime | None = None
    """Before this moment."""
    order_id: str | None = None
    force: bool = False
    """Also those that the receiver has dealt with, or that were given up."""


@dataclass
class Found:
    """The events to replay. ``places`` are their positions in the feed."""

    places: "array[int]" = field(default_factory=lambda: array("q"))
    events: int = 0
    """Of the type and the time that are kept."""
    oldest_at: datetime | None = None
    """Of these events."""
    finished: int = 0
    """Of these events, those that the receiver has dealt with or that were given up: only ``force`` replays them."""
    under_way: int = 0
    """Of these events, those whose delivery to the receiver waits or is being tried. They are left alone."""
    kept_since: datetime | None = None
    """When the oldest event that is kept occurred, of whatever type: older ones were pruned."""

    @property
    def deliveries(self) -> int:
        """How many a replay touches."""
        return len(self.places)


def check(which: Replay) -> None:
    """Raises ReplayRefused, with the cure."""
    name, kind = shortened(which.receiver), shortened(which.event_type)
    signal = SIGNALS.get(which.event_type)
    if signal is None:
        raise ReplayRefused(f"no signal carries events of type {kind!r}; there are: {', '.join(sorted(SIGNALS))}")
    subscription = signal.subscriptions.get(which.receiver)
    if subscription is None:
        others = ", ".join(sorted(signal.subscriptions)) or "none"
        known = "connected to another signal only" if which.receiver in subscriptions() else "not connected"
        raise ReplayRefused(
            f"the receiver {name!r} is {known}: to replay {kind} to it, write {signal.name}.connect({name}) in "
            f"app/receivers/__init__.py, and restart the service; {signal.name} has: {others}"
        )
    if which.force and subscription.transactional:
        raise ReplayRefused(
            f"{name} has a transaction, so what it did is in the database exactly once, and --force would do it twice; "
            f"leave --force out, or, for what was given up, run 'flask bus retry --receiver {name}'"
        )


def find(database: Database, which: Replay) -> Found:
    """Count, and keep the places. Looks at all events that are kept, some at a time, or at one order's."""
    found = Found()
    with database.read() as session:
        first, end = queries.bounds(session, StoredEvent.position)
        oldest = select(StoredEvent.occurred_at).order_by(StoredEvent.position).limit(1)
        found.kept_since = session.scalar(oldest)
    for window in _windows(first, end, whole=which.order_id is not None):
        with database.read() as session:
            rows = session.execute(_recorded(which).where(StoredEvent.position.between(*window)))
            _add(found, rows, force=which.force)
    return found


def _windows(first: int, end: int, *, whole: bool) -> Iterator[tuple[int, int]]:
    size = max(1, end - first if whole else WINDOW)
    return ((begin, min(begin + size, end) - 1) for begin in range(first, end, size))


def _recorded(which: Replay) -> Select[Any]:
    """The events, each with the state of its delivery to the receiver: none where there is none."""
    delivery = (Delivery.event_id == StoredEvent.event_id) & (Delivery.receiver == which.receiver)
    columns: tuple[Any, ...] = (StoredEvent.position, StoredEvent.occurred_at, Delivery.state)
    query = select(*columns).outerjoin(Delivery, delivery).order_by(StoredEvent.position)
    query = query.where(StoredEvent.type == which.event_type)
    if which.order_id is not None:
        query = query.where(StoredEvent.order_id == which.order_id)
    if which.since is not None:
        query = query.where(StoredEvent.occurred_at >= which.since)
    if which.until is not None:
        query = query.where(StoredEvent.occurred_at < which.until)
    return query


def _add(found: Found, rows: Iterable[Any], *, force: bool) -> None:
    """There may be a million: each costs a look-up in a set of plain text, and eight bytes."""
    finished, oldest_at = {state.value for state in FINISHED}, found.oldest_at
    for position, occurred_at, state in rows:
        found.events += 1
        if oldest_at is None or occurred_at < oldest_at:
            oldest_at = occurred_at
        if state is None:
            found.places.append(position)
        elif state in finished:
            found.finished += 1
            if force:
                found.places.append(position)
        else:
            found.under_way += 1
    found.oldest_at = oldest_at


def carry_out(
    database: Database,
    which: Replay,
    found: Found,
    by: str,
    over_seconds: int | None,
    after_batch: Callable[[int], object],
) -> CarriedOut:
    """Give what was found to the receiver, a batch in each transaction, the tries spread evenly over so long.

    Records who did what, and when. An act that is aborted meanwhile ends there. ``after_batch`` is called with the
    number of deliveries that a batch touched.
    """
    places = found.places

    def begin(transaction: Transaction) -> int:
        counted = len(places)
        return operate.record_act(transaction, "replay", which, by, None, counted=counted, over_seconds=over_seconds)

    act_id, began = database.transact(begin), database.clock.now()

    def act_on(transaction: Transaction, first: int) -> int | None:
        now, batch = transaction.now, enumerate(places[first : first + operate.BATCH], first)
        due = {place: operate.time_of_try(now, began, over_seconds, number, len(places)) for number, place in batch}
        return replay_batch(transaction, act_id, which, due)

    return operate.in_batches(database, act_id, len(places), act_on, after_batch)


def replay_batch(transaction: Transaction, act_id: int, which: Replay, due: dict[int, datetime]) -> int | None:
    """Give these events to the receiver: ``due`` are their places, each with the time of the try.

    Returns how many deliveries that touched; None once the act was aborted.
    """
    if not operate.note_progress(transaction, act_id, progressed_at=transaction.now):
        return None
    session = transaction.session
    about = (StoredEvent.order_id, StoredEvent.user_id)
    events = select(StoredEvent.position, StoredEvent.event_id, *about).where(StoredEvent.position.in_(due))
    # Locked on PostgreSQL, so that they are not pruned meanwhile.
    events = events.order_by(StoredEvent.position).with_for_update(read=True, key_share=True)
    found, key = session.execute(events).all(), ordering_of(which.receiver)
    times = {row.event_id: due[row.position] for row in found}
    keys = {row.event_id: getattr(row, key) for row in found} if key else {}
    there = select(Delivery.event_id, Delivery.delivery_id, Delivery.state)
    there = there.where(Delivery.event_id.in_(times), Delivery.receiver == which.receiver)
    rows = session.execute(there.order_by(Delivery.delivery_id).with_for_update()).all()
    known = {row.event_id for row in rows}
    new = {event_id: at for event_id, at in times.items() if event_id not in known}
    touched = _insert(transaction, act_id, which.receiver, new, keys)
    if which.force:
        again = {row.delivery_id: times[row.event_id] for row in rows if row.state in FINISHED}
        touched += _make_due(transaction, act_id, again)
    operate.note_progress(transaction, act_id, deliveries=OperatorAct.deliveries + touched)
    return touched


def _insert(
    transaction: Transaction, act_id: int, receiver: str, times: dict[str, datetime], keys: dict[str, str]
) -> int:
    """New deliveries, with their ``keys`` where the receiver is ordered. Their token is past the first, for the events
    are not what happened last: see Lease.untouched.

    Before the act each was ``discarded``, should it be aborted.
    """
    if not times:
        return 0
    session, now = transaction.session, transaction.now
    state = {"state": str(DeliveryState.READY), "attempts": 0, "lease_token": 1}
    rows = [
        {"event_id": event_id, "receiver": receiver, "due_at": due_at, "created_at": now, **state}
        | {"ordering_key": keys.get(event_id)}
        for event_id, due_at in times.items()
    ]
    new = transaction.dialect.insert(table(Delivery)).values(rows)
    new = new.on_conflict_do_nothing(index_elements=["event_id", "receiver"])
    made = session.execute(new.returning(Delivery.delivery_id, Delivery.due_at, Delivery.lease_token)).all()
    operate.keep_made(transaction, act_id, made, UNTRIED)
    return len(made)


def _make_due(transaction: Transaction, act_id: int, times: dict[int, datetime]) -> int:
    """Deliveries become due again, at these times."""
    touched = operate.keep_before(transaction, act_id, times)
    if touched:
        due = [{"of_delivery": number, "due": times[number]} for number in touched]
        transaction.session.execute(AGAIN, due)
    return len(touched)
