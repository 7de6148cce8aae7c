"""What is in a scene: things by kind, colour, texture, size and place, drawn by chance from a seed and a number."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from trainers.scenes.looks import COLOURS, KINDS, SIZES, TEXTURES, extent

SHAPES = ((640, 480), (480, 640), (640, 427), (427, 640), (500, 375))  # width, height in pixels, as many of COCO's are
THINGS = (3, 7)  # the fewest and the most of a scene
SIDES = {"small": (0.14, 0.19), "large": (0.30, 0.40)}  # of the shorter side of the picture
HIDDEN = 0.4  # at most so much of a thing's box lies behind other boxes
TRIES = 60
APART = 0.06  # of the picture's side, so that "left of" and "above" are plain


@dataclass(frozen=True)
class Thing:
    """One thing: how it looks, and where.

    square  x, y, side in pixels: the unit square of its outline
    """

    kind: str
    colour: str
    texture: str
    size: str
    square: tuple[int, int, int]

    @cached_property
    def box(self) -> tuple[int, int, int, int]:
        """x1, y1, x2, y2 in pixels, what is hidden of it included."""
        x, y, side = self.square
        left, top, right, bottom = (round(each * side) for each in extent(self.kind))
        return x + left, y + top, x + max(right, left + 1), y + max(bottom, top + 1)

    @cached_property
    def centre(self) -> tuple[float, float]:
        x1, y1, x2, y2 = self.box
        return (x1 + x2) / 2, (y1 + y2) / 2

    @property
    def looks(self) -> tuple[str, str, str, str]:
        return self.kind, self.colour, self.texture, self.size


@dataclass(frozen=True)
class Scene:
    """A scene. Things lie from back to front; no two of them look the same.

    number  of the scene, from 0
    seed    of all scenes
    """

    number: int
    seed: int
    width: int
    height: int
    things: tuple[Thing, ...]

    @cached_property
    def counts(self) -> dict[str, int]:
        """How many there are of each kind; kinds that are not there are absent."""
        found: dict[str, int] = {}
        for thing in self.things:
            found[thing.kind] = found.get(thing.kind, 0) + 1
        return found

    def only(self, wanted: Callable[[Thing], bool]) -> Thing | None:
        """The thing of which something is true, if it is true of one alone."""
        found = [thing for thing in self.things if wanted(thing)]
        return found[0] if len(found) == 1 else None

    @property
    def single(self) -> list[Thing]:
        """The things that are the only ones of their kind."""
        return [thing for thing in self.things if self.counts[thing.kind] == 1]

    def left_of(self, a: Thing, b: Thing) -> bool | None:
        """Whether `a` is to the left of `b`; None where it is hard to say."""
        return _before(a.centre[0], b.centre[0], APART * self.width)

    def above(self, a: Thing, b: Thing) -> bool | None:
        """Whether `a` is above `b`; None where it is hard to say."""
        return _before(a.centre[1], b.centre[1], APART * self.height)

    def side_of(self, thing: Thing) -> str | None:
        """ "left" or "right" half of the picture; None where it is hard to say."""
        left = _before(thing.centre[0], self.width / 2, APART * self.width)
        return None if left is None else "left" if left else "right"


def _before(a: float, b: float, apart: float) -> bool | None:
    return None if abs(a - b) < apart else a < b


def chance(seed: int, number: int, what: int = 0) -> np.random.Generator:
    """The generator of one scene, for one use of it."""
    return np.random.default_rng([seed, number, what])


def make_scene(seed: int, number: int, things: tuple[int, int] = THINGS) -> Scene:
    """Scene `number` of a seed: the same on every machine.

    Args:
        things: the fewest and the most of them.
    """
    rng = chance(seed, number)
    width, height = SHAPES[rng.integers(len(SHAPES))]
    kinds = rng.choice(list(KINDS), int(rng.integers(2, 5)), replace=False)
    palette = tuple(str(kind) for kind in kinds)
    found: list[Thing] = []
    fewest, most = things
    wanted = int(rng.integers(fewest, most + 1))
    for at in range(wanted):
        for _ in range(TRIES):
            thing = _thing(rng, palette[at] if at < len(palette) else str(rng.choice(palette)), width, height)
            if thing.looks not in {each.looks for each in found} and _fits(thing, found):
                found.append(thing)
                break
    return Scene(number, seed, width, height, tuple(found))


def _thing(rng: np.random.Generator, kind: str, width: int, height: int) -> Thing:
    size = str(rng.choice(SIZES))
    side = int(min(width, height) * rng.uniform(*SIDES[size]))
    texture = "plain" if rng.random() < 0.5 else str(rng.choice(TEXTURES[1:]))
    x, y = (int(rng.integers(2, most - side - 2)) for most in (width, height))
    return Thing(kind, str(rng.choice(list(COLOURS))), texture, size, (x, y, side))


def _fits(thing: Thing, before: list[Thing]) -> bool:
    """Whether enough of all things is seen once this one lies in front."""
    everything = [*before, thing]
    for at, each in enumerate(before):
        area = (each.box[2] - each.box[0]) * (each.box[3] - each.box[1])
        if sum(_overlap(each.box, front.box) for front in everything[at + 1 :]) > HIDDEN * area:
            return False
    return True


def _overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> int:
    """Pixels that two boxes share."""
    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return max(wide, 0) * max(high, 0)
