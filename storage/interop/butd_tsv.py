"""The TSV of bottom-up attention: regions of the Caffe detector, a line an image.

Schema: peteanderson80/bottom-up-attention:tools/generate_tsv.py. Shapes in this file: N boxes, D feature width.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from storage.interop.base import ExportReport, Foreign, Import, ImportOptions
from storage.interop.folders import known_size, left_out
from storage.interop.text import (
    encoded,
    expect_columns,
    first_records,
    floats,
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
from storage.spec import OPTIONAL, FeatureLayout
from storage.store import FeatureStore

NAME = "butd-tsv"
COLUMNS = ("image_id", "image_w", "image_h", "num_boxes", "boxes", "features")  # width before height
END = b"\r\n"  # as Python's csv writes


def read(path: Path, options: ImportOptions) -> Import:
    """Open one .tsv, or a folder with the `*.tsv*` parts that several GPUs wrote.

    Rows: num_boxes N in decimal; base64 of boxes (N, 4) float32, x1 y1 x2 y2 in pixels, and of features (N, D) float32.
    Keys are the image ids as text.

    Raises:
        StoreError: there is no such file, or none of its first rows can be read.
    """
    paths = tsv_paths(path)
    width = usual_width(first_records(read_tsv(paths, partial(_record, width=None)), path))
    layout = FeatureLayout(width, "float32", without=OPTIONAL)
    notes = (
        "boxes: x1 y1 x2 y2 in pixels; bottom-up attention writes the detector's proposals, not regressed boxes",
        "not in this format: classes, attributes, scores, the feature of the whole image",
    )
    return Import("regions", layout, read_tsv(paths, partial(_record, width=width)), notes)


def _record(columns: list[bytes], width: int | None) -> RegionRecord:
    expect_columns(columns, COLUMNS)
    key, image_w, image_h, num_boxes, boxes, features = columns
    rows = whole_number("num_boxes", num_boxes)
    return RegionRecord(
        text_key(key),
        (whole_number("image_h", image_h, 1), whole_number("image_w", image_w, 1)),
        boxes=floats("boxes", boxes, rows, 4),
        features=floats("features", features, rows, width),
    )


def write(store: FeatureStore, out: Path) -> ExportReport:
    """Write a store of regions as one .tsv; features become float32, whatever they are stored in.

    Raises:
        StoreError: an image's size is not known, a key does not fit, `out` exists, or the disk refuses.
    """
    units = store.spec.layout.box_units
    count = write_lines(out, (_line(record, units) for record in regions_of(store, NAME)), END)
    notes = ("boxes: x1 y1 x2 y2 in pixels of the original image", *left_out(store))
    return ExportReport(count, 1, notes)


def _line(record: RegionRecord, units: str) -> list[str]:
    height, width = known_size(record)
    sizes = [str(width), str(height), str(len(record.boxes))]
    boxes = encoded(pixel_boxes(record, units))
    return [line_key(record.key), *sizes, boxes, encoded(record.features)]


BUTD_TSV = Foreign("bottom-up attention TSV (peteanderson80/bottom-up-attention, Caffe)", ("regions",), read, write)
