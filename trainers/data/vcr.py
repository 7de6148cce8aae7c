"""VCR: a question about tagged objects, four answers, four rationales. Keys: img_fn without extension.

texts  the question, the four answers, the four rationales; tags are written as the object's name and its number
truth  {"objects": name of each, "tokens": nine tuples as `texts`, where a tuple of ints is a tag that points into
       objects, "metadata": path below the images of the JSON with their boxes, "answer": 0 to 3, "rationale": 0 to 3};
       the last two are absent in test

Shapes in this file: N objects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trainers.data.base import Example
from trainers.data.files import DataError, each, items, number, read_json, read_json_lines, text, without_extension

CHOICES = 4
WANTED = 'VCR\'s JSON lines: {"annot_id": "val-0", "img_fn": "...", "objects": [], "question": [], ...}'
METADATA = 'VCR\'s metadata: {"boxes": [[x1, y1, x2, y2, score]], "segms": [], "names": [], "width": 1, "height": 1}'

Token = str | tuple[int, ...]  # a word, or the objects that a tag points to


def read(split: str, paths: Sequence[Path]) -> list[Example]:
    """The questions of a file, in its order; ids are annot_ids.

    Raises:
        DataError: the file is absent or of another format.
    """
    [path] = paths
    return list(each(path, read_json_lines(path, WANTED), _example, WANTED))


@dataclass(frozen=True)
class Metadata:
    """The objects of one image, in the order that tags count them.

    boxes   (N, 4) float32  x1, y1, x2, y2 in pixels of the original image
    scores  (N,) float32
    segms   of each object, its polygons, each (P, 2) float32 x, y in pixels
    size    (height, width)
    """

    names: tuple[str, ...]
    boxes: np.ndarray
    scores: np.ndarray
    segms: tuple[tuple[np.ndarray, ...], ...]
    size: tuple[int, int]


def read_metadata(path: Path) -> Metadata:
    """The boxes and outlines of an image.

    Raises:
        DataError: the file is absent or of another format.
    """
    [found] = each(path, [read_json(path, METADATA)], _metadata, METADATA)
    return found


def _metadata(row: Any) -> Metadata:
    names = tuple(items(row, "names"))
    rows = np.array(items(row, "boxes"), np.float32).reshape(len(names), 5)
    segms = tuple(
        tuple(np.array(polygon, np.float32).reshape(-1, 2) for polygon in polygons) for polygons in items(row, "segms")
    )
    if len(segms) != len(names):
        raise ValueError(f"it has {len(names)} names and {len(segms)} segms")
    return Metadata(names, rows[:, :4], rows[:, 4], segms, (number(row, "height"), number(row, "width")))


def _example(row: Any) -> Example:
    objects = tuple(items(row, "objects"))
    choices = [items(row, name) for name in ("answer_choices", "rationale_choices")]
    if any(len(four) != CHOICES for four in choices):
        raise ValueError(f"it has {' and '.join(str(len(four)) for four in choices)} choices, not {CHOICES} each")
    tokens = tuple(_tokens(words, len(objects)) for words in [items(row, "question"), *choices[0], *choices[1]])
    truth = {"objects": objects, "tokens": tokens, "metadata": text(row, "metadata_fn"), **_labels(row)}
    texts = tuple(_written(words, objects) for words in tokens)
    return Example(text(row, "annot_id"), (without_extension(text(row, "img_fn")),), texts, truth)


def _labels(row: Any) -> dict[str, int]:
    names = {"answer": "answer_label", "rationale": "rationale_label"}
    found = {name: number(row, own) for name, own in names.items() if own in row}
    if any(not 0 <= label < CHOICES for label in found.values()):
        raise ValueError(f"its labels are {found}")
    return found


def _tokens(tokens: Any, objects: int) -> tuple[Token, ...]:
    made = tuple(token if isinstance(token, str) else tuple(token) for token in tokens)
    for token in made:
        if not isinstance(token, str) and not all(isinstance(at, int) and 0 <= at < objects for at in token):
            raise ValueError(f"the tag {list(token)} points to none of its {objects} objects")
    return made


def _written(tokens: Sequence[Token], objects: Sequence[str]) -> str:
    return " ".join(
        token if isinstance(token, str) else " and ".join(f"{objects[at]} {at}" for at in token) for token in tokens
    )


def check_metadata(example: Example, found: Metadata) -> None:
    """See that an image's metadata is of the question's objects.

    Raises:
        DataError: it is of others.
    """
    if found.names != tuple(example.truth["objects"]):
        raise DataError(
            f"{example.truth['metadata']} names {len(found.names)} objects {found.names[:5]}, "
            f"the question {example.id} {example.truth['objects'][:5]}; wanted the metadata of the same release."
        )
