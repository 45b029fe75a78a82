"""The learned retry policy beside every rule in common use, on days that are played.

    python -m benchmarks.retry                      # the table: 8 test days of 12 scenarios; a quarter of an hour
    python -m benchmarks.retry --quick              # one day of three scenarios
    python -m benchmarks.retry --out days.jsonl     # each day's result as a line; what is there is not played again
    python -m benchmarks.retry --pictures docs      # the heat map, the survival curve and the chain, as SVG

A test day and a training day never have the same seed or parameters. The excess is the cost above that of an oracle
who knows when each obstacle goes away. It drives app/retry itself, not a copy.
"""

import argparse
import functools
import itertools
import json
import math
import pickle
import statistics
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from app.retry import LearnedPolicy, Obstacle, Scope, classify
from app.retry.fit import CAUSES, MOST_TRANSITIONS, Transitions, fit
from benchmarks.retry import pictures
from benchmarks.retry.backends import DAY, SCENARIOS, START, play_day
from benchmarks.retry.gated import LearnedBus, Memory, simplest, today
from benchmarks.retry.rules import COMMON
from benchmarks.retry.simulate import plain, play

QUICK = ("short crashes", "greylisting", "throttling")
OURS = ("today", "simplest", "cold", "learned", "misled", "garbage")
NEXT_DAY = 1000
"""Added to a day's number: the day after one that was begun with misleading data."""
LABELS = {
    "today": "the service before",
    "simplest": "a breaker that probes every 10 s",
    "cold": "learned, without data",
    "learned": "learned, after one other day",
    "misled": "learned, after another scenario's day",
    "garbage": "learned, after garbage",
}


class Played:
    """Results, kept as lines of a file where one is named."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        lines = path.read_text().splitlines() if path and path.exists() else []
        self.results = {(told["scenario"], told["day"], told["name"]): told for told in map(json.loads, lines)}

    def add(self, scenario: str, day: int, name: str, result: Any) -> None:
        told = {"scenario": scenario, "day": day, "name": name, **asdict(result)}
        self.results[scenario, day, name] = told
        if self.path:
            with self.path.open("a") as file:
                file.write(json.dumps(told) + "\n")

    def excess(self, scenario: str, name: str, days: Iterable[int]) -> list[float]:
        return [self.results[scenario, day, name]["excess"] for day in days]

    def mean(self, scenario: str, name: str, days: Iterable[int], what: str = "excess") -> float:
        return statistics.fmean(self.results[scenario, day, name][what] for day in days)


def run_learned(scenario: str, day: int, memory: Memory, *, training: bool = False) -> Any:
    return play(
        play_day(scenario, day, training=training), lambda backend, loop: LearnedBus(backend, loop, memory, day)
    )


@functools.cache
def _training(scenario: str, day: int) -> str:
    memory = Memory()
    run_learned(scenario, day, memory, training=True)
    return pickle.dumps(memory.yesterday())


def trained(scenario: str, day: int) -> Memory:
    """What one day of other data leaves, for a day that begins now."""
    return pickle.loads(_training(scenario, day))  # noqa: S301 -- made just before, here


def misleading(scenario: str, day: int) -> Memory:
    """A training day of another scenario: over the days, of every other one in its turn."""
    names = list(SCENARIOS)
    return trained(names[(names.index(scenario) + 1 + day % (len(names) - 1)) % len(names)], day)


def play_all(played: Played, scenarios: tuple[str, ...], days: list[int], names: tuple[str, ...]) -> None:
    for day in days:
        for scenario in scenarios:
            began = time.process_time()
            wanted = [name for name in names if (scenario, day, name) not in played.results]
            for name in wanted:
                _play_one(played, scenario, day, name)
            took = time.process_time() - began
            print(f"day {day}: {scenario}: {len(wanted)} played in {took:.1f} s", file=sys.stderr, flush=True)


def _play_one(played: Played, scenario: str, day: int, name: str) -> None:
    later = day + NEXT_DAY
    if name in COMMON or name in ("today", "simplest"):
        played.add(scenario, day, name, _by_rule(scenario, day, name))
    elif name == "cold":
        played.add(scenario, day, name, run_learned(scenario, day, Memory()))
    elif name == "learned":
        played.add(scenario, day, name, run_learned(scenario, day, trained(scenario, day)))
    elif name == "cold, next day":
        played.add(scenario, day, name, run_learned(scenario, later, Memory()))
    else:
        memory = misleading(scenario, day) if name == "misled" else Memory.garbage(day)
        played.add(scenario, day, name, run_learned(scenario, day, memory))
        played.add(scenario, day, f"{name}, next day", run_learned(scenario, later, memory.yesterday()))


def _by_rule(scenario: str, day: int, name: str) -> Any:
    if name in COMMON:
        return play(play_day(scenario, day, training=False), plain(COMMON[name], day))
    make = today if name == "today" else simplest
    return play(play_day(scenario, day, training=False), lambda backend, loop: make(backend, loop, day))


# The tables


def geometric(numbers: Iterable[float]) -> float:
    return math.exp(statistics.fmean(math.log(max(number, 1e-3)) for number in numbers))


def best_rule(played: Played, scenario: str, days: list[int]) -> str:
    return min(COMMON, key=lambda name: played.mean(scenario, name, days))


def report(played: Played, scenarios: tuple[str, ...], days: list[int]) -> None:
    best = {scenario: best_rule(played, scenario, days) for scenario in scenarios}
    compared = Compared(played, scenarios, days, best)
    ours = [name for name in OURS if compared.has(name)]
    print(f"\nExcess cost, ratio to the best common rule of the scenario; {len(days)} days: mean (least to most)\n")
    print("| scenario | best rule | its excess, minutes a day |" + "".join(f" {LABELS[name]} |" for name in ours))
    print("|---|---|---|" + "---|" * len(ours))
    for scenario in scenarios:
        base = played.mean(scenario, best[scenario], days)
        cells = [_spread(compared.of_scenario(scenario, name)) for name in ours]
        print(f"| {scenario} | {best[scenario]} | {base:,.0f} | " + " | ".join(cells) + " |")
    print("| **geometric mean** | | | " + " | ".join(_spread(compared.mean(name)) for name in ours) + " |")
    print("| **worst** | | | " + " | ".join(f"{compared.worst(name)[0]:.2f}" for name in ours) + " |")
    _report_goals(compared)
    _report_rules(played, scenarios, days, best)


Spread = tuple[float, list[float]]
"""Of all days, and of each."""


def _spread(numbers: Spread, told: str = "{:.2f}") -> str:
    each = [told.format(extreme) for extreme in (min(numbers[1]), max(numbers[1]))]
    return f"{told.format(numbers[0])} ({' to '.join(each)})"


@dataclass(frozen=True, slots=True)
class Compared:
    """Ratios of excess costs. Of several days it is the ratio of the means, which no single quiet day decides."""

    played: Played
    scenarios: tuple[str, ...]
    days: list[int]
    best: dict[str, str]

    def has(self, name: str) -> bool:
        return self.played_days(name) == self.days

    def played_days(self, *names: str) -> list[int]:
        wanted = list(itertools.product(self.scenarios, names))
        return [day for day in self.days if all((each, day, name) in self.played.results for each, name in wanted)]

    def of_scenario(self, scenario: str, name: str, to: str | None = None) -> Spread:
        ours = self.played.excess(scenario, name, self.days)
        theirs = self.played.excess(scenario, to or self.best[scenario], self.days)
        each = [our / their for our, their in zip(ours, theirs, strict=True) if their > 0]
        return sum(ours) / sum(theirs), each or [sum(ours) / sum(theirs)]

    def mean(self, name: str, to: str | None = None) -> Spread:
        """Geometric, over the scenarios."""
        found = [self.of_scenario(scenario, name, to) for scenario in self.scenarios]
        days = zip(*(each for _, each in found if len(each) == len(self.days)), strict=True)
        return geometric(mean for mean, _ in found), [geometric(day) for day in days]

    def worst(self, name: str, to: str | None = None) -> tuple[float, str]:
        return max((self.of_scenario(scenario, name, to)[0], scenario) for scenario in self.scenarios)

    def fewer_attempts(self, rule: str) -> Spread:
        """Against a server that is down: the rule's for one of ours."""

        def ratio(days: Iterable[int]) -> float:
            ours, theirs = (
                sum(self.played.mean(scenario, name, days, "attempts_while_down") for scenario in self.scenarios)
                for name in ("learned", rule)
            )
            return theirs / ours

        return ratio(self.days), [ratio([day]) for day in self.days]


def _report_goals(compared: Compared) -> None:
    print("\n| goal | | reached |\n|---|---|---|")
    for name, mean, worst in (("learned", 0.30, 1.0), ("cold", 0.40, 1.3)):
        told, where = compared.worst(name)
        print(f"| {LABELS[name]}: geometric mean | at most {mean:.2f} | {_spread(compared.mean(name))} |")
        print(f"| {LABELS[name]}: worst scenario | at most {worst:.1f} | {told:.2f} ({where}) |")
    for name in ("misled", "garbage"):
        some = replace(compared, days=compared.played_days(name, "cold", "cold, next day"))
        if not some.days:
            continue
        for label, ours, cold, most in (
            (LABELS[name], name, "cold", 1.3),
            ("… on the next day", f"{name}, next day", "cold, next day", 1.0),
        ):
            told, where = some.worst(ours, cold)
            found = f"{_spread(some.mean(ours, cold))}; at worst {told:.2f} ({where}); days: {len(some.days)}"
            print(f"| {label}, beside a cold start | at most {most:.1f} | {found} |")
    for to, most in (("simplest", "at most 0.60"), ("today", "")):
        told, where = compared.worst("learned", to)
        found = f"{_spread(compared.mean('learned', to))}; at worst {told:.2f} ({where})"
        print(f"| {LABELS['learned']}, beside {LABELS[to]} | {most} | {found} |")
    for rule, least in (("Celery, no limit", "at least 5"), ("Celery", "")):
        found = _spread(compared.fewer_attempts(rule), "{:.1f}")
        print(f"| attempts at a server that is down: {rule}'s for one of ours | {least} | {found} |")
    refit, decision = speed()
    print(f"| a refit of 1,000,000 attempts | at most 2 s | {refit:.1f} s of processor time |")
    print(f"| a decision | at most 50 µs | {decision * 1e6:.0f} µs |")


def speed() -> tuple[float, float]:
    """Seconds of processor time for a refit of a million attempts, all of which count, and for a decision."""
    rng = np.random.default_rng(1)
    keys = [(f"receiver {n}", scope, kind) for n in range(5) for scope in Scope for kind in list(CAUSES)[:5]]
    age_from = 10 ** rng.uniform(-1, 5, MOST_TRANSITIONS)
    at = START - rng.uniform(0, DAY, age_from.size)
    seen = {
        key: Transitions(age_from, age_from * rng.uniform(1, 3, at.size), rng.random(at.size) < 0.5, at) for key in keys
    }
    assert sum(len(each.at) for each in seen.values()) == 1_000_000
    fit({}, START)  # the prior's solutions are kept by a process that fits
    began = time.process_time()
    table = fit(seen, START)
    fitted = time.process_time()
    policy, obstacle = LearnedPolicy(table), Obstacle("receiver 0", Scope.BACKEND, classify("unreachable"), 1234.0, 77)
    for _ in range(10_000):
        policy.decide(obstacle)
    return fitted - began, (time.process_time() - fitted) / 10_000


def _report_rules(played: Played, scenarios: tuple[str, ...], days: list[int], best: dict[str, str]) -> None:
    print("\nThe common rules, excess as a ratio to the best of them\n")
    print("| rule |" + "".join(f" {scenario} |" for scenario in scenarios))
    print("|---|" + "---|" * len(scenarios))
    for name in COMMON:
        found = (played.mean(each, name, days) / played.mean(each, best[each], days) for each in scenarios)
        print(f"| {name} |" + "".join(f" {ratio:,.1f} |" for ratio in found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--quick", action="store_true", help="one day of three scenarios")
    parser.add_argument("--days", default="1-8", help="of the test days, from and to")
    parser.add_argument("--out", type=Path, help="a file of lines that keeps what was played")
    parser.add_argument("--report", action="store_true", help="only show what is in the file")
    parser.add_argument("--pictures", type=Path, help="draw into this folder, and play nothing else")
    told = parser.parse_args()
    if told.pictures:
        pictures.draw(told.pictures)
        return
    first, _, last = told.days.partition("-")
    days = [1] if told.quick else list(range(int(first), int(last or first) + 1))
    scenarios = QUICK if told.quick else tuple(SCENARIOS)
    played = Played(told.out)
    if not told.report:
        play_all(played, scenarios, days, (*COMMON, "today", "simplest", "cold", "learned"))
        if not told.quick:
            play_all(played, scenarios, days, ("cold, next day", "misled", "garbage"))
    report(played, scenarios, days)


if __name__ == "__main__":
    main()
