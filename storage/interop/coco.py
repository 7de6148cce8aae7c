"""COCO-format JSON of detections: what pycocotools scores, and what viewers of boxes open.

Two files in a folder (cocodataset/cocoapi `PythonAPI/pycocotools/coco.py`, and the "format" pages of its site):

    instances.json   images, categories and annotations, each with its `score`: `pycocotools.coco.COCO` and viewers that
                     import COCO's instances (FiftyOne, CVAT) read it without anything else
    detections.json  the "results" list, for `COCO(ground_truth).loadRes`: image_id, category_id, bbox, score
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from storage.against import names_of
from storage.errors import StoreError
from storage.interop.base import ExportReport
from storage.interop.folders import known_size, left_out, new_folder
from storage.interop.text import pixel_boxes, regions_of
from storage.records import RegionRecord
from storage.store import FeatureStore

NAME = "coco-detections"
NEEDED = ("class_ids", "class_scores")
MOST = 1 << 53  # JavaScript's viewers read ids as doubles

Row = dict[str, Any]


def write_detections(store: FeatureStore, out: Path, files: Mapping[str, str] | None = None) -> ExportReport:
    """Write a store of regions with classes; boxes as x y width height in pixels, to 0.001, scores to 1e-6.

    Args:
        out: a folder, which appears whole or not at all.
        files: the images' file names by key; default: the key and `.jpg`.

    Raises:
        StoreError: the store is empty or has no classes, an image's size is not known or its file's name is missing, a
            class has no name, `out` exists, or the disk refuses.
    """
    if not len(store):
        raise StoreError(f"{store.place.name} has no record yet; there is nothing to export.")
    regions_of(store, NAME, NEEDED)  # refuses other stores before anything is written
    ids, told = image_ids(store)
    names = {key: f"{key}.jpg" for key in ids} if files is None else files
    categories = _categories(store)
    with new_folder(out) as folder:
        with (folder / "instances.json").open("w", encoding="utf-8") as file:
            file.write(f'{{"info": {json.dumps(_info(store))},\n"categories": ')
            _write_list(file, categories)
            file.write(',\n"images": ')
            _write_list(file, (_image(record, ids, names) for record in regions_of(store, NAME)))
            file.write(',\n"annotations": ')
            boxes = _write_list(file, _annotations(store, ids, len(categories)))
            file.write("}\n")
        with (folder / "detections.json").open("w", encoding="utf-8") as file:
            _write_list(file, (each for record in regions_of(store, NAME) for each in _results(record, store, ids)))
    return ExportReport(len(store), 2, _notes(store, boxes, told, files is None))


def image_ids(store: FeatureStore) -> tuple[dict[str, int], bool]:
    """An id for each key, and whether it is the one the key tells.

    Keys that are numbers, or end in one as COCO_val2014_000000000042 does, give that number if all do and no two are
    the same; else the keys are numbered from 1 in the order of the alphabet, so that stores of the same images agree.
    """
    called = {key: names_of(key)[2:] for key in store}  # the number comes third, if there is one
    numbers = {key: int(rest[0][1:]) for key, rest in called.items() if rest}
    if len(called) == len(set(numbers.values())) and all(each < MOST for each in numbers.values()):
        return numbers, True
    return {key: number for number, key in enumerate(sorted(store), 1)}, False


def _info(store: FeatureStore) -> Row:
    return {"description": "detections, not ground truth", "model": store.spec.model, "spec_id": store.spec.id}


def _categories(store: FeatureStore) -> list[Row]:
    """Ids from 1: COCO's tools keep 0 for the background."""
    names = store.vocabulary.get("classes")
    if not names:
        seen = (each.class_ids for each in regions_of(store, NAME) if each.class_ids is not None)
        count = max((int(ids.max()) + 1 for ids in seen if len(ids)), default=0)
        names = [f"class {number}" for number in range(count)]
    return [{"id": number, "name": name} for number, name in enumerate(names, 1)]


def _image(record: RegionRecord, ids: Mapping[str, int], files: Mapping[str, str]) -> Row:
    height, width = known_size(record)
    if record.key not in files:
        raise StoreError(f"{record.key!r} is not among the images that were named; give the folder it was taken from.")
    return {"id": ids[record.key], "file_name": files[record.key], "width": width, "height": height}


def _annotations(store: FeatureStore, ids: Mapping[str, int], categories: int) -> Iterator[Row]:
    number = 0
    for record in regions_of(store, NAME):
        for row in _results(record, store, ids):
            if row["category_id"] > categories:
                raise StoreError(
                    f"{record.key!r} has class {row['category_id'] - 1}, and the store names {categories}; "
                    "its vocabulary belongs to another detector."
                )
            number += 1
            area = round(row["bbox"][2] * row["bbox"][3], 3)
            yield {"id": number, **row, "area": area, "iscrowd": 0}


def _results(record: RegionRecord, store: FeatureStore, ids: Mapping[str, int]) -> Iterator[Row]:
    assert record.class_ids is not None and record.class_scores is not None  # NEEDED
    boxes = pixel_boxes(record, store.spec.layout.box_units).astype(float).tolist()
    if not np.isfinite(record.class_scores).all():
        raise StoreError(f"{record.key!r} has a score that is no number, which JSON cannot hold; extract it again.")
    rows = zip(boxes, record.class_ids.tolist(), record.class_scores.tolist(), strict=True)
    for (x1, y1, x2, y2), kind, score in rows:
        box = [round(each, 3) for each in (x1, y1, x2 - x1, y2 - y1)]
        yield {"image_id": ids[record.key], "category_id": kind + 1, "bbox": box, "score": round(score, 6)}


def _write_list(file: TextIO, rows: Iterable[Row]) -> int:
    """A JSON list, a row a line, of any length; returns its length."""
    count = 0
    file.write("[")
    for row in rows:
        file.write(",\n" if count else "\n")
        file.write(json.dumps(row))
        count += 1
    file.write("]")
    return count


def _notes(store: FeatureStore, boxes: int, told: bool, made_up: bool) -> tuple[str, ...]:
    return (
        f"{boxes} boxes: x y width height in pixels of the original image; category_id is the class's number from 1",
        "image ids are the numbers in the keys" if told else "image ids count the keys in the order of the alphabet",
        *(("file names are the key and .jpg; --images gives the real ones",) if made_up else ()),
        *left_out(store, NEEDED),
    )
