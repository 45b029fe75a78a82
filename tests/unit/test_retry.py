"""When to try again: arithmetic, by a table."""

import random

import pytest

from app.retry import ExponentialBackoff
from app.states import Outcome


class Highest(random.Random):
    def uniform(self, a: float, b: float) -> float:
        return b


@pytest.mark.parametrize(
    ("spent", "seconds"),
    [
        (1, 5),  # after the first failure: the base
        (2, 10),  # doubled
        (10, 2560),  # the last that the maximum doesn't cut
        (11, 3600),  # 5120, cut
        (310, 3600),  # 2.0 ** 309 is still a float
        (5000, 3600),  # 2.0 ** 4999 is not: the doublings are bounded, not the result
    ],
)
def test_the_longest_wait_doubles_up_to_the_maximum(spent: int, seconds: float) -> None:
    policy = ExponentialBackoff(5, 3600, max_attempts=10_000, rng=Highest())
    assert policy.wait(spent, Outcome.DEFERRED) == seconds


def test_the_wait_is_drawn_from_the_whole_span() -> None:
    policy = ExponentialBackoff(8, 8, max_attempts=1000, rng=random.Random(1))
    waits = [policy.wait(1, Outcome.DEFERRED) or 0 for _ in range(1000)]
    assert 0 <= min(waits) < 0.1
    assert 7.9 < max(waits) <= 8
    assert 3.7 < sum(waits) / 1000 < 4.3


@pytest.mark.parametrize(
    ("spent", "shortest", "longest"),
    [
        (1, 160, 320),  # as long as after seven failures, for the next is a second copy
        (2, 1800, 3600),  # 5 * 2 ** 13, cut
        (5000, 1800, 3600),
    ],
)
def test_what_may_have_had_its_effect_waits_far_longer(spent: int, shortest: float, longest: float) -> None:
    policy = ExponentialBackoff(5, 3600, max_attempts=10_000, rng=random.Random(1))
    waits = [policy.wait(spent, Outcome.UNKNOWN) or 0 for _ in range(1000)]
    assert shortest <= min(waits) < shortest * 1.02
    assert longest * 0.98 < max(waits) <= longest


def test_the_budget_ends() -> None:
    policy = ExponentialBackoff(5, 3600, max_attempts=3)
    assert policy.wait(2, Outcome.TIMEOUT) is not None
    assert policy.wait(3, Outcome.TIMEOUT) is None


@pytest.mark.parametrize("outcome", [outcome for outcome in Outcome if outcome not in (Outcome.OK, Outcome.REFUSED)])
def test_everything_but_a_refusal_is_tried_again(outcome: Outcome) -> None:
    assert ExponentialBackoff().wait(1, outcome) is not None
    assert ExponentialBackoff().wait(1, Outcome.REFUSED) is None


def test_an_hours_outage_does_not_spend_the_budget() -> None:
    """Even with the luckless draws of a thousand deliveries."""
    policy = ExponentialBackoff(rng=random.Random(7))
    for _ in range(1000):
        waits = [policy.wait(spent, Outcome.UNREACHABLE) for spent in range(1, 20)]
        assert sum(wait for wait in waits if wait is not None) > 3600
