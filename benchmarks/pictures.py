"""Pictures as small SVGs: bars beside each other, and lines on logarithmic axes."""

import math
from collections.abc import Mapping, Sequence

WIDTH, HEIGHT, LEFT, TOP = 760, 320, 70, 34
COLOURS = ("#1f6feb", "#d9822b", "#2da44e", "#8250df", "#cf222e", "#57606a")
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
        parts.append(_text(left + width * len(group) / 2, TOP + HEIGHT + 16, name))
    parts.append(f'<line x1="{LEFT}" x2="{LEFT + WIDTH}" y1="{TOP + HEIGHT}" y2="{TOP + HEIGHT}" stroke="#555"/>')
    return _svg([*parts, *_legend(meanings, LEFT, 14, across=True)], HEIGHT)


def lines(series: Mapping[str, Sequence[tuple[float, float]]], x_label: str, y_label: str) -> str:
    """Points joined by lines; both axes are logarithmic, and go to whole powers of ten."""
    points = [point for each in series.values() for point in each]
    x_from, x_to = _powers([x for x, _ in points])
    y_from, y_to = _powers([y for _, y in points])

    def place(x: float, y: float) -> tuple[float, float]:
        across = (math.log10(x) - x_from) / (x_to - x_from)
        up = (math.log10(y) - y_from) / (y_to - y_from)
        return LEFT + WIDTH * across, TOP + HEIGHT * (1 - up)

    parts = []
    for power in range(x_from, x_to + 1):
        x, _ = place(10**power, 10**y_from)
        parts += [_line(x, TOP, x, TOP + HEIGHT), _text(x, TOP + HEIGHT + 16, f"{10**power:,}")]
    for power in range(y_from, y_to + 1):
        _, y = place(10**x_from, 10**power)
        parts += [_line(LEFT, y, LEFT + WIDTH, y), _text(LEFT - 6, y + 4, f"{10**power:,}", "end")]
    for number, each in enumerate(series.values()):
        drawn = " ".join(f"{x:.0f},{y:.0f}" for x, y in (place(*point) for point in each))
        parts.append(f'<polyline points="{drawn}" fill="none" stroke="{COLOURS[number]}" stroke-width="2"/>')
    parts += [_text(LEFT + WIDTH / 2, TOP + HEIGHT + 34, x_label), _text(LEFT, TOP - 12, y_label, "start")]
    below = TOP + HEIGHT + 56
    return _svg([*parts, *_legend(series, LEFT, below)], HEIGHT + 24 + ROW * len(series))


def _powers(values: list[float]) -> tuple[int, int]:
    return math.floor(math.log10(min(values)) + 1e-9), math.ceil(math.log10(max(values)) - 1e-9)


def _legend(names: object, x: float, y: float, *, across: bool = False) -> list[str]:
    parts = []
    for number, name in enumerate(names):  # type: ignore[call-overload]
        left, top = (x + number * WIDTH / 2, y) if across else (x, y + number * ROW)
        parts.append(f'<rect x="{left:.0f}" y="{top - 9:.0f}" width="10" height="10" fill="{COLOURS[number]}"/>')
        parts.append(_text(left + 16, top, name, "start"))
    return parts


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.0f}" y1="{y1:.0f}" x2="{x2:.0f}" y2="{y2:.0f}" stroke="#ddd"/>'


def _text(x: float, y: float, words: str, anchor: str = "middle") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}">{words}</text>'


def _svg(parts: Sequence[str], height: float) -> str:
    size = f"{LEFT + WIDTH + 20} {TOP + height + 46:.0f}"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size}" font-family="sans-serif" font-size="11">'
    return f'{head}<rect width="100%" height="100%" fill="white"/>{"".join(parts)}</svg>\n'
