"""The TSV of LXMERT: regions with their best class and attribute, a line an image.

Schema: airsplay/lxmert:src/utils.py. Shapes in this file: N boxes, D feature width.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from storage.interop.base import ExportReport, Foreign, Import, ImportOptions
from storage.interop.folders import known_size, left_out
from storage.interop.text import (
    encoded,
    expect_columns,
    first_records,
    floats,
    integers,
    line_key,
    pixel_boxes,
    read_tsv,
    regions_of,
    text_key,
    tsv_paths,
    usual_width,
    whole_number,
    write_lines,
)
from storage.records import RegionRecord
from storage.spec import FeatureLayout
from storage.store import FeatureStore

NAME = "lxmert-tsv"
# Height before width, unlike the older TSV of bottom-up attention.
HEAD, LABELS = ("img_id", "img_h", "img_w"), ("objects_id", "objects_conf", "attrs_id", "attrs_conf")
COLUMNS = (*HEAD, *LABELS, "num_boxes", "boxes", "features")
PER_BOX = ("class_ids", "class_scores", "attribute_ids", "attribute_scores")
END = b"\r\n"  # as Python's csv writes


def read(path: Path, options: ImportOptions) -> Import:
    """Open one .tsv, or a folder with `*.tsv*` parts. Keys are the img_ids as they stand.

    Rows: num_boxes N in decimal; base64 of objects_id and attrs_id (N,) int64, background not counted, objects_conf and
    attrs_conf (N,) float32, boxes (N, 4) float32, x1 y1 x2 y2 in pixels, and features (N, D) float32.

    Raises:
        StoreError: there is no such file, or none of its first rows can be read.
    """
    paths = tsv_paths(path)
    first = first_records(read_tsv(paths, partial(_record, width=None)), path)
    layout = FeatureLayout(usual_width(first), "float32", without=("whole_image",))
    rows = read_tsv(paths, partial(_record, width=layout.dim))
    return Import("regions", layout, rows, _notes(first))


def _notes(first: Sequence[RegionRecord]) -> tuple[str, ...]:
    notes: tuple[str, ...] = (
        "boxes: x1 y1 x2 y2 in pixels; class and attribute ids do not count the background",
        "not in this format: class probabilities, the feature of the whole image",
    )
    if not any(np.any(each.attribute_ids) or np.any(each.attribute_scores) for each in first):
        notes += (
            "attributes are all zero in the first rows: this extractor seems to have had none; kept as they stand",
        )
    return notes


def _record(columns: list[bytes], width: int | None) -> RegionRecord:
    expect_columns(columns, COLUMNS)
    text = dict(zip(COLUMNS, columns, strict=True))
    rows = whole_number("num_boxes", text["num_boxes"])
    return RegionRecord(
        text_key(text["img_id"]),
        (whole_number("img_h", text["img_h"], 1), whole_number("img_w", text["img_w"], 1)),
        boxes=floats("boxes", text["boxes"], rows, 4),
        features=floats("features", text["features"], rows, width),
        class_ids=integers("objects_id", text["objects_id"], rows),
        class_scores=floats("objects_conf", text["objects_conf"], rows, 1)[:, 0],
        attribute_ids=integers("attrs_id", text["attrs_id"], rows),
        attribute_scores=floats("attrs_conf", text["attrs_conf"], rows, 1)[:, 0],
    )


def write(store: FeatureStore, out: Path) -> ExportReport:
    """Write a store of regions with classes as one .tsv; features become float32, whatever they are stored in.

    Raises:
        StoreError: the store has no classes, an image's size is not known, a key does not fit, `out` exists, or the
            disk refuses.
    """
    records = regions_of(store, NAME, needed=("class_ids", "class_scores"))
    units, without = store.spec.layout.box_units, store.spec.layout.without
    count = write_lines(out, (_line(record, units) for record in records), END)
    notes: tuple[str, ...] = (
        "boxes: x1 y1 x2 y2 in pixels of the original image; ids do not count the background",
        "LXMERT wants the 5,000 minival images first in its val2014 file; rows are in the store's order",
        *left_out(store, PER_BOX),
    )
    absent = [name for name in ("attribute_ids", "attribute_scores") if name in without]
    if absent:
        notes += (f"zeros for {' and '.join(absent)}, as LXMERT's detectron2 extractor writes; the store has none",)
    return ExportReport(count, 1, notes)


def _line(record: RegionRecord, units: str) -> list[str]:
    height, width = known_size(record)
    return [
        line_key(record.key),
        *(str(height), str(width)),
        *(_per_box(record, "class_ids", "<i8"), _per_box(record, "class_scores", "<f4")),
        *(_per_box(record, "attribute_ids", "<i8"), _per_box(record, "attribute_scores", "<f4")),
        str(len(record.boxes)),
        *(encoded(pixel_boxes(record, units)), encoded(record.features)),
    ]


def _per_box(record: RegionRecord, field: str, dtype: str) -> str:
    values = getattr(record, field)
    return encoded(np.zeros(len(record.boxes), dtype) if values is None else values, dtype)


LXMERT_TSV = Foreign("LXMERT TSV (airsplay/lxmert)", ("regions",), read, write)
