"""GQA: questions with one answer. Keys of images: official ids, such as 2354786 or n578564.

truth: {"answer", "scores": {answer: 1.0}, "structural": "query" | "verify" | "logical" | "choose" | "compare",
"balanced"}; empty for the submission file, whose answers are not published.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from trainers.data.base import Example
from trainers.data.files import DataError, each, read_json, text, value

WANTED = 'GQA questions: {"202218727": {"question": "...", "imageId": "n578564", "answer": "yes", ...}}'


def read(split: str, paths: Sequence[Path]) -> list[Example]:
    """The questions of a file, or of the parts of a folder in order of their numbers, in the order of the files.

    Raises:
        DataError: a file is absent or of another format.
    """
    [path] = paths
    return [example for part in _parts(path) for example in each(part, _items(part), _example, WANTED)]


def _parts(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    parts = sorted(path.glob("*.json"), key=lambda part: (len(part.name), part.name))  # _2 before _10
    if not parts:
        raise DataError(f"{path} holds no .json; wanted its parts, train_all_questions_0.json and so on.")
    return parts


def _items(path: Path) -> Iterator[tuple[str, Any]]:
    content = read_json(path, WANTED)
    if not isinstance(content, dict):
        raise DataError(f"{path} holds a {type(content).__name__}; wanted {WANTED}.")
    return iter(content.items())


def _example(item: tuple[str, Any]) -> Example:
    question_id, row = item
    truth = {}
    if "answer" in row:
        types = value(row, "types")
        truth = {
            "answer": text(row, "answer"),
            "scores": {text(row, "answer"): 1.0},
            "structural": text(types, "structural"),
            "balanced": bool(value(row, "isBalanced")),
        }
    return Example(question_id, (text(row, "imageId"),), (text(row, "question").strip(),), truth)
