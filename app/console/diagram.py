"""Layout of the flow's picture: nodes with lines of text, and pipes between them, as coordinates for SVG. Pure.

A page can't measure its text before it is drawn, so widths are reckoned: that is enough to wrap lines and to make each
node as high as its text.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache

PADDING = 14
NODE_GAP = 16
WIDE_COLUMNS = ((0, 236), (292, 266), (614, 346), (1016, 216))
"""x and width of the columns of the wide picture."""
WIDE = 1232
NARROW_COLUMN = (22, 314)
NARROW = 358
LEFT_RAIL, RIGHT_RAIL = 8, 350
"""Where the pipes of the narrow picture run."""
NARROW_GAP = 22
NAME_GAP = 4
"""Beneath a name."""
SAY_GAP = 8
"""Above an explanation."""
TIP = 5
"""Half the height of an arrow's head."""

HEIGHTS = {"role": 17, "name": 20, "row": 21, "state": 22, "note": 17, "say": 17, "code": 17}
"""Of a line, by its kind, in pixels; beside each its size of type."""
SIZES = {"role": 12, "name": 14, "row": 13.5, "state": 13.5, "note": 12.5, "say": 12, "code": 12}


@dataclass(frozen=True)
class Line:
    """A line of a node. ``since`` and ``until`` are moments: a script keeps what stands there current."""

    kind: str
    text: str
    value: str = ""
    tone: str = ""
    since: datetime | None = None
    until: datetime | None = None
    key: str = ""
    """Names the number for tests and scripts."""


@dataclass(frozen=True)
class Node:
    key: str
    column: int
    lines: Sequence[Line]
    href: str
    tone: str = ""


@dataclass(frozen=True)
class Pipe:
    """From a node to another. ``passed`` are ascending numbers of what went through it of late."""

    start: str
    end: str
    passed: Sequence[int]
    tone: str = ""


@dataclass(frozen=True)
class Placed:
    """A line or a node at its place."""

    what: Line | Node
    x: float
    y: float
    width: float = 0
    height: float = 0
    lines: Sequence["Placed"] = ()

    @property
    def middle(self) -> float:
        return self.y + self.height / 2


@dataclass(frozen=True)
class Picture:
    width: int
    height: float
    nodes: Sequence[Placed]
    pipes: Sequence[tuple[Pipe, str, str]]
    """Each with its path's ``d``, and with that of the arrow's head at its end."""


def wide(nodes: Sequence[Node], pipes: Sequence[Pipe]) -> Picture:
    """Columns from left to right, each in the middle of the height."""
    columns = [
        [_place(node, x, width) for node in nodes if node.column == number]
        for number, (x, width) in enumerate(WIDE_COLUMNS)
    ]
    heights = [sum(each.height + NODE_GAP for each in column) - NODE_GAP for column in columns]
    height = max(heights)
    placed = {
        node.what.key: node
        for column, own in zip(columns, heights, strict=True)
        for node in _stack(column, (height - own) / 2, NODE_GAP)
    }
    drawn = [(pipe, *_across(placed[pipe.start], placed[pipe.end])) for pipe in pipes]
    return Picture(WIDE, height, list(placed.values()), drawn)


def narrow(nodes: Sequence[Node], pipes: Sequence[Pipe]) -> Picture:
    """One column from top to bottom, with pipes beside it: what the bus delivers on the left, what is published on the
    right."""
    x, width = NARROW_COLUMN
    ordered = [_place(node, x, width) for node in sorted(nodes, key=lambda node: node.column)]
    placed = {node.what.key: node for node in _stack(ordered, 0, NARROW_GAP)}
    column = {node.key: node.column for node in nodes}
    drawn = [
        (pipe, *_beside(placed[pipe.start], placed[pipe.end], publishes=column[pipe.start] >= 2)) for pipe in pipes
    ]
    height = max(node.y + node.height for node in placed.values())
    return Picture(NARROW, height, list(placed.values()), drawn)


def _stack(column: Sequence[Placed], y: float, gap: float) -> Iterator[Placed]:
    for node in column:
        lines = [Placed(line.what, line.x, line.y + y, line.width) for line in node.lines]
        yield Placed(node.what, node.x, y, node.width, node.height, lines)
        y += node.height + gap


def _place(node: Node, x: float, width: float) -> Placed:
    """The node at the top, its lines wrapped."""
    inner, y, lines = width - 2 * PADDING, float(PADDING), []
    for line in node.lines:
        if line.kind == "say":
            y += SAY_GAP
        indent = 12 if line.kind in ("say", "code") else 18 if line.kind == "state" else 0
        room = (
            inner - indent - (_width(line.value, SIZES[line.kind]) + 10 if line.value and line.kind != "state" else 0)
        )
        for number, text in enumerate(wrapped(line.text, room, SIZES[line.kind])):
            shown = Line(line.kind, text, tone=line.tone) if number else replace(line, text=text)
            y += HEIGHTS[line.kind]
            lines.append(Placed(shown, x + PADDING + indent, y - 4, inner - indent))
        if line.kind == "name":
            y += NAME_GAP
    return Placed(node, x, 0, width, y + PADDING - 2, lines)


def _across(start: Placed, end: Placed) -> tuple[str, str]:
    """Rightwards; within a column, around its right side."""
    side, y, to = start.x + start.width, f"{start.middle:.0f}", f"{end.middle:.0f}"
    if end.x <= start.x:
        return f"M{side} {y} C{side + 24} {y} {side + 24} {to} {side + 5} {to}", _tip(side + 5, end.middle, -TIP)
    bend = f"{(side + end.x) / 2:.0f}"
    return f"M{side + 5} {y} C{bend} {y} {bend} {to} {end.x - 7} {to}", _tip(end.x - 6, end.middle, TIP)


def _beside(start: Placed, end: Placed, publishes: bool) -> tuple[str, str]:
    """Along a rail beside the column, with round corners."""
    rail = RIGHT_RAIL if publishes else LEFT_RAIL
    edge = start.x + start.width + 4 if publishes else start.x - 4
    y, to = start.middle, end.middle
    way = f"M{edge} {y:.0f} Q{rail} {y:.0f} {rail} {y + 14:.0f} V{to - 14:.0f} Q{rail} {to:.0f} {edge} {to:.0f}"
    return way, _tip(edge, to, -TIP if publishes else TIP)


def _tip(x: float, y: float, back: float) -> str:
    """An arrow's head at this place, which points away from where ``back`` goes."""
    return f"M{x - back} {y - TIP:.0f} L{x} {y:.0f} L{x - back} {y + TIP:.0f}"


@lru_cache(1024)  # most texts are the same in the next picture
def wrapped(text: str, room: float, size: float) -> tuple[str, ...]:
    """Lines that are about ``room`` pixels wide at most."""
    lines, line = [], ""
    for piece in _pieces(text):
        if line and _width((line + piece).rstrip(), size) > room:
            lines.append(line.rstrip())
            line = piece.lstrip()
        else:
            line += piece
    return (*lines, line.rstrip())


def _pieces(text: str) -> list[str]:
    """Where a line may end: after white space, after ``_``, ``/`` and the like, and between Chinese characters."""
    return re.findall(r"[\u2e80-\uffef]|[^\s\u2e80-\uffef_/.@:-]*[_/.@:-]?\s*", text) if text else []


@lru_cache(1024)
def _width(text: str, size: float) -> float:
    return size * sum(1.0 if unicodedata.east_asian_width(each) in "WF" else 0.57 for each in text)
