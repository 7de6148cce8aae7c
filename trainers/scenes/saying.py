"""Sentences about scenes: captions, referring expressions, hypotheses, and statements about two pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np

from trainers.scenes.asking import Wanted, article
from trainers.scenes.looks import COLOURS, KINDS, plural
from trainers.scenes.scene import Scene, Thing, chance

CAPTIONS = 5  # of a scene, as COCO has
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven")
Label = Literal["entailment", "neutral", "contradiction"]
LABELS: tuple[Label, ...] = ("entailment", "neutral", "contradiction")


def described(thing: Thing, size: bool = False, texture: bool = True) -> str:
    """`large striped red ball`, of these words those asked for; nobody says plain."""
    words = [thing.size] * size + [thing.texture] * (texture and thing.texture != "plain")
    return " ".join([*words, thing.colour, thing.kind])


def captions(scene: Scene) -> list[str]:
    """Five sentences, each about other things of the scene or in other words; all are true."""
    rng = chance(scene.seed, scene.number, 3)
    ways = (_listed, _related, _counted, _listed, _related)
    return [f"{said[0].upper()}{said[1:]}." for said in (way(scene, rng) for way in ways)]


def _listed(scene: Scene, rng: np.random.Generator) -> str:
    some = _some(scene, rng, int(rng.integers(2, 4)))
    said = [article(described(each, size=bool(rng.random() < 0.5))) for each in some]
    return joined(said) if rng.random() < 0.5 else f"a picture of {joined(said)}"


def _related(scene: Scene, rng: np.random.Generator) -> str:
    for a, b in _pairs(scene, rng):
        if (left := scene.left_of(a, b)) is not None:
            return f"{article(described(a))} to the {'left' if left else 'right'} of {article(described(b))}"
        if (above := scene.above(a, b)) is not None:
            return f"{article(described(a))} {'above' if above else 'below'} {article(described(b))}"
    return _listed(scene, rng)


def _counted(scene: Scene, rng: np.random.Generator) -> str:
    kinds = [str(each) for each in rng.permutation(list(scene.counts))]
    said = [NUMBERS[n] + " " + (plural(kind) if n > 1 else kind) for kind in kinds if (n := scene.counts[kind])]
    return joined(said[:3])


def joined(words: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _some(scene: Scene, rng: np.random.Generator, most: int) -> list[Thing]:
    return [scene.things[at] for at in rng.permutation(len(scene.things))[:most]]


def _pairs(scene: Scene, rng: np.random.Generator) -> Iterator[tuple[Thing, Thing]]:
    order = _some(scene, rng, len(scene.things))
    return ((a, b) for at, a in enumerate(order) for b in order[at + 1 :])


def expressions(scene: Scene, thing: Thing, places: bool = False) -> list[str]:
    """Words that fit this thing of the scene alone, short ones first; none if nothing does.

    Args:
        places: RefCOCO's may name places, RefCOCO+'s may not.
    """
    ways: list[tuple[str, Callable[[Thing], tuple[str, ...]]]] = [
        (thing.kind, lambda each: (each.kind,)),
        (f"{thing.colour} {thing.kind}", lambda each: (each.kind, each.colour)),
        (f"{thing.size} {thing.kind}", lambda each: (each.kind, each.size)),
        (f"{thing.texture} {thing.kind}", lambda each: (each.kind, each.texture)),
        (f"{thing.size} {thing.colour} {thing.kind}", lambda each: (each.kind, each.size, each.colour)),
        (f"{thing.size} {thing.texture} {thing.colour} {thing.kind}", lambda each: each.looks),
        (f"the {thing.colour} one", lambda each: (each.colour,)),
    ]
    found = [said for said, of in ways if scene.only(lambda each, of=of: of(each) == of(thing))]  # type: ignore[misc]
    side = scene.side_of(thing)
    if places and side and scene.only(lambda each: (each.kind, scene.side_of(each)) == (thing.kind, side)):
        alike = [each for each in scene.things if each.kind == thing.kind]
        if all(scene.side_of(each) for each in alike):
            found.insert(0, f"{thing.kind} on the {side}")
    return found


def hypothesis(scene: Scene, label: Label) -> str | None:
    """A sentence that the picture shows to be true, or false, or that is of something it does not show.

    All three have the same words: what is true of one scene is false of another. None where no sentence fits.
    """
    rng = chance(scene.seed, scene.number, 4 + LABELS.index(label))
    colour = str(rng.choice(list(COLOURS)))
    if label == "neutral":
        absent = [kind for kind in KINDS if kind not in scene.counts]
        return f"The {rng.choice(absent)} is {colour}."
    if not scene.single:
        return None
    thing = scene.single[rng.integers(len(scene.single))]
    if label == "entailment":
        colour = thing.colour
    elif colour == thing.colour:
        colour = str(rng.choice([each for each in COLOURS if each != thing.colour]))
    return f"The {thing.kind} is {colour}."


Pair = tuple[Scene, Scene]


def statements(first: Pair, second: Pair, most: int) -> list[tuple[str, bool]]:
    """Different sentences that are true of one pair of pictures and false of the other, and whether of the first they
    are true; fewer where no more were found."""
    rng = chance(first[0].seed, first[0].number, 8)
    found: dict[str, bool] = {}
    wanted = bool(rng.random() < 0.5)
    for _ in range(200 * most):
        if len(found) == most:
            break
        said, holds = _claim(first, second, rng)
        if said not in found and holds(*first) == wanted and holds(*second) != wanted:
            found[said] = wanted
            wanted = bool(rng.random() < 0.5)
    return list(found.items())


def _claim(first: Pair, second: Pair, rng: np.random.Generator) -> tuple[str, Callable[[Scene, Scene], bool]]:
    things = [thing for scene in (*first, *second) for thing in scene.things]
    one, at = things[int(rng.integers(len(things)))], int(rng.integers(2))
    side, count = ("left", "right")[at], int(rng.integers(1, 4))
    wanted = Wanted(one.kind, None) if rng.random() < 0.5 else Wanted(None, one.colour)
    way = rng.integers(4)
    if way == 0:
        said = f"There is {article(wanted.named(1))} in the {side} image."
        return said, lambda *pair: wanted.count(pair[at]) > 0
    if way == 1:
        said = f"The {side} image contains exactly {NUMBERS[count]} {wanted.named(count)}."
        return said, lambda *pair: wanted.count(pair[at]) == count
    if way == 2:
        said = f"There are more {wanted.named(2)} in the {side} image than in the other one."
        return said, lambda *pair: wanted.count(pair[at]) > wanted.count(pair[1 - at])
    said = f"Both images together contain {NUMBERS[count]} {wanted.named(count)}."
    return said, lambda *pair: wanted.count(*pair) == count
