"""What is said of scenes is true, is balanced, and cannot be guessed from the text."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np

from trainers.scenes.asking import Balance, Question, guessed, questions
from trainers.scenes.files import ASKED
from trainers.scenes.looks import COLOURS, KINDS, TEXTURES, plural
from trainers.scenes.saying import CAPTIONS, LABELS, NUMBERS, captions, expressions, hypothesis, statements
from trainers.scenes.scene import Scene, Thing, make_scene
from trainers.scenes.thing_files import VCR_KINDS
from trainers.scenes.visual_genome_files import write_visual_genome
from trainers.tasks.commonsense import CLASS

SCENES = [make_scene(5, number) for number in range(400)]
ONE = {plural(kind): kind for kind in KINDS}


def answer_of(scene: Scene, text: str) -> str:
    """The answer to a question, read from its words alone: an implementation of its own."""
    words = text.rstrip("?").split()
    kinds = [ONE.get(word, word) for word in words if ONE.get(word, word) in KINDS]
    named = [[thing for thing in scene.things if thing.kind == kind] for kind in kinds]
    if text.startswith("What is the"):
        [thing] = [each for each in scene.things if set(words[3:-1]) <= set(each.looks)]
        return thing.kind
    if text.startswith("How many"):
        return str(len(named[0]))
    if "more" in words:
        return "yes" if len(named[0]) > len(named[1]) else "no"
    if text.startswith("Is there"):
        return "yes" if sought(words, scene) else "no"
    sizes = [word for word in words if word in ("small", "large")]
    if len(sizes) == 1:
        named[0] = [thing for thing in named[0] if thing.size == sizes[0]]
    [first, *others] = [of_kind[0] for of_kind in named]
    assert all(len(of_kind) == 1 for of_kind in named), "it speaks of one thing"
    middle = scene.width / 2
    if "same" in words:
        return "yes" if first.colour == others[0].colour else "no"
    if "above" in words:
        return "yes" if first.centre[1] < others[0].centre[1] else "no"
    if "left" in words and others:
        return "yes" if first.centre[0] < others[0].centre[0] else "no"
    if "side" in words:
        return "left" if first.centre[0] < middle else "right"
    return first.colour if "color" in words else first.texture if "plain," in words else first.size


def sought(words: list[str], scene: Scene) -> list[Thing]:
    """The things of a kind, a colour, or both, as the words have it."""
    kinds = [ONE.get(word, word) for word in words if ONE.get(word, word) in KINDS]
    colours = [word for word in words if word in COLOURS]
    assert kinds or colours
    return [thing for thing in scene.things if {*kinds, *colours} <= set(thing.looks)]


def test_things_are_sought_by_kind_by_colour_and_by_both() -> None:
    asked = {each.text for scene in SCENES[:100] for each in questions(scene) if each.family == "exists"}
    ways = Counter(("thing?" in text.split(), any(colour in text for colour in COLOURS)) for text in asked)
    assert ways.keys() == {(True, True), (False, True), (False, False)}, "by colour, by both, by kind"


def test_every_answer_is_right_and_possible() -> None:
    for scene in SCENES:
        texts = [each.text for each in questions(scene)]
        assert len(set(texts)) == len(texts), "nothing is asked twice"
        for each in questions(scene):
            assert answer_of(scene, each.text) == each.answer, (each, scene)
            assert each.answer in each.answers


def chosen(scenes: list[Scene], most: int = ASKED) -> list[Question]:
    balance = Balance()
    return [each for scene in scenes for each in balance.choose(questions(scene), most)]


def test_answers_are_balanced_and_all_families_asked() -> None:
    by_family: dict[str, Counter[str]] = defaultdict(Counter)
    found = chosen(SCENES)
    for each in found:
        by_family[each.family][each.answer] += 1
    yes_no = {"exists", "left of", "above", "same color", "more"}
    assert set(by_family) == yes_no | {"color", "kind", "count", "side", "size", "pattern"}
    assert len(found) > 8 * len(SCENES)
    for family, given in by_family.items():
        assert max(given.values()) - min(given.values()) <= 2, (family, given)
        assert given.total() > 80, family
    for family in ("color", "kind", "exists"):
        assert by_family[family].total() > 1.5 * by_family["pattern"].total(), family


def test_guessing_from_the_text_alone_is_measured_and_low() -> None:
    assert guessed(chosen(SCENES[:280]), chosen(SCENES[280:])) < 35
    asked = [Question("color", "What color is the ball?", colour, tuple(COLOURS)) for colour in ("red", "red", "blue")]
    assert round(guessed(asked, asked)) == 67 and guessed([], asked) == 0


def test_captions_are_five_and_true() -> None:
    for scene in SCENES:
        said = captions(scene)
        assert len(said) == CAPTIONS and all(each[0].isupper() and each.endswith(".") for each in said)
        looks = {(thing.colour, thing.kind) for thing in scene.things}
        for each in said:
            assert all(pair in looks for pair in re.findall(rf"\b({'|'.join(COLOURS)}) (\w+)", each)), each
            for number, name in re.findall(rf"\b({'|'.join(NUMBERS[1:])}) (\w+)", each.lower()):
                assert scene.counts[ONE.get(name, name)] == NUMBERS.index(number), each
    assert np.mean([len(set(captions(scene))) == CAPTIONS for scene in SCENES]) > 0.8


def test_an_expression_fits_one_thing() -> None:
    count = 0
    for scene in SCENES:
        for thing in scene.things:
            for places in (False, True):
                for said in expressions(scene, thing, places):
                    words = set(said.split())
                    fits = [
                        each
                        for each in scene.things
                        if words - {"the", "one", "on"} - {scene.side_of(each)} <= set(each.looks)
                        and not (words & {"left", "right"} and scene.side_of(each) not in words)
                    ]
                    assert fits == [thing], (said, scene)
                    assert places or not words & {"left", "right"}
                    count += 1
    assert count > 10 * len(SCENES)


def test_phrases_of_visual_genome_are_different_and_true_of_their_box(tmp_path: Path) -> None:
    scenes = SCENES[:100]
    write_visual_genome(scenes, [[] for _ in scenes], tmp_path)
    described = json.loads((tmp_path / "region_descriptions.json").read_text())
    ids = [region["region_id"] for image in described for region in image["regions"]]
    assert len(set(ids)) == len(ids) > 1.5 * sum(len(scene.things) for scene in scenes)
    for scene, image in zip(scenes, described, strict=True):
        of = {thing.box: thing for thing in scene.things}
        said = [((each["x"], each["y"]), each["phrase"]) for each in image["regions"]]
        assert len(set(said)) == len(said)
        for each in image["regions"]:
            box = (each["x"], each["y"], each["x"] + each["width"], each["y"] + each["height"])
            assert set(each["phrase"].split()) - {"the", "one"} <= set(of[box].looks)


def test_hypotheses_have_their_labels_and_words_do_not_tell_them() -> None:
    colours: dict[str, Counter[str]] = defaultdict(Counter)
    for scene in SCENES:
        for label in LABELS:
            said = hypothesis(scene, label)
            if said is None:
                assert label != "neutral" and not scene.single
                continue
            [(kind, colour)] = re.findall(r"^The (\w+) is (\w+)\.$", said)
            there = [thing.colour for thing in scene.things if thing.kind == kind]
            assert label == ("neutral" if not there else "entailment" if there == [colour] else "contradiction")
            colours[label][colour] += 1
    assert all(set(given) == set(COLOURS) for given in colours.values())


def test_statements_are_different_and_true_of_one_pair() -> None:
    found, words = [], Counter[str]()
    for at in range(0, len(SCENES), 4):
        pairs = ((SCENES[at], SCENES[at + 1]), (SCENES[at + 2], SCENES[at + 3]))
        made = statements(*pairs, 8)
        assert len({said for said, _ in made}) == 8
        for said, first in made:
            assert [holds(said, *pair) for pair in pairs] == [first, not first], said
            found.append(first)
            words[said.split()[0]] += 1
    assert 0.45 < np.mean(found) < 0.55
    assert set(words) == {"The", "There", "Both"}


def holds(said: str, left: Scene, right: Scene) -> bool:
    """Whether a statement is true, read from its words alone."""
    words = said.rstrip(".").split()
    image, other = (left, right) if "left" in words else (right, left)
    number = next((NUMBERS.index(word) for word in words if word in NUMBERS and word != "one"), 1)
    if said.startswith("Both"):
        return len(sought(words, left)) + len(sought(words, right)) == number
    if "more" in words:
        return len(sought(words, image)) > len(sought(words, other))
    if "exactly" in words:
        return len(sought(words, image)) == number
    return bool(sought(words, image))


def test_names_are_of_one_thing_each_and_vcr_s_are_coco_s() -> None:
    assert not {*TEXTURES, *COLOURS} & set(KINDS)
    assert set(VCR_KINDS) <= set(CLASS) & set(KINDS)
