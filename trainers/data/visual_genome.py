"""Visual Genome: region descriptions as captions, and question_answers.json. Keys of images: official ids.

It has no splits: all is "train". Whoever tests on COCO must leave out its images (`image_data.json` gives COCO's ids).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from trainers.data.answers import vocabulary_form
from trainers.data.base import Example
from trainers.data.captions import Captions
from trainers.data.files import each, items, listed, number, read_json, text, value

REGIONS = 'region_descriptions.json: [{"id": 1, "regions": [{"region_id": 2, "image_id": 1, "phrase": "..."}]}]'
QUESTIONS = 'question_answers.json: [{"id": 1, "qas": [{"qa_id": 2, "image_id": 1, "question": "", "answer": ""}]}]'


def read_regions(split: str, paths: Sequence[Path]) -> Captions:
    """The phrase of every region, whole as ViLT takes them; ids are region ids.

    Raises:
        DataError: the file is absent or of another format.
    """
    [path] = paths
    return Captions.of(each(path, _nested(path, "regions", REGIONS), _phrase, REGIONS))


def read_questions(split: str, paths: Sequence[Path]) -> list[Example]:
    """Every question; ids are qa_ids. truth: {"answer": as written, such as "Green.", "scores": {"green": 1.0}, by
    the normalised answer}. Errors as of `read_regions`.
    """
    [path] = paths
    return list(each(path, _nested(path, "qas", QUESTIONS), _question, QUESTIONS))


def _nested(path: Path, name: str, wanted: str) -> Iterator[Any]:
    images = listed(path, read_json(path, wanted), wanted)
    for rows in each(path, images, lambda image: items(image, name), wanted):
        yield from rows


def _phrase(row: Any) -> tuple[str, str, str]:
    return str(value(row, "region_id")), str(number(row, "image_id")), text(row, "phrase").strip()


def _question(row: Any) -> Example:
    answer = text(row, "answer")
    truth = {"answer": answer, "scores": {vocabulary_form(answer): 1.0}}
    return Example(str(value(row, "qa_id")), (str(number(row, "image_id")),), (text(row, "question").strip(),), truth)
