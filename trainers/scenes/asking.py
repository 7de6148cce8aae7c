"""Questions that a scene answers, and a choice of them whose answers are balanced."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from trainers.scenes.looks import COLOURS, KINDS, SIZES, TEXTURES, plural
from trainers.scenes.scene import Scene, Thing, chance

YES_NO = ("yes", "no")
COUNTS = ("0", "1", "2", "3")
SLACK = 2  # so many times more often than the rarest answer of its family may an answer be
SIDES = ("left", "right")
# How much more often than once a family is asked: what has many answers is guessed less and takes longer to learn, and
# what is there is asked in three ways.
WEIGHTS = {"color": 3, "kind": 3, "count": 2, "exists": 3}


@dataclass(frozen=True)
class Question:
    """A question about a scene.

    family   what it needs: "color", "kind", "count", "exists", "side", "left of", "above", "size", "more", ...
    text     as it is asked
    answer   the right one
    answers  all that somebody could give
    about    the things that it speaks of
    """

    family: str
    text: str
    answer: str
    answers: tuple[str, ...]
    about: tuple[Thing, ...] = ()


@dataclass(frozen=True)
class Wanted:
    """Things that are looked for, by their kind, their colour, or both."""

    kind: str | None
    colour: str | None

    def named(self, count: int) -> str:
        """`red things`, `red balls`, `balls`; of one without the s."""
        noun = self.kind or "thing"
        return " ".join(filter(None, (self.colour, noun if count == 1 else plural(noun))))

    def count(self, *scenes: Scene) -> int:
        """How many there are in all of these scenes."""
        things = [thing for scene in scenes for thing in scene.things]
        return sum(self.kind in (None, each.kind) and self.colour in (None, each.colour) for each in things)


def questions(scene: Scene) -> list[Question]:
    """Everything that can be asked about a scene, in random order."""
    rng = chance(scene.seed, scene.number, 2)
    found = [*_of_things(scene), *_of_counts(scene, rng), *_of_pairs(scene, rng)]
    return [found[at] for at in rng.permutation(len(found))]


def _of_things(scene: Scene) -> Iterator[Question]:
    for thing in scene.single:
        name = f"the {thing.kind}"
        yield Question("color", f"What color is {name}?", thing.colour, tuple(COLOURS), (thing,))
        yield Question("size", f"Is {name} small or large?", thing.size, SIZES, (thing,))
        yield Question("pattern", f"Is {name} {_choice(TEXTURES)}?", thing.texture, TEXTURES, (thing,))
        if side := scene.side_of(thing):
            yield Question("side", f"On which side of the picture is {name}?", side, SIDES, (thing,))
    for thing in scene.things:
        if scene.counts[thing.kind] > 1 and scene.only(lambda each, of=thing: _alike(each, of, "size")):  # type: ignore[misc]
            name = f"the {thing.size} {thing.kind}"
            yield Question("color", f"What color is {name}?", thing.colour, tuple(COLOURS), (thing,))
        if looks := _only_by_looks(scene, thing):
            yield Question("kind", f"What is the {looks} thing?", thing.kind, tuple(KINDS), (thing,))


def _only_by_looks(scene: Scene, thing: Thing) -> str | None:
    """The first words, its kind not among them, that tell a thing from all others of its scene."""
    ways: tuple[Callable[[Thing], tuple[str, ...]], ...] = (
        lambda each: (each.colour,),
        lambda each: (each.texture,),
        lambda each: (each.size, each.colour),
        lambda each: (each.texture, each.colour),
    )
    found = (of(thing) for of in ways if scene.only(lambda each, of=of: of(each) == of(thing)))  # type: ignore[misc]
    return next((" ".join(looks) for looks in found if "plain" not in looks), None)


def _of_counts(scene: Scene, rng: np.random.Generator) -> Iterator[Question]:
    absent = str(rng.choice([kind for kind in KINDS if kind not in scene.counts]))
    for kind in (*scene.counts, absent):
        count = str(scene.counts.get(kind, 0))
        if count in COUNTS:
            yield Question("count", f"How many {plural(kind)} are there?", count, COUNTS)
    sought: list[Wanted] = []
    for thing in scene.things:
        colour, kind = (
            own if rng.random() < 0.5 else str(rng.choice(list(others)))
            for own, others in ((thing.colour, COLOURS), (thing.kind, KINDS))
        )
        sought += [Wanted(thing.kind, colour), Wanted(kind, None), Wanted(None, colour)]
    for wanted in dict.fromkeys(sought):
        text = f"Is there {article(wanted.named(1))}?"
        yield Question("exists", text, YES_NO[not wanted.count(scene)], YES_NO)


def _of_pairs(scene: Scene, rng: np.random.Generator) -> Iterator[Question]:
    single = scene.single
    for a, b in ((a, b) for a in single for b in single if a is not b):
        left, above = scene.left_of(a, b), scene.above(a, b)
        if left is not None:
            text = f"Is the {a.kind} to the left of the {b.kind}?"
            yield Question("left of", text, YES_NO[not left], YES_NO, (a, b))
        if above is not None:
            yield Question("above", f"Is the {a.kind} above the {b.kind}?", YES_NO[not above], YES_NO, (a, b))
        same = a.colour == b.colour
        text = f"Do the {a.kind} and the {b.kind} have the same color?"
        yield Question("same color", text, YES_NO[not same], YES_NO, (a, b))
    for one, other in ((one, other) for one in scene.counts for other in scene.counts if one != other):
        if scene.counts[one] != scene.counts[other]:
            more = scene.counts[one] > scene.counts[other]
            yield Question("more", f"Are there more {plural(one)} than {plural(other)}?", YES_NO[not more], YES_NO)


def _alike(a: Thing, b: Thing, how: str) -> bool:
    return a.kind == b.kind and getattr(a, how) == getattr(b, how)


def article(words: str) -> str:
    """Words with a or an before them."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _choice(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}"


class Balance:
    """Chooses, scene after scene, what is asked so that the answers of each family come equally often, and families as
    often as WEIGHTS has it.

    A question whose answer is ahead of its family's rarest one by SLACK is passed over.
    """

    def __init__(self) -> None:
        self._given: dict[str, Counter[str]] = defaultdict(Counter)

    def choose(self, asked: Iterable[Question], most: int) -> list[Question]:
        """At most so many of a scene's questions, one a family first."""
        waiting, found, families = list(asked), list[Question](), Counter[str]()
        while len(found) < most and (waiting := [each for each in waiting if self._ahead(each) < SLACK]):
            best = min(waiting, key=lambda each: (self._turn(each.family, families), self._ahead(each)))
            waiting.remove(best)
            families[best.family] += 1
            self._given[best.family][best.answer] += 1
            found.append(best)
        return found

    def _turn(self, family: str, here: Counter[str]) -> tuple[int, float]:
        """The lower, the sooner a family's turn comes: by how often it was asked about this scene, and about all."""
        weight = WEIGHTS.get(family, 1)
        return here[family] // weight, self._given[family].total() / weight

    def _ahead(self, question: Question) -> int:
        given = self._given[question.family]
        return given[question.answer] - min(given[answer] for answer in question.answers)


def guessed(known: Iterable[Question], asked: Sequence[Question]) -> float:
    """How many percent of questions are right by the most frequent answer to the same words among known ones; by that
    of the family where the words are new: what can be known without looking."""
    texts: dict[str, Counter[str]] = defaultdict(Counter)
    families: dict[str, Counter[str]] = defaultdict(Counter)
    for each in known:
        texts[each.text][each.answer] += 1
        families[each.family][each.answer] += 1
    right = 0
    for each in asked:
        [(said, _)] = (texts.get(each.text) or families[each.family]).most_common(1) or [("", 0)]
        right += said == each.answer
    return 100 * right / max(1, len(asked))
