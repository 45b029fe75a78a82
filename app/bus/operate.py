"""Operators' acts on deliveries: find them, count them, then retry or discard one, or all that a filter selects.

An act counts deliveries in one snapshot, and touches only these: none that was tried or made since then. It works in
batches, each a transaction, and keeps each delivery's earlier state, so that it can be inspected and aborted
(``acts.py``).
"""

import dataclasses
import heapq
import json
import shlex
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import islice
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, bindparam, exists, func, not_, or_, select, tuple_, update
from sqlalchemy.orm import Session

from app.bus import breaker, leases, queries
from app.bus.queries import DELIVERY_COLUMNS
from app.bus.reasons import generalised
from app.bus.tables import UNDONE, UNFINISHED, ActDelivery, Attempt, Delivery, OperatorAct, StoredEvent
from app.db import Database, Transaction, iso, table
from app.retry import why
from app.states import DeliveryState
from app.text import KIND_CHARACTERS, printable, storable

BATCH = 500
"""Deliveries changed in one transaction: it bounds how long an act on very many holds the write lock."""

MOST_NAME_CHARACTERS = 100
"""Of who acted: people choose their names freely, and a column holds no more."""

ROWS_AT_ONCE = 10_000
"""Rows that a query over very many deliveries keeps in memory."""

GROUPED_AT_MOST = 100_000
"""Deliveries that are looked at for grouping by reason, the newest first."""

LATEST_ACTS = 1000
"""Among so many, one that was left in the middle is looked for: acts are kept for ever."""

ACTIONS = {
    "retry": (DeliveryState.DEAD, DeliveryState.READY, DeliveryState.DISCARDED),
    "discard": (DeliveryState.DEAD, DeliveryState.READY),
}
"""The actions, and the states of the deliveries that each applies to."""

LEAVES = {"retry": DeliveryState.READY, "discard": DeliveryState.DISCARDED}
"""The state in which an action leaves what it touched."""

UNASKED = (DeliveryState.DEAD, DeliveryState.READY)
"""An action applies to these where the filter names no state: what a person discarded is retried when asked for."""

DUE_ANEW: dict[str, Any] = {"state": DeliveryState.READY, "attempts": 0, "outcome": None, "settled_at": None}
DUE_ANEW |= dict.fromkeys(("obstacle", "obstacle_since", "obstacle_seen_at", "due_because"))
"""What a delivery that had ended is, once it is due again: it has a new budget, and its attempts stay."""

FAILED_BEFORE = or_(Delivery.outcome.is_not(None), Delivery.attempts > 0)

NOT_DONE = tuple(state for state in DeliveryState if state is not DeliveryState.DONE)


@dataclass(frozen=True)
class Selection:
    """A person's filter for an act. Its text, a JSON object of the fields that restrict, is kept with the act."""

    def given(self) -> dict[str, Any]:
        """The fields that restrict: those that are not as by default."""
        values = ((each.name, getattr(self, each.name), each.default) for each in dataclasses.fields(self))
        return {name: value for name, value, default in values if value != default}

    def __str__(self) -> str:
        return json.dumps(self.given(), ensure_ascii=False, default=iso)


@dataclass(frozen=True)
class Filter(Selection):
    """Selects deliveries. A field that is None does not restrict; ``reason`` matches anywhere in a reason."""

    delivery_id: int | None = field(default=None, metadata={"option": "--delivery"})
    state: str | None = field(default=None, metadata={"option": "--state"})
    tried: bool | None = field(default=None, metadata={"option": "--tried"})
    """Whether an attempt has failed since the delivery was made, or made due by a person."""
    receiver: str | None = field(default=None, metadata={"option": "--receiver"})
    event_type: str | None = field(default=None, metadata={"option": "--type"})
    order_id: str | None = field(default=None, metadata={"option": "--order"})
    user_id: str | None = field(default=None, metadata={"option": "--user"})
    outcome: str | None = field(default=None, metadata={"option": "--outcome"})
    """Of the latest attempt."""
    reason: str | None = field(default=None, metadata={"option": "--reason"})
    reason_group: str | None = field(default=None, metadata={"option": "--reason-group"})
    """The reason's group: what ``group_by_reason`` shows."""
    older_than: datetime | None = field(default=None, metadata={"option": "--older-than"})
    """The delivery was made before."""

    def find(self, *columns: Any) -> Select[Any]:
        """A query of ``columns`` of the selected deliveries, and of their events."""
        query = select(*columns).join(StoredEvent, StoredEvent.event_id == Delivery.event_id)
        for column, value in (
            (Delivery.delivery_id, self.delivery_id),
            (Delivery.state, self.state),
            (Delivery.receiver, self.receiver),
            (Delivery.outcome, self.outcome),
            (StoredEvent.type, self.event_type),
            (StoredEvent.order_id, self.order_id),
            (StoredEvent.user_id, self.user_id),
        ):
            if value is not None:
                query = query.where(column == value)
        if self.reason is not None:
            query = query.where(Delivery.reason.contains(self.reason, autoescape=True))
        if self.reason_group is not None:  # and of these, what has() says
            query = query.where(Delivery.reason.is_not(None))
        if self.tried is not None:
            query = query.where(FAILED_BEFORE if self.tried else not_(FAILED_BEFORE))
        if self.older_than is not None:
            query = query.where(Delivery.created_at < self.older_than)
        return query

    def has(self, reason: str | None) -> bool:
        """Whether a delivery that ``find`` found is selected: no database generalises a reason."""
        return self.reason_group in (None, group_of(reason))

    def options(self) -> str:
        """Options of 'flask bus list', 'retry' and 'discard', for a shell: empty where nothing restricts."""
        options = {each.name: each.metadata["option"] for each in dataclasses.fields(self)}
        words = {name: f"{value}" for name, value in self.given().items()}
        if self.older_than is not None:
            words["older_than"] = f"{self.older_than:%Y-%m-%dT%H:%M:%S}"  # in UTC, as the option is read
        return " ".join(f"{options[name]} {shlex.quote(word)}" for name, word in words.items())


@dataclass(frozen=True)
class Act:
    """An operator's act: an action of ACTIONS on the deliveries that the filter selects, and the operator's name."""

    action: str
    which: Filter
    by: str
    reason: str | None = None
    """Kept with the act; that of a discard with each delivery as well."""
    over_seconds: int | None = None
    """Of a retry: the tries are spread evenly over so long."""
    probe: bool = False
    """Of a retry: where a circuit breaker is open, its next probe is due now as well."""
    counted_at: datetime | None = None
    """When a person counted what the act is to touch: what was made, tried or given up since then is left out."""

    @property
    def states(self) -> tuple[DeliveryState, ...]:
        asked = UNASKED if self.which.state is None else (self.which.state,)
        return tuple(state for state in ACTIONS[self.action] if state in asked)


@dataclass(frozen=True)
class Chosen:
    """The deliveries of an act, counted in one snapshot, each with its fencing token at that moment.

    ``act_id`` is set where the same person's same act was left in the middle: it goes on.
    """

    act: Act
    ids: "array[int]"
    tokens: "array[int]"
    act_id: int | None = None
    touched: int = 0
    """By it before."""

    def __len__(self) -> int:
        return len(self.ids)

    def upto(self, last: int) -> "Chosen":
        """Of these, the deliveries up to the number ``last``: what a person counted, without what came since."""
        kept = [place for place, number in enumerate(self.ids) if number <= last]
        ids, tokens = (array("q", (numbers[place] for place in kept)) for numbers in (self.ids, self.tokens))
        return dataclasses.replace(self, ids=ids, tokens=tokens)


@dataclass(frozen=True)
class CarriedOut:
    """The deliveries that an act touched just now."""

    act_id: int
    deliveries: int
    aborted: bool
    """Whether somebody aborted it meanwhile."""


# Find


def find(
    session: Session, which: Filter, *, after: int = 0, limit: int = 50, states: Collection[str] = tuple(DeliveryState)
) -> tuple[list[Any], int | None]:
    """A page of deliveries with their events, oldest first, and the cursor of the next page: None at the end."""
    about = (StoredEvent.type.label("event_type"), StoredEvent.order_id, StoredEvent.user_id)
    query = which.find(*DELIVERY_COLUMNS, *about).where(Delivery.delivery_id > after)
    parts = [
        _selected(session, which, query.where(part).order_by(Delivery.delivery_id), limit + 1)
        for part in _by_index(session, which, states)
    ]
    found = list(islice(heapq.merge(*parts, key=lambda row: row.delivery_id), limit + 1))
    return found[:limit], found[limit - 1].delivery_id if len(found) > limit else None


def by_due(
    session: Session, which: Filter, states: Collection[str], *, after: tuple[datetime, int] | None, limit: int
) -> tuple[list[Any], tuple[datetime, int] | None]:
    """A page of unfinished deliveries with their events, the first due first, and the cursor of the next page.

    Where those that failed before are asked for, the last due come first: they stand behind all that was not tried.
    """
    about = (StoredEvent.type.label("event_type"), StoredEvent.order_id, StoredEvent.user_id)
    backwards = which.tried is True
    place = (Delivery.due_at, Delivery.delivery_id)
    query = which.find(*DELIVERY_COLUMNS, *about).order_by(*(each.desc() if backwards else each for each in place))
    if after is not None:
        query = query.where(tuple_(*place) < after if backwards else tuple_(*place) > after)
    parts = [_selected(session, which, query.where(part), limit + 1) for part in _by_index(session, which, states)]
    merged = heapq.merge(*parts, key=lambda row: (row.due_at, row.delivery_id), reverse=backwards)
    found = list(islice(merged, limit + 1))
    last = found[limit - 1] if len(found) > limit else None
    return found[:limit], (last.due_at, last.delivery_id) if last else None


def _selected(session: Session, which: Filter, query: Select[Any], limit: int) -> Iterable[Any]:
    """The first rows of the query, each with a ``reason``, that the filter selects."""
    if which.reason_group is None:
        return session.execute(query.limit(limit))
    return islice((row for row in _stream(session, query) if which.has(row.reason)), limit)


def next_tries(session: Session, found: list[Any], now: datetime) -> dict[int, datetime]:
    """For each of these deliveries that waits, when it is tried at the earliest: when it is due, and no open circuit
    breaker keeps it back."""
    probes = breaker.next_probes_later(session, now)
    waiting = (row for row in found if row.state == DeliveryState.READY)
    return {row.delivery_id: max(row.due_at, probes.get(row.receiver, row.due_at)) for row in waiting}


def group_of(reason: str | None) -> str | None:
    """The common form of similar reasons, with placeholders: see ``reasons.generalised``."""
    return None if reason is None else generalised(reason)[:KIND_CHARACTERS]


@dataclass(frozen=True)
class ReasonGroup:
    """Deliveries that are where they are for one reason, with the newest and the oldest of them as examples."""

    deliveries: int
    receiver: str
    state: str
    outcome: str | None
    reason: str | None
    """See ``group_of``."""
    example_delivery_id: int
    example_order_id: str
    first_delivery_id: int
    first_order_id: str


def group_by_reason(
    session: Session, which: Filter, states: Collection[str] = tuple(DeliveryState), most: int | None = None
) -> tuple[list[ReasonGroup], bool]:
    """Groups of deliveries, the largest first, and whether all were looked at: the newest GROUPED_AT_MOST are.

    With ``most``, no more than so many are looked at of each state and receiver: the newest, and of those that wait the
    ones that are due last, where those that failed are. It bounds the cost whatever the filter is.
    """
    columns = (Delivery.receiver, Delivery.state, Delivery.outcome, Delivery.reason)
    groups: dict[tuple[Any, ...], tuple[Any, ...]] = {}
    left, complete = GROUPED_AT_MOST, True
    for part in _by_index(session, which, states):
        query = which.find(*columns, Delivery.delivery_id, StoredEvent.order_id)
        if most is None:
            query = query.where(part).order_by(Delivery.delivery_id.desc()).limit(left + 1)
        else:
            latest = _latest(part)
            there = session.scalar(queries.count_up_to(latest.order_by(None), most + 1)) or 0
            complete = complete and there <= most
            query = query.where(Delivery.delivery_id.in_(select(latest.limit(most).subquery().c.delivery_id)))
        for *kind, reason, delivery_id, order_id in _stream(session, query):
            if left == 0:
                return _groups(groups), False
            left -= 1
            key = (*kind, group_of(reason))
            if which.reason_group in (None, key[-1]):
                example = (delivery_id, order_id)
                count, newest, oldest = groups.get(key, (0, example, example))
                groups[key] = (count + 1, max(newest, example), min(oldest, example))
    return _groups(groups), complete


def _latest(part: ColumnElement[bool]) -> Select[Any]:
    """In the order of the index that serves the condition."""
    by_due = str(UNFINISHED) in str(part)
    return (
        select(Delivery.delivery_id).where(part).order_by((Delivery.due_at if by_due else Delivery.delivery_id).desc())
    )


def _groups(found: dict[tuple[Any, ...], tuple[Any, ...]]) -> list[ReasonGroup]:
    groups = [ReasonGroup(count, *key, *newest, *oldest) for key, (count, newest, oldest) in found.items()]
    return sorted(groups, key=lambda group: (-group.deliveries, group.example_delivery_id))


def _by_index(session: Session, which: Filter, states: Collection[str]) -> Iterator[ColumnElement[bool]]:
    """Conditions that between them select deliveries in ``states``, each served by an index: with a million that are
    done, what is not is found without a look at these."""
    wanted = [state for state in states if which.state in (None, state)]
    if which.delivery_id is not None or which.order_id is not None:
        yield Delivery.state.in_(wanted)
        return
    for state in wanted:
        if state in (DeliveryState.DEAD, DeliveryState.DISCARDED):
            yield and_(UNDONE, Delivery.state == state)
        elif state == DeliveryState.DONE:
            yield Delivery.state == state
    if unfinished := [state for state in wanted if state in (DeliveryState.READY, DeliveryState.LEASED)]:
        for receiver in [which.receiver] if which.receiver is not None else queries.receivers_with_unfinished(session):
            yield and_(UNFINISHED, Delivery.receiver == receiver, Delivery.state.in_(unfinished))


def _stream(session: Session, query: Select[Any]) -> Iterator[Any]:
    return iter(session.execute(query.execution_options(yield_per=ROWS_AT_ONCE)))


# Count


def count(session: Session, action: str, which: Filter) -> int:
    """How many deliveries the action would touch now."""
    act = Act(action, which, by="")
    if which.reason_group is not None:
        return len(_numbers(session, act, _untouched(which))[0])
    query = which.find(func.count(Delivery.delivery_id))
    return sum(session.scalar(query.where(part)) or 0 for part in _by_index(session, which, act.states))


def choose(session: Session, act: Act) -> Chosen:
    """Count what the act is to touch, and remember it: 16 bytes for each.

    The same person's same act that was left in the middle goes on with what it had not touched; not once something
    that it had touched is selected again, because that was tried, or others have been at it.
    """
    unfinished = _find_unfinished(session, act)
    query = _untouched(act.which, act.counted_at)
    if unfinished is None:
        return Chosen(act, *_numbers(session, act, query))
    of_it = (ActDelivery.act_id == unfinished.act_id, ActDelivery.delivery_id == Delivery.delivery_id)
    is_as_it_left_it = exists().where(
        *of_it, ActDelivery.lease_token == Delivery.lease_token, Delivery.state == LEAVES[act.action]
    )
    again = query.where(exists().where(*of_it), ~is_as_it_left_it).limit(1)
    if any(session.execute(again.where(part)).first() for part in _by_index(session, act.which, act.states)):
        return Chosen(act, *_numbers(session, act, query))
    numbers = _numbers(session, act, query.where(~exists().where(*of_it)))
    return Chosen(act, *numbers, act_id=unfinished.act_id, touched=unfinished.deliveries)


def _untouched(which: Filter, since: datetime | None = None) -> Select[Any]:
    """The numbers and tokens of the selected deliveries, and their reasons where the filter asks for these; without
    those that were made, tried or given up ``since``."""
    reason = () if which.reason_group is None else (Delivery.reason,)
    query = which.find(Delivery.delivery_id, Delivery.lease_token, *reason)
    if since is None:
        return query
    tried = exists().where(Attempt.delivery_id == Delivery.delivery_id, Attempt.ended_at > since)
    ended = Delivery.settled_at > since
    return query.where(Delivery.created_at <= since, or_(Delivery.settled_at.is_(None), not_(ended)), ~tried)


def _numbers(session: Session, act: Act, query: Select[Any]) -> "tuple[array[int], array[int]]":
    ids, tokens = array("q"), array("q")
    for part in _by_index(session, act.which, act.states):
        for delivery_id, token, *reason in _stream(session, query.where(part).order_by(Delivery.delivery_id)):
            if act.which.has(*reason or [None]):
                ids.append(delivery_id)
                tokens.append(token)
    return ids, tokens


def _find_unfinished(session: Session, act: Act) -> OperatorAct | None:
    """The same person's newest act that is the same, and was neither ended nor aborted."""
    latest = select(func.max(OperatorAct.act_id)).scalar_subquery() - LATEST_ACTS
    same = select(OperatorAct).where(
        OperatorAct.act_id > latest,
        OperatorAct.ended_at.is_(None),
        OperatorAct.aborted_at.is_(None),
        OperatorAct.action == act.action,
        OperatorAct.filter == str(act.which),
        OperatorAct.acted_by == name_of(act.by),
        OperatorAct.reason.is_not_distinct_from(act.reason),
        OperatorAct.over_seconds.is_not_distinct_from(act.over_seconds),
    )
    return session.scalar(same.order_by(OperatorAct.act_id.desc()).limit(1))


# Act


def carry_out(database: Database, chosen: Chosen, on_progress: Callable[[int], object] = lambda _: None) -> CarriedOut:
    """Change what was chosen, a batch in each transaction, and record who did what, when and why.

    ``retry``: a dead or discarded delivery becomes due with a new budget; its attempts stay. One that waits becomes
    due, and nothing else of it changes: one in doubt stays so, and no copy is forgotten. ``discard``: waiting and dead
    ones are given up for good. Both spare what runs, and what was tried since it was counted. Repeating either does no
    harm.

    ``on_progress`` is called after each batch with the number of deliveries that it touched.
    """
    act_id = start(database, chosen)
    began = database.clock.now()
    receivers: set[str] = set()

    def act_on(transaction: Transaction, first: int) -> int | None:
        batch = act_on_batch(transaction, act_id, chosen, first, began)
        receivers.update((batch or {}).values())
        return None if batch is None else len(batch)

    return in_batches(database, act_id, len(chosen), act_on, on_progress, receivers if chosen.act.probe else ())


def start(database: Database, chosen: Chosen) -> int:
    """Record that what was chosen is to be touched. Returns the act's id: with it, ``carry_out`` goes on."""
    return database.transact(lambda transaction: _begin(transaction, chosen))


def in_batches(
    database: Database,
    act_id: int,
    size: int,
    act_on: Callable[[Transaction, int], int | None],
    on_progress: Callable[[int], object],
    probed: Collection[str] = (),
) -> CarriedOut:
    """Act on BATCH deliveries in each transaction, and end the act; where it is aborted meanwhile, it ends there.

    ``act_on(transaction, first)`` acts on those from the ``first`` on, of ``size`` in all. It returns how many it
    touched, and None once the act was aborted. ``on_progress`` is called after each batch with that number. At the end
    the open circuit breakers of the receivers ``probed`` may take their next probe.
    """
    touched = 0
    for first in range(0, size, BATCH):
        count = database.transact(lambda transaction, first=first: act_on(transaction, first))  # type: ignore[misc]
        if count is None:
            return CarriedOut(act_id, touched, aborted=True)
        touched += count
        on_progress(count)
    database.transact(lambda transaction: _end(transaction, act_id, probed))
    return CarriedOut(act_id, touched, aborted=False)


def note_progress(transaction: Transaction, act_id: int, **values: Any) -> bool:
    """Keep how far the act is. Returns whether it goes on: not once it was aborted."""
    acted = update(table(OperatorAct)).where(OperatorAct.act_id == act_id, OperatorAct.aborted_at.is_(None))
    return bool(transaction.session.execute(acted.values(**values)).rowcount)  # type: ignore[attr-defined]  # of an UPDATE


def record_act(
    transaction: Transaction,
    action: str,
    which: Selection,
    by: str,
    reason: str | None,
    *,
    counted: int | None = None,
    over_seconds: int | None = None,
) -> int:
    """Record who does what, when and why; ``which`` is kept as its text. Returns the act's id.

    Without ``counted`` it is over at once; with it, it has so many deliveries to touch.
    """
    now = transaction.now
    act = OperatorAct(
        acted_at=now,
        acted_by=name_of(by),
        action=action,
        filter=str(which),
        reason=reason,
        counted=counted,
        over_seconds=over_seconds,
        progressed_at=now,
        ended_at=now if counted is None else None,
    )
    transaction.session.add(act)
    transaction.session.flush()
    return act.act_id


def record_made(transaction: Transaction, act_id: int, event_id: str, reason: str) -> int:
    """The act had this event stored: its deliveries are the act's. Returns how many.

    Where the act is aborted, those that are not tried yet are discarded with the ``reason``.
    """
    transaction.write_postponed()
    made = transaction.session.execute(
        select(Delivery.delivery_id, Delivery.due_at, Delivery.lease_token).where(Delivery.event_id == event_id)
    ).all()
    keep_made(transaction, act_id, made, reason)
    note_progress(transaction, act_id, deliveries=OperatorAct.deliveries + len(made))
    return len(made)


def keep_made(transaction: Transaction, act_id: int, made: Iterable[Any], reason: str) -> None:
    """Record that the act made these deliveries. An abort makes each ``discarded``, with the ``reason``.

    Each has its ``delivery_id``, ``due_at`` and ``lease_token``.
    """
    before = {"state_before": DeliveryState.DISCARDED, "reason_before": reason, "settled_before": transaction.now}
    transaction.session.add_all(
        ActDelivery(
            act_id=act_id, delivery_id=row.delivery_id, due_before=row.due_at, lease_token=row.lease_token, **before
        )
        for row in made
    )


def act_that_made(session: Session, event_id: str) -> int | None:
    """The act that had this event stored; None where it is not stored."""
    made = select(ActDelivery.act_id).join(Delivery, Delivery.delivery_id == ActDelivery.delivery_id)
    return session.scalar(made.where(Delivery.event_id == event_id).limit(1))


def probe(transaction: Transaction, receiver: str, by: str) -> bool:
    """Let the receiver's open circuit breaker take its next probe now, and record who wanted it. Returns whether it is
    open."""
    if receiver not in queries.open_breakers(transaction.session):
        return False
    breaker.probe_now(transaction, receiver)
    record_act(transaction, "probe", Filter(receiver=receiver), by, None)
    return True


def name_of(by: str) -> str:
    """The operator's name, as it is kept."""
    return printable(storable(by))[:MOST_NAME_CHARACTERS]


def act_on_batch(
    transaction: Transaction, act_id: int, chosen: Chosen, first: int, began: datetime
) -> dict[int, str] | None:
    """Act on BATCH of the chosen deliveries, from the ``first`` on. Returns the receivers of those that it touched, by
    their numbers; None once the act was aborted.

    ``began`` is when the act began, or went on: the tries are spread from there.
    """
    session, act, now = transaction.session, chosen.act, transaction.now
    if not note_progress(transaction, act_id, progressed_at=now):
        return None
    ids, tokens = chosen.ids[first : first + BATCH], chosen.tokens[first : first + BATCH]
    columns = (Delivery.delivery_id, Delivery.lease_token, Delivery.state, Delivery.receiver)
    query = act.which.find(*columns).where(Delivery.delivery_id.in_(ids), Delivery.state.in_(act.states))
    found = session.execute(query.order_by(Delivery.delivery_id).with_for_update(of=Delivery)).all()
    counted = dict(zip(ids, tokens, strict=True))
    untried = {row.delivery_id: row for row in found if row.lease_token == counted[row.delivery_id]}
    touched = {number: untried[number] for number in keep_before(transaction, act_id, untried)}
    if act.action == "retry":
        waiting = [number for number, row in touched.items() if row.state == DeliveryState.READY]
        ended = [number for number in touched if number not in waiting]
        _update(transaction, ended, DUE_ANEW | {"due_at": now})
        _update(transaction, waiting, {"due_at": now, "due_because": why.ASKED_FOR}, Delivery.due_at > now)
        if act.over_seconds:
            _spread(transaction, chosen, first, began, touched)
    else:
        given_up = {"state": DeliveryState.DISCARDED, "settled_at": now, "reason": act.reason}
        _update(transaction, list(touched), given_up)
        release_next(transaction, list(touched))
    note_progress(transaction, act_id, deliveries=OperatorAct.deliveries + len(touched))
    return {number: row.receiver for number, row in touched.items()}


def time_of_try(now: datetime, began: datetime, over_seconds: int | None, place: int, of: int) -> datetime:
    """When the try at this place, ``of`` so many, is due: at equal distances, the first when the act began, the last
    one distance before the end. Not before ``now``."""
    return max(now, began + timedelta(seconds=over_seconds or 0) * place / of)


def _begin(transaction: Transaction, chosen: Chosen) -> int:
    act = chosen.act
    if chosen.act_id is None:
        return record_act(
            transaction,
            *(act.action, act.which, act.by, act.reason),
            counted=len(chosen),
            over_seconds=act.over_seconds,
        )
    goes_on = update(table(OperatorAct)).where(OperatorAct.act_id == chosen.act_id)
    transaction.session.execute(goes_on.values(counted=chosen.touched + len(chosen)))
    return chosen.act_id


def _end(transaction: Transaction, act_id: int, probed: Collection[str]) -> None:
    note_progress(transaction, act_id, ended_at=transaction.now)
    for receiver in sorted(probed):
        breaker.probe_now(transaction, receiver)


def keep_before(transaction: Transaction, act_id: int, numbers: Collection[int]) -> list[int]:
    """Keep what the deliveries are now. Returns those that the act had not touched before: two processes may be at it,
    when one goes on with what another seems to have left."""
    kept = {
        "act_id": bindparam("act", act_id, type_=ActDelivery.act_id.type),
        "delivery_id": Delivery.delivery_id,
        "state_before": Delivery.state,
        "reason_before": Delivery.reason,
        "outcome_before": Delivery.outcome,
        "attempts_before": Delivery.attempts,
        "due_before": Delivery.due_at,
        "settled_before": Delivery.settled_at,
        "lease_token": Delivery.lease_token,
    }
    rows = select(*kept.values()).where(Delivery.delivery_id.in_(numbers)).order_by(Delivery.delivery_id)
    insert = transaction.dialect.insert(table(ActDelivery)).from_select(list(kept), rows)
    once = insert.on_conflict_do_nothing(index_elements=["act_id", "delivery_id"])
    return sorted(transaction.session.scalars(once.returning(table(ActDelivery).c.delivery_id)))


def release_next(transaction: Transaction, ended: Collection[int]) -> None:
    """Make the deliveries due that wait behind these ones of an ordered receiver."""
    keys = select(Delivery.receiver, Delivery.ordering_key).where(
        Delivery.delivery_id.in_(ended), Delivery.ordering_key.is_not(None)
    )
    leases.release(transaction, [(row.receiver, row.ordering_key) for row in transaction.session.execute(keys)])


def _update(transaction: Transaction, numbers: list[int], values: dict[str, Any], *conditions: Any) -> None:
    chosen = update(table(Delivery)).where(Delivery.delivery_id.in_(numbers), *conditions)
    transaction.session.execute(chosen.values(**values))


def _spread(transaction: Transaction, chosen: Chosen, first: int, began: datetime, touched: Collection[int]) -> None:
    of = chosen.touched + len(chosen)
    moved = update(table(Delivery)).where(Delivery.delivery_id == bindparam("number"))
    due = [
        {"number": number, "due": time_of_try(transaction.now, began, chosen.act.over_seconds, place, of)}
        for place, number in enumerate(chosen.ids[first : first + BATCH], first)
        if number in touched
    ]
    if due:
        transaction.session.execute(moved.values(due_at=bindparam("due")), due)
