"""VQA v2: questions with ten answers each. Keys of images: official COCO ids.

truth: {"answers": the ten as written, "scores": what `soft_scores` makes of them, "answer_type": "yes/no" | "number" |
"other", "question_type", "multiple_choice_answer"}; empty for test, whose annotations are not published.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from trainers.data.answers import soft_scores
from trainers.data.base import Example
from trainers.data.files import DataError, each, items, number, rows_of, text, value

QUESTIONS = 'VQA questions: {"questions": [{"image_id": 9, "question": "...", "question_id": 9000}]}'
ANNOTATIONS = 'VQA annotations: {"annotations": [{"question_id": 9000, "answers": [...], "answer_type": "other"}]}'


def read(split: str, paths: Sequence[Path]) -> list[Example]:
    """The questions of a split, in the order of their file, with the answers if there is a second path.

    Raises:
        DataError: a file is absent or of another format, or the two do not belong together.
    """
    rows = rows_of(paths[0], "questions", QUESTIONS)
    truths = read_truths(paths[1]) if len(paths) > 1 else None
    found = list(each(paths[0], rows, lambda row: _example(row, truths), QUESTIONS))
    if truths is not None:
        answered = sum(bool(example.truth) for example in found)
        if answered < len(found):
            raise DataError(
                f"{paths[1]} answers {answered:,} of the {len(found):,} questions of {paths[0]}; "
                "wanted the annotations of the same year and split."
            )
    return found


def read_truths(path: Path) -> dict[int, dict[str, Any]]:
    """What is known of each question, by its id; errors as of `read`."""
    rows = rows_of(path, "annotations", ANNOTATIONS)
    return dict(each(path, rows, _truth, ANNOTATIONS))


def _example(row: Any, truths: dict[int, dict[str, Any]] | None) -> Example:
    question_id = number(row, "question_id")
    truth = truths.get(question_id, {}) if truths is not None else {}
    return Example(str(question_id), (str(number(row, "image_id")),), (text(row, "question").strip(),), truth)


def _truth(row: Any) -> tuple[int, dict[str, Any]]:
    names = ("answer_type", "question_type", "multiple_choice_answer")
    answers = tuple(sys.intern(text(answer, "answer")) for answer in items(row, "answers"))
    if not answers:
        raise ValueError("it has no answer")
    known = {name: sys.intern(text(row, name)) for name in names if value(row, name) is not None}
    return number(row, "question_id"), {"answers": answers, "scores": _shared_scores(tuple(sorted(answers))), **known}


@lru_cache(1 << 16)
def _shared_scores(answers: tuple[str, ...]) -> Mapping[str, float]:
    """One dictionary for all questions that were answered alike, such as ten times yes."""
    return soft_scores(answers)
