"""Which images a data set needs and a store lacks: ids out of annotation files, compared with keys however written."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from storage.errors import StoreError
from storage.store import FeatureStore

# Of each row, the first of these that is there; `id` only where the row is an image's.
FIELDS = (
    "img_fn", "image_id", "imageId", "cocoid", "img_id", "Flickr30K_ID", "Flikr30kID",
    "image_filename", "img_path", "file_name", "filename",
)  # fmt: skip
OF_AN_IMAGE = {"regions", "qas", "img_path", "file_name", "coco_url"}  # fields beside which `id` is the image's
NLVR2 = re.compile(r"\w+-\d+-\d+-\d+")
NUMBER = re.compile(r"(?:COCO_\w+_)?0*(\d+)")  # of others, such as "dev-850-0-img0", the number alone says nothing
COCO_NAME = re.compile(r"(COCO_\w+_\d{12})(_\d+)?")


@dataclass
class Coverage:
    """What a store has of what a data set needs: image ids as the data set writes them."""

    needed: int = 0
    missing: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


def coverage(store: FeatureStore, annotations: str | Path) -> Coverage:
    """Compare a store's keys with the images that an annotation file names.

    A key matches an id if it or the last part of its path is the id, or the same number: a key
    `val2014/COCO_val2014_000000000042` is the image 42.

    Raises:
        StoreError: the file cannot be read, or names no images.
    """
    ids = list(dict.fromkeys(needed_ids(Path(annotations))))
    if not ids:
        raise StoreError(
            f"{annotations} names no images; looked for `images` with an `id`, and for {', '.join(FIELDS)}."
        )
    records = {name for key in store for name in names_of(key)}
    failed = {name for row in store.errors() for name in names_of(row.key)}
    found = Coverage(len(ids))
    for each in ids:
        if not records & set(names_of(each)):
            (found.failed if failed & set(names_of(each)) else found.missing).append(each)
    return found


def needed_ids(path: Path) -> Iterator[str]:
    """Image ids of COCO, VQA, GQA, NLVR2, Karpathy, Visual Genome, RefCOCO, SNLI-VE and VCR files, JSON or JSON lines.

    Raises:
        StoreError: the file cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
        try:
            content = json.loads(text)
        except ValueError:  # one object a line, whatever the file is called
            content = [json.loads(line) for line in text.splitlines() if line.strip()]
    except (OSError, ValueError, RecursionError) as error:
        raise StoreError(f"{path} cannot be read as annotations in JSON: {str(error).splitlines()[0]}.") from error
    if isinstance(content, dict) and isinstance(content.get("images"), list):
        yield from _ids(content["images"], own_id=True)
    elif isinstance(content, dict) and all(isinstance(row, dict) and "objects" in row for row in content.values()):
        yield from content  # GQA's scene graphs, by image
    elif isinstance(content, dict):
        nested = next((content[name] for name in ("annotations", "questions", "scenes") if name in content), None)
        yield from _ids(nested if isinstance(nested, list) else content.values())
    elif isinstance(content, list):
        yield from _ids(content)


def _ids(rows: Iterable[Any], own_id: bool = False) -> Iterator[str]:
    for row in rows:
        if not isinstance(row, dict):
            continue
        if NLVR2.fullmatch(str(row.get("identifier"))):  # split-set-pair-sentence; a pair is two images
            yield from (f"{row['identifier'].rpartition('-')[0]}-img{side}" for side in (0, 1))
            continue
        names = [*(FIELDS[:7]), *(["id"] if own_id or OF_AN_IMAGE & row.keys() else []), *FIELDS[7:]]
        value = next((str(row[name]) for name in names if row.get(name) is not None), "")
        value = re.sub(r"\.(jpe?g|png|webp|gif)$", "", value)
        coco = COCO_NAME.fullmatch(value)  # RefCOCO's in VL-BERT and others' end in the annotation's number
        if value:
            yield coco[1] if coco else value


def names_of(key: str) -> list[str]:
    """What a key may be called elsewhere: itself, the last part of its path, and the number that this is."""
    last = key.rsplit("/", 1)[-1]
    number = NUMBER.fullmatch(last)
    return [key, last, f"#{number[1]}"] if number else [key, last]
