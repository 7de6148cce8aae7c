"""COCO captions, captions_{train,val}{2014,2017}.json; each caption is an example. Keys of images: official ids."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trainers.data.captions import Captions
from trainers.data.files import each, number, rows_of, text, value

WANTED = 'COCO captions: {"images": [...], "annotations": [{"image_id": 9, "id": 1, "caption": "..."}]}'


def read(split: str, paths: Sequence[Path]) -> Captions:
    """Every caption of a file, in its order; ids are those of the annotations.

    Raises:
        DataError: the file is absent or of another format.
    """
    [path] = paths
    rows = rows_of(path, "annotations", WANTED)
    return Captions.of(each(path, rows, _pair, WANTED))


def _pair(row: object) -> tuple[str, str, str]:
    return str(value(row, "id")), str(number(row, "image_id")), text(row, "caption").strip()
