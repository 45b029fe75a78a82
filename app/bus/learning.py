"""Learning: every process that dispatches reads the retry policy's table, and one of them fits the next.

A version of the table is a row of ``retry_tables``. The process that inserts the next version's row fits it; if it
dies, another does so after REFIT. All others read it: ``LearnedPolicy.table`` is replaced as a whole.
"""

import itertools
import json
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Select, case, delete, func, select, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from app.bus import lifecycle
from app.bus.gates import seconds
from app.bus.queries import count_up_to
from app.bus.tables import Delivery, RetryTable, RetryTransition
from app.db import Database, Transaction, table
from app.errors import DatabaseUnavailable
from app.retry import LearnedPolicy, Scope, Table
from app.retry.ages import BUCKETS, LEVELS
from app.retry.fitting import FitFailed, fit_apart
from app.states import DeliveryState

LOOK_SECONDS = 5.0
"""Between looks whether there is a newer table."""

REFIT = timedelta(minutes=5)
"""Between fits, where something was learned; and until a fit that has not ended counts as lost."""

FIRST_ENDS = 30
"""The first table is fitted when so many obstacles were seen to end, or REFIT after the first failure. One that is
fitted while all still stand tells that they last, and what comes next refutes it."""

REFIT_ALWAYS = timedelta(days=1)
"""After so long old data has faded, even where nothing is new."""

KEPT_TRANSITIONS = 20_000
"""Of each receiver, scope and kind, the newest; as many as a fit looks at."""

KEPT_TABLES = 5

LONE_DELIVERIES = 500
"""Of each receiver, among the newest that ended, it is counted how many failed while the backend was up."""

LOOKED_AT = 10_000
"""Deliveries, among which these are looked for."""

UNREADABLE = (ValueError, TypeError, KeyError, AttributeError)


class Learning:
    """For one application's policy. Its methods raise DatabaseUnavailable."""

    def __init__(self, database: Database, policy: LearnedPolicy, sender: object) -> None:
        """``sender`` is that of the lifecycle signals."""
        self.database, self.policy, self.sender = database, policy, sender
        self._looked_at = 0
        """The newest version that was read, or could not be."""

    def run(self, stopped: threading.Event, name: str) -> None:
        """Look now and then, and fit when it is time, until the event is set. ``name`` is the dispatcher's."""
        while True:
            try:
                self.look()
                if not stopped.wait(LOOK_SECONDS):
                    self.fit_if_due(name)
            except (DatabaseUnavailable, DBAPIError):
                stopped.wait(LOOK_SECONDS)  # others tell of it
            except Exception as error:
                lifecycle.report(lifecycle.dispatcher_failed, self.sender, error=error)
                stopped.wait(LOOK_SECONDS)
            if stopped.is_set():
                return

    def look(self) -> None:
        """Use the newest table, where it is another one than the present. One that can't be read is ignored."""
        with self.database.read() as session:
            version = session.scalar(_fitted(func.max(RetryTable.version))) or 0
            if version == self._looked_at:
                return
            content = session.scalar(select(RetryTable.content).where(RetryTable.version == version)) or ""
        self._looked_at = version
        try:
            self.policy.table = read_table(content, version)
        except UNREADABLE as error:
            reason = f"{type(error).__name__}: {error}"
            lifecycle.report(lifecycle.policy_ignored, self.sender, version=version, reason=reason)

    def fit_if_due(self, name: str) -> Table | None:
        """Fit, unless another process does so, did so within REFIT, or nothing was learned since."""
        return self.fit(name, due_only=True)

    def fit(self, name: str, *, due_only: bool = False) -> Table | None:
        """Fit now. None where another process began to in this moment, or it failed, which is reported."""
        if due_only:
            with self.database.read() as session:
                if not self._is_due(session):
                    return None
        version = self.database.transact(lambda transaction: self._claim(transaction, name, due_only=due_only))
        if version is None:
            return None
        began = time.monotonic()
        try:
            fitted, read = self._fitted(version)
        except FitFailed as error:
            lifecycle.report(lifecycle.policy_unfitted, self.sender, reason=str(error))
            return None
        self.database.transact(lambda transaction: _store(transaction, fitted))
        lifecycle.report(
            *(lifecycle.policy_fitted, self.sender),
            version=version,
            transitions=read,
            lasted=time.monotonic() - began,
            refuted=refuted(fitted),
        )
        self.look()
        return fitted

    def _is_due(self, session: Session) -> bool:
        now = self.database.clock.now()
        latest = session.scalars(select(RetryTable).order_by(RetryTable.version.desc()).limit(1)).first()
        if latest is None:
            return _is_enough(session, now)
        age = abs(now - latest.begun_at)  # one from before a clock was set back counts as old, too
        if age < REFIT:
            return False
        is_new = latest.transition_id != _newest(session) or latest.content is None
        costs_differ = self.policy.table is not None and self.policy.table.costs != self.policy.costs
        return is_new or costs_differ or age > REFIT_ALWAYS

    def _claim(self, transaction: Transaction, name: str, *, due_only: bool) -> int | None:
        """The version that this process is to fit."""
        session = transaction.session
        # Before it looks whether one is due: of two processes that find the same, one takes the version.
        version = (session.scalar(select(func.max(RetryTable.version))) or 0) + 1
        if due_only and not self._is_due(session):
            return None
        row = {"version": version, "begun_at": transaction.now, "fitted_by": name, "transition_id": _newest(session)}
        claimed = transaction.dialect.insert(RetryTable).values(row).on_conflict_do_nothing(index_elements=["version"])
        claimed_version: int | None = session.scalar(claimed.returning(RetryTable.version))
        return claimed_version

    def _fitted(self, version: int) -> tuple[Table, int]:
        """Returns how many transitions it was fitted to, too. Raises FitFailed."""
        with self.database.read() as session:
            seen = {key: _columns(session, *key) for key in _keys(session)}
            lone = {receiver: _lone(session, receiver) for receiver in {key[0] for key in seen}}
            previous = _previous(session, version)
        now = seconds(self.database.clock.now())
        fitted = fit_apart(seen, now, self.policy.costs, previous, lone)
        return replace(fitted, version=version), sum(len(columns[0]) for columns in seen.values())


def read_table(content: str, version: int) -> Table:
    """Raises one of UNREADABLE."""
    found = Table.from_json(content)
    if found is None:
        raise ValueError("it is in another format; the next fit replaces it")
    for entry in found.entries.values():
        widths = {len(entry.hazard), len(entry.deviation) - 1, len(entry.prior_wait), *map(len, entry.plan)}
        if widths != {BUCKETS} or len(entry.plan) not in (1, len(LEVELS)):
            raise ValueError("an entry has not as many numbers as there are ages")
        if not all(isinstance(step, int) for level in entry.plan for step in level):
            raise ValueError("a plan has something else than whole numbers")
    return replace(found, version=version)


def refuted(fitted: Table) -> list[str]:
    """The keys of the entries whose predictions this fit found refuted: what was seen before is forgotten."""
    return [key for key, entry in fitted.entries.items() if entry.forgotten_at == fitted.fitted_at]


def _fitted(*columns: Any) -> Select[Any]:
    return select(*columns).where(RetryTable.content.is_not(None))


def _previous(session: Session, version: int) -> Table | None:
    newest = _fitted(RetryTable.content, RetryTable.version).where(RetryTable.version < version)
    row = session.execute(newest.order_by(RetryTable.version.desc()).limit(1)).first()
    try:
        return read_table(row.content, row.version) if row else None
    except UNREADABLE:
        return None  # look() has told so


def _newest(session: Session) -> int:
    return session.scalar(select(func.max(RetryTransition.transition_id))) or 0


def _is_enough(session: Session, now: datetime) -> bool:
    """Whether the first fit pays: it takes a second of processor time, and the next comes after REFIT only. Right after
    the first failure there is nothing to fit to."""
    first = session.scalar(select(RetryTransition.at).order_by(RetryTransition.transition_id).limit(1))
    if first is None or abs(now - first) >= REFIT:
        return first is not None
    ended = (RetryTransition.age_from.is_not(None), RetryTransition.gone)
    return session.scalar(count_up_to(select(RetryTransition.transition_id).where(*ended), FIRST_ENDS)) == FIRST_ENDS


def _keys(session: Session) -> list[tuple[str, str, str]]:
    columns = (RetryTransition.receiver, RetryTransition.scope, RetryTransition.kind)
    return [(row[0], row[1], row[2]) for row in session.execute(select(*columns).distinct())]


def _columns(
    session: Session, receiver: str, scope: str, kind: str
) -> tuple[list[float], list[float], list[bool], list[float]]:
    row = table(RetryTransition).c
    found = session.execute(_newest_of(receiver, scope, kind, row.age_from, row.age_to, row.gone, row.at)).all()
    return (
        [each.age_from for each in found],
        [each.age_to for each in found],
        [each.gone for each in found],
        [seconds(each.at) for each in found],
    )


def _newest_of(receiver: str, scope: str, kind: str, *columns: Any) -> Select[Any]:
    """The transitions that count."""
    row = table(RetryTransition).c
    which = (row.receiver == receiver, row.scope == scope, row.kind == kind, row.age_from.is_not(None))
    return select(*columns).where(*which).order_by(row.transition_id.desc()).limit(KEPT_TRANSITIONS)


class Measured(NamedTuple):
    """Attempts at an obstacle that was there at ``age_from``: how many ended so at ``age_to``. Ages are in seconds,
    each the last of a list that is not above it."""

    age_from: int
    age_to: int
    gone: bool
    attempts: int
    waited: float
    """Seconds, the sum of what was waited before them."""


def measured(
    session: Session, receiver: str, scope: str, kind: str, ages: Sequence[int], since: datetime
) -> list[Measured]:
    """The newest KEPT_TRANSITIONS transitions ``since`` then, counted by their ages. ``ages`` rise from 0."""
    row = table(RetryTransition).c
    columns = (
        _step(row.age_from, ages).label("age_from"),
        _step(row.age_to, ages).label("age_to"),
        row.gone,
        (row.age_to - row.age_from).label("waited"),
        row.age_from.label("exact"),
        row.at,
    )
    each = _newest_of(receiver, scope, kind, *columns).subquery().c
    counted = select(each.age_from, each.age_to, each.gone, func.count(), func.sum(each.waited))
    counted = counted.where(each.at >= since, each.exact >= 0, each.waited > 0)  # not of a clock that jumped
    return [Measured(*found) for found in session.execute(counted.group_by(each.age_from, each.age_to, each.gone))]


def _step(age: ColumnElement[float | None] | ColumnElement[float], ages: Sequence[int]) -> ColumnElement[int]:
    return case(*((age < later, earlier) for earlier, later in itertools.pairwise(ages)), else_=ages[-1])


def _lone(session: Session, receiver: str) -> dict[str, tuple[float, float]]:
    """For each kind: how many deliveries met such an obstacle of their own, and of how many in all that ended."""
    bound = select(func.max(Delivery.delivery_id)).scalar_subquery() - LOOKED_AT
    ended = select(Delivery.created_at).where(
        Delivery.delivery_id > bound,
        Delivery.receiver == receiver,
        Delivery.state.in_((DeliveryState.DONE, DeliveryState.DEAD)),
    )
    times = list(session.scalars(ended.order_by(Delivery.delivery_id.desc()).limit(LONE_DELIVERIES)))
    if not times:
        return {}
    row = RetryTransition
    first = (row.receiver == receiver, row.scope == Scope.MESSAGE, row.age_from.is_(None), row.at >= min(times))
    counted = session.execute(select(row.kind, func.count()).where(*first).group_by(row.kind))
    return {kind: (float(count), float(max(len(times), count))) for kind, count in counted}


def _store(transaction: Transaction, fitted: Table) -> None:
    """And forget tables and transitions that nobody reads any more."""
    session, row = transaction.session, table(RetryTransition)
    mine = update(table(RetryTable)).where(RetryTable.version == fitted.version)
    told = json.dumps(refuted(fitted)) if refuted(fitted) else None
    session.execute(mine.values(fitted_at=transaction.now, content=fitted.to_json(), refuted=told))
    session.execute(delete(table(RetryTable)).where(RetryTable.version <= fitted.version - KEPT_TABLES))
    for receiver, scope, kind in _keys(session):
        which = (row.c.receiver == receiver, row.c.scope == scope, row.c.kind == kind)
        oldest = select(row.c.transition_id).where(*which).order_by(row.c.transition_id.desc())
        last = session.scalar(oldest.offset(KEPT_TRANSITIONS).limit(1))
        if last is not None:
            session.execute(delete(row).where(*which, row.c.transition_id <= last))
