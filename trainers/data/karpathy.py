"""Karpathy's splits, dataset_coco.json and dataset_flickr30k.json: images with about five captions, for retrieval and
captioning.

An example is an image with all its captions as they were written; its id is the key. Keys of images: COCO's official
id, else the file name without extension. `one_a_text` makes an example of each caption.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from trainers.data.base import Example, Split
from trainers.data.files import each, items, rows_of, text, value, without_extension

WANTED = 'Karpathy\'s splits: {"images": [{"filename": "", "split": "train", "sentences": [{"raw": "..."}]}]}'
TRAIN = ("train", "restval")  # what all who train on COCO take


def read(split: str, paths: Sequence[Path]) -> list[Example]:
    """The images of a split, in the order of the file; "train" is train and restval.

    Raises:
        DataError: the file is absent or of another format.
    """
    [path] = paths
    rows = rows_of(path, "images", WANTED)
    wanted = TRAIN if split == "train" else (split,)
    return [image for image in each(path, rows, lambda row: _example(row, wanted), WANTED) if image]


def one_a_text(split: Split) -> Split:
    """The same with an example for each text; ids are the image's, # and the number of the text, from 0."""
    return replace(
        split,
        examples=[
            replace(example, id=f"{example.id}#{at}", texts=(text,))
            for example in split.examples
            for at, text in enumerate(example.texts)
        ],
    )


def _example(row: Any, splits: Sequence[str]) -> Example | None:
    """None for an image of another split."""
    if text(row, "split") not in splits:
        return None
    key = str(value(row, "cocoid")) if "cocoid" in row else without_extension(text(row, "filename"))
    texts = tuple(text(sentence, "raw").strip() for sentence in items(row, "sentences"))
    if not texts:
        raise ValueError("it has no sentence")
    return Example(key, (key,), texts)
