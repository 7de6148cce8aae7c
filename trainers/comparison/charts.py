"""Charts as inline SVG: scattered points with their names, and curves. Colours are the page's, c0 to c9.

A chart is 360 units wide, so that its text is readable on a phone; positions in this file are (x, y) in these units,
from the top left.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 360, 250
LEFT, RIGHT, TOP, BOTTOM = 40, 10, 12, 38  # room around the frame
FONT, LETTER = 10, 6.0  # size of text, and width of one of its letters, in wide fonts
COLOURS = 10
Place = tuple[float, float]
Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class Point:
    """One named point; `sd` is drawn as a bar up and down, `colour` is its number."""

    name: str
    x: float
    y: float
    sd: float | None = None
    colour: int = 0


@dataclass(frozen=True)
class Curve:
    """One line through points (x, y); `colour` is its number."""

    name: str
    points: Sequence[Place]
    colour: int


class Axis:
    """A range of numbers along a way of the chart.

    Args:
        values: that must fit.
        start, stop: where its ends lie.
        log: whether equal ways are equal factors; values are above 0 then.
    """

    def __init__(self, values: Sequence[float], start: float, stop: float, log: bool = False) -> None:
        self.start, self.stop, self.log = start, stop, log
        low, high = min(values), max(values)
        if log:
            room = 1.5 if high > 2 * low else 2.6  # always two ticks
            self.low, self.high = low / room, high * room
        else:
            room = 0.08 * (high - low) or abs(high) * 0.1 or 1.0
            self.low, self.high = low - room, high + room

    def at(self, value: float) -> float:
        """Where a value lies."""
        low, high, here = map(math.log, (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        return self.start + (here - low) / (high - low) * (self.stop - self.start)

    def ticks(self) -> list[float]:
        """Round numbers on it, four or so."""
        if self.log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            found = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
            found = [each for each in found if self.low <= each <= self.high]
            return found if len(found) < 7 else [each for each in found if f"{each:e}"[0] == "1"]
        raw = (self.high - self.low) / 4
        step = 10.0 ** math.floor(math.log10(raw))
        step *= next(each for each in (1, 2, 5, 10) if each * step >= raw)
        first = math.ceil(self.low / step)
        return [number * step for number in range(first, math.floor(self.high / step) + 1)]


def scatter(points: Sequence[Point], x_name: str, y_name: str, floor: tuple[str, float] | None = None) -> str:
    """Points by name, x in equal factors.

    Args:
        floor: name and height of a line across, such as the score without looking.
    """
    ends = [end for each in points for end in (each.y - (each.sd or 0), each.y + (each.sd or 0))]
    x = Axis([each.x for each in points], LEFT, WIDTH - RIGHT, log=True)
    y = Axis([*ends, *([floor[1]] if floor else [])], HEIGHT - BOTTOM, TOP)
    parts = [_frame(x, y, x_name, y_name)]
    if floor:
        height = y.at(floor[1])
        parts.append(f'<line class="floor" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{height:.1f}" y2="{height:.1f}"/>')
        parts.append(_text(LEFT + 4, height - 3, floor[0], "soft"))
    places = [(x.at(each.x), y.at(each.y)) for each in points]
    for each, (left, top) in zip(points, places, strict=True):
        colour = f"c{each.colour % COLOURS}"
        if each.sd:
            low, high = y.at(each.y - each.sd), y.at(each.y + each.sd)
            parts.append(f'<line class="{colour}" x1="{left:.1f}" x2="{left:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>')
        parts.append(f'<circle class="{colour}" cx="{left:.1f}" cy="{top:.1f}" r="4"/>')
    taken: list[Box] = []
    if floor:
        taken += [
            (LEFT, height - FONT - 3, LEFT + 4 + LETTER * len(floor[0]), height),
            (LEFT, height, WIDTH, height + 1),
        ]
    parts += _names(points, places, taken)
    return _svg(parts, f"{y_name} against {x_name}: " + "; ".join(f"{e.name} {e.x:.3g}, {e.y:.3g}" for e in points))


def _names(points: Sequence[Point], places: Sequence[Place], taken: Sequence[Box]) -> list[str]:
    """Each point's name beside it, where it covers neither a name nor a point; a thin line leads to one further off."""
    taken = [*taken, *((left - 5, top - 5, left + 5, top + 5) for left, top in places)]
    parts = []
    for number, (left, top) in sorted(enumerate(places), key=lambda each: each[1][1]):
        name, colour = points[number].name, f"c{points[number].colour % COLOURS}"
        width = LETTER * len(name)
        spots = _spots(left, top, width)
        box = next((spot for spot in spots if not any(_meet(spot, other) for other in taken)), spots[0])
        taken.append(box)
        middle = (box[1] + box[3]) / 2
        if abs(middle - top) > FONT:
            near = min(max(left, box[0]), box[2])
            parts.append(
                f'<line class="lead {colour}" x1="{left:.1f}" y1="{top:.1f}" x2="{near:.1f}" y2="{middle:.1f}"/>'
            )
        parts.append(_text(box[0], box[3] - 2, name, colour))
    return parts


def _spots(left: float, top: float, width: float) -> list[Box]:
    """Boxes for a name inside the frame, the nearest first."""
    found = []
    for step in range(40):
        middle = top + (step + 1) // 2 * (FONT + 2) * (1 if step % 2 else -1)
        for start in (left + 8, left - 8 - width):
            start = min(max(start, LEFT + 2), WIDTH - RIGHT - width)
            if TOP < middle < HEIGHT - BOTTOM - 4:
                found.append((start, middle - 6, start + width, middle + 6))
    return found


def _meet(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def curves(lines: Sequence[Curve], x_name: str, y_name: str) -> str:
    """Lines through points; their names are the page's to tell."""
    x = Axis([each for line in lines for each, _ in line.points], LEFT, WIDTH - RIGHT)
    y = Axis([each for line in lines for _, each in line.points], HEIGHT - BOTTOM, TOP)
    parts = [_frame(x, y, x_name, y_name)]
    for line in lines:
        path = " ".join(f"{x.at(a):.1f},{y.at(b):.1f}" for a, b in line.points)
        title, colour = f"<title>{escape(line.name)}</title>", f"c{line.colour % COLOURS}"
        if len(line.points) > 1:
            parts.append(f'<polyline class="{colour}" points="{path}">{title}</polyline>')
        else:
            [(a, b)] = line.points
            parts.append(f'<circle class="{colour}" cx="{x.at(a):.1f}" cy="{y.at(b):.1f}" r="4">{title}</circle>')
    ends = "; ".join(f"{line.name} ends at {line.points[-1][1]:.3g}" for line in lines)
    return _svg(parts, f"{y_name} against {x_name}: {ends}")


def _frame(x: Axis, y: Axis, x_name: str, y_name: str) -> str:
    """Ticks with their grid, and what the axes are."""
    parts, right, low = [], WIDTH - RIGHT, HEIGHT - BOTTOM
    for tick in y.ticks():
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y.at(tick):.1f}" y2="{y.at(tick):.1f}"/>')
        parts.append(_text(LEFT - 4, y.at(tick) + 3.5, f"{tick:g}", "soft", "end"))
    for tick in x.ticks():
        parts.append(f'<line class="grid" x1="{x.at(tick):.1f}" x2="{x.at(tick):.1f}" y1="{TOP}" y2="{low}"/>')
        parts.append(_text(x.at(tick), low + 13, f"{tick:g}", "soft", "middle"))
    parts.append(_text((LEFT + right) / 2, HEIGHT - 8, x_name, "", "middle"))
    parts.append(f'<g transform="translate(9 {(TOP + low) / 2}) rotate(-90)">{_text(0, 0, y_name, "", "middle")}</g>')
    return "".join(parts)


def _text(left: float, top: float, text: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{left:.1f}" y="{top:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(parts: Sequence[str], said: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(said)}">{"".join(parts)}</svg>'
