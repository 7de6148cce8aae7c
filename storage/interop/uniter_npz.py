"""UNITER's region features, one {prefix}_{stem}.npz an image in float16; its LMDB holds the same arrays.

features (N, 2048), norm_bb (N, 6) x1 y1 x2 y2 w h as fractions of the image's width and height, conf (N, 1) the score
by which boxes were kept, soft_labels (N, 1601) all class probabilities with background in column 0. Sources:
ChenRocks/BUTD-UNITER-NLVR2 tools/generate_npz.py; ChenRocks/UNITER scripts/convert_imgdir.py, and model/pretrain.py,
which takes column 0 for background.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from storage.codecs import cast
from storage.errors import StoreError
from storage.interop.base import ExportReport, Foreign, Import, ImportOptions
from storage.interop.folders import (
    FileFormat,
    demand,
    exactly,
    known_size,
    left_out,
    read_folder,
    read_npz,
    write_folder,
    write_npz,
)
from storage.interop.mcan import check_floats, demand_arrays
from storage.records import Record, RegionRecord
from storage.spec import FeatureLayout
from storage.store import FeatureStore

NAME, SUFFIX = "uniter-npz", ".npz"
ARRAYS = ("norm_bb", "features", "conf", "soft_labels")  # old numpy adds one called allow_pickle, which means nothing
FRACTIONS = "boxes are x1 y1 x2 y2 as fractions of the image's width and height, in float16"
SCALED = "boxes were float16 fractions; they are in pixels by the sizes that were given"
CONF = "class_scores are conf, the best score of any class that kept the box; the class itself is not in the format"
HALF = "features, boxes, scores and probabilities are float16 in this format; w and h follow from x1 y1 x2 y2"
ORDER = "UNITER keeps the first boxes of a file, as many as pass its threshold: boxes should stand best first"
NO_LABELS = "soft_labels are left out, for the store has no class_probs; UNITER wants them for masked region modelling"


def units_of(options: ImportOptions) -> str:
    """Pixels where the user gave sizes: then every image must have one, for a store knows one unit only."""
    return "pixels" if options.sizes else "fractions"


def read_notes(options: ImportOptions) -> tuple[str, ...]:
    """What to say of UNITER's arrays when they are read."""
    return (SCALED if options.sizes else FRACTIONS), CONF


def write_notes(store: FeatureStore) -> tuple[str, ...]:
    """What to say of UNITER's arrays when they are written."""
    labels = () if store.spec.layout.class_probs else (NO_LABELS,)
    return FRACTIONS, HALF, ORDER, *labels, *left_out(store, ("class_scores", "class_probs"))


def demand_uniter(store: FeatureStore, name: str) -> None:
    """Check that UNITER's arrays can be made of a store.

    Raises:
        StoreError: it holds a grid, or has no class_scores.
    """
    demand(store, name, "regions", ("class_scores",))


def record_from_arrays(key: str, arrays: Mapping[str, np.ndarray], options: ImportOptions) -> RegionRecord:
    """A record of UNITER's arrays: features in their own dtype, boxes float32, probabilities with background last.

    Args:
        arrays: norm_bb (N, 6), features (N, D), conf (N, 1) or (N,), and soft_labels (N, C) where they are there;
            others are not looked at.
        options: `sizes`, where given, turn fractions into pixels.

    Raises:
        StoreError: an array is missing or another than it should be, or sizes are given but not this key's.
    """
    demand_arrays(arrays, ARRAYS[:3])
    check_floats(arrays["features"], "features")
    size, boxes = _boxes(key, arrays["norm_bb"], options)
    try:
        return RegionRecord(
            key,
            size,
            boxes,
            arrays["features"],
            class_scores=exactly(_flat(arrays["conf"]), np.float32, "conf"),
            class_probs=_background_last(arrays.get("soft_labels")),
        )
    except ValueError as error:
        raise StoreError(f"{error}.") from error


def arrays_from_record(record: RegionRecord, layout: FeatureLayout) -> dict[str, np.ndarray]:
    """UNITER's arrays of a record, in upstream's order and arithmetic; soft_labels where the record has class_probs.

    Args:
        layout: of the record's store; tells the unit of its boxes.

    Raises:
        StoreError: the record has no class_scores, its boxes are pixels of an image of unknown size, or a value does
            not fit float16.
    """
    if record.class_scores is None:
        raise StoreError(f"{record.key!r} has no class_scores, which UNITER's conf is.")
    size = (1, 1) if layout.box_units == "fractions" else known_size(record)
    arrays = {
        "norm_bb": cast(_norm_bb(record.boxes, size), "float16"),
        "features": cast(record.features, "float16"),
        "conf": cast(record.class_scores[:, None], "float16"),
    }
    if record.class_probs is not None:
        arrays["soft_labels"] = cast(np.roll(record.class_probs, 1, axis=1), "float16")
    return arrays


def read(folder: Path, options: ImportOptions) -> Import:
    """Region features of a folder of {prefix}_{stem}.npz; keys are the names without .npz, prefix included.

    Raises:
        StoreError: the folder is of another format.
    """
    kind = FileFormat(NAME, SUFFIX, _load, lambda _: read_notes(options), units_of(options))
    return read_folder(folder, kind, options)


def write(store: FeatureStore, out: Path) -> ExportReport:
    """{key}.npz for each record, compressed as upstream does.

    Raises:
        StoreError: the store has no regions or no class_scores, or `out` cannot be made.
    """
    demand_uniter(store, NAME)

    def save(path: Path, record: Record) -> None:
        assert isinstance(record, RegionRecord)
        write_npz(path, arrays_from_record(record, store.spec.layout))

    files = write_folder(store, out, SUFFIX, save)
    return ExportReport(files, files, write_notes(store))


def _load(path: Path, key: str, options: ImportOptions) -> RegionRecord:
    return record_from_arrays(key, read_npz(path, ARRAYS), options)


def _boxes(key: str, norm_bb: np.ndarray, options: ImportOptions) -> tuple[tuple[int, int], np.ndarray]:
    """The image's size and boxes (N, 4) float32: in pixels where sizes are given, else as they are."""
    if norm_bb.ndim != 2 or norm_bb.shape[1] != 6:
        raise StoreError(f"norm_bb is {norm_bb.shape}; wanted (N, 6).")
    fractions = exactly(norm_bb[:, :4], np.float32, "norm_bb")
    if not options.sizes:
        return (0, 0), fractions
    if key not in options.sizes:
        raise StoreError(f"no size was given for {key!r}; give the sizes of all images, or of none.")
    height, width = options.sizes[key]
    return (height, width), fractions * np.array([width, height, width, height], np.float32)


def _flat(conf: np.ndarray) -> np.ndarray:
    """(N,) from (N, 1); files of given boxes have (N,) already."""
    return conf[:, 0] if conf.ndim == 2 and conf.shape[1] == 1 else conf


def _background_last(labels: np.ndarray | None) -> np.ndarray | None:
    if labels is None:
        return None
    check_floats(labels, "soft_labels")
    if labels.ndim != 2:
        raise StoreError(f"soft_labels is {labels.shape}; wanted (N, classes).")
    return np.roll(labels, -1, axis=1)


def _norm_bb(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(N, 6) float32 from (N, 4) and (height, width)."""
    scale = np.array(size[::-1], np.float32)
    corners, sides = boxes[:, :2] / scale, (boxes[:, 2:] - boxes[:, :2]) / scale
    return np.concatenate([corners, corners + sides, sides], axis=1)


UNITER_NPZ = Foreign(
    "UNITER: a folder of {prefix}_{stem}.npz with features, norm_bb, conf, soft_labels", ("regions",), read, write
)
