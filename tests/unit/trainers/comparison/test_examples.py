"""Which examples are shown, and how."""

from __future__ import annotations

import base64
import io
from dataclasses import replace

import numpy as np
from PIL import Image

from storage import RegionRecord
from trainers.comparison.examples import SIDE, Said, disagreeing, picture_of, shown, telling_word, truth_of
from trainers.data.base import Example


def question(number: int, answer: str = "yes", image: str | None = None) -> Example:
    truth = {"multiple_choice_answer": answer}
    return Example(str(number), (image or f"image {number}",), (f"question {number}",), truth)


def said(*answers: str) -> list[dict[str, str]]:
    return [{"answer": each} for each in answers]


def test_examples_are_those_on_which_lines_differ_most_and_a_picture_comes_once() -> None:
    examples = [question(0), question(1), question(2), question(3), question(4, image="image 2")]
    answers = {
        "a": said("yes", "no", "yes", "yes", "yes"),
        "b": said("yes", "no", "yes", "yes", "yes"),
        "c": said("yes", "no", "no", "yes", "no"),
        "d": said("yes", "no", "no", "no", "no"),
    }
    assert disagreeing(examples, answers) == [2, 3]  # 0 and 1 are answered alike; 4 shows the image of 2
    assert disagreeing(examples, answers, most=1) == [2]


def test_other_questions_come_before_the_same_one_again() -> None:
    examples = [question(number) for number in (0, 0, 0, 1)]
    examples = [replace(each, images=(str(at),)) for at, each in enumerate(examples)]
    answers = {"a": said("yes", "yes", "yes", "yes"), "b": said("no", "no", "no", "no")}
    assert disagreeing(examples, answers) == [0, 3, 1, 2]
    assert disagreeing(examples, answers, most=2) == [0, 3]


def test_an_example_is_shown_with_its_truth_and_every_answer() -> None:
    found = shown(
        "t", question(1), {"a": {"answer": "yes"}, "b": {"answer": "no"}}, lambda key: picture_of(BLACK, None, {})
    )
    assert (found.text, found.truth) == ("question 1", "yes")
    assert found.answers == (Said("a", "yes", True), Said("b", "no", False))


def test_statements_are_true_or_false() -> None:
    assert truth_of(Example("1", (), ("s",), {"label": False})) == "false"
    assert truth_of(Example("1", (), ("s",), {"answer": "red"})) == "red"
    assert truth_of(Example("1", (), ("s",), {"label": 2})) == "entailment"
    assert truth_of(Example("1", (), ("s",), {"box": (1, 2, 3, 4)})) is None


def test_the_word_that_tells_most_is_the_one_that_few_texts_have() -> None:
    texts = ["Is there a red kite?", "Is there a red car?", "is the cat red"]
    assert telling_word(texts[0], texts) == "kite"
    assert telling_word("Is there a car beside the umbrella?", texts) == "umbrella"  # of those equally rare the longest
    assert telling_word("?", texts) == ""


BLACK = np.zeros((480, 640, 3), np.uint8)


def test_a_picture_is_small_and_its_boxes_are_the_original_s() -> None:
    facts = {"class_ids": np.array([1], np.int32), "class_scores": np.array([0.9], np.float32)}
    boxes, features = np.array([[10, 20, 110, 220]], np.float32), np.zeros((1, 4), np.float16)
    record = RegionRecord("k", (480, 640), boxes, features, **facts)
    found = picture_of(BLACK, record, {"classes": ["tree", "cat"]})
    kind, _, data = found.uri.partition(",")
    assert kind == "data:image/jpeg;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (SIDE, SIDE * 3 // 4)
    assert (found.width, found.height, found.boxes) == (640, 480, (((10, 20, 100, 200), "cat"),))
    assert picture_of(BLACK, record, {}).boxes[0][1] == ""
