"""The TSV files of Oscar and VinVL: features with the geometry of their boxes behind them, and VinVL's own detections.

Schema: microsoft/Oscar:oscar/run_retrieval.py, run_vqa.py, run_captioning.py, datasets/oscar_tsv.py, and
microsoft/scene_graph_benchmark:maskrcnn_benchmark/engine/inference.py. Shapes in this file: N boxes, D feature width;
geometry is (N, 6): x1/W, y1/H, x2/W, y2/H, (x2 - x1)/W, (y2 - y1)/H in an image of W x H pixels.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from storage.atomic import partial_path, publish, writing
from storage.codecs import cast
from storage.errors import StoreError
from storage.interop.base import ExportReport, Foreign, Import, ImportOptions
from storage.interop.folders import known_size, left_out, new_folder
from storage.interop.text import (
    ENOUGH,
    PATIENCE,
    Rows,
    encoded,
    first_records,
    floats,
    line_key,
    lines,
    read_tsv,
    refuse_existing,
    regions_of,
    text_key,
    usual_width,
    whole_number,
)
from storage.records import RegionRecord
from storage.spec import OPTIONAL, FeatureLayout
from storage.store import FeatureStore

NAME = "oscar-tsv"
FEATURES, CAPTIONING = "features.tsv", ".feature.tsv"
GEOMETRY = 6
LARGEST = 1 << 31  # coordinates and sizes lie below
AGREES = 0.05  # geometry in features that were rounded to 8 bits; nothing else comes as near to its boxes


@dataclass(frozen=True)
class Wanted:
    """What rows are to hold. width: D, scores: whether objects have "conf"; None takes both as found."""

    width: int | None = None
    scores: bool | None = None
    sizes: Mapping[str, tuple[int, int]] = field(default_factory=dict)


Kind = Callable[[list[bytes], Wanted], RegionRecord]


def read(path: Path, options: ImportOptions) -> Import:
    """Open one .tsv, or a folder with `features.tsv`; which of the three kinds it is, its first row tells.

    Retrieval, pretraining, VQA: key, num_boxes N, base64 of features (N, D) float32. Captioning: key, JSON with
    num_boxes and features. In both, a feature's last six numbers are its geometry; D counts them, and boxes are taken
    from them: fractions, or pixels where `options.sizes` has the images' sizes. VinVL's predictions.tsv: key, JSON with
    objects, each with rect (x1 y1 x2 y2 in pixels), conf and feature, without geometry.

    Raises:
        StoreError: there is no such file, or none of its first rows can be read.
    """
    file = path / FEATURES if path.is_dir() else path
    if not file.is_file():
        raise StoreError(f"there is no file {file}; give the .tsv with features, or a folder with {FEATURES}.")
    kind = _kind(file)
    first = first_records(_rows(file, kind, Wanted(sizes=options.sizes)), file)
    scores = statistics.mode(each.class_scores is not None for each in first)
    wanted = Wanted(usual_width(first), scores, options.sizes)
    layout = FeatureLayout(
        usual_width(first),
        "float32",
        without=tuple(name for name in OPTIONAL if name != "class_scores" or not scores),
        box_units="pixels" if kind is _detected or options.sizes else "fractions",
    )
    return Import("regions", layout, _rows(file, kind, wanted), _notes(kind, layout))


def _rows(file: Path, kind: Kind, wanted: Wanted) -> Rows:
    return read_tsv([file], lambda columns: kind(columns, wanted))


def _notes(kind: Kind, layout: FeatureLayout) -> tuple[str, ...]:
    if kind is _detected:
        return (
            "boxes: x1 y1 x2 y2 in pixels; features have no geometry behind them",
            "classes, attributes and relations are names in this file and were left out: a store keeps numbers",
        )
    return (
        f"boxes: x1 y1 x2 y2 in {layout.box_units}, taken from the features",
        f"features keep their geometry: {layout.dim} = {layout.dim - GEOMETRY} + x1 y1 x2 y2 w h as fractions",
    )


def _kind(path: Path) -> Kind:
    why = ""
    for where, line in islice(lines([path]), PATIENCE):
        try:
            return _kind_of(line.split(b"\t"))
        except ValueError as error:
            why = why or f"{where}: {error}"
    why = why or "it has no rows"
    raise StoreError(f"{path} holds no features of Oscar or VinVL ({why}); give features.tsv or predictions.tsv.")


def _kind_of(columns: list[bytes]) -> Kind:
    if len(columns) == 3:
        return _plain
    if len(columns) != 2:
        raise ValueError(f"{len(columns)} tab-separated columns, wanted key, num_boxes, features; or key, JSON")
    return _captioning if "features" in _json(columns[1]) else _detected


def _json(text: bytes) -> Any:
    if not text.startswith((b"{", b"[")):
        start = text[:12].decode("utf-8", "replace")
        raise ValueError(f"the second column begins with {start!r} (a picture?), wanted JSON with features")
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("the JSON is nested too deep") from error


def _plain(columns: list[bytes], wanted: Wanted) -> RegionRecord:
    if len(columns) != 3:
        raise ValueError(f"{len(columns)} tab-separated columns, wanted 3 (key, num_boxes, features)")
    key, num_boxes, features = columns
    return _placed(
        text_key(key), floats("features", features, whole_number("num_boxes", num_boxes), wanted.width), wanted
    )


def _captioning(columns: list[bytes], wanted: Wanted) -> RegionRecord:
    if len(columns) != 2:
        raise ValueError(f"{len(columns)} tab-separated columns, wanted 2 (key, JSON)")
    found = _json(columns[1])
    if not isinstance(found, dict) or not isinstance(found.get("features"), str):
        raise ValueError("the JSON has no features in base64")
    rows = whole_number("num_boxes", str(found.get("num_boxes")).encode())
    return _placed(text_key(columns[0]), floats("features", found["features"], rows, wanted.width), wanted)


def _placed(key: str, features: np.ndarray, wanted: Wanted) -> RegionRecord:
    """A record with boxes out of its features."""
    fractions = _fractions(features)
    if not wanted.sizes:
        return RegionRecord(key, (0, 0), fractions, features)
    if key not in wanted.sizes:
        raise ValueError("the given sizes do not have this image; give sizes of all images, or of none")
    height, width = wanted.sizes[key]
    return RegionRecord(
        key, (height, width), fractions * np.array([width, height, width, height], np.float32), features
    )


def _fractions(features: np.ndarray) -> np.ndarray:
    """Boxes (N, 4) as fractions out of features (N, D) that end in geometry.

    Raises:
        ValueError: the last six numbers are something else.
    """
    width = features.shape[1]
    if len(features) and (width <= GEOMETRY or not _is_geometry(features[:, -GEOMETRY:])):
        raise ValueError(
            f"a feature has {width} numbers, of which the last six are not x1 y1 x2 y2 w h as fractions; "
            "VinVL's have 2048 + 6"
        )
    return features[:, -GEOMETRY : 4 - GEOMETRY].copy() if len(features) else np.zeros((0, 4), np.float32)


def _is_geometry(columns: np.ndarray) -> bool:
    low, high, extent = columns[:, 0:2], columns[:, 2:4], columns[:, 4:6]
    return bool(((low >= 0) & (low <= high) & (high <= 1.0001) & (np.abs(extent - (high - low)) <= 1e-3)).all())


def _detected(columns: list[bytes], wanted: Wanted) -> RegionRecord:
    """A row of VinVL's predictions.tsv."""
    if len(columns) != 2:
        raise ValueError(f"{len(columns)} tab-separated columns, wanted 2 (key, JSON)")
    key, found = text_key(columns[0]), _json(columns[1])
    objects = _objects(found)
    scores = all("conf" in each for each in objects) if wanted.scores is None else wanted.scores
    if any(("conf" in each) != scores for each in objects):
        raise ValueError(f"objects {'without' if scores else 'with'} conf, unlike those of the first rows")
    features = [floats("feature", each["feature"], 1, wanted.width)[0] for each in objects]
    return RegionRecord(
        key,
        _image_size(key, found, wanted),
        boxes=_numbers("rect", [each.get("rect") for each in objects], (4,)),
        features=np.stack(features) if objects else np.zeros((0, wanted.width or 0), np.float32),
        class_scores=_numbers("conf", [each["conf"] for each in objects], ()) if scores else None,
    )


def _objects(found: Any) -> list[dict[str, Any]]:
    objects = found.get("objects") if isinstance(found, dict) else found
    if not isinstance(objects, list) or not all(isinstance(each, dict) for each in objects):
        raise ValueError("the JSON has neither features nor objects")
    for each in objects:
        if not isinstance(each.get("feature"), str):
            names = ", ".join(each)[:80]
            raise ValueError(f"an object has {names} but no feature in base64: these are labels, not features")
    return objects


def _numbers(name: str, values: list[Any], shape: tuple[int, ...]) -> np.ndarray:
    """(len(values), *shape) float32 out of lists of numbers, or of numbers."""
    flat = [number for value in values for number in (value if isinstance(value, list) else [value])]
    fits = all(isinstance(each, int | float) and abs(each) < LARGEST for each in flat)
    if not fits or len(flat) != len(values) * int(np.prod(shape)):
        raise ValueError(f"an object's {name} is not {shape[0] if shape else 'a'} number{'s' if shape else ''}")
    return np.array(flat, np.float32).reshape(len(values), *shape)


def _image_size(key: str, found: Any, wanted: Wanted) -> tuple[int, int]:
    if not isinstance(found, dict) or not {"image_h", "image_w"} <= found.keys():
        return wanted.sizes.get(key, (0, 0))
    height, width = found["image_h"], found["image_w"]
    if not all(isinstance(each, int) and 0 < each < LARGEST for each in (height, width)):
        raise ValueError(f"image_h and image_w are {height!r:.20} and {width!r:.20}, not sizes in pixels")
    return height, width


def write(store: FeatureStore, out: Path) -> ExportReport:
    """Write a store of regions as Oscar's loaders read it; features become float32, whatever they are stored in.

    Geometry is put behind features that do not have it yet. `NAME.tsv` comes with NAME.lineidx, NAME_offset_map.json
    (VQA) and imageid2idx.json (retrieval, pretraining) beside it; any other `out` is a folder with the same for
    features.tsv; and `NAME.feature.tsv` is of the captioning kind, with NAME.feature.lineidx.

    Raises:
        StoreError: an image's size is not known, a key does not fit, a file exists, or the disk refuses.
    """
    carried = _carries_geometry(store)
    rows = (_row(record, store, carried) for record in regions_of(store, NAME))
    if out.suffix == ".tsv":
        count = _write_beside(out, rows)
    else:
        with new_folder(out) as folder:
            count = _write_files(folder / FEATURES, rows)
    notes = (
        "boxes: x1 y1 x2 y2 w h as fractions of the image's size, the last six numbers of each feature, "
        + ("as the store has them" if carried else "computed from the store's boxes"),
        *left_out(store),
        "object tags (label.tsv, predictions.tsv) are not written",
    )
    return ExportReport(count, 1 + len(_companions(out)), notes)


def _carries_geometry(store: FeatureStore) -> bool:
    """Whether features end in their boxes' geometry, judged by the first that have boxes."""
    with_boxes = (record for record in regions_of(store, NAME) if len(record.boxes))
    return all(_agrees(record, store.spec.layout.box_units) for record in islice(with_boxes, ENOUGH))


def _agrees(record: RegionRecord, units: str) -> bool:
    geometry = _geometry(record, units)
    last = cast(record.features[:, -GEOMETRY:], "float32")
    return last.shape == geometry.shape and bool((np.abs(last - geometry) <= AGREES).all())


def _geometry(record: RegionRecord, units: str) -> np.ndarray:
    """(N, 6) float32."""
    boxes = record.boxes
    if units == "pixels":
        height, width = known_size(record)
        boxes = boxes / np.array([width, height, width, height], np.float32)
    return np.hstack([boxes, boxes[:, 2:4] - boxes[:, 0:2]])


def _row(record: RegionRecord, store: FeatureStore, carried: bool) -> tuple[str, np.ndarray]:
    features, units = cast(record.features, "float32"), store.spec.layout.box_units
    if not carried:
        return line_key(record.key), np.hstack([features, _geometry(record, units)])
    if not _agrees(record, units):
        raise StoreError(
            f"{record.key!r}: its features do not end in the geometry of its boxes, as others of the store do."
        )
    return line_key(record.key), features


def _write_beside(out: Path, rows: Iterable[tuple[str, np.ndarray]]) -> int:
    """The .tsv and its companions; the .tsv takes its name last, so that where it is, they are."""
    files = [*_companions(out), out]
    for file in files:
        refuse_existing(file)
    draft = partial_path(out)
    try:
        with writing(out):
            draft.mkdir(parents=True)
            count = _write_files(draft / out.name, rows)
            os.sync()
            for file in files:
                publish(draft / file.name, file)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return count


def _companions(out: Path) -> list[Path]:
    """Files beside the .tsv: where each line begins, and the line and place of each key."""
    maps = (
        [] if _is_captioning(out) else [out.with_name("imageid2idx.json"), out.with_name(f"{out.stem}_offset_map.json")]
    )
    return [out.with_suffix(".lineidx"), *maps]


def _is_captioning(out: Path) -> bool:
    return out.name.endswith(CAPTIONING)


def _write_files(out: Path, rows: Iterable[tuple[str, np.ndarray]]) -> int:
    places: dict[str, int] = {}
    with out.open("wb", buffering=1 << 20) as handle:
        for key, features in rows:
            places[key] = handle.tell()
            found = {"num_boxes": len(features), "features": encoded(features)}
            columns = [json.dumps(found)] if _is_captioning(out) else [str(len(features)), str(found["features"])]
            handle.write("\t".join([key, *columns]).encode() + b"\n")
    contents = [
        "".join(f"{place}\n" for place in places.values()),
        json.dumps({key: row for row, key in enumerate(places)}),
        json.dumps(places),
    ]
    for file, content in zip(_companions(out), contents, strict=False):  # captioning has the first only
        file.write_text(content)
    return len(places)


OSCAR_TSV = Foreign("Oscar and VinVL TSV (microsoft/Oscar, microsoft/scene_graph_benchmark)", ("regions",), read, write)
