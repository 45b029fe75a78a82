"""Charts: ended attempts over time, and their durations, as coordinates for SVG. Pure."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import groupby

from app.bus.queries import EndedAttempt
from app.console.figures import Latency, latency_of
from app.states import Outcome

WIDTH, HEIGHT = 560, 170
LEFT, RIGHT, TOP, BOTTOM = 92, 552, 14, 142
"""Of the area that is drawn in."""


@dataclass(frozen=True)
class Bucket:
    """Attempts that ended from ``at`` on. The numbers are estimates where not every attempt was read."""

    at: datetime
    done: int
    failed: int
    latency: Latency | None
    """Of what was done: from when it was owed."""


@dataclass(frozen=True)
class Bar:
    x: float
    width: float
    done: tuple[float, float]
    """y and height."""
    failed: tuple[float, float]
    bucket: Bucket


@dataclass(frozen=True)
class Throughput:
    """Bars: what was done, and on top of it what failed."""

    bars: Sequence[Bar]
    ticks: Sequence[tuple[float, int]]
    """Of the grid: y and number."""


@dataclass(frozen=True)
class LatencyChart:
    """Two lines on a logarithmic scale, as paths' ``d``."""

    p50: str
    p99: str
    ticks: Sequence[tuple[float, float]]
    """Of the grid: y and seconds."""


def buckets(
    attempts: Iterable[EndedAttempt], now: datetime, within: timedelta, count: int, stride: int, timed: set[str]
) -> list[Bucket]:
    """``count`` buckets up to ``now``. Each attempt stands for ``stride``; the receivers ``timed`` give the latency."""
    begin, width = now - within, within / count
    done, failed = [0] * count, [0] * count
    counted: list[list[EndedAttempt]] = [[] for _ in range(count)]
    for each in attempts:
        number = min((each.ended_at - begin) // width, count - 1)  # now belongs to the last
        if number < 0 or each.ended_at > now:
            continue
        if each.outcome != Outcome.OK:
            failed[number] += stride
            continue
        done[number] += stride
        if each.receiver in timed:
            counted[number].append(each)
    return [Bucket(begin + n * width, done[n], failed[n], latency_of(counted[n])) for n in range(count)]


def throughput(found: Sequence[Bucket]) -> Throughput:
    highest = max((each.done + each.failed for each in found), default=0)
    top = _round_up(max(highest, 1))
    scale, step = (BOTTOM - TOP) / top, (RIGHT - LEFT) / len(found)
    bars = []
    for number, each in enumerate(found):
        done, failed = stacked(BOTTOM, scale, each.done, each.failed)
        bars.append(Bar(round(LEFT + number * step + 1, 1), round(step - 2, 1), done, failed, each))
    middle = [top // 2] if top % 2 == 0 else []
    return Throughput(bars, [(BOTTOM - value * scale, value) for value in (0, *middle, top)])


def stacked(bottom: float, scale: float, lower: int, upper: int) -> tuple[tuple[float, float], tuple[float, float]]:
    """Two bars, the upper on top of the lower, each as its y and its height."""
    y = bottom - lower * scale
    return (round(y, 1), round(lower * scale, 1)), (round(y - upper * scale, 1), round(upper * scale, 1))


def _round_up(number: int) -> int:
    """To 1, 2 or 5 with zeros behind it."""
    power: int = 10 ** (len(f"{number}") - 1)
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= number)


def latency(found: Sequence[Bucket]) -> LatencyChart | None:
    """None where nothing was done."""
    values = [each.latency for each in found if each.latency]
    if not values:
        return None
    lowest = math.floor(math.log10(max(min(each.p50 for each in values), 0.001)))
    highest = max(math.ceil(math.log10(max(*(each.p99 for each in values), 0.001))), lowest + 1)

    def y(seconds: float) -> float:
        share = (math.log10(max(seconds, 10.0**lowest)) - lowest) / (highest - lowest)
        return round(BOTTOM - share * (BOTTOM - TOP), 1)

    step = (RIGHT - LEFT) / len(found)
    places = [(round(LEFT + (n + 0.5) * step, 1), each.latency) for n, each in enumerate(found)]
    return LatencyChart(
        p50=_path([(x, y(each.p50)) if each else None for x, each in places]),
        p99=_path([(x, y(each.p99)) if each else None for x, each in places]),
        ticks=[(y(10.0**power), 10.0**power) for power in range(lowest, highest + 1)],
    )


def _path(points: Sequence[tuple[float, float] | None]) -> str:
    """A line with gaps where there is no point; a point that stands alone is a short dash."""
    lines = ([f"{x} {y}" for x, y in filter(None, line)] for is_line, line in groupby(points, bool) if is_line)
    return " ".join("M" + " L".join(line) + (" h4" if len(line) == 1 else "") for line in lines)
