"""The deliveries table as a queue: due deliveries are leased, extended, and ended under the lease's fencing token.

Every function works in a running transaction. A fencing token (Martin Kleppmann, "How to do distributed locking", 2016)
grows with each lease, so a dispatcher that was paused past its lease ends nothing: its token is no longer the row's.

A delivery of an ordered receiver may be leased while no other of its key is leased, and no earlier one is unfinished.
One that is due and may not be leased is held back: its due time is moved, so that a long queue behind one delivery is
read once, and not by each claim. The end of a delivery releases the next of its key.
"""

import functools
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from operator import attrgetter
from typing import Any

from sqlalchemy import Integer, String, and_, bindparam, case, func, insert, literal, or_, select, text, update
from sqlalchemy.orm import Session, aliased

from app.bus import breaker
from app.bus.tables import UNFINISHED, Attempt, Delivery, StoredEvent
from app.db import Dialect, Prepared, Reader, Transaction, table, utc
from app.errors import LeaseLost, TransactionLost
from app.retry import why
from app.states import DeliveryState, Outcome

NO_RESULT = "no result: its process died, or was held up past the lease"
"""Of an attempt whose lease ran out."""

HELD = update(table(Delivery)).where(
    Delivery.delivery_id == bindparam("of_delivery"),
    Delivery.lease_token == bindparam("under_token"),
    Delivery.state == DeliveryState.LEASED,
)
EARLIEST = Prepared(
    select(func.min(Delivery.due_at)).where(Delivery.receiver == bindparam("name", type_=String), UNFINISHED)
)
FAR_AHEAD = Prepared(
    update(table(Delivery))
    .where(
        Delivery.receiver == bindparam("of_receiver", type_=String),
        UNFINISHED,
        Delivery.state == bindparam("in_state"),
        Delivery.due_at > bindparam("latest"),
    )
    .values(due_at=bindparam("at"))
)
EVENT = ("event_id", "type", "version", "source", "order_id", "user_id", "correlation_id", "traceparent")
"""The event's columns that a lease takes over unchanged."""


HELD_BACK = timedelta(minutes=1)
"""After so long a delivery that is held back is looked at again, should its release be lost."""

HELD_BACK_AT_ONCE = 20
"""Deliveries of an ordered receiver that a claim looks at beyond those that it may lease."""

MOST_LOOKS = 25
"""So often a claim looks again where all that it saw was to be held back."""

_other = aliased(table(Delivery), name="other")
_of_its_key = (
    _other.c.receiver == Delivery.receiver,
    _other.c.ordering_key == Delivery.ordering_key,
    text("other.state IN ('ready', 'leased')"),  # as literal text, for the partial index
)


def _newest_of_its_key(state: DeliveryState, *which: Any) -> Any:
    newest = select(func.max(_other.c.delivery_id)).where(*_of_its_key, _other.c.state == state, *which)
    return newest.correlate(table(Delivery)).scalar_subquery()


WAITS_BEHIND = case(
    (
        Delivery.state == DeliveryState.READY,  # a lease that ran out is settled, whatever came before
        func.coalesce(
            _newest_of_its_key(DeliveryState.LEASED, _other.c.delivery_id != Delivery.delivery_id),
            _newest_of_its_key(DeliveryState.READY, _other.c.delivery_id < Delivery.delivery_id),
        ),
    )
)
"""Of an ordered receiver's delivery: the one of its key that it may not run beside or before. None where it may run."""


def _due(found: Any, which: tuple[Any, ...], order: tuple[Any, ...]) -> Any:
    """A query of deliveries, of those of a receiver that are due."""
    due = found.where(Delivery.receiver == bindparam("name"), Delivery.due_at <= bindparam("now"), UNFINISHED, *which)
    first = due.order_by(*order).limit(bindparam("most", type_=Integer))
    return first.with_for_update(of=Delivery, skip_locked=True)


def _with_event(dialect: Dialect, state: Any = Delivery.state, *more: Any) -> Any:
    """The columns of ``_lease()``."""
    return select(
        Delivery.delivery_id,
        Delivery.lease_token,
        state,
        Delivery.attempts,
        Delivery.outcome,
        Delivery.created_at,
        Delivery.leased_at,
        Delivery.leased_by,
        StoredEvent.occurred_at,
        dialect.raw_text(StoredEvent.data).label("data"),
        *(table(StoredEvent).c[name] for name in EVENT),
        *more,
    ).join(StoredEvent, StoredEvent.event_id == Delivery.event_id)


def _find_due(*which: Any, order: tuple[Any, ...]) -> Prepared:
    """Due deliveries of a receiver, with their events."""
    return Prepared(lambda dialect: _due(_with_event(dialect), which, order))


def _find_places(*which: Any, order: tuple[Any, ...]) -> Prepared:
    """The same deliveries, of an ordered receiver: each with its key, and the one that it waits behind."""
    return Prepared(_due(select(Delivery.delivery_id, Delivery.ordering_key, WAITS_BEHIND), which, order))


_oldest_first = (Delivery.due_at, Delivery.delivery_id)  # what was made due at one moment keeps its order
_newest_first = (Delivery.due_at.desc(), Delivery.delivery_id.desc())
_unlike_backend_down = (
    Delivery.state == DeliveryState.READY,
    or_(Delivery.outcome.is_(None), and_(*(Delivery.outcome != outcome for outcome in breaker.BACKEND_DOWN))),
)
_untried = (Delivery.state == DeliveryState.READY, Delivery.outcome.is_(None))

FIND_DUE = _find_due(order=_oldest_first)
FIND_PROBE = _find_due(*_unlike_backend_down, order=_newest_first)
"""The probe: the newest delivery that has not failed yet as if the backend were down, because it is least likely to be
one that hangs for its own sake, alone or in a row at the head of the queue.
"""

FIND_FRESH = _find_due(*_untried, order=_newest_first)
"""The learned policy's probe: the newest delivery that was never tried, because any failure may be its backend's."""

PLACES_DUE = _find_places(order=_oldest_first)
PLACES_PROBE = _find_places(*_unlike_backend_down, order=_newest_first)
PLACES_FRESH = _find_places(*_untried, order=_newest_first)

HOLD_BACK = Prepared(
    update(table(Delivery))
    .where(Delivery.delivery_id == bindparam("of_delivery"))
    .values({name: bindparam(name) for name in ("due_at", "waits_behind", "due_because")})
)
RELEASE = Prepared(
    update(table(Delivery))
    .where(
        Delivery.delivery_id
        == select(func.min(_other.c.delivery_id))
        .where(
            _other.c.receiver == bindparam("of_receiver"),
            _other.c.ordering_key == bindparam("of_key"),
            _of_its_key[-1],
            _other.c.state == DeliveryState.READY,
        )
        .scalar_subquery(),
        Delivery.waits_behind.is_not(None),
    )
    .values(due_at=bindparam("at"), waits_behind=None, due_because=None)
)
"""The first of a key that is ready, where it was held back."""
FIND_DISPATCHED = Prepared(
    lambda dialect: (
        _with_event(
            dialect, literal(str(DeliveryState.READY)), Delivery.receiver, Delivery.due_at, Delivery.ordering_key
        )
        .where(
            Delivery.delivery_id == bindparam("of_delivery"),
            Delivery.lease_token == bindparam("under_token"),
            Delivery.state == DeliveryState.LEASED,
            Delivery.leased_by.is_(None),
        )
        .with_for_update(of=Delivery)
    )
)
"""One that a relay leased under this token and no worker has taken, as one that is there to be leased."""

LATEST_ATTEMPTS = Prepared(
    select(table(Attempt).c.outcome, table(Attempt).c.detail)
    .where(Attempt.delivery_id == bindparam("of_delivery"))
    .order_by(Attempt.attempt_id.desc())
    .limit(bindparam("most", type_=Integer))
)
EXTEND = Prepared(HELD.values(due_at=bindparam("due_at")))
END = Prepared(
    HELD.values({name: bindparam(name) for name in ("state", "attempts", "outcome", "reason", "due_at", "settled_at")})
)
INSERT_ATTEMPT = Prepared(
    insert(table(Attempt)).inline(),
    *("delivery_id", "lease_token", "outcome", "detail", "started_at", "ended_at", "dispatcher"),
    *("reply_code", "enhanced_code", "why"),
)
FIND_OBSTACLE = Prepared(
    select(
        *(table(Delivery).c[name] for name in ("obstacle", "obstacle_since", "obstacle_seen_at", "due_because"))
    ).where(Delivery.delivery_id == bindparam("of_delivery"))
)


@dataclass(frozen=True, slots=True)
class OwnObstacle:
    """The obstacle of one delivery, not of its backend's others. Times are starts of attempts."""

    kind: str
    since: datetime
    seen_at: datetime


@dataclass(frozen=True, slots=True)
class NextTry:
    """When a delivery that failed is due again; None: it is given up."""

    due_at: datetime | None
    why: str | None = None
    """In one sentence."""
    obstacle: OwnObstacle | None = None
    code: int | None = None
    """Of the reply that the failed attempt got."""
    enhanced: str | None = None


@dataclass(slots=True, eq=False, kw_only=True)
class Lease:
    """The right to try a delivery. Receivers see it as ``delivery``."""

    delivery_id: int
    token: int
    receiver: str
    spent: int = 0
    """Attempts charged before this one, in the present budget."""
    unknown: int = 0
    """Attempts before this one, in the present budget, whose outcome is unknown: each may have had its effect."""
    outcome: str | None = None
    """Of the attempt before this one."""
    created_at: datetime
    leased_at: datetime
    leased_by: str | None
    """The dispatcher that holds it. None while it is *dispatched*: a message carries it to a worker."""
    expired: bool = False
    """Whether it ran out, and its dispatcher has left no result."""
    probe: bool = False
    """Whether an open circuit breaker let it through, to see whether the backend is back."""
    event_id: str
    type: str
    version: int
    source: str
    order_id: str
    user_id: str
    correlation_id: str
    traceparent: str | None
    """The trace that the event belongs to (W3C Trace Context)."""
    occurred_at: datetime
    data: bytes | str
    gated: bool = False
    """Whether a gate let it through that holds others back."""
    obstacle: OwnObstacle | None = None
    """Of its own, that the attempts before it met."""
    why: str | None = None
    """Why it is tried now and not before."""
    ordering_key: str | None = None
    """Of a receiver that is ordered: no other delivery of the key is leased."""
    running: bool = False
    """Whether code of its receiver runs at this moment, in whichever thread."""

    @property
    def untouched(self) -> bool:
        """Whether it is the first since the event, and nobody has changed what it is about in between."""
        return self.token == 1

    @property
    def in_doubt(self) -> bool:
        """Whether nobody knows how the attempt before it ended: then it is tried alone."""
        return self.outcome == Outcome.UNKNOWN


@dataclass(frozen=True, slots=True)
class LeaseEnd:
    """How one lease ends: the delivery's new state and, where an attempt is counted, its outcome."""

    lease: Lease
    state: DeliveryState
    outcome: Outcome | None = None
    reason: str | None = None
    due_at: datetime | None = None
    next_try: NextTry | None = None
    """Where an attempt failed."""

    @property
    def charged(self) -> bool:
        """Whether an attempt is spent. Not where others shared the process that died, and it may be their fault."""
        return self.outcome is not None and (self.lease.in_doubt or not self.lease.expired)


LOCK_ORDER = attrgetter("delivery_id")
"""Of leases: transactions that lock several deliveries do so in this order, and so cause no deadlock."""


def earliest_due(reader: Reader, receivers: Iterable[str]) -> dict[str, datetime]:
    """For each receiver that has unfinished deliveries, when the earliest is due."""
    found = {receiver: EARLIEST(reader, {"name": receiver}).fetchone()[0] for receiver in receivers}
    return {receiver: utc(due_at) for receiver, due_at in found.items() if due_at is not None}


def find_due(
    transaction: Transaction,
    receiver: str,
    limit: int,
    dispatcher: str | None,
    *,
    probe: bool,
    fresh: bool,
    ordered_by: str | None,
) -> list[Lease]:
    """Up to ``limit`` due deliveries of ``receiver``, the most overdue first, and locked until the transaction ends.

    Each as the lease that the dispatcher of that name may ``hold``; one that is ``expired`` as the lease that ran out.
    Rows that another dispatcher is claiming at this moment are passed over, not waited for. ``fresh``: rather a
    ``probe`` that was never tried. ``ordered_by``: of each key no more than one; see WAITS_BEHIND.
    """
    if ordered_by is not None:
        return _find_first_of_keys(transaction, receiver, limit, dispatcher, probe, fresh, ordered_by)
    values = {"name": receiver, "now": transaction.now, "most": limit}
    due = (probe and fresh and FIND_FRESH(transaction, values).fetchall()) or None
    due = due or (probe and FIND_PROBE(transaction, values).fetchall()) or FIND_DUE(transaction, values).fetchall()
    return [_lease(transaction, row, receiver, dispatcher, probe) for row in due]


def _find_first_of_keys(
    transaction: Transaction,
    receiver: str,
    limit: int,
    dispatcher: str | None,
    probe: bool,
    fresh: bool,
    ordered_by: str,
) -> list[Lease]:
    """As find_due(), of a receiver that is ordered."""
    values = {"name": receiver, "now": transaction.now, "most": limit + HELD_BACK_AT_ONCE}
    keys: dict[int, str | None] = {}
    for _ in range(MOST_LOOKS):
        places = (probe and fresh and PLACES_FRESH(transaction, values).fetchall()) or None
        places = places or (probe and PLACES_PROBE(transaction, values).fetchall()) or None
        places = places or PLACES_DUE(transaction, values).fetchall()
        keys = {number: key for number, key, behind in places if behind is None}
        held_back = [(number, behind) for number, _, behind in places if behind is not None]
        _hold_back(transaction, held_back, ordered_by)
        if keys or not held_back:
            break
    keys = _locked(transaction, receiver, dict(list(keys.items())[:limit]))
    if not keys:
        return []
    found = find_numbered(len(keys))(transaction, {**values, **_numbered(keys)}).fetchall()
    leases = [_lease(transaction, row, receiver, dispatcher, probe) for row in found]
    for lease in leases:
        lease.ordering_key = keys[lease.delivery_id]
    return leases


def _hold_back(transaction: Transaction, places: list[tuple[int, int]], ordered_by: str) -> None:
    """Each of these waits behind another: it is looked at again when that one releases it."""
    due_at = transaction.now + HELD_BACK
    rows = [
        {
            "of_delivery": number,
            "due_at": due_at,
            "waits_behind": behind,
            "due_because": why.BEHIND % {"behind": behind, "by": ordered_by},
        }
        for number, behind in places
    ]
    if rows:
        HOLD_BACK.many(transaction, rows)


def _locked(transaction: Transaction, receiver: str, keys: dict[int, str | None]) -> dict[int, str | None]:
    """Of these deliveries, those whose keys no other transaction claims at this moment: each might lease one that the
    other does not see yet. So once the key is locked, it is looked again."""
    if transaction.dialect.one_writer or not keys:
        return keys
    names = {number: f"{receiver}\0{key}" for number, key in keys.items() if key is not None}
    had = transaction.dialect.try_lock_keys(transaction.driver, names.values())
    locked = [number for number in keys if number not in names or names[number] in had]
    if not locked:
        return {}
    still = {number for (number,) in still_first(len(locked))(transaction, _numbered(locked)).fetchall()}
    return {number: keys[number] for number in locked if number in still}


def release(transaction: Transaction, ended: Iterable[tuple[str, str | None]]) -> None:
    """Leases or deliveries of these receivers and keys have ended: of each key the first, if held back, is due."""
    rows = [
        {"of_receiver": receiver, "of_key": key, "at": transaction.now}
        for receiver, key in sorted({(receiver, key) for receiver, key in ended if key is not None})
    ]
    if rows:
        RELEASE.many(transaction, rows)


def hold(transaction: Transaction, leases: list[Lease], lease: timedelta) -> None:
    """From now on, and for so long, the deliveries are leased."""
    values = {"until": transaction.now + lease, "now": transaction.now, "dispatcher": leases[0].leased_by}
    ordered = any(each.ordering_key is not None for each in leases)
    claim(len(leases), ordered)(transaction, values | _ids(leases))


def find_dispatched(
    transaction: Transaction, delivery_id: int, token: int, dispatcher: str
) -> tuple[Lease, datetime] | None:
    """The lease that ``dispatcher`` may ``hold`` in place of the one that a relay dispatched under ``token``, and when
    that ends. None where it is no more. The row stays locked until the transaction ends."""
    row = FIND_DISPATCHED(transaction, {"of_delivery": delivery_id, "under_token": token}).fetchone()
    if row is None:
        return None
    *found, receiver, due_at, ordering_key = row
    taken = _lease(transaction, found, receiver, dispatcher, probe=False)
    taken.ordering_key = ordering_key
    return taken, utc(due_at)


def _lease(transaction: Transaction, row: Any, receiver: str, dispatcher: str | None, probe: bool) -> Lease:
    """From a row of FIND_DUE."""
    delivery_id, token, state, attempts, outcome, created_at, leased_at, leased_by, occurred_at, data, *event = row
    expired = state == DeliveryState.LEASED
    return Lease(
        delivery_id=delivery_id,
        token=token if expired else token + 1,
        receiver=receiver,
        spent=attempts,
        unknown=_count_unknown(transaction, delivery_id, attempts) if attempts or outcome == Outcome.UNKNOWN else 0,
        outcome=outcome,
        created_at=utc(created_at),
        leased_at=utc(leased_at) if expired else transaction.now,
        leased_by=leased_by if expired else dispatcher,
        expired=expired,
        probe=probe,
        **(_retried(transaction, delivery_id) if attempts else {}),
        occurred_at=utc(occurred_at),
        data=data,
        **dict(zip(EVENT, event, strict=True)),
    )


def _retried(transaction: Transaction, delivery_id: int) -> dict[str, Any]:
    """What the attempts before left of a delivery that is tried again."""
    kind, since, seen_at, why = FIND_OBSTACLE(transaction, {"of_delivery": delivery_id}).fetchone()
    return {"obstacle": OwnObstacle(kind, utc(since), utc(seen_at)) if kind else None, "why": why}


def _count_unknown(transaction: Transaction, delivery_id: int, spent: int) -> int:
    """Of the attempts in the present budget: an operator's retry begins a new one, and the attempts before it stay.

    Before those that were charged there may be one that was not, because its process died under others as well.
    """
    latest = LATEST_ATTEMPTS(transaction, {"of_delivery": delivery_id, "most": spent + 1}).fetchall()
    counted = latest if [detail for _, detail in latest[spent:]] == [NO_RESULT] else latest[:spent]
    return [outcome for outcome, _ in counted].count(Outcome.UNKNOWN)


def extend(
    transaction: Transaction,
    leases: list[Lease],
    lease: timedelta,
    extend_probe: Callable[[Transaction, str, datetime], None],
) -> dict[Lease, bool]:
    """Let the leases run for ``lease`` from now. Returns for each whether it holds: those that were lost stay lost.

    ``extend_probe(transaction, receiver, until)`` is called for a probe.

    Of a row that can't be written nothing is returned; it keeps no other from being extended. Raises TransactionLost.
    """
    due_at = transaction.now + lease

    def holds(one: Lease) -> bool:
        values = {"of_delivery": one.delivery_id, "under_token": one.token, "due_at": due_at}
        return bool(EXTEND(transaction, values).rowcount == 1)

    if not leases:
        return {}
    try:
        with transaction.savepoint():
            found = {one: holds(one) for one in sorted(leases, key=LOCK_ORDER)}
            for one in leases:
                if one.probe and found[one]:
                    extend_probe(transaction, one.receiver, due_at)
            return found
    except TransactionLost:
        raise
    except Exception:
        if len(leases) == 1:
            return {}
    return {one: holds for each in leases for one, holds in extend(transaction, [each], lease, extend_probe).items()}


def touch(transaction: Transaction, order_id: str) -> None:
    """Note that a person has changed what the order's deliveries are about: their next leases are not ``untouched``."""
    events = select(StoredEvent.event_id).where(StoredEvent.order_id == order_id)
    unleased = update(table(Delivery)).where(Delivery.event_id.in_(events), Delivery.lease_token == 0)
    transaction.session.execute(unleased.values(lease_token=1))


def pull_back(transaction: Transaction, receivers: Iterable[str], longest_wait: timedelta, lease: timedelta) -> int:
    """Due times further ahead than any wait or lease: the clock ran ahead when they were set. Returns how many.

    A delivery that waits is due now. A lease ends one lease from now: its holder, where it lives, extends it before.
    """
    now = transaction.now
    longest = ((DeliveryState.READY, longest_wait, now), (DeliveryState.LEASED, lease, now + lease))
    count = 0
    for receiver in receivers:
        for state, longest_time, due_at in longest:
            values = {"of_receiver": receiver, "in_state": str(state), "latest": now + longest_time, "at": due_at}
            count += FAR_AHEAD(transaction, values).rowcount
    return count


@functools.cache
def claim(count: int, ordered: bool = False) -> Prepared:
    """Makes ``count`` due deliveries leased, each under the next fencing token. Their rows are locked.

    ``ordered``: none of them waits behind another any more.
    """
    return Prepared(
        update(table(Delivery))
        .where(_is_one_of(count))
        .values(
            state=DeliveryState.LEASED,
            lease_token=Delivery.lease_token + 1,
            due_at=bindparam("until"),
            leased_at=bindparam("now"),
            leased_by=bindparam("dispatcher"),
            **({"waits_behind": None} if ordered else {}),
        )
    )


@functools.cache
def end_done(count: int) -> Prepared:
    """Ends ``count`` leases under one fencing token, whose receivers succeeded."""
    return Prepared(
        update(table(Delivery))
        .where(
            Delivery.state == DeliveryState.LEASED,
            Delivery.lease_token == bindparam("under_token"),
            _is_one_of(count),
        )
        .values(
            state=DeliveryState.DONE,
            attempts=Delivery.attempts + 1,
            outcome=Outcome.OK,
            reason=None,
            due_at=bindparam("now"),
            settled_at=bindparam("now"),
        )
    )


@functools.cache
def insert_plain_attempts(count: int) -> Prepared:
    """Attempts that succeeded, of ``count`` deliveries that were simply due: the deliveries' rows tell all of them."""
    attempts = {
        "delivery_id": Delivery.delivery_id,
        "lease_token": Delivery.lease_token,
        "outcome": literal(str(Outcome.OK)),
        "started_at": Delivery.leased_at,
        "ended_at": bindparam("now", type_=Delivery.leased_at.type),
        "dispatcher": Delivery.leased_by,
    }
    done = select(*attempts.values()).where(_is_one_of(count)).order_by(Delivery.delivery_id)
    return Prepared(insert(table(Attempt)).from_select(list(attempts), done).inline())


@functools.cache
def select_tokens(count: int) -> Prepared:
    """The fencing tokens of ``count`` leased deliveries, whose rows are locked until the transaction ends."""
    leased = select(Delivery.delivery_id, Delivery.lease_token).where(Delivery.state == DeliveryState.LEASED)
    return Prepared(leased.where(_is_one_of(count)).order_by(Delivery.delivery_id).with_for_update())


@functools.cache
def find_numbered(count: int) -> Prepared:
    """``count`` due deliveries of a receiver, with their events."""
    return _find_due(_is_one_of(count), order=_oldest_first)


@functools.cache
def still_first(count: int) -> Prepared:
    """Those of ``count`` deliveries that wait behind no other."""
    return Prepared(select(Delivery.delivery_id).where(_is_one_of(count), WAITS_BEHIND.is_(None)))


def _numbered(numbers: Iterable[int]) -> dict[str, int]:
    return {f"id_{n}": number for n, number in enumerate(numbers)}


def _is_one_of(count: int) -> Any:
    return Delivery.delivery_id.in_([bindparam(f"id_{n}") for n in range(count)])


def _ids(leases: list[Lease]) -> dict[str, Any]:
    return _numbered(lease.delivery_id for lease in leases)


def lock_held(transaction: Transaction, leases: list[Lease]) -> list[Lease]:
    """Those that nobody has taken over; until the transaction ends, nobody can. Locks their rows in LOCK_ORDER."""
    if not leases:
        return []
    tokens = dict(select_tokens(len(leases))(transaction, _ids(leases)).fetchall())
    return [lease for lease in leases if tokens.get(lease.delivery_id) == lease.token]


def end(transaction: Transaction, ends: list[LeaseEnd]) -> None:
    """End leases as it says there; where there is an outcome, the attempt is recorded.

    Where several processes write at once, their rows are locked. Raises LeaseLost when any has been taken over; the
    caller has to undo what this did to the others.
    """
    if not ends:
        return
    others = [_ended(each, transaction.now) for each in ends if each.state is not DeliveryState.DONE]
    count = END.many(transaction, others) if others else 0
    done: defaultdict[int, list[Lease]] = defaultdict(list)
    for each in ends:
        if each.state is DeliveryState.DONE:
            done[each.lease.token].append(each.lease)
    for token, same in done.items():
        values = {"now": transaction.now, "under_token": token, **_ids(same)}
        count += end_done(len(same))(transaction, values).rowcount
    if count != len(ends):
        raise LeaseLost
    record_attempts(transaction, ends)
    ordered = [each.lease for each in ends if each.lease.ordering_key is not None]
    if ordered:
        release(transaction, [(lease.receiver, lease.ordering_key) for lease in ordered])


def record_attempts(transaction: Transaction, ends: list[LeaseEnd]) -> None:
    """Of leases that were ended just now."""
    plain, told = [], []
    for each in ends:
        if each.state is DeliveryState.DONE and each.lease.why is None:
            plain.append(each.lease)
        elif each.outcome is not None:
            told.append(_attempt(each, transaction.now))
    if plain:
        insert_plain_attempts(len(plain))(transaction, {"now": transaction.now, **_ids(plain)})
    if told:
        INSERT_ATTEMPT.insert_all(transaction, told)


def _ended(end: LeaseEnd, now: datetime) -> dict[str, Any]:
    return {
        "of_delivery": end.lease.delivery_id,
        "under_token": end.lease.token,
        "state": str(end.state),  # sqlite3 takes far longer to bind a StrEnum
        "attempts": end.lease.spent + end.charged,
        "outcome": str(end.outcome) if end.outcome else end.lease.outcome,
        "reason": end.reason,
        "due_at": end.due_at or now,
        "settled_at": None if end.state == DeliveryState.READY else now,
    }


def _attempt(end: LeaseEnd, now: datetime) -> dict[str, Any]:
    failed = end.next_try or NextTry(None)
    return {
        "delivery_id": end.lease.delivery_id,
        "lease_token": end.lease.token,
        "outcome": str(end.outcome),
        "detail": end.reason,
        "started_at": end.lease.leased_at,
        "ended_at": now,
        "dispatcher": end.lease.leased_by,
        "reply_code": failed.code,
        "enhanced_code": failed.enhanced,
        "why": end.lease.why,
    }


def receivers_left_waiting(session: Session, known: Iterable[str], before: datetime) -> list[str]:
    """Receivers that are not ``known`` here, but have deliveries that were due ``before`` and that nobody took."""
    waiting = select(Delivery.receiver).where(UNFINISHED, Delivery.due_at < before)
    return list(session.scalars(waiting.where(Delivery.receiver.not_in(list(known))).distinct()))
