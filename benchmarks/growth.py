"""Growth: the model of docs/performance.md carried to 100,000 orders a second, played order by order.

    benchmarks/growth.py [--picture FILE]

Each design is a row of stations that an order passes: processors with a queue before them, and a commit that takes all
who wait. Orders come at random, at a rate; what follows from an order begins once it is answered. Printed is, for each
design and rate, how long an order takes until all that follows is done, and which station is the busiest: where the
time bends upwards, that one is full. Nothing is measured here: the costs were, the rest is arithmetic.
"""

import argparse
import heapq
import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pictures

SECONDS = 3.0
"""Of orders, for each point."""
MOST_ORDERS = 60_000
RATES = (
    *(
        30,
        100,
        200,
        300,
        400,
        500,
        600,
        700,
        800,
        1_000,
        1_500,
        2_000,
        3_000,
        5_000,
        6_000,
        7_000,
        8_000,
        9_000,
        10_000,
    ),
    *(12_000, 15_000, 20_000, 30_000, 40_000, 50_000, 60_000, 80_000, 100_000, 150_000, 200_000, 300_000),
)
BENT = 10.0
"""How many times as long as at rest an order takes where a design is said to bend."""
SPREAD = 0.5
"""Of a step's time: it takes between half as long and one and a half times as long as on average."""


@dataclass(frozen=True)
class Costs:
    """Milliseconds of one order, measured in November 2026 on two cores."""

    web: float
    """Of a processor, for the POST."""
    database: float
    """Of the database's processor, for the POST."""
    commit: float
    """Of the disk, for all who share it."""
    dispatch: float
    """Of a processor, for all deliveries of an order."""
    effects: float
    """Of the database's processor, for the same."""


ON_SQLITE = Costs(web=0.57, database=0.11, commit=0.86, dispatch=1.2, effects=0.11)
"""``database`` and ``commit`` are the write lock's, held for an order and for a commit."""
ON_POSTGRESQL = Costs(web=1.0, database=0.7, commit=0.5, dispatch=1.8, effects=1.5)
"""5.0 ms of processor together, 2.2 of them at the server. How they fall on POST and deliveries is the share of their
statements; the commit is that of a disk that answers within half a millisecond."""
BY_BROKER = replace(ON_POSTGRESQL, effects=1.1)
"""The claim and its index are a quarter of a delivery's statements."""
BY_LOG = replace(ON_POSTGRESQL, database=0.45, effects=0.15)
"""No deliveries are stored with the order. Consumers of the log store effects a hundred at a time, in a database that
is theirs."""


@dataclass(frozen=True)
class Design:
    name: str
    costs: Costs
    web: int
    """Processors that serve and dispatch. Of SQLite: both, on one machine."""
    database: int
    """Processors of one database server."""
    partitions: int = 1
    """Database servers, each with users of its own, and with its own processors that serve."""
    decoder: float = 0.0
    """Milliseconds for an order of the one process that reads the database's log; 0 without one."""
    largest_share: float = 1.0
    """Of the fullest partition's orders, against the average: users are spread by a hash, and some order more."""


DESIGNS = (
    Design("SQLite, one machine of 2 cores", ON_SQLITE, web=2, database=1),
    Design("PostgreSQL, 16 cores; 10 machines of 2", ON_POSTGRESQL, web=20, database=16),
    Design("the same, carried by a broker; 14 machines of 2", BY_BROKER, web=28, database=16),
    Design(
        "8 such servers, users spread by a hash", ON_POSTGRESQL, web=20, database=16, partitions=8, largest_share=1.1
    ),
    Design("24 such servers", ON_POSTGRESQL, web=20, database=16, partitions=24, largest_share=1.2),
    Design(
        "6 servers, each read by a log's connector",
        BY_LOG,
        web=72,
        database=16,
        partitions=6,
        decoder=0.03,
        largest_share=1.1,
    ),
)


class Station:
    """So many servers and one queue; or a commit, which takes all who wait at once."""

    def __init__(self, name: str, servers: int, *, shared: bool = False) -> None:
        self.name, self.free, self.servers, self.shared = name, servers, servers, shared
        self.waiting: deque[tuple[int, int]] = deque()
        self.busy = 0.0


class Play:
    """One rate on one design. ``done`` are the times, in seconds, from the POST until all that follows is done."""

    def __init__(self, design: Design, rate: float, seed: int = 1) -> None:
        self.random = random.Random(seed)
        self.rate = rate * design.largest_share / design.partitions
        self.count = int(max(200, min(self.rate * SECONDS, MOST_ORDERS)))
        self.path = list(_path(design))
        self.events: list[tuple[float, int, int, tuple[int, ...]]] = []
        self.answered: list[float] = []
        self.done: list[float] = []
        self.ended = 0.0
        self.pushed = 0

    def run(self) -> "Play":
        began, at = {}, 0.0
        for number in range(self.count):
            at += self.random.expovariate(self.rate)
            began[number] = at
            self._push(at, 0, (number,))
        answered_after = next(i for i, (station, _) in enumerate(self.path) if station.shared)
        while self.events:
            at, _, step, orders = heapq.heappop(self.events)
            if step < 0:
                self._leave(at, -step - 1, orders)
                if -step - 1 == answered_after:
                    self.answered += [at - began[number] for number in orders]
                if -step == len(self.path):
                    self.done += [at - began[number] for number in orders]
                    self.ended = at
            else:
                self._arrive(at, step, orders)
        return self

    def _push(self, at: float, step: int, orders: tuple[int, ...]) -> None:
        self.pushed += 1  # of two at one moment, the first comes first
        heapq.heappush(self.events, (at, self.pushed, step, orders))

    def _arrive(self, at: float, step: int, orders: tuple[int, ...]) -> None:
        station, _ = self.path[step]
        station.waiting += [(order, step) for order in orders]
        self._begin(at, station)

    def _leave(self, at: float, step: int, orders: tuple[int, ...]) -> None:
        station, _ = self.path[step]
        if step + 1 < len(self.path):
            self._arrive(at, step + 1, orders)
        station.free += 1
        self._begin(at, station)

    def _begin(self, at: float, station: Station) -> None:
        while station.free and station.waiting:
            station.free -= 1
            order, step = station.waiting.popleft()
            orders = [order]
            while station.shared and station.waiting and station.waiting[0][1] == step:
                orders.append(station.waiting.popleft()[0])
            takes = self.path[step][1] / 1000 * self.random.uniform(1 - SPREAD, 1 + SPREAD)
            station.busy += takes
            self._push(at + takes, -step - 1, tuple(orders))

    def busiest(self) -> tuple[str, float]:
        """The station, and the share of the time for which it worked; not a commit, which more share as it fills."""
        stations = {id(station): station for station, _ in self.path if not station.shared}.values()
        used = {station.name: station.busy / station.servers / self.ended for station in stations}
        name = max(used, key=used.__getitem__)
        return name, min(1.0, used[name])


def _path(design: Design) -> Iterator[tuple[Station, float]]:
    """The stations that an order passes, in milliseconds at each."""
    costs = design.costs
    processors = Station("the processors that serve and dispatch", design.web)
    database = Station("the write lock" if costs is ON_SQLITE else "the database's processors", design.database)
    commit = Station("the disk's commits", 1, shared=True)
    if costs is ON_SQLITE:
        commit = Station("the write lock", 1, shared=True)
        database = Station("the write lock's statements", 1)
    yield processors, costs.web
    yield database, costs.database
    yield commit, costs.commit
    dispatch = Station("the dispatcher's interpreter", 1) if costs is ON_SQLITE else processors
    if design.decoder:
        yield Station("the process that decodes the log", 1), design.decoder
    yield dispatch, costs.dispatch
    yield (database if not design.decoder else Station("the consumers' databases", design.database)), costs.effects


def percentile(values: list[float], percent: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * percent / 100))]


def played(design: Design) -> list[tuple[float, Play]]:
    """From the lowest rate on, up to the first at which nothing keeps up any more."""
    plays = []
    for rate in RATES:
        plays.append((rate, Play(design, rate).run()))
        if percentile(plays[-1][1].done, 50) > SECONDS / 10:
            break
    return plays


def main() -> None:
    parser = argparse.ArgumentParser(description="Where each design bends as orders grow.")
    parser.add_argument("--picture", type=Path, help="an SVG file")
    options = parser.parse_args()
    series = {}
    print("| | bends between, orders a second | POST p99 before, ms | until all is done p99 before, ms | full then |")
    print("|---|---|---|---|---|")
    for design in DESIGNS:
        plays = played(design)
        series[design.name] = [(rate, 1000 * percentile(play.done, 99)) for rate, play in plays]
        rest = percentile(plays[0][1].done, 99)
        bent = next((n for n, (_, play) in enumerate(plays) if percentile(play.done, 99) > BENT * rest), None)
        before = plays[-1 if bent is None else max(bent - 1, 0)]
        where = f"beyond {before[0]:,}" if bent is None else f"{before[0]:,} and {plays[bent][0]:,}"
        name, share = (before if bent is None else plays[bent])[1].busiest()
        posts, done = (1000 * percentile(times, 99) for times in (before[1].answered, before[1].done))
        print(f"| {design.name} | {where} | {posts:.1f} | {done:.1f} | {name}, {share:.0%} |", flush=True)
    if options.picture:
        label = "until all that follows is done, p99, ms"
        options.picture.write_text(pictures.lines(series, "orders a second", label))


if __name__ == "__main__":
    main()
