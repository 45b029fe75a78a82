"""benchmarks/growth.py: its queues wait as theory has it, and a design bends where its fullest station is full."""

import statistics
import sys
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from config import CHECKOUT

sys.path.append(str(CHECKOUT / "benchmarks"))
import growth
import pictures

FREE = growth.Costs(web=0.0, database=0.0, commit=0.0, dispatch=0.0, effects=0.0)
ALONE = growth.Design("one station", replace(FREE, web=1.0), web=1, database=1)


def test_a_queue_waits_as_long_as_theory_says() -> None:
    """Pollaczek and Khinchine: with times between 0.5 and 1.5 ms, at 80 % the mean wait is 2.17 ms."""
    taken = [time for seed in range(8) for time in growth.Play(ALONE, 800, seed).run().answered]
    variation = (2 * growth.SPREAD) ** 2 / 12
    waits = 0.8 * (1 + variation) / (2 * (1 - 0.8))
    assert statistics.mean(taken) * 1000 == pytest.approx(1.0 + waits, rel=0.15)


def test_all_who_wait_share_a_commit() -> None:
    """A thousand a second, though a commit takes 5 ms: none waits for more than the one before and its own."""
    design = replace(ALONE, costs=replace(FREE, commit=5.0))
    done = growth.Play(design, 1000).run().done
    assert max(done) <= 2 * 5.0 * (1 + growth.SPREAD) / 1000
    assert len(done) == 1000 * growth.SECONDS


@pytest.mark.parametrize("design", growth.DESIGNS, ids=lambda design: design.name)
def test_a_design_keeps_up_until_its_fullest_station_is_full(design: growth.Design) -> None:
    """By hand: processors divided by milliseconds, at each station alone; and the same found by playing."""
    costs = design.costs
    if costs is growth.ON_SQLITE:
        limits = [1000 * design.web / costs.web, 1000 / costs.dispatch]
    else:
        together = costs.database + (0 if design.decoder else costs.effects)
        limits = [1000 * design.web / (costs.web + costs.dispatch), 1000 * design.database / together]
        limits += [1000 / design.decoder] if design.decoder else []
    limit = min(limits) * design.partitions / design.largest_share
    rest = growth.percentile(growth.Play(design, 30).run().done, 99)
    kept_up, overrun = (growth.Play(design, share * limit).run() for share in (0.8, 1.3))
    assert growth.percentile(kept_up.done, 99) < growth.BENT * rest
    assert growth.percentile(overrun.done, 99) > growth.BENT * rest
    assert overrun.busiest()[1] > 0.95


def test_pictures_are_well_formed_and_hold_every_name() -> None:
    lines = pictures.lines({"a": [(10, 1), (1000, 50)], "b": [(10, 2)]}, "x", "y")
    bars = pictures.bars({"one": [1, 2], "two": [3, 4]}, ("posts", "mails"))
    stacks = pictures.stacks({"one": {"a": 1, "b": 2}, "two": {"b": 0.01}}, {"one": "3 statements", "two": ""}, "x")
    assert texts(lines) >= {"a", "b", "x", "y", "1,000"}
    assert texts(stacks) >= {"one", "two", "a", "b", "x", "1.00", "2.00", "3.00", "3 statements"}
    assert texts(bars) >= {"one", "two", "posts", "mails", "1", "2", "3", "4"}


def texts(picture: str) -> set[str]:
    return {each.text for each in ElementTree.fromstring(picture).iter() if each.text}  # noqa: S314 - the same
