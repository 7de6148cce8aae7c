"""Examples that lines answer differently, with the picture, its boxes, the truth and every answer."""

from __future__ import annotations

import base64
import io
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from storage.records import RegionRecord
from trainers.data.base import Example
from trainers.data.snli_ve import LABELS
from trainers.tasks.base import Prediction

SIDE, QUALITY = 320, 80  # pixels of the longer side of a picture, and of its JPEG
SHOWN, BOXES = 6, 8  # examples, and boxes of a picture
LOOK = 200  # pixels of the longer side of a picture of what a line looks at
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Picture:
    """One image as a page shows it.

    uri     a JPEG as data
    width, height  of the original, pixels
    boxes   x, y, width, height in pixels of the original, with a label where one is known
    """

    uri: str
    width: int
    height: int
    boxes: tuple[tuple[Box, str], ...] = ()


@dataclass(frozen=True)
class Look:
    """What a line looks at when it reads a word.

    chosen   in words, what Grad-CAM is the score of
    attention, gradcam  JPEGs as data
    """

    chosen: str
    attention: str
    gradcam: str


@dataclass(frozen=True)
class Said:
    """What one line answered; where it looked, or, in words, why that cannot be shown."""

    label: str
    answer: str
    right: bool
    look: Look | str | None = None


@dataclass(frozen=True)
class Shown:
    """One example on the page; the word is the one at which the looks are, if there are any."""

    table: str
    text: str
    truth: str
    pictures: tuple[Picture, ...]
    answers: tuple[Said, ...]
    word: str = ""


def truth_of(example: Example) -> str | None:
    """The right answer in words; None where an example has none that could be said."""
    truth = example.truth
    for name in ("multiple_choice_answer", "answer"):
        if isinstance(truth.get(name), str):
            return str(truth[name])
    label = truth.get("label")
    if isinstance(label, bool):
        return said(label)
    return LABELS[label] if isinstance(label, int) else None  # SNLI-VE's


def answer_of(prediction: Prediction) -> str:
    """What was answered, in words."""
    return said(prediction.get("answer", prediction.get("label")))


def said(answer: Any) -> str:
    """An answer in words."""
    return {True: "true", False: "false"}[answer] if isinstance(answer, bool) else str(answer)


def telling_word(text: str, texts: Sequence[str]) -> str:
    """The word of a text that the fewest of the texts have, of several the longest: what it is about."""
    having = Counter(word for each in texts for word in set(_words(each.lower())))
    return min(_words(text), key=lambda word: (having[word.lower()], -len(word)), default="")


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text)


def disagreeing(
    examples: Sequence[Example], answers: Mapping[str, Sequence[Prediction]], most: int = SHOWN
) -> list[int]:
    """Numbers of the examples on which lines differ most: as many right as wrong, each picture once.

    Such as ask what another one asks, and are answered like it, come last.

    Args:
        answers: of each line, the predictions for these examples, in order.
    """
    found = []
    for number, example in enumerate(examples):
        truth = truth_of(example)
        given = [answer_of(predictions[number]) for predictions in answers.values()]
        right = sum(each == truth for each in given)
        if truth is not None and 0 < right < len(given):
            found.append((abs(2 * right - len(given)), -len(set(given)), number))
    numbers = [number for *_, number in sorted(found)]
    new = _each_once(numbers, [(examples[number].texts, truth_of(examples[number])) for number in numbers])
    rest = [number for number in numbers if number not in set(new)]
    numbers = new + rest  # like questions with like answers come last
    return _each_once(numbers, [examples[number].images for number in numbers])[:most]


def _each_once(numbers: Sequence[int], of: Sequence[Any]) -> list[int]:
    """The numbers whose thing did not come before."""
    seen: dict[Any, int] = {}
    for number, thing in zip(numbers, of, strict=True):
        seen.setdefault(thing, number)
    return list(seen.values())


def shown(table: str, example: Example, answers: Mapping[str, Prediction], picture: Callable[[str], Picture]) -> Shown:
    """An example as the page shows it; `picture` gives that of an image's key."""
    truth = truth_of(example)
    assert truth is not None
    given = ((label, answer_of(each)) for label, each in answers.items())
    told = tuple(Said(label, answer, answer == truth) for label, answer in given)
    return Shown(table, example.texts[0], truth, tuple(picture(key) for key in example.images), told)


def picture_of(image: np.ndarray, record: RegionRecord | None, names: Mapping[str, Sequence[str]]) -> Picture:
    """An image made small, and the boxes that a detector is surest of.

    Args:
        image: uint8 (H, W, 3) RGB.
        record: of the image's regions.
        names: of the detector's classes, where it has any.
    """
    height, width = image.shape[:2]
    return Picture(uri_of(image, SIDE), width, height, () if record is None else _boxes(record, names))


def uri_of(image: np.ndarray, side: int) -> str:
    """An image uint8 (H, W, 3) as a JPEG in a page, its longer side no more than so many pixels."""
    small = Image.fromarray(image)
    small.thumbnail((side, side))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _boxes(record: RegionRecord, names: Mapping[str, Sequence[str]]) -> tuple[tuple[Box, str], ...]:
    found = []
    for row, (left, top, right, bottom) in enumerate(record.boxes[:BOXES].tolist()):
        known = names.get("classes") and record.class_ids is not None
        label = names["classes"][int(record.class_ids[row])] if known else ""  # type: ignore[index]
        found.append(((left, top, right - left, bottom - top), label))
    return tuple(found)
