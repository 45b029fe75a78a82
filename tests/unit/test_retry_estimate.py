"""The estimator recovers known hazards, by the prior first and then by the data; what is senseless changes nothing."""

import bisect
import itertools
import json
import math
import random

import numpy as np
import pytest

from app.retry import prior
from app.retry.ages import BUCKETS, EDGES
from app.retry.causes import Scope
from app.retry.costs import Costs
from app.retry.estimate import Counts, Estimate, count, estimate
from app.retry.fit import CAUSES, MOST_TRANSITIONS, Transitions, fit, trust
from app.retry.learned import SHORTEST_SECONDS
from app.retry.table import Entry, Table, entry_key

NOW = 1_800_000_000.0
RECEIVER = "send_email_notification"
PRIOR = np.asarray(prior.hazards(Scope.MESSAGE, CAUSES["451"]))


def attempts_at(lasts: list[float], rng: random.Random) -> list[tuple[float, float, bool, float]]:
    """Obstacles that last so long, each tried at growing random ages until it is gone, as transitions."""
    found = []
    for number, end in enumerate(lasts):
        age = 0.0
        while True:
            later = age + rng.uniform(0.3, 1.5) * max(2.0, age / 2)
            found.append((age, later, later >= end, NOW - len(lasts) + number))
            if later >= end:
                break
            age = later
    return found


def columns(rows: list[tuple[float, float, bool, float]]) -> Transitions:
    return Transitions(*(list(column) for column in zip(*rows, strict=True)))


def fitted(rows: list[tuple[float, float, bool, float]], kind: str = "451") -> Entry:
    table = fit({(RECEIVER, Scope.MESSAGE, kind): columns(rows)}, NOW)
    entry = table.find(RECEIVER, Scope.MESSAGE, kind)
    assert entry is not None
    return entry


@pytest.mark.parametrize("mean", [20.0, 600.0])
def test_a_constant_hazard_is_recovered(mean: float) -> None:
    """From intervals alone: within a tenth of probability wherever there was data."""
    rng = random.Random(1)
    entry = fitted(attempts_at([rng.expovariate(1 / mean) for _ in range(3000)], rng))
    for age in (0.2 * mean, mean, 2 * mean):
        assert entry.gone_between(0.0, age) == pytest.approx(1 - math.exp(-age / mean), abs=0.06)


def test_a_lognormal_one_too() -> None:
    rng = random.Random(2)
    entry = fitted(attempts_at([600 * math.exp(rng.gauss(0, 1)) for _ in range(3000)], rng))
    for age, share in ((300, 0.244), (600, 0.5), (1200, 0.756)):
        assert entry.gone_between(0.0, age) == pytest.approx(share, abs=0.06)


def test_a_greylist_of_300_seconds_appears_only_when_the_data_supports_it() -> None:
    rng = random.Random(3)
    rows = attempts_at([300.0] * 400, rng)
    few, many = fitted(rows[: len(rows) // 100]), fitted(rows)
    assert many.gone_between(0, 250) < 0.05
    assert many.gone_between(0, 330) > 0.9
    assert few.gone_between(0, 330) < 0.9


def test_a_success_just_after_an_edge_counts_at_it() -> None:
    """Else jitter would put the end of what is always gone at 305 s into the bucket after it, and the guard would find
    the table refuted by its own plan."""
    edge = next(each for each in EDGES if each > 300)
    entry = fitted([(0.0, edge * 1.005, True, NOW)] * 500)
    assert entry.gone_between(0.0, edge) > 0.95


def test_what_is_always_gone_by_an_edge_is_nearly_sure() -> None:
    """An end counts for the share of its bucket that it lived, which is less than half where ends are frequent; with
    half, no bucket's chance could pass 86 %."""
    entry = fitted([(EDGES[50], EDGES[51], True, NOW)] * 500)
    assert entry.gone_between(EDGES[50], EDGES[51]) > 0.97


def test_the_running_sums_are_the_sums_over_all_intervals() -> None:
    """One round of EM, written out for each interval and bucket."""
    rng = random.Random(9)
    numbers = Counts(np.zeros((BUCKETS + 1,) * 2), np.zeros((BUCKETS + 1,) * 2))
    for _ in range(40):
        start, end = sorted(rng.sample(range(BUCKETS + 1), 2))
        rng.choice((numbers.gone, numbers.there))[start, end] += rng.uniform(0.1, 5)
    ends, exposure = np.zeros(BUCKETS), np.zeros(BUCKETS)
    survival = np.exp(-np.concatenate(([0.0], np.cumsum(PRIOR))))
    for start, end in itertools.product(range(BUCKETS + 1), repeat=2):
        for i in range(start, end):
            chance = survival[start] - survival[end]
            share, after = (survival[i] - survival[i + 1]) / chance, (survival[i + 1] - survival[end]) / chance
            lived = 1 / PRIOR[i] - 1 / math.expm1(PRIOR[i])
            ends[i] += numbers.gone[start, end] * share
            exposure[i] += numbers.gone[start, end] * (after + share * lived) + numbers.there[start, end]
    found = estimate(numbers, PRIOR, rounds=1)
    assert found.ends == pytest.approx(ends)
    assert found.exposure == pytest.approx(exposure)


def test_a_few_looks_that_find_it_gone_at_once_are_believed() -> None:
    """Among many that came later and say nothing of it; and as few that find it there are believed as well."""
    later = [(0.0, 30.0, True, NOW)] * 40
    assert fitted([*later, *[(0.0, SHORTEST_SECONDS, True, NOW)] * 8]).gone_between(0, SHORTEST_SECONDS) > 0.7
    assert fitted([*later, *[(0.0, SHORTEST_SECONDS, False, NOW)] * 8]).gone_between(0, SHORTEST_SECONDS) < 0.15


def test_a_few_looks_in_vain_do_not_put_off_the_first_one() -> None:
    """One in twenty fails again by chance; the one after it comes through whenever it is made."""
    rows = [(0.0, SHORTEST_SECONDS, n >= 5, NOW) for n in range(100)]
    entry = fitted([*rows, *[(SHORTEST_SECONDS, 2 * SHORTEST_SECONDS, True, NOW)] * 5], "unreachable")
    assert EDGES[entry.plan[0][0]] == SHORTEST_SECONDS


def test_without_data_the_prior_stands() -> None:
    found = estimate(Counts(np.zeros((BUCKETS + 1,) * 2), np.zeros((BUCKETS + 1,) * 2)), PRIOR)
    assert found.hazard == pytest.approx(PRIOR)


def test_the_band_narrows_with_data() -> None:
    rng = random.Random(4)
    rows = attempts_at([rng.expovariate(1 / 60) for _ in range(1000)], rng)

    def band(share: int) -> Estimate:
        some = columns(rows[: len(rows) // share])
        numbers = count(np.asarray(some.age_from), np.asarray(some.age_to), some.gone, np.ones(len(some.at)))
        return estimate(numbers, PRIOR)

    few, many = band(100), band(1)
    there = np.searchsorted(EDGES, 60.0)
    assert many.deviation[there] / many.hazard[:there].sum() < few.deviation[there] / few.hazard[:there].sum() / 3


@pytest.mark.parametrize(
    ("age_from", "age_to"),
    [
        (-5.0, 10.0),  # a clock was set back between
        (10.0, 10.0),  # two attempts at one moment
        (20.0, 10.0),
        (math.nan, 10.0),
        (5.0, math.inf),
        (500_000.0, 600_000.0),  # beyond the horizon
    ],
)
def test_a_transition_that_cannot_be_tells_nothing(age_from: float, age_to: float) -> None:
    entry = fitted([(age_from, age_to, True, NOW)])
    assert entry.hazard == pytest.approx(tuple(PRIOR))


def test_of_ten_million_attempts_the_newest_count() -> None:
    """Here thirty thousand: the cost of a fit has an end, and what it forgets first is the oldest."""
    oldest = [(0.0, 1.0, True, NOW - 100.0)] * 10_000
    entry = fitted(oldest + [(0.0, 1.0, False, NOW)] * MOST_TRANSITIONS)
    assert entry.transitions == MOST_TRANSITIONS
    assert entry.gone_between(0, 1) < 0.01


def test_old_data_fades() -> None:
    """What was so half a year ago counts for next to nothing."""
    rows = [(0.0, 1.0, True, NOW - 180 * 86_400.0)] * 200
    assert fitted(rows).gone_between(0, 1) < 0.1
    assert fitted([(a, b, gone, NOW) for a, b, gone, _ in rows]).gone_between(0, 1) > 0.8


def test_predictions_that_are_refuted_are_forgotten() -> None:
    """A day says 300 seconds; then early looks come through. What came before them is not used any more."""
    key = (RECEIVER, Scope.MESSAGE, "451")
    before = attempts_at([300.0] * 300, random.Random(5))
    first = fit({key: columns(before)}, NOW)
    looks = [(0.0, 5.0, True, NOW + 10 + number) for number in range(6)]
    second = fit({key: columns(before + looks)}, NOW + 60, previous=first)
    entry = second.find(*key)
    assert entry is not None
    assert entry.forgotten_at == NOW + 60
    assert entry.forget_before == NOW + 10
    assert entry.transitions == 6
    assert entry.gone_between(0, 10) > 0.25


def test_predictions_that_hold_are_kept() -> None:
    key = (RECEIVER, Scope.MESSAGE, "451")
    rng = random.Random(6)
    before = attempts_at([300.0] * 300, rng)
    after = [(a, b, gone, NOW + 1 + n) for n, (a, b, gone, _) in enumerate(attempts_at([300.0] * 100, rng))]
    first = fit({key: columns(before)}, NOW)
    entry = fit({key: columns(before + after)}, NOW + 10_000, previous=first).find(*key)
    assert entry is not None
    assert entry.forgotten_at == 0
    assert entry.seen == pytest.approx(entry.expected, abs=0.25 * entry.judged)


def test_a_failure_within_a_bucket_refutes_nothing() -> None:
    """The estimate does not see within a bucket, so its table says nothing of when in it a greylist ends."""
    key = (RECEIVER, Scope.MESSAGE, "451")
    bucket = bisect.bisect(EDGES, 300.0) - 1
    begin, end = EDGES[bucket], EDGES[bucket + 1]
    first = fit({key: columns([(0.0, begin, False, NOW), (begin, end, True, NOW)] * 300)}, NOW)
    after = [(begin, (begin + end) / 2, False, NOW + number) for number in range(1, 200)]
    entry = fit({key: columns(after)}, NOW + 300, previous=first).find(*key)
    assert entry is not None
    assert (entry.forgotten_at, entry.judged) == (0, 0)


def test_an_entry_without_news_stands_for_a_day() -> None:
    """Then it fades, and is fitted again. News of another kind is nothing to it."""
    key, other = (RECEIVER, Scope.MESSAGE, "451"), (RECEIVER, Scope.MESSAGE, "450")
    rows = columns(attempts_at([300.0] * 50, random.Random(10)))
    first = fit({key: rows}, NOW)
    soon = fit({key: rows, other: columns([(0.0, 9.0, True, NOW + 5)])}, NOW + 3600, previous=first)
    later = fit({key: rows}, NOW + 2 * 86_400, previous=soon)
    assert soon.find(*key) is first.find(*key)
    assert later.find(*key) is not first.find(*key)
    dearer = fit({key: rows}, NOW + 3600, costs=Costs(attempt=1.0), previous=first)
    assert dearer.find(*key) is not first.find(*key)


def test_nothing_from_the_future_is_judged() -> None:
    """A clock ran ahead when it was recorded; it may say what it likes."""
    key = (RECEIVER, Scope.MESSAGE, "451")
    before = attempts_at([300.0] * 300, random.Random(7))
    ahead = [(0.0, 5.0, True, NOW + 9e6 + number) for number in range(6)]
    first = fit({key: columns(before)}, NOW)
    entry = fit({key: columns(before + ahead)}, NOW + 60, previous=first).find(*key)
    assert entry is not None
    assert entry.forgotten_at == 0


def test_trust_grows_with_what_was_seen() -> None:
    assert [trust(ends) for ends in (0, 25, 100, 400, 10**7)] == [4, 4, 8, 16, 16]


def test_a_table_survives_json() -> None:
    """To four digits, and small."""
    rows = attempts_at([60.0] * 50, random.Random(8))
    table = fit({(RECEIVER, Scope.MESSAGE, "451"): columns(rows)}, NOW, lone={RECEIVER: {"451": (3.0, 500.0)}})
    text = table.to_json()
    again = Table.from_json(text)
    assert again is not None
    assert again.lone == table.lone
    assert again.entries.keys() == table.entries.keys()
    for key, entry in table.entries.items():
        assert again.entries[key].plan == entry.plan
        assert again.entries[key].hazard == pytest.approx(entry.hazard, rel=1e-3)
        assert again.entries[key].prior_wait == pytest.approx(entry.prior_wait, rel=1e-3)


def test_a_table_of_another_format_is_not_read() -> None:
    told = json.loads(fit({}, NOW).to_json())
    assert Table.from_json(json.dumps({**told, "format": 0})) is None
    assert Table.from_json(json.dumps({**told, "buckets": 7})) is None


def test_each_fit_has_the_next_version_and_keeps_the_costs() -> None:
    first = fit({}, NOW, costs=Costs(attempt=0.5))
    second = fit({}, NOW + 60, previous=first)
    assert (first.version, second.version) == (1, 2)
    assert second.costs == Costs(attempt=0.5)


def test_every_kind_has_a_prior_for_both_scopes() -> None:
    table = fit({}, NOW)
    assert set(table.entries) == {entry_key("", scope, kind) for scope in Scope for kind in CAUSES}


def test_a_kind_that_nobody_knows_is_left_out() -> None:
    """A row of a newer version, say."""
    table = fit({(RECEIVER, Scope.MESSAGE, "no such kind"): columns([(0.0, 1.0, True, NOW)])}, NOW)
    assert table.find(RECEIVER, Scope.MESSAGE, "no such kind") is None
