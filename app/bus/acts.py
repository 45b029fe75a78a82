"""Operators' acts, read and aborted: who did what, and what became of the deliveries that an act touched."""

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Select, bindparam, case, exists, func, or_, select, update
from sqlalchemy.orm import Session, aliased

from app.bus import breaker, operate, queries
from app.bus.tables import ActDelivery, Attempt, Delivery, OperatorAct
from app.bus.troubles import NO_DISPATCHER
from app.db import Database, Transaction, table
from app.errors import ActNotFound
from app.states import DeliveryState
from app.translatable import Translatable

COUNTED_IN_LISTS = 10_000
"""In a list, what became of an act's deliveries is counted for acts on so many at most; a larger one is looked at
alone."""

LEFT_AFTER = timedelta(seconds=60)
"""An act that is not ended, and has touched nothing for so long, was left in the middle: its process has died."""

GIVEN_UP = "given_up"
"""Stands in the place of an outcome where a delivery was given up without an attempt."""


_tried = exists().where(Attempt.delivery_id == ActDelivery.delivery_id, Attempt.lease_token > ActDelivery.lease_token)
"""Whether an attempt at the delivery has ended since the act touched it."""

_later = aliased(ActDelivery)
_touched_later = exists().where(
    _later.delivery_id == ActDelivery.delivery_id, _later.act_id > ActDelivery.act_id, _later.taken_back_at.is_(None)
)


@dataclass(frozen=True)
class Progress:
    """The progress of an act: what became of the deliveries that it touched."""

    done: int = 0
    failed: dict[str, int] = field(default_factory=dict)
    """Tried since, without success, by the latest outcome: what is dead again, and what waits for a later try."""
    discarded: int = 0
    left: int = 0
    """Not tried since, or under way."""
    taken_back: int = 0
    """By an abort: they are again what they were before the act."""
    forgotten: int = 0
    """Deleted meanwhile, as finished and old."""
    receivers: tuple[str, ...] = ()
    left_to: tuple[str, ...] = ()
    """The receivers of those that are left."""

    @property
    def tried(self) -> int:
        """All that is not left."""
        return self.done + sum(self.failed.values()) + self.discarded + self.taken_back + self.forgotten


@dataclass(frozen=True)
class ActView:
    """An act, how far it is, and what became of its deliveries."""

    act_id: int
    acted_at: datetime
    acted_by: str
    action: str
    filter: Any
    """As the object that it was kept as."""
    reason: str | None
    counted: int | None
    deliveries: int
    over_seconds: int | None
    ended_at: datetime | None
    aborted_at: datetime | None
    aborted_by: str | None
    state: str
    """``running``, ``left`` in the middle, ``ended`` or ``aborted``: whether all that was counted was touched."""
    progress: Progress | None
    """None in a list, for an act on more than COUNTED_IN_LISTS deliveries."""


def list_acts(
    session: Session,
    now: datetime,
    *,
    before: int | None = None,
    limit: int = 50,
    counted_at_most: int | None = None,
) -> tuple[list[ActView], int | None]:
    """A page of acts, the newest first, and the cursor of the next page: None at the end.

    What became of an act's deliveries is told where it touched so many at most, by default COUNTED_IN_LISTS.
    """
    page = select(OperatorAct).order_by(OperatorAct.act_id.desc()).limit(limit + 1)
    if before is not None:
        page = page.where(OperatorAct.act_id < before)
    found = session.scalars(page).all()
    shown = found[:limit]
    most = COUNTED_IN_LISTS if counted_at_most is None else counted_at_most
    progress = _count(session, [act for act in shown if act.deliveries <= most])
    views = [_view(act, now, progress.get(act.act_id)) for act in shown]
    return views, shown[-1].act_id if len(found) > limit else None


def find_act(session: Session, act_id: int, now: datetime, *, counted_at_most: int | None = None) -> ActView:
    """What became of its deliveries is told where it touched so many at most, by default any number.

    Raises ActNotFound.
    """
    act = session.get(OperatorAct, act_id)
    if act is None:
        raise ActNotFound(f"there is no act {act_id}")
    is_counted = counted_at_most is None or act.deliveries <= counted_at_most
    return _view(act, now, _count(session, [act])[act_id] if is_counted else None)


def _view(act: OperatorAct, now: datetime, progress: Progress | None) -> ActView:
    """Its columns, but for when it last touched some, which its ``state`` tells."""
    kept = {each.name: getattr(act, each.name) for each in table(OperatorAct).columns}
    del kept["progressed_at"]
    return ActView(**kept | {"filter": queries.readable(act.filter)}, state=_state(act, now), progress=progress)


def _state(act: OperatorAct, now: datetime) -> str:
    if act.aborted_at is not None:
        return "aborted"
    if act.ended_at is not None:
        return "ended"
    return "left" if now - (act.progressed_at or act.acted_at) > LEFT_AFTER else "running"


def _count(session: Session, acts: Sequence[OperatorAct]) -> dict[int, Progress]:
    fate = case(
        (ActDelivery.taken_back_at.is_not(None), "taken_back"),
        (Delivery.state == DeliveryState.DONE, "done"),
        (Delivery.state == DeliveryState.DISCARDED, "discarded"),
        (or_(Delivery.state == DeliveryState.DEAD, _tried), "failed"),
        else_="left",
    ).label("fate")
    kinds = (ActDelivery.act_id, fate, Delivery.outcome, Delivery.receiver)
    query = select(*kinds, func.count()).join(Delivery, Delivery.delivery_id == ActDelivery.delivery_id)
    query = query.where(ActDelivery.act_id.in_([act.act_id for act in acts])).group_by(*kinds)
    rows: defaultdict[int, list[Any]] = defaultdict(list)
    for act_id, *row in session.execute(query):
        rows[act_id].append(row)
    return {act.act_id: _progress(act.deliveries, rows[act.act_id]) for act in acts}


def _progress(touched: int, rows: list[Any]) -> Progress:
    counts: defaultdict[str, int] = defaultdict(int)
    failed: defaultdict[str, int] = defaultdict(int)
    for fate, outcome, _, count in rows:
        counts[fate] += count
        if fate == "failed":
            failed[outcome or GIVEN_UP] += count
    return Progress(
        done=counts["done"],
        failed=dict(sorted(failed.items())),
        discarded=counts["discarded"],
        left=counts["left"],
        taken_back=counts["taken_back"],
        forgotten=touched - sum(counts.values()),
        receivers=tuple(sorted({receiver for _, _, receiver, _ in rows})),
        left_to=tuple(sorted({receiver for fate, _, receiver, _ in rows if fate == "left"})),
    )


@dataclass(frozen=True)
class Touch:
    """That an act touched a delivery."""

    act_id: int
    acted_at: datetime
    acted_by: str
    action: str
    reason: str | None


def touches(session: Session, delivery_ids: Collection[int]) -> defaultdict[int, list[Touch]]:
    """The acts that touched each of these deliveries, the oldest first: who did that?"""
    columns = (OperatorAct.act_id, OperatorAct.acted_at, OperatorAct.acted_by, OperatorAct.action, OperatorAct.reason)
    query = select(ActDelivery.delivery_id, *columns).join(OperatorAct, OperatorAct.act_id == ActDelivery.act_id)
    query = query.where(ActDelivery.delivery_id.in_(delivery_ids)).order_by(OperatorAct.act_id)
    found: defaultdict[int, list[Touch]] = defaultdict(list)
    for row in session.execute(query):
        found[row.delivery_id].append(Touch(row.act_id, row.acted_at, row.acted_by, row.action, row.reason))
    return found


def hold_ups(session: Session, receivers: Collection[str], now: datetime, silence: timedelta) -> list[str]:
    """Why what is left to these receivers is not being tried; empty where something of it is, or will be when due."""
    if not queries.dispatchers(session, now, silence):
        return [NO_DISPATCHER]
    paused = queries.paused_receivers(session)
    probes = breaker.next_probes_later(session, now)
    if not receivers or not all(receiver in paused or receiver in probes for receiver in receivers):
        return []
    return [
        Translatable("%(receiver)s is paused: %(reason)s", receiver=receiver, reason=paused[receiver].reason)
        if receiver in paused
        else Translatable(
            "the circuit breaker of %(receiver)s is open; its next probe is due in %(time)s",
            receiver=receiver,
            time=f"{(probes[receiver] - now).total_seconds():.0f} s",
        )
        for receiver in sorted(receivers)
    ]


# Abort


def count_untried(session: Session, act_id: int) -> int:
    """How many deliveries an abort of the act would take back now."""
    return session.scalar(_takeable(act_id, func.count(ActDelivery.delivery_id))) or 0


def abort(database: Database, act_id: int, by: str) -> int:
    """What the act has not yet got tried becomes again what it was before. Returns how many deliveries.

    What is under way or over stays, and so does what a later act has touched. An act that goes on at this moment ends.
    One of which nothing is left stays as it is. Repeating it goes on where it was left. Raises ActNotFound.
    """
    with database.read() as session:  # an error within a transaction would make those that share it begin again
        find_act(session, act_id, database.clock.now(), counted_at_most=0)
    if not database.transact(lambda transaction: _mark_aborted(transaction, act_id, by)):
        return 0
    total, last = 0, 0
    while True:
        numbers, taken_back = database.transact(
            lambda transaction, last=last: _take_back(transaction, act_id, last)  # type: ignore[misc]
        )
        if not numbers:
            return total
        total, last = total + taken_back, numbers[-1]


def _mark_aborted(transaction: Transaction, act_id: int, by: str) -> bool:
    session = transaction.session
    act = session.scalars(select(OperatorAct).where(OperatorAct.act_id == act_id).with_for_update()).one()
    if act.aborted_at is not None:
        return True
    if act.ended_at is not None and session.scalar(_takeable(act_id, ActDelivery.delivery_id).limit(1)) is None:
        return False
    act.aborted_at, act.aborted_by = transaction.now, operate.name_of(by)
    return True


def _takeable(act_id: int, *columns: Any) -> Select[Any]:
    """Of the act's deliveries, those that wait for the try that the act asked for."""
    query = select(*columns).join(Delivery, Delivery.delivery_id == ActDelivery.delivery_id)
    mine = (ActDelivery.act_id == act_id, ActDelivery.taken_back_at.is_(None))
    return query.where(*mine, Delivery.state == DeliveryState.READY, ~_tried, ~_touched_later)


def _take_back(transaction: Transaction, act_id: int, last: int) -> tuple[Sequence[int], int]:
    """Returns the numbers of the batch's deliveries, and how many were taken back.

    They are looked at again once they are locked: on PostgreSQL a dispatcher may have tried one since they were read.
    """
    session = transaction.session
    batch = _takeable(act_id, ActDelivery.delivery_id).where(ActDelivery.delivery_id > last)
    numbers = session.scalars(batch.order_by(ActDelivery.delivery_id).limit(operate.BATCH)).all()
    locked = select(Delivery.delivery_id).where(Delivery.delivery_id.in_(numbers)).order_by(Delivery.delivery_id)
    session.execute(locked.with_for_update())
    before = {
        "state": ActDelivery.state_before,
        "reason": ActDelivery.reason_before,
        "outcome": ActDelivery.outcome_before,
        "attempts": ActDelivery.attempts_before,
        "due_at": ActDelivery.due_before,
        "settled_at": ActDelivery.settled_before,
    }
    columns = (column.label(f"new_{name}") for name, column in before.items())
    query = _takeable(act_id, ActDelivery.delivery_id.label("number"), *columns)
    found = [dict(row) for row in session.execute(query.where(ActDelivery.delivery_id.in_(numbers))).mappings()]
    if found:
        restored = update(table(Delivery)).where(Delivery.delivery_id == bindparam("number"))
        session.execute(restored.values({name: bindparam(f"new_{name}") for name in before}), found)
        operate.release_next(transaction, [row["number"] for row in found])
        taken = update(table(ActDelivery)).where(ActDelivery.act_id == act_id)
        taken = taken.where(ActDelivery.delivery_id.in_([row["number"] for row in found]))
        session.execute(taken.values(taken_back_at=transaction.now))
    return numbers, len(found)
