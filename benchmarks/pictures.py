"""Pictures as small SVGs: bars beside each other, bars of parts, and lines."""

import math
from collections.abc import Mapping, Sequence

WIDTH, HEIGHT, LEFT, TOP = 760, 320, 70, 34
COLOURS = ("#1f6feb", "#d9822b", "#2da44e", "#8250df", "#cf222e", "#57606a", "#0a7d8c", "#bf3989")
ROW = 16
"""Pixels between two lines of a legend."""


def bars(values: Mapping[str, Sequence[float]], meanings: Sequence[str]) -> str:
    """For each name a group of bars, one for each meaning; zero is at the bottom."""
    most = max(max(group) for group in values.values())
    parts, step = [], WIDTH / len(values)
    width = step * 0.7 / len(meanings)
    for place, (name, group) in enumerate(values.items()):
        left = LEFT + place * step + step * 0.15
        for number, value in enumerate(group):
            height, x = HEIGHT * value / most, left + number * width
            parts.append(
                f'<rect x="{x:.0f}" y="{TOP + HEIGHT - height:.0f}" width="{width - 3:.0f}" height="{height:.0f}" '
                f'fill="{COLOURS[number]}"/>'
            )
            parts.append(_text(x + width / 2, TOP + HEIGHT - height - 4, f"{value:,.0f}"))
        for number, words in enumerate(name.split(", ")):
            parts.append(_text(left + width * len(group) / 2, TOP + HEIGHT + 16 + number * ROW, words))
    parts.append(f'<line x1="{LEFT}" x2="{LEFT + WIDTH}" y1="{TOP + HEIGHT}" y2="{TOP + HEIGHT}" stroke="#555"/>')
    return _svg([*parts, *_legend(meanings, LEFT, 14, across=True)], HEIGHT)


def stacks(values: Mapping[str, Mapping[str, float]], notes: Mapping[str, str], x_label: str) -> str:
    """For each name a bar from left to right, of parts beside each other, and a note below it; only parts of 4 % and
    more have a number."""
    most = max(sum(parts.values()) for parts in values.values())
    names = list(dict.fromkeys(part for parts in values.values() for part in parts))
    colours = {name: COLOURS[number % len(COLOURS)] for number, name in enumerate(names)}
    drawn, height = [], 46
    for row, (name, parts) in enumerate(values.items()):
        left, top = float(LEFT + 40), TOP + row * (height + 40)
        drawn.append(_text(left - 8, top + height / 2 + 4, name, "end"))
        drawn.append(_text(left, top + height + 14, notes[name], "start"))
        for part, value in parts.items():
            width = (WIDTH - 90) * value / most
            drawn.append(
                f'<rect x="{left:.1f}" y="{top}" width="{width:.1f}" height="{height}" fill="{colours[part]}" '
                f'stroke="white"><title>{part}: {value:.2f}</title></rect>'
            )
            if value > most * 0.04:
                drawn.append(_text(left + width / 2, top + height / 2 + 4, f"{value:.2f}", fill="white"))
            left += width
        drawn.append(_text(left + 6, top + height / 2 + 4, f"{sum(parts.values()):.2f}", "start"))
    below = TOP + len(values) * (height + 40)
    drawn.append(_text(LEFT + 40, below, x_label, "start"))
    return _svg([*drawn, *_legend(names, LEFT + 40, below + 24)], below - TOP + ROW * len(names) - 10)


def lines(
    series: Mapping[str, Sequence[tuple[float, float]]], x_label: str, y_label: str, *, from_zero: bool = False
) -> str:
    """Points joined by lines. Axes are logarithmic, to whole powers of ten; the upright one is not ``from_zero``."""
    points = [point for each in series.values() for point in each]
    x_from, x_to = _powers([x for x, _ in points])
    y_from, y_to = (0, max(y for _, y in points) * 1.2) if from_zero else _powers([y for _, y in points])

    def place(x: float, y: float) -> tuple[float, float]:
        across = (math.log10(x) - x_from) / (x_to - x_from)
        up = ((y if from_zero else math.log10(y)) - y_from) / (y_to - y_from)
        return LEFT + WIDTH * across, TOP + HEIGHT * (1 - up)

    parts, bottom = [], TOP + HEIGHT
    for power in range(x_from, x_to + 1):
        x = LEFT + WIDTH * (power - x_from) / (x_to - x_from)
        parts += [_line(x, TOP, x, bottom), _text(x, bottom + 16, f"{10**power:,}")]
    for value in _ticks(y_to) if from_zero else [10.0**power for power in range(y_from, math.floor(y_to) + 1)]:
        _, y = place(10**x_from, value)
        parts += [_line(LEFT, y, LEFT + WIDTH, y), _text(LEFT - 6, y + 4, f"{value:,.10g}", "end")]
    for number, each in enumerate(series.values()):
        drawn = " ".join(f"{x:.0f},{y:.0f}" for x, y in (place(*point) for point in each))
        parts.append(f'<polyline points="{drawn}" fill="none" stroke="{COLOURS[number]}" stroke-width="2"/>')
    parts += [_text(LEFT + WIDTH / 2, TOP + HEIGHT + 34, x_label), _text(LEFT, TOP - 12, y_label, "start")]
    below = TOP + HEIGHT + 56
    return _svg([*parts, *_legend(series, LEFT, below)], HEIGHT + 24 + ROW * len(series))


def _ticks(most: float) -> list[float]:
    return [tick / 4 for tick in range(math.floor(most * 4) + 1)]


def _powers(values: list[float]) -> tuple[int, int]:
    return math.floor(math.log10(min(values)) + 1e-9), math.ceil(math.log10(max(values)) - 1e-9)


def _legend(names: object, x: float, y: float, *, across: bool = False) -> list[str]:
    parts = []
    for number, name in enumerate(names):  # type: ignore[call-overload]
        left, top = (x + number * WIDTH / 3, y) if across else (x, y + number * ROW)
        parts.append(f'<rect x="{left:.0f}" y="{top - 9:.0f}" width="10" height="10" fill="{COLOURS[number]}"/>')
        parts.append(_text(left + 16, top, name, "start"))
    return parts


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.0f}" y1="{y1:.0f}" x2="{x2:.0f}" y2="{y2:.0f}" stroke="#ddd"/>'


def _text(x: float, y: float, words: str, anchor: str = "middle", fill: str = "black") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}" fill="{fill}">{words}</text>'


def _svg(parts: Sequence[str], height: float) -> str:
    size = f"{LEFT + WIDTH + 32} {TOP + height + 46:.0f}"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size}" font-family="sans-serif" font-size="11">'
    return f'{head}<rect width="100%" height="100%" fill="white"/>{"".join(parts)}</svg>\n'
