"""Estimation of a hazard from attempts: interval-censored EM with two levels of Gamma shrinkage. Needs numpy.

An attempt at an obstacle is a transition of the decision process: the obstacle was there at age a, and at age b it
was gone, or still there. So its age T at the end is never seen, only an interval. The hazard is constant within a
bucket of age; H is its integral over the bucket.

E: an end in (a, b] is spread over the buckets between, in proportion to exp(-ΣH)·(1 - exp(-H)). Expected ends D and
exposures E are summed: a bucket that was passed counts 1, the bucket of the end the mean share of it that was lived,
1/H - 1/(exp(H) - 1).
M: first for each octave of age, θ = (K_OCTAVE + ΣD)/(K_OCTAVE + ΣE·H⁰); then for each bucket,
H = θH⁰·(K_BUCKET + D)/(K_BUCKET + E·θH⁰). Both are posterior means under a Gamma prior with mean 1 (θ) and θH⁰.
B. W. Turnbull, "The empirical distribution function with arbitrarily grouped, censored and truncated data", JRSS B 38,
1976, has the E step; Gamma shrinkage of piecewise-constant hazards is standard in Bayesian survival analysis
(J. G. Ibrahim, M.-H. Chen, D. Sinha, "Bayesian Survival Analysis", 2001, chapter 3).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.retry.ages import BUCKETS, EDGES

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

ROUNDS = 50
LARGEST_EXPONENT = 600.0
"""Of a survival: beyond it, numbers would be too small to be divided by."""
K_OCTAVE = 1.0
K_BUCKET = 2.0

EDGE_SECONDS: Floats = np.asarray(EDGES)
WIDTH: Floats = np.diff(EDGE_SECONDS)
NEAR = 0.25
"""A success counts at the edge before it, if it came within this share of the bucket."""
OCTAVE: Ints = np.floor(np.log2(np.maximum(EDGE_SECONDS[:-1], 0.5))).astype(np.int64) + 1
"""Of each bucket: the power of two of its earlier edge; all below a second are one."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Transitions merged by their buckets: ``there[i, j]`` failed, ``gone[i, j]`` came through; weighted."""

    there: Floats
    gone: Floats


@dataclass(frozen=True, slots=True)
class Estimate:
    """Of one scope and kind, for each bucket."""

    hazard: Floats
    ends: Floats
    """D: expected number of obstacles that ended in it."""
    exposure: Floats
    """E: how many were there to end in it."""

    @property
    def deviation(self) -> Floats:
        """Posterior standard deviation of the hazard's integral from 0 to each edge."""
        variance = self.hazard**2 / (K_BUCKET + self.ends)
        return np.asarray(np.sqrt(np.concatenate(([0.0], np.cumsum(variance)))))


def at_edges(age_from: Floats, age_to: Floats, gone: Any) -> tuple[Ints, Ints, Ints]:
    """Transitions at the resolution of the estimate: the place of each among those that were given; from one edge, and
    to another.

    Ages are in seconds. Intervals are widened to edges, which loses detail but does not mislead.

    A success just after an edge was planned for it and came later by jitter or a busy machine: it counts there. A
    failure in the bucket of the one before tells nothing, and is left out.

    A clock that jumps may make an age negative, or put the later attempt before the earlier one: such a transition
    tells nothing either, and nor does one beyond the horizon.
    """
    row = np.flatnonzero(np.isfinite(age_from) & np.isfinite(age_to) & (age_from >= 0) & (age_to > age_from))
    age_from, age_to, gone = age_from[row], age_to[row], np.asarray(gone, dtype=bool)[row]
    start = np.minimum(np.searchsorted(EDGE_SECONDS, age_from, side="right") - 1, BUCKETS)
    before = np.minimum(np.searchsorted(EDGE_SECONDS, age_to, side="right") - 1, BUCKETS)
    after = before + (age_to > EDGE_SECONDS[before] + NEAR * WIDTH[np.minimum(before, BUCKETS - 1)])
    end = np.where(gone, np.maximum(after, start + 1), before)
    inside = (start < BUCKETS) & (end > start) & (end <= BUCKETS)
    return row[inside], start[inside], end[inside]


def count(age_from: Floats, age_to: Floats, gone: Any, weight: Floats) -> Counts:
    """Merge transitions: equal ones are one cell, so the cost of an estimate does not grow with their number."""
    size = BUCKETS + 1
    row, start, end = at_edges(age_from, age_to, gone)
    cell, gone, weight = start * size + end, np.asarray(gone, dtype=bool)[row], weight[row]

    def table(which: Any) -> Floats:
        sums = np.bincount(cell[which], weights=weight[which], minlength=size * size)
        return np.asarray(sums, dtype=np.float64).reshape(size, size)

    return Counts(there=table(~gone), gone=table(gone))


def estimate(counts: Counts, prior: Floats, rounds: int = ROUNDS) -> Estimate:
    """The posterior mean of each bucket's hazard, after so many rounds of EM from the prior's.

    With S the survival, an end in (a, b] is in bucket i with probability (Sᵢ - Sᵢ₊₁)/(Sₐ - S_b), and after it with
    (Sᵢ₊₁ - S_b)/(Sₐ - S_b). So all intervals together need two running sums, of 1/(Sₐ - S_b) and of S_b/(Sₐ - S_b).
    """
    passed = _passed(counts.there)
    start, end = np.nonzero(counts.gone)
    number = counts.gone[start, end]
    hazard, ends, exposure = prior, np.zeros(BUCKETS), passed
    for _ in range(rounds if number.size else 1):
        cumulated = np.concatenate(([0.0], np.cumsum(hazard)))
        survival = np.exp(-np.minimum(cumulated, LARGEST_EXPONENT))
        ending = survival[:-1] * -np.expm1(-hazard)
        each = number / (survival[start] * -np.expm1(cumulated[start] - cumulated[end]))
        over = _running_sum(start, end, each)
        after = np.maximum(survival[1:] * over - _running_sum(start, end, each * survival[end]), 0.0)
        ends = ending * over
        exposure = passed + after + ends * _share_lived(hazard)
        hazard = _shrunk(ends, exposure, prior)
    return Estimate(hazard, ends, exposure)


def _running_sum(start: Ints, end: Ints, each: Floats) -> Floats:
    """For each bucket, the sum over the intervals that hold it."""
    size = BUCKETS + 1
    return np.asarray(np.cumsum(np.bincount(start, each, size) - np.bincount(end, each, size))[:-1])


def _share_lived(hazard: Floats) -> Floats:
    """Of a bucket in which an obstacle ended, the mean share before its end: ½ for a small hazard, less for a large."""
    some = np.maximum(hazard, 1e-4)
    return np.asarray(1 / some - 1 / np.expm1(some))


def _passed(there: Floats) -> Floats:
    """How many transitions passed each bucket with the obstacle still there at the end."""
    change = there.sum(axis=1) - there.sum(axis=0)
    return np.asarray(np.cumsum(change)[:-1])


def _shrunk(ends: Floats, exposure: Floats, prior: Floats) -> Floats:
    expected = exposure * prior
    theta = (K_OCTAVE + np.bincount(OCTAVE, ends)) / (K_OCTAVE + np.bincount(OCTAVE, expected))
    level = theta[OCTAVE] * prior
    return np.asarray(level * (K_BUCKET + ends) / (K_BUCKET + exposure * level))
