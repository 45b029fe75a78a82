"""The retry policy as pictures: its heat map, a survival curve and the measured chain, as coordinates for SVG. Pure.

``policy_pictures.html`` draws them, for the console's page and for the pictures in docs/.
"""

import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from app.bus.learning import Measured
from app.console.charts import stacked
from app.retry import Scope
from app.retry.ages import HORIZON, LEVELS, level_of
from app.retry.shown import Shown

MINUTE, HOUR, DAY = 60, 3600, 86_400
AGES = (
    *(0, 1, 2, 5, 10, 20, 30),
    *(MINUTE, 2 * MINUTE, 5 * MINUTE, 10 * MINUTE, 20 * MINUTE, 30 * MINUTE),
    *(HOUR, 2 * HOUR, 4 * HOUR, 8 * HOUR, 16 * HOUR, DAY, 2 * DAY, 4 * DAY),
)
"""Seconds: the columns of the heat map, and the finest steps in which attempts are counted."""

STATES = (0, 10, MINUTE, 10 * MINUTE, HOUR, DAY)
"""Of AGES, those at which a state of the chain begins."""


# The heat map

TONES = (1, 5, 15, MINUTE, 5 * MINUTE, 15 * MINUTE, HOUR, 6 * HOUR)
"""Seconds: a wait's tone is the number of these that it reaches."""
HEAT_LEFT, HEAT_TOP, CELL_WIDTH, CELL_HEIGHT = 66, 44, 50, 25


@dataclass(frozen=True)
class Cell:
    age: int
    waiting: int
    wait: float | None
    """Seconds; None: it gives up."""
    tone: int | None
    x: int
    y: int


@dataclass(frozen=True)
class HeatMap:
    width: int
    height: int
    ages: Sequence[tuple[int, int]]
    """Of each column: its middle, and the age in seconds."""
    levels: Sequence[tuple[int, int]]
    """Of each row: its baseline, and the number of deliveries that wait. One row where a delivery waits for itself."""
    cells: Sequence[Cell]
    tones: Sequence[tuple[int, int, int]]
    """Of the legend: a tone, its place, and the shortest wait that has it."""
    now: Cell | None
    """Where the backend stands at this moment."""

    def of_tone(self, tone: int | None) -> str:
        """The cells of this tone, as a path."""
        size = f"h{CELL_WIDTH - 1}v{CELL_HEIGHT - 1}h-{CELL_WIDTH - 1}z"
        return "".join(f"M{cell.x} {cell.y}{size}" for cell in self.cells if cell.tone == tone)

    def rows(self) -> list[tuple[int, list[Cell]]]:
        """As a table: an age, and a cell for each number of deliveries that wait, one first."""
        return [(age, [cell for cell in self.cells[::-1] if cell.age == age]) for age in AGES]


def heat_map(shown: Shown, now: tuple[float, int] | None = None) -> HeatMap:
    """Age × deliveries that wait → wait. ``now`` is the obstacle's age, and the number that wait behind it."""
    levels = LEVELS[::-1] if shown.scope is Scope.BACKEND else (1,)
    stands = (AGES[column_of(now[0])], LEVELS[level_of(now[1])]) if now else None
    cells = []
    for row, waiting in enumerate(levels):
        for column, age in enumerate(AGES):
            wait = shown.decide(float(age), waiting).wait
            place = HEAT_LEFT + column * CELL_WIDTH, HEAT_TOP + row * CELL_HEIGHT
            tone = None if wait is None else tone_of(wait)
            cells.append(Cell(age, waiting, wait, tone, *place))
    bottom = HEAT_TOP + len(levels) * CELL_HEIGHT
    return HeatMap(
        width=HEAT_LEFT + len(AGES) * CELL_WIDTH + 2,
        height=bottom + 40,
        ages=[(HEAT_LEFT + column * CELL_WIDTH + CELL_WIDTH // 2, age) for column, age in enumerate(AGES)],
        levels=[(HEAT_TOP + row * CELL_HEIGHT + 17, waiting) for row, waiting in enumerate(levels)],
        cells=cells,
        tones=[(tone, HEAT_LEFT + 116 * tone, longest) for tone, longest in enumerate((0, *TONES))],
        now=next((cell for cell in cells if (cell.age, cell.waiting) == stands), None),
    )


def tone_of(wait: float) -> int:
    return bisect_right(TONES, wait)


def column_of(age: float) -> int:
    """The place in AGES of the last that is not above this age."""
    return max(0, bisect_right(AGES, age) - 1)


# The survival curve

CURVE_WIDTH, CURVE_HEIGHT = 640, 330
CURVE_LEFT, CURVE_RIGHT, CURVE_TOP, CURVE_BOTTOM = 46, 628, 14, 232
BARS_TOP, BARS_BOTTOM = 252, 290
EARLIEST = 0.5
"""Seconds at the left end of the axis, which is logarithmic."""
TICKS = (1, 10, MINUTE, 10 * MINUTE, HOUR, 6 * HOUR, DAY, 4 * DAY)


@dataclass(frozen=True)
class Bar:
    """The attempts at obstacles of one step of age."""

    x: float
    width: float
    gone: tuple[float, float]
    """y and height."""
    there: tuple[float, float]


@dataclass(frozen=True)
class Curve:
    """P(still there) by age."""

    line: str
    band: str
    prior: str
    shares: Sequence[tuple[float, int]]
    """Of the grid: y and percent."""
    ages: Sequence[tuple[float, int]]
    bars: Sequence[Bar]
    most: int
    """Attempts of the highest bar."""


def curve(shown: Shown, measured: Iterable[Measured]) -> Curve:
    points = [each for each in shown.survival() if each.age >= EARLIEST]
    upper = [(_x(each.age), _y(each.high)) for each in points]
    lower = [(_x(each.age), _y(each.low)) for each in reversed(points)]
    bars, most = _bars(measured)
    return Curve(
        line=_path((_x(each.age), _y(each.share)) for each in points),
        band=_path([*upper, *lower]) + "Z",
        prior=_path((_x(each.age), _y(each.prior)) for each in points),
        shares=[(_y(share / 100), share) for share in (0, 25, 50, 75, 100)],
        ages=[(_x(age), age) for age in TICKS],
        bars=bars,
        most=most,
    )


def _bars(measured: Iterable[Measured]) -> tuple[list[Bar], int]:
    counted: defaultdict[int, list[int]] = defaultdict(lambda: [0, 0])
    for each in measured:
        counted[each.age_to][each.gone] += each.attempts
    most = max(map(sum, counted.values()), default=0)
    bars = []
    for age, (there, gone) in sorted(counted.items()):
        scale = (BARS_BOTTOM - BARS_TOP) / most
        left, right = _x(age), _x([*AGES, HORIZON][column_of(age) + 1])
        at_gone, at_there = stacked(BARS_BOTTOM, scale, gone, there)
        bars.append(Bar(left, round(max(right - left - 1, 1), 1), at_gone, at_there))
    return bars, most


def _x(age: float) -> float:
    share = math.log(max(age, EARLIEST) / EARLIEST) / math.log(HORIZON / EARLIEST)
    return round(CURVE_LEFT + (CURVE_RIGHT - CURVE_LEFT) * share, 1)


def _y(share: float) -> float:
    return round(CURVE_BOTTOM - (CURVE_BOTTOM - CURVE_TOP) * share, 1)


def _path(points: Iterable[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x} {y}" for x, y in points)


# The chain

CHAIN_WIDTH, CHAIN_TOP, LINE_HEIGHT, GAP = 960, 56, 24, 24
STATE_X, ACTION_X, SHARE_X, NEXT_X = 2, 212, 490, 716
STATE_WIDTH, ACTION_WIDTH, NEXT_WIDTH = 170, 176, 242
WIDEST = 11
"""Of an arrow, whose width is its probability."""


@dataclass(frozen=True)
class Move:
    """A transition: from a state by its action to the next state."""

    target: int | None
    """The age at which the next state begins; None: gone."""
    count: int
    share: float
    y: float
    path: str
    width: float


@dataclass(frozen=True)
class State:
    age: int
    """At which it begins; ``until`` is where the next one does."""
    until: float
    attempts: int
    wait: float
    """The mean of what was waited, in seconds."""
    y: float
    moves: Sequence[Move]


@dataclass(frozen=True)
class Chain:
    height: float
    states: Sequence[State]
    targets: Sequence[tuple[float, int | None, float]]
    """Of the next states: y, and the ages at which each begins and ends; None: gone."""


def chain(measured: Iterable[Measured]) -> Chain:
    """The measured transition probabilities, ages joined to STATES. A failure may leave the state as it is."""
    counts: defaultdict[int, defaultdict[int | None, int]] = defaultdict(lambda: defaultdict(int))
    waited: defaultdict[int, float] = defaultdict(float)
    for each in measured:
        state = _state(each.age_from)
        counts[state][None if each.gone else _state(each.age_to)] += each.attempts
        waited[state] += each.waited
    targets = sorted(
        {target for moves in counts.values() for target in moves}, key=lambda age: -1 if age is None else age
    )
    lines = sum(len(moves) for moves in counts.values())
    height = CHAIN_TOP + max(lines * LINE_HEIGHT + (len(counts) - 1) * GAP, len(targets) * 40) + 8
    step = (height - CHAIN_TOP - 8) / max(len(targets), 1)
    places = {target: round(CHAIN_TOP + step * (number + 0.5), 1) for number, target in enumerate(targets)}
    states, y = [], float(CHAIN_TOP)
    for state, found in sorted(counts.items()):
        attempts = sum(found.values())
        moves: list[Move] = []
        for target in (each for each in targets if each in found):
            share = found[target] / attempts
            moves.append(_move(target, found[target], share, y + LINE_HEIGHT * (len(moves) + 0.5), places[target]))
        middle = y + LINE_HEIGHT * len(moves) / 2
        states.append(State(state, _until(state), attempts, waited[state] / attempts, middle, moves))
        y += LINE_HEIGHT * len(moves) + GAP
    return Chain(height, states, [(places[target], target, _until(target or 0)) for target in targets])


def _move(target: int | None, count: int, share: float, y: float, end: float) -> Move:
    start, middle = SHARE_X + 12, (SHARE_X + NEXT_X) / 2
    path = f"M{start} {y}C{middle} {y} {middle} {end} {NEXT_X} {end}"
    return Move(target, count, share, y, path, round(max(1.0, WIDEST * share), 1))


def _state(age: int) -> int:
    return STATES[bisect_right(STATES, age) - 1]


def _until(state: int) -> float:
    return [*STATES, HORIZON][STATES.index(state) + 1]
