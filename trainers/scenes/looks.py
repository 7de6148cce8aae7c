"""How things look: kinds as outlines in a unit square, colours and textures, all by names of Visual Genome."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import cos, pi, sin
from typing import Literal

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (205, 32, 38),
    "orange": (240, 130, 20),
    "yellow": (245, 218, 45),
    "green": (40, 150, 60),
    "blue": (35, 75, 195),
    "purple": (120, 45, 150),
    "pink": (242, 140, 180),
    "brown": (115, 70, 35),
    "black": (28, 28, 30),
    "white": (238, 238, 235),
    "gray": (135, 135, 138),
}
TEXTURES = ("plain", "striped", "spotted", "checkered")
SIZES = ("small", "large")


@dataclass(frozen=True)
class Part:
    """A piece of an outline: an ellipse by the corners of its box, or a polygon by its points, x and y in turn.

    light  of its colour against the thing's own: 1 the same, below it darker; 0: a hole in what was drawn before
    """

    form: Literal["ellipse", "polygon"]
    points: tuple[float, ...]
    light: float = 1.0


def _oval(x1: float, y1: float, x2: float, y2: float, light: float = 1.0) -> Part:
    return Part("ellipse", (x1, y1, x2, y2), light)


def _rect(x1: float, y1: float, x2: float, y2: float, light: float = 1.0) -> Part:
    return Part("polygon", (x1, y1, x2, y1, x2, y2, x1, y2), light)


def _poly(*points: float, light: float = 1.0) -> Part:
    return Part("polygon", points, light)


def _star() -> Part:
    radii = (0.5, 0.2)
    corners = [(0.5 + radii[at % 2] * sin(at * pi / 5), 0.5 - radii[at % 2] * cos(at * pi / 5)) for at in range(10)]
    return _poly(*(each for corner in corners for each in corner))


def _petals() -> list[Part]:
    centres = [(0.5 + 0.26 * sin(at * pi / 3), 0.36 + 0.22 * cos(at * pi / 3)) for at in range(6)]
    return [_oval(x - 0.16, y - 0.14, x + 0.16, y + 0.14) for x, y in centres]


KINDS: dict[str, tuple[Part, ...]] = {
    "apple": (_rect(0.47, 0.02, 0.54, 0.3, 0.45), _oval(0.54, 0.04, 0.8, 0.19, 0.7), _oval(0.08, 0.2, 0.92, 1)),
    "ball": (_oval(0, 0, 1, 1),),
    "balloon": (_poly(0.47, 0.7, 0.53, 0.7, 0.51, 1, 0.49, 1, light=0.5), _oval(0.12, 0, 0.88, 0.78)),
    "bird": (
        _poly(0, 0.33, 0.25, 0.5, 0.12, 0.68),
        _oval(0.1, 0.3, 0.8, 0.82),
        _oval(0.58, 0.08, 0.93, 0.45),
        _poly(0.91, 0.22, 1, 0.29, 0.9, 0.34, light=0.5),
        _oval(0.22, 0.42, 0.6, 0.66, 0.75),
    ),
    "boat": (
        _rect(0.47, 0.03, 0.52, 0.68, 0.5),
        _poly(0.55, 0.08, 0.93, 0.58, 0.55, 0.58, light=1.2),
        _poly(0, 0.65, 1, 0.65, 0.8, 0.97, 0.2, 0.97),
    ),
    "book": (_rect(0.05, 0.08, 0.95, 0.92), _rect(0.05, 0.08, 0.18, 0.92, 0.65), _rect(0.9, 0.12, 0.95, 0.88, 1.5)),
    "bottle": (
        _rect(0.4, 0.04, 0.6, 0.36),
        _oval(0.24, 0.22, 0.76, 0.56),
        _rect(0.24, 0.38, 0.76, 1),
        _rect(0.38, 0, 0.62, 0.09, 0.55),
    ),
    "bowl": (
        _poly(0, 0.38, 1, 0.38, 0.87, 0.72, 0.66, 0.93, 0.34, 0.93, 0.13, 0.72),
        _oval(0, 0.26, 1, 0.5, 1.2),
        _oval(0.07, 0.3, 0.93, 0.46, 0.7),
    ),
    "box": (
        _rect(0, 0.28, 0.74, 1),
        _poly(0, 0.28, 0.26, 0.03, 1, 0.03, 0.74, 0.28, light=1.2),
        _poly(0.74, 0.28, 1, 0.03, 1, 0.74, 0.74, 1, light=0.7),
    ),
    "bus": (
        _rect(0, 0.18, 1, 0.84),
        *(_rect(0.06 + at * 0.24, 0.27, 0.22 + at * 0.24, 0.5, 0.4) for at in range(4)),
        _oval(0.13, 0.7, 0.33, 0.96, 0.2),
        _oval(0.67, 0.7, 0.87, 0.96, 0.2),
    ),
    "car": (
        _poly(0.18, 0.52, 0.33, 0.26, 0.66, 0.26, 0.82, 0.52),
        _rect(0, 0.5, 1, 0.78),
        _poly(0.27, 0.49, 0.36, 0.32, 0.63, 0.32, 0.72, 0.49, light=0.4),
        _oval(0.12, 0.63, 0.35, 0.9, 0.2),
        _oval(0.65, 0.63, 0.88, 0.9, 0.2),
    ),
    "chair": (
        _rect(0.12, 0, 0.26, 1),
        _rect(0.76, 0.55, 0.88, 1),
        _rect(0.12, 0.48, 0.9, 0.62, 1.1),
        _rect(0.26, 0.06, 0.34, 0.48, 0.75),
    ),
    "clock": (
        _oval(0, 0, 1, 1),
        _oval(0.14, 0.14, 0.86, 0.86, 1.35),
        _rect(0.47, 0.2, 0.53, 0.53, 0.25),
        _poly(0.48, 0.47, 0.76, 0.6, 0.73, 0.66, 0.47, 0.54, light=0.25),
    ),
    "cone": (_poly(0.5, 0, 1, 0.88, 0, 0.88), _oval(0, 0.76, 1, 1)),
    "cup": (
        _oval(0.52, 0.28, 1, 0.78, 0.85),
        _oval(0.66, 0.4, 0.88, 0.66, 0),
        _rect(0.06, 0.12, 0.72, 0.96),
        _oval(0.06, 0.03, 0.72, 0.21, 0.7),
    ),
    "fish": (
        _poly(0, 0.15, 0.34, 0.5, 0, 0.85, light=0.8),
        _oval(0.2, 0.2, 1, 0.8),
        _oval(0.8, 0.38, 0.88, 0.47, 0.15),
    ),
    "flower": (_rect(0.47, 0.5, 0.53, 1, 0.5), *_petals(), _oval(0.4, 0.27, 0.6, 0.45, 0.5)),
    "hat": (_rect(0.24, 0.12, 0.76, 0.8), _oval(0, 0.62, 1, 0.94), _rect(0.24, 0.52, 0.76, 0.68, 0.5)),
    "heart": (_oval(0, 0.04, 0.55, 0.6), _oval(0.45, 0.04, 1, 0.6), _poly(0.05, 0.46, 0.95, 0.46, 0.5, 1)),
    "house": (
        _rect(0.1, 0.44, 0.9, 1),
        _poly(0, 0.48, 0.5, 0, 1, 0.48, light=0.85),
        _rect(0.42, 0.64, 0.58, 1, 0.45),
        _rect(0.19, 0.57, 0.34, 0.73, 1.3),
        _rect(0.66, 0.57, 0.81, 0.73, 1.3),
    ),
    "kite": (
        _poly(0.5, 0, 0.9, 0.33, 0.5, 0.86, 0.1, 0.33),
        _rect(0.485, 0.02, 0.515, 0.86, 0.55),
        _poly(0.48, 0.84, 0.53, 0.84, 0.64, 1, 0.56, 1, light=0.7),
    ),
    "lamp": (
        _rect(0.46, 0.45, 0.54, 0.92, 0.6),
        _oval(0.24, 0.85, 0.76, 1),
        _poly(0.3, 0, 0.7, 0, 0.95, 0.5, 0.05, 0.5, light=1.1),
    ),
    "mushroom": (_oval(0, 0.02, 1, 0.98), _rect(0, 0.5, 1, 1, 0), _rect(0.36, 0.48, 0.64, 1, 0.8)),
    "pillow": (_poly(0.03, 0.1, 0.5, 0.19, 0.97, 0.1, 0.89, 0.5, 0.97, 0.9, 0.5, 0.81, 0.03, 0.9, 0.11, 0.5),),
    "ring": (_oval(0, 0, 1, 1), _oval(0.26, 0.26, 0.74, 0.74, 0)),
    "star": (_star(),),
    "table": (_rect(0.06, 0.3, 0.18, 1, 0.8), _rect(0.82, 0.3, 0.94, 1, 0.8), _rect(0, 0.24, 1, 0.42)),
    "tree": (_rect(0.43, 0.55, 0.57, 1, 0.5), _oval(0.06, 0.2, 0.94, 0.72), _oval(0.22, 0, 0.78, 0.5)),
    "umbrella": (_oval(0, 0.05, 1, 0.97), _rect(0, 0.51, 1, 1, 0), _rect(0.48, 0.5, 0.53, 0.97, 0.4)),
    "vase": (_oval(0.1, 0.36, 0.9, 1), _rect(0.34, 0.05, 0.66, 0.5), _oval(0.26, 0, 0.74, 0.12, 0.75)),
}


def plural(kind: str) -> str:
    """More than one of a kind."""
    if kind == "fish":
        return kind
    return f"{kind}es" if kind.endswith(("s", "x")) else f"{kind}s"


@cache
def extent(kind: str) -> tuple[float, float, float, float]:
    """x1, y1, x2, y2 of what a kind's outline covers of its unit square."""
    points = [part.points for part in KINDS[kind] if part.light > 0]
    xs, ys = ([each for of_part in points for each in of_part[axis::2]] for axis in (0, 1))
    return min(xs), min(ys), max(xs), max(ys)
