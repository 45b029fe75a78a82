"""The simulator drives the policy and the gate themselves, and its days are what they say."""

import random

import pytest

from app.retry.causes import Scope
from app.retry.costs import Costs
from benchmarks.retry.backends import (
    DAY,
    SCENARIOS,
    START,
    THROTTLED,
    UNREACHABLE,
    Backend,
    Reply,
    Spans,
    play_day,
)
from benchmarks.retry.gated import RECEIVER, LearnedBus, Memory, simplest
from benchmarks.retry.rules import COMMON, celery, oban, river, sidekiq
from benchmarks.retry.simulate import Result, plain, play

pytestmark = pytest.mark.slow


def learned(scenario: str, memory: Memory, *, training: bool = False) -> Result:
    return play(play_day(scenario, 1, training=training), lambda backend, loop: LearnedBus(backend, loop, memory, 1))


def by_rule(scenario: str, name: str) -> Result:
    return play(play_day(scenario, 1, training=False), plain(COMMON[name], 1))


def test_learned_probes_cost_less_than_the_best_common_rule_and_the_plain_breaker() -> None:
    memory = Memory()
    learned("short crashes", memory, training=True)
    found = learned("short crashes", memory.yesterday())
    assert found.lost == 0
    assert found.excess < min(by_rule("short crashes", name).excess for name in COMMON)
    assert found.excess < 1.1 * play(play_day("short crashes", 1, training=False), simplest).excess


def test_throttling_is_met_with_few_attempts_more_than_messages() -> None:
    found = learned("throttling", Memory())
    assert found.lost == 0
    assert found.attempts < 1.02 * found.messages
    assert found.excess < by_rule("throttling", "Polly").excess / 5


@pytest.mark.parametrize("lasts", [30.0, 600.0])
def test_an_outage_that_answers_by_throttling_costs_no_more_than_one_that_is_silent(lasts: float) -> None:
    """A rate that was learned of it would hold everything back for hours after its end."""

    def day(reply: Reply) -> Result:
        down = Spans([(START + hour * 3600, START + hour * 3600 + lasts) for hour in range(2, 24, 3)])
        backend = Backend(random.Random(1), down, reply)
        return play(backend, lambda backend, loop: LearnedBus(backend, loop, Memory(), 1))

    assert day(THROTTLED).excess < 1.5 * day(UNREACHABLE).excess


@pytest.mark.parametrize("day", [13, 16])
def test_a_quiet_moment_before_the_first_refusal_costs_little(day: int) -> None:
    """On these training days one or two mails had come through in the ten seconds before it: ten times as dear."""
    found = play(play_day("throttling", day, training=True), lambda b, loop: LearnedBus(b, loop, Memory(), day))
    assert found.excess < 200


def test_a_day_teaches_a_greylist() -> None:
    memory = Memory()
    learned("greylisting", memory, training=True)
    assert memory.table is not None
    entry = memory.table.find(RECEIVER, Scope.MESSAGE, "mailbox")
    assert entry is not None
    assert entry.gone_between(0, 250) < 0.4
    assert entry.gone_between(280, 310) > 0.5


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_training_and_test_days_differ(scenario: str) -> None:
    """And a seed draws the same day each time."""
    test, again, training, other = (
        [(message.arrived, message.obstacle) for message in play_day(scenario, seed, training=training).messages()]
        for seed, training in ((1, False), (1, False), (1, True), (2, False))
    )
    assert test == again
    assert test[:10] != training[:10]
    assert test[:10] != other[:10]
    assert all(START <= arrived < START + DAY for arrived, _ in test)


def test_noise_is_the_same_under_every_rule() -> None:
    """Common random numbers: a message's n-th attempt fails or not, whoever makes it and when."""
    attempts = {by_rule("5 % noise", name).attempts for name in ("fixed 30 s", "Finagle", "Celery, no limit")}
    assert len(attempts) == 1


def test_nobody_beats_the_oracle_but_by_luck() -> None:
    """A message that is tried once, at once, costs nothing above it."""
    quiet = play_day("long outages", 1, training=False)
    quiet.down.spans.clear()
    quiet.down.starts.clear()
    found = play(quiet, plain(COMMON["fixed 30 s"], 1), Costs())
    assert found.excess == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(
    ("rule", "attempt", "least", "most"),
    [
        (celery, 1, 0, 1),  # randrange(2)
        (celery, 20, 0, 600),
        (celery, 5000, 0, 600),
        (sidekiq, 1, 15, 24),
        (sidekiq, 3, 16 + 15, 16 + 15 + 27),
        (oban, 1, 17, 18.7),
        (river, 3, 72.9, 89.1),
    ],
)
def test_a_rule_waits_as_its_project_defines_it(rule, attempt: int, least: float, most: float) -> None:
    waits = [rule(attempt, random.Random(seed)) for seed in range(300)]
    assert least <= min(waits)
    assert max(waits) <= most
