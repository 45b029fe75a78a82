"""The fit: attempts in, a table out. Needs numpy, and is imported only by the process that fits."""

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from app.retry import prior
from app.retry.ages import LEVELS
from app.retry.causes import BY_KIND, Cause, Scope
from app.retry.costs import Costs
from app.retry.estimate import Estimate, Floats, at_edges, count, estimate
from app.retry.guard import Judgement
from app.retry.solve import Solution, solve
from app.retry.table import Entry, Table, entry_key

HALF_LIFE_SECONDS = 7 * 86_400.0
"""After so long a transition counts half."""
STANDS_SECONDS = 86_400.0
"""So long an entry stands without a new attempt; then it fades by a tenth, and is fitted again."""
MOST_TRANSITIONS = 20_000
"""Of each receiver, scope and kind, the newest."""
TRUST_LEAST, TRUST_MOST = 4.0, 16.0
TRUST_ENDS = 25.0
"""A learned wait is at most ``trust(ends)`` times the prior's at the same age: 4, and more after many ends."""

CAUSES = {kind: cause for kind, cause in BY_KIND.items() if not cause.final}


@dataclass(frozen=True, slots=True)
class Transitions:
    """Of one receiver, scope and kind: each attempt at an obstacle that was there before. Columns of one length."""

    age_from: Sequence[float] | Floats
    """Seconds from the obstacle's first failure to its latest failure before this attempt."""
    age_to: Sequence[float] | Floats
    """Seconds from the obstacle's first failure to this attempt's start."""
    gone: Sequence[bool] | Any
    """Whether it came through."""
    at: Sequence[float] | Floats
    """When, in seconds since 1970."""


def trust(ends: float) -> float:
    """The trust region's factor: it grows with the square root of what was seen."""
    return min(TRUST_MOST, TRUST_LEAST * math.sqrt(max(1.0, ends / TRUST_ENDS)))


Key = tuple[str, str, str]
"""Receiver, scope, kind."""


def fit(
    seen: Mapping[Key, Transitions],
    now: float,
    *,
    costs: Costs | None = None,
    previous: Table | None = None,
    lone: Mapping[str, Mapping[str, tuple[float, float]]] | None = None,
) -> Table:
    """A table from transitions; with none at all, the prior's.

    ``previous`` is judged by what happened since it was fitted, and where that refutes it, what is older is forgotten.
    """
    costs = costs or (previous.costs if previous else Costs())
    entries = dict(_priors(costs, previous))
    for (receiver, scope, kind), transitions in seen.items():
        if kind not in CAUSES or not len(transitions.at):
            continue
        before = previous.entries.get(entry_key(receiver, scope, kind)) if previous else None
        if before and previous and _stands(before, transitions, previous, costs, now):
            entries[entry_key(receiver, scope, kind)] = before
            continue
        believed = entries[entry_key("", scope, kind)]
        entry = _fit_one(Scope(scope), CAUSES[kind], transitions, now, costs, believed, before, previous)
        entries[entry_key(receiver, scope, kind)] = entry
    version = previous.version + 1 if previous else 1
    return Table(version=version, fitted_at=now, costs=costs, entries=entries, lone=dict(lone or {}))


def _stands(before: Entry, transitions: Transitions, previous: Table, costs: Costs, now: float) -> bool:
    """Whether nothing happened since that an entry would change by, and what it was fitted to has hardly faded."""
    news = np.asarray(transitions.at, dtype=np.float64) > previous.fitted_at
    return previous.costs == costs and 0 <= now - before.fitted_at < STANDS_SECONDS and not news.any()


def _priors(costs: Costs, previous: Table | None) -> Iterable[tuple[str, Entry]]:
    """They depend on nothing but the costs."""
    for kind, cause in CAUSES.items():
        for scope in Scope:
            key = entry_key("", scope, kind)
            known = previous.entries.get(key) if previous and previous.costs == costs else None
            yield key, known or _prior_entry(scope, cause, costs)


def _prior_entry(scope: Scope, cause: Cause, costs: Costs) -> Entry:
    hazard = np.asarray(prior.hazards(scope, cause))
    return _entry(Estimate(hazard, np.zeros_like(hazard), np.zeros_like(hazard)), _solve_prior(scope, cause, costs))


@functools.lru_cache(maxsize=64)
def _solve_prior(scope: Scope, cause: Cause, costs: Costs) -> Solution:
    return _solve(np.asarray(prior.hazards(scope, cause)), scope, cause, costs)


def _solve(hazard: Floats, scope: Scope, cause: Cause, costs: Costs, longest: Floats | None = None) -> Solution:
    alone, cost = scope is Scope.MESSAGE, costs.of_attempt(copies=cause.copies)
    levels = (1,) if alone else LEVELS
    return solve(hazard, attempt_cost=cost, beta=costs.beta, may_give_up=alone, levels=levels, longest=longest)


def _entry(found: Estimate, solution: Solution, **more: Any) -> Entry:
    return Entry(
        hazard=tuple(found.hazard.tolist()),
        deviation=tuple(found.deviation.tolist()),
        plan=tuple(tuple(level) for level in solution.plan.T.tolist()),
        **{"prior_wait": tuple(solution.wait[:, 0].tolist()), **more},
    )


def _fit_one(
    scope: Scope,
    cause: Cause,
    transitions: Transitions,
    now: float,
    costs: Costs,
    believed: Entry,
    before: Entry | None,
    previous: Table | None,
) -> Entry:
    columns = _newest(transitions)
    judgement = _judge(columns, believed, before, previous.fitted_at if previous else now, now)
    forget_before = before.forget_before if before else 0.0
    forgotten_at = before.forgotten_at if before else 0.0
    if judgement.refuted_before is not None:
        forget_before, forgotten_at = judgement.refuted_before, now
    age_from, age_to, gone, at = (column[columns[3] >= forget_before] for column in columns)
    weight = 0.5 ** (np.maximum(now - at, 0.0) / HALF_LIFE_SECONDS)
    expected = np.asarray(prior.hazards(scope, cause))
    found = estimate(count(age_from, age_to, gone, weight), expected)
    by_prior = _solve_prior(scope, cause, costs)
    solution = _solve(found.hazard, scope, cause, costs, longest=trust(found.ends.sum()) * by_prior.wait)
    return _entry(
        found,
        solution,
        prior_wait=tuple(by_prior.wait[:, 0].tolist()),
        fitted_at=now,
        transitions=int(at.size),
        ends=int(np.count_nonzero(gone)),
        forget_before=forget_before,
        forgotten_at=forgotten_at,
        drift=judgement.drift,
        drift_since=judgement.since,
        expected=judgement.expected,
        seen=judgement.seen,
        judged=judgement.judged,
    )


def _newest(transitions: Transitions) -> tuple[Floats, Floats, Any, Floats]:
    """In the order of time."""
    at = np.asarray(transitions.at, dtype=np.float64)
    order = np.argsort(at, kind="stable")[-MOST_TRANSITIONS:]
    age_from, age_to = (np.asarray(column, dtype=np.float64) for column in (transitions.age_from, transitions.age_to))
    return age_from[order], age_to[order], np.asarray(transitions.gone, dtype=bool)[order], at[order]


def _judge(
    columns: tuple[Floats, Floats, Any, Floats], believed: Entry, before: Entry | None, fitted_at: float, now: float
) -> Judgement:
    """What happened since ``before`` was fitted, against it and against the prior. Nothing is judged twice."""
    if before is None:
        return Judgement()
    judgement = Judgement(before.drift, before.drift_since, before.expected, before.seen, before.judged)
    recent = (columns[3] > fitted_at) & (columns[3] <= now)
    age_from, age_to, gone, at = (column[recent] for column in columns)
    for row, start, end in zip(*at_edges(age_from, age_to, gone), strict=True):
        judgement.take(before.gone_by(start, end), believed.gone_by(start, end), bool(gone[row]), float(at[row]))
    return judgement
