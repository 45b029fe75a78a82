"""Solution of the decision process: one backward sweep over the ages. Needs numpy.

State (i, w): the obstacle is there at edge eᵢ, and w deliveries wait. Action: an attempt at eⱼ, j > i, or m equally
spaced attempts within the bucket; of one message also giving up, for 0. With p = 1 - Sⱼ/Sᵢ and discount(d) = exp(-β d):

    V(i, w) = max over j of discount(eⱼ - eᵢ) · [-c + p·w + (1 - p)·V(j, w)]

Age only grows, so the sweep from the last edge to the first is exact: Bellman's equation needs no iteration.
"""

from dataclasses import dataclass

import numpy as np

from app.retry.ages import LEVELS
from app.retry.estimate import EDGE_SECONDS, Floats, Ints

INSIDE: Ints = np.array((2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64))
"""So many attempts within one bucket are considered."""
SHORTEST_SECONDS = 1.0
"""Between them."""
EVEN_HAZARD = 0.25
"""So much of a bucket's hazard is spread evenly over it; the rest is taken to lie at its end, because the estimate does
not see within a bucket, and a greylist ends at one moment."""

GIVE_UP = 0


@dataclass(frozen=True, slots=True)
class Solution:
    """For each edge but the last, and each number of waiting deliveries."""

    plan: Ints
    """n > 0: an attempt at the n-th edge from here; -m: m attempts within this bucket; GIVE_UP."""
    value: Floats
    wait: Floats
    """Seconds until the next attempt; infinite where it gives up."""


def solve(
    hazard: Floats,
    *,
    attempt_cost: float,
    beta: float,
    may_give_up: bool,
    levels: tuple[int, ...] = LEVELS,
    longest: Floats | None = None,
    edges: Floats = EDGE_SECONDS,
) -> Solution:
    """``hazard`` of each bucket; ``longest``, like ``wait``: the trust region. At the last edge the value is 0."""
    last = len(edges) - 1
    w = np.asarray(levels, dtype=np.float64)
    cumulated = np.concatenate(([0.0], np.cumsum(hazard)))
    ahead = edges - edges[:-1, None]
    discount = np.exp(-beta * ahead)[:, :, None]
    there = discount * np.exp(cumulated[:-1, None] - cumulated)[:, :, None]
    earned = discount * (w - attempt_cost)
    if longest is not None:  # the next edge is allowed always
        earned[:, 1:][ahead[:, 1:, None] > np.maximum(longest, np.diff(edges)[:, None])[:, None, :]] = -np.inf
    inside, passed = _inside(hazard, np.diff(edges), w, attempt_cost, beta)
    value, best = np.zeros((last + 1, w.size)), np.zeros((last, w.size), np.int64)
    columns, least = np.arange(w.size), 0.0 if may_give_up else -np.inf
    for i in range(last - 1, -1, -1):
        # Bellman: discount·(-c + p·w + (1 - p)·V) = discount·(w - c) + discount·(1 - p)·(V - w)
        at_edge = earned[i, i + 1 :] + there[i, i + 1 :] * (value[i + 1 :] - w)
        found = np.concatenate((inside[i] + passed[i] * value[i + 1], at_edge))
        best[i] = found.argmax(axis=0)
        value[i] = np.maximum(found[best[i], columns], least)
    steps = np.where(best < INSIDE.size, -INSIDE[np.minimum(best, INSIDE.size - 1)], best - INSIDE.size + 1)
    target = np.arange(last)[:, None] + np.maximum(steps, 1)
    wait = (edges[target] - edges[:-1, None]) / np.maximum(-steps, 1)
    hopeless = value[:-1] <= least
    return Solution(np.where(hopeless, GIVE_UP, steps), value, np.where(hopeless, np.inf, wait))


def _inside(hazard: Floats, width: Floats, w: Floats, attempt_cost: float, beta: float) -> tuple[Floats, Floats]:
    """Of m attempts within each bucket, for each m of INSIDE: what they earn, a geometric sum in closed form; and the
    discounted probability that all fail, by which the next edge's value counts."""
    spacing = (width[:, None] / INSIDE)[:, :, None]
    discount = np.exp(-beta * spacing)
    hazard = hazard[:, None, None]
    before = np.minimum(hazard, EVEN_HAZARD) / INSIDE[:, None]
    still, last_still = np.exp(-before), np.exp(before * (INSIDE[:, None] - 1) - hazard)
    factor = discount * still
    passed = factor ** (INSIDE[:, None] - 1)
    gain: Floats = discount * (
        (-attempt_cost + (1 - still) * w) * (1 - passed) / (1 - factor)
        + passed * (-attempt_cost + (1 - last_still) * w)
    )
    return np.where(spacing < SHORTEST_SECONDS, -np.inf, gain), np.asarray(passed * discount * last_still)
