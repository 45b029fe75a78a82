"""The backward sweep is the exact value function: against brute force, against quantecon, and at extremes."""

import itertools
import math

import numpy as np
import pytest

from app.retry import prior
from app.retry.ages import BUCKETS, EDGES, LEVELS, bucket_of, level_of
from app.retry.causes import Scope
from app.retry.costs import Costs
from app.retry.fit import TRUST_LEAST
from app.retry.prior import square_root_wait
from app.retry.solve import EVEN_HAZARD, GIVE_UP, solve

EDGES_SHORT = np.array([0.0, 0.5, 1.0, 1.5, 2.25, 3.0])
"""So narrow that no two attempts fit into a bucket."""
HAZARD = np.array([0.3, 0.01, 0.5, 0.2, 0.05])


def value_of(schedule: tuple[int, ...], hazard: np.ndarray, cost: float, beta: float, waiting: int) -> float:
    """Of attempts at these edges, in this order, until one comes through; after the last it is given up."""
    cumulated = np.concatenate(([0.0], np.cumsum(hazard)))
    total, there, now = 0.0, 1.0, 0
    for edge in schedule:
        gone = 1 - math.exp(cumulated[now] - cumulated[edge])
        total += there * math.exp(-beta * EDGES_SHORT[edge]) * (-cost + gone * waiting)
        there, now = there * (1 - gone), edge
    return total


@pytest.mark.parametrize("cost", [0.001, 0.05, 0.2, 0.9])
@pytest.mark.parametrize("waiting", [1, 4])
def test_no_other_schedule_is_worth_more(cost: float, waiting: int) -> None:
    """Of all 32 sets of edges at which one could try."""
    beta = 0.1
    solution = solve(HAZARD, attempt_cost=cost, beta=beta, may_give_up=True, levels=(waiting,), edges=EDGES_SHORT)
    schedules = [each for n in range(6) for each in itertools.combinations(range(1, 6), n)]
    best = max(value_of(schedule, HAZARD, cost, beta, waiting) for schedule in schedules)
    assert solution.value[0, 0] == pytest.approx(best, abs=1e-12)


@pytest.mark.parametrize("hazard_there", [0.2, 2.0])
def test_attempts_within_a_bucket_are_valued_as_their_sum(hazard_there: float) -> None:
    """The last is at the next edge, and takes what is above an even share of the hazard."""
    edges, hazard, cost, beta = np.array([0.0, 8.0]), np.array([hazard_there]), 0.003, 0.02
    solution = solve(hazard, attempt_cost=cost, beta=beta, may_give_up=False, levels=(1,), edges=edges)

    def value(attempts: int) -> float:
        spacing, total, there = 8.0 / attempts, 0.0, 1.0
        for k in range(1, attempts + 1):
            even = min(hazard_there, EVEN_HAZARD) * k / attempts
            still = math.exp(-even) if k < attempts else math.exp(-hazard_there)
            total += math.exp(-beta * spacing * k) * (there * (1 - cost) - still)
            there = still
        return total

    best = max((1, 2, 3, 4, 6, 8), key=value)
    assert best > 1
    assert solution.plan[0, 0] == -best
    assert solution.value[0, 0] == pytest.approx(value(best))


def test_a_greylist_is_tried_at_the_end_of_the_bucket_in_which_it_ends() -> None:
    """It ends at one moment of 23 seconds, and nobody knows at which: one attempt at their end, not several before."""
    costs, hazard, bucket = Costs(), np.full(BUCKETS, 1e-4), bucket_of(300.0)
    hazard[bucket] = 6.0
    cost = costs.of_attempt(copies=False)
    found = solve(hazard, attempt_cost=cost, beta=costs.beta, may_give_up=True, levels=(1,))
    assert found.plan[bucket, 0] == 1


def test_quantecon_finds_the_same_policy() -> None:
    """The same process, written as states, actions and a matrix, for a solver that knows nothing of ages.

    States: there at each edge, then over. An action is an edge to try at, or 0: give up. The discount depends on the
    wait; the part that the discount takes is a transition to "over".
    """
    quantecon = pytest.importorskip("quantecon")
    beta, cost, last = 0.1, 0.05, 5
    cumulated = np.concatenate(([0.0], np.cumsum(HAZARD)))
    over = last + 1
    reward = np.full((over + 1, last + 1), -np.inf)
    move = np.zeros((over + 1, last + 1, over + 1))
    move[:, :, over] = 1.0
    reward[:, 0] = 0.0
    near_one = 1 - 1e-12
    for i in range(last):
        for j in range(i + 1, last + 1):
            gone = 1 - math.exp(cumulated[i] - cumulated[j])
            discount = math.exp(-beta * (EDGES_SHORT[j] - EDGES_SHORT[i]))
            reward[i, j] = discount * (-cost + gone)
            move[i, j, j], move[i, j, over] = discount * (1 - gone), 1 - discount * (1 - gone)
    found = quantecon.markov.DiscreteDP(reward, move, near_one).solve(method="policy_iteration")
    ours = solve(HAZARD, attempt_cost=cost, beta=beta, may_give_up=True, levels=(1,), edges=EDGES_SHORT)
    assert ours.value[:, 0] == pytest.approx(found.v[: last + 1], abs=1e-9)
    steps = [j - i if j else GIVE_UP for i, j in enumerate(found.sigma[:last])]
    assert ours.plan[:, 0].tolist() == steps


def solved(scope: Scope, t0: float, levels: tuple[int, ...] = LEVELS) -> np.ndarray:
    costs, hazard = Costs(), np.asarray(prior.power_law(t0))
    alone = scope is Scope.MESSAGE
    cost = costs.of_attempt(copies=False)
    return solve(hazard, attempt_cost=cost, beta=costs.beta, may_give_up=alone, levels=levels).wait


def test_under_the_prior_the_spacing_grows_like_the_square_root_rule() -> None:
    """Within the width of a bucket: the table and the formula that serves without one agree."""
    waits = solved(Scope.BACKEND, 10.0, levels=(1,))[:, 0]
    for age in (0, 10, 60, 600, 3600):
        bucket = bucket_of(age)
        rule = square_root_wait(EDGES[bucket], 10.0, 1, Costs())
        assert waits[bucket] == pytest.approx(rule, rel=0.25, abs=3)


def test_more_that_wait_are_never_probed_later() -> None:
    waits = solved(Scope.BACKEND, 10.0)
    assert (np.diff(waits, axis=1) <= 1e-9).all()


def test_the_trust_region_bounds_a_wait() -> None:
    """Whatever was learned: here, that nothing ever ends."""
    by_prior = solved(Scope.BACKEND, 10.0)
    costs = Costs()
    cost = costs.of_attempt(copies=False)
    hopeless = np.full(BUCKETS, 1e-12)
    learned = solve(hopeless, attempt_cost=cost, beta=costs.beta, may_give_up=False, longest=TRUST_LEAST * by_prior)
    width = np.diff(EDGES)[:, None]
    assert (learned.wait <= np.maximum(TRUST_LEAST * by_prior, width) + 1e-9).all()


def test_a_message_is_given_up_where_no_attempt_is_worth_its_cost() -> None:
    found = solve(np.full(BUCKETS, 1e-12), attempt_cost=0.1, beta=1e-6, may_give_up=True, levels=(1,))
    assert (found.plan == GIVE_UP).all()


@pytest.mark.parametrize(
    ("age", "bucket"),
    [
        (-5.0, 0),  # a clock was set back
        (0.0, 0),
        (0.9, 1),
        (1.0, 2),  # an edge belongs to the bucket that it begins
        (432_000.0, BUCKETS),  # the horizon: beyond all buckets
        (1e300, BUCKETS),
    ],
)
def test_every_age_has_its_bucket(age: float, bucket: int) -> None:
    assert bucket_of(age) == bucket


@pytest.mark.parametrize(
    ("waiting", "level"), [(0, 0), (1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (4096, 12), (4097, 12), (10**7, 12)]
)
def test_the_number_waiting_is_known_to_the_next_power_of_two(waiting: int, level: int) -> None:
    assert level_of(waiting) == level
