"""VL-BERT's precomputed regions: one JSON file an image, in a zip that is not compressed or in a folder.

Schema: jackroos/VL-BERT:vqa/data/datasets/vqa.py and pretrain/data/datasets/conceptual_captions.py. Shapes in this
file: N boxes, D feature width, C classes with background, A attributes with "no attribute".
"""

from __future__ import annotations

import json
import os
import statistics
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from storage.codecs import cast
from storage.errors import StoreError
from storage.interop.base import BadRow, ExportReport, Foreign, Import, ImportOptions
from storage.interop.folders import known_size, left_out, new_folder, safe_name
from storage.interop.text import (
    Row,
    Rows,
    encoded,
    first_records,
    floats,
    new_file,
    pixel_boxes,
    regions_of,
    usual_width,
)
from storage.records import RegionRecord
from storage.spec import FeatureLayout
from storage.store import FeatureStore

NAME = "vlbert-zip"
BY_CLASS = ("class_ids", "class_scores")
BY_ATTRIBUTE = ("attribute_ids", "attribute_scores")
AT_ROOT = "_frcnn"  # VL-BERT addresses train_frcnn.zip@/{id}.json, every other zip X.zip@/X/{id}.json

FIELDS = ("whole_image", *BY_CLASS, *BY_ATTRIBUTE)
LARGEST = 1 << 28  # bytes of one file: 100 boxes with 2048 features and 1601 classes take 2 MiB

# A bad key or value; a file that is torn, encrypted, nested too deep; and what the disk has to say.
UNREADABLE = (StoreError, ValueError, zipfile.BadZipFile, zlib.error, struct.error, EOFError, RuntimeError, OSError)

SHOWN = 200  # characters of a message: zipfile's quote what they found

Member = tuple[str, str, Callable[[], bytes]]  # key, where it stands, its bytes


def read(path: Path, options: ImportOptions) -> Import:
    """Open a zip, or a folder, of {key}.json; one folder that all files of a zip lie in is not part of the keys.

    Each file: image_w, image_h, num_boxes N; base64 float32 of boxes (N, 4), x1 y1 x2 y2 in pixels, and features
    (N, D); where present image_box_feature (D,), classes (N, C), background in column 0, and attrs (N, A), "no
    attribute" in column 0. Which of these are present, most of the first files tell.

    Raises:
        StoreError: there is no such zip or folder, or none of its first files can be read.
    """
    first = first_records(_rows(path, None), path)
    classes = statistics.mode(0 if each.class_probs is None else each.class_probs.shape[1] for each in first)
    layout = FeatureLayout(
        usual_width(first),
        "float32",
        class_probs=classes,
        probs_dtype="float32" if classes else "float16",
        without=statistics.mode(_absent(each) for each in first),
    )
    return Import("regions", layout, _rows(path, layout), _notes(layout))


def _absent(record: RegionRecord) -> tuple[str, ...]:
    return tuple(name for name in FIELDS if getattr(record, name) is None)


def _notes(layout: FeatureLayout) -> tuple[str, ...]:
    notes = ["boxes: x1 y1 x2 y2 in pixels; bottom-up attention writes the detector's proposals, not regressed boxes"]
    if layout.class_probs:
        notes.append("classes: the background moved from column 0 to the last; class ids and scores are their maxima")
    if "attribute_ids" not in layout.without:
        notes.append("attrs: the best attribute and its score are kept, the other probabilities are not")
    return tuple(notes)


def _rows(path: Path, layout: FeatureLayout | None) -> Rows:
    for key, where, content in _members(path):
        yield _row(key, where, content, layout)


def _row(key: str, where: str, content: Callable[[], bytes], layout: FeatureLayout | None) -> Row:
    try:
        record = _record(safe_name(key, ""), json.loads(content()), layout)
        return record if layout is None else _fitting(record, layout)
    except UNREADABLE as error:
        return BadRow(key, where, str(error)[:SHOWN])


def _record(key: str, found: Any, layout: FeatureLayout | None) -> RegionRecord:
    if not isinstance(found, dict):
        raise ValueError(f"the file holds a {type(found).__name__}, wanted an object with boxes and features")
    rows = _number(found, "num_boxes", 0)
    features = floats("features", _text(found, "features"), rows, layout.dim if layout else None)
    return RegionRecord(
        key,
        (_number(found, "image_h", 1), _number(found, "image_w", 1)),
        boxes=floats("boxes", _text(found, "boxes"), rows, 4),
        features=features,
        whole_image=_whole_image(found, features.shape[1]),
        **_classes(found, rows, layout),
        **_attributes(found, rows),
    )


def _whole_image(found: dict[str, Any], width: int) -> np.ndarray | None:
    name = "image_box_feature"
    return floats(name, _text(found, name), 1, width)[0] if name in found else None


def _classes(found: dict[str, Any], rows: int, layout: FeatureLayout | None) -> dict[str, np.ndarray]:
    if "classes" not in found:
        return {}
    probs = floats("classes", _text(found, "classes"), rows, (layout and layout.class_probs) or None)
    best = _best(probs, BY_CLASS)
    return {**best, "class_probs": np.roll(probs, -1, axis=1)}  # background from column 0 to the last


def _attributes(found: dict[str, Any], rows: int) -> dict[str, np.ndarray]:
    return _best(floats("attrs", _text(found, "attrs"), rows, None), BY_ATTRIBUTE) if "attrs" in found else {}


def _best(probs: np.ndarray, fields: tuple[str, str]) -> dict[str, np.ndarray]:
    """The best column but the first, counted from the second, and its value."""
    if not len(probs):
        return dict(zip(fields, (np.zeros(0, np.int32), np.zeros(0, np.float32)), strict=True))
    if probs.shape[1] < 2:
        raise ValueError(f"{fields[0]} cannot be told from {probs.shape[1]} columns, of which one is the background")
    ids = probs[:, 1:].argmax(axis=1)
    return dict(zip(fields, (ids.astype(np.int32), probs[np.arange(len(probs)), ids + 1]), strict=True))


def _fitting(record: RegionRecord, layout: FeatureLayout) -> RegionRecord:
    """The record, where it has just the fields that most of the first files have."""
    missing = [name for name in _absent(record) if name not in layout.without]
    more = [name for name in layout.without if getattr(record, name) is not None]
    if missing or more:
        raise ValueError(f"unlike the first files, it lacks {missing or 'nothing'} and also has {more or 'nothing'}")
    return record


def _number(found: dict[str, Any], name: str, least: int) -> int:
    value = found.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 1 << 31:
        raise ValueError(f"{name} is {value!r:.40}, not a whole number from {least}")
    return value


def _text(found: dict[str, Any], name: str) -> str:
    if not isinstance(found.get(name), str):
        raise ValueError(f"{name} is {found.get(name)!r:.40}, wanted base64 of float32")
    return str(found[name])


def _members(path: Path) -> Iterator[Member]:
    if path.is_dir():
        return _files(path)
    if not path.is_file() or not zipfile.is_zipfile(path):
        raise StoreError(f"{path} is {'no zip' if path.exists() else 'not there'}; give VL-BERT's zip, or its folder.")
    return _zipped(path)


def _files(path: Path) -> Iterator[Member]:
    for folder, inner, names in os.walk(path, onerror=_stop):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        # os.walk does not enter linked folders (they may form a loop); taken for files, they become bad rows.
        linked = [name for name in inner if Path(folder, name).is_symlink()]
        for name in sorted([*filter(_is_json, names), *linked]):
            file = Path(folder, name)
            where = file.relative_to(path).as_posix()
            yield where.removesuffix(".json"), where, file.read_bytes


def _stop(error: OSError) -> None:
    """Without this, os.walk leaves out folders that it cannot read and says nothing."""
    raise StoreError(f"folder {error.filename!r} cannot be read: {error.strerror}.") from error


def _zipped(path: Path) -> Iterator[Member]:
    with _opened(path) as zipped:
        entries = [each for each in zipped.infolist() if _is_json(each.filename)]
        tops = {each.filename.partition("/")[0] if "/" in each.filename else "" for each in entries}
        shared = f"{tops.pop()}/" if len(tops) == 1 and "" not in tops else ""
        for each in entries:
            key = each.filename.removeprefix(shared).removesuffix(".json")
            yield key, f"{path.name}@/{each.filename}", partial(_unzipped, zipped, each)


def _opened(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except UNREADABLE as error:
        why = f"{str(error)[:SHOWN]}; unpack what is left of it to a folder"
        raise StoreError(f"the list of files in {path} is damaged ({why}).") from error


def _unzipped(zipped: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    if zipped.getinfo(entry.filename) is not entry:
        raise ValueError("a later file of this name hides it")
    if entry.file_size > LARGEST:
        raise ValueError(f"it unpacks to {entry.file_size:,} bytes, more than features of an image take")
    return zipped.read(entry)


def _is_json(name: str) -> bool:
    """Whether this is a file of features, and not what macOS adds to zips and folders."""
    return name.endswith(".json") and not name.startswith("__MACOSX/") and not name.rpartition("/")[2].startswith(".")


def write(store: FeatureStore, out: Path) -> ExportReport:
    """Write a store of regions as a stored zip where `out` ends in .zip, else as a folder of {key}.json files.

    In X.zip, files lie in the folder X, where VL-BERT looks for them; only in a zip called `..._frcnn.zip` at its root.

    Raises:
        StoreError: an image's size is not known, a key is no relative path, `out` exists, or the disk refuses.
    """
    layout = store.spec.layout
    records = regions_of(store, NAME)
    files = ((safe_name(record.key, ".json"), _json(record, layout.box_units)) for record in records)
    count = _write_zip(files, out) if out.suffix == ".zip" else _write_folder(files, out)
    notes = ["boxes: x1 y1 x2 y2 in pixels of the original image", f"address for VL-BERT: {_address(out)}"]
    if not layout.class_probs:
        notes.append("no classes: fit for fine-tuning, not for masked region classification on Conceptual Captions")
    if "whole_image" in layout.without:
        notes.append("no image_box_feature: VL-BERT takes the mean of the boxes' features instead")
    notes += left_out(store, ("whole_image", "class_probs", *(BY_CLASS if layout.class_probs else ())))
    return ExportReport(count, 1 if out.suffix == ".zip" else count, tuple(notes))


def _inner(out: Path) -> str:
    return "" if out.stem.endswith(AT_ROOT) else f"{out.stem}/"


def _address(out: Path) -> str:
    return f"{out.name}@/{_inner(out)}{{id}}.json" if out.suffix == ".zip" else f"{out.name}/{{id}}.json"


def _write_zip(files: Iterator[tuple[str, bytes]], out: Path) -> int:
    count = 0
    with new_file(out) as handle, zipfile.ZipFile(handle, "w", zipfile.ZIP_STORED) as zipped:
        for name, content in files:
            entry = zipfile.ZipInfo(_inner(out) + name)
            entry.external_attr = 0o644 << 16
            zipped.writestr(entry, content)
            count += 1
    return count


def _write_folder(files: Iterator[tuple[str, bytes]], out: Path) -> int:
    count = 0
    with new_folder(out) as folder:
        for name, content in files:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
            count += 1
    return count


def _json(record: RegionRecord, units: str) -> bytes:
    height, width = known_size(record)
    plain = record.key.isdecimal() and str(int(record.key)) == record.key
    found = {
        "image_id": int(record.key) if plain else record.key,
        "image_w": width,
        "image_h": height,
        "num_boxes": len(record.boxes),
        "boxes": encoded(pixel_boxes(record, units)),
        "features": encoded(record.features),
    }
    if record.class_probs is not None:
        found["classes"] = encoded(np.roll(cast(record.class_probs, "float32"), 1, axis=1))
    if record.whole_image is not None:
        found["image_box_feature"] = encoded(record.whole_image)
    return json.dumps(found).encode()


VLBERT_ZIP = Foreign("VL-BERT's zip of JSON files (jackroos/VL-BERT)", ("regions",), read, write)
