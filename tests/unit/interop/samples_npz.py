"""What the tests of one-file-an-image formats share: numbers, stores made of imports, files as numpy reads them."""

from __future__ import annotations

import base64
import csv
import sys
from pathlib import Path

import numpy as np

from storage import FeatureStore, GridRecord, Record, RegionRecord, Spec, StoreWriter
from storage.interop.base import BadRow, Import
from storage.spec import OPTIONAL, FeatureLayout

WIDTH = 2048
EVERYTHING = FeatureLayout(WIDTH, "float32", class_probs=5, probs_dtype="float32")
SCALARS = ("img_id", "img_h", "img_w")
REAL_COLUMNS = (*SCALARS, "objects_id", "objects_conf", "attrs_id", "attrs_conf", "num_boxes", "boxes", "features")


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    """float32 whose bits are all in use."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def boxes(count: int, seed: int = 1) -> np.ndarray:
    """(count, 4) float32 within an image 480 high and 640 wide."""
    low, high = np.random.default_rng(seed).random((2, count, 2), np.float32)
    return np.concatenate([low * [300, 200], 310 + high * [300, 150]], axis=1).astype(np.float32)


def region_record(key: str, count: int, layout: FeatureLayout = EVERYTHING) -> RegionRecord:
    """A record with every field that the layout has."""
    rng = np.random.default_rng(count)
    fields = {
        "whole_image": numbers(layout.dim).astype(layout.dtype),
        "class_ids": rng.integers(0, 1600, count).astype(np.int32),
        "class_scores": rng.random(count, np.float32),
        "attribute_ids": rng.integers(-1, 400, count).astype(np.int32),
        "attribute_scores": rng.random(count, np.float32),
    }
    probs = rng.random((count, layout.class_probs)).astype(layout.probs_dtype) if layout.class_probs else None
    return RegionRecord(
        key,
        (480, 640),
        boxes(count),
        numbers(count, layout.dim).astype(layout.dtype),
        class_probs=probs,
        **{name: value for name, value in fields.items() if name not in layout.without},  # type: ignore[arg-type]
    )


def without(*kept: str) -> tuple[str, ...]:
    """Every field that can be left out but these."""
    return tuple(name for name in OPTIONAL if name not in kept)


def store_of(path: Path, records: list[Record], layout: FeatureLayout = EVERYTHING) -> FeatureStore:
    view = "grid" if isinstance(records[0], GridRecord) else "regions"
    writer = StoreWriter(path, Spec(view, layout))
    with writer.unit([record.key for record in records]) as unit:
        for record in records:
            unit.append(record)
        unit.commit()
    return FeatureStore(path)


def rows_of(found: Import) -> tuple[dict[str, Record], list[BadRow]]:
    """The records of an import by key, and its bad rows."""
    rows = list(found.rows)
    return {row.key: row for row in rows if not isinstance(row, BadRow)}, [r for r in rows if isinstance(r, BadRow)]


def store_from(path: Path, found: Import) -> FeatureStore:
    """A store of an import that has no bad rows, in the layout that it tells."""
    records, bad = rows_of(found)
    assert not bad
    return store_of(path, list(records.values()), found.layout)


def arrays_of(folder: Path) -> dict[str, dict[str, np.ndarray]]:
    """Every .npz below a folder as numpy reads it, what is pickled left out."""
    return {path.relative_to(folder).as_posix(): _arrays(path) for path in sorted(folder.rglob("*.npz"))}


def _arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as archive:
        return {name: archive[name] for name in archive.files if name != "info"}


def assert_same_arrays(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    """Equal names in equal order, dtypes, shapes and bits."""
    assert list(found) == list(wanted)
    for name, array in wanted.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape), name
        assert found[name].tobytes() == array.tobytes(), name


def tear(path: Path, keep: float = 0.5) -> None:
    """Cut a file off, as a full disk or a killed job does."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])


def real_rows(shared: Path) -> list[dict[str, np.ndarray]]:
    """Rows that LXMERT published: 36 boxes of Caffe's bottom-up model over COCO images."""
    csv.field_size_limit(sys.maxsize)
    lines = (shared / "data/features/butd_lxmert_tsv/train2014_obj36.tsv").open()
    return [_decoded(row) for row in csv.DictReader(lines, REAL_COLUMNS, delimiter="\t")]


def _decoded(row: dict[str, str]) -> dict[str, np.ndarray]:
    kinds = dict.fromkeys(("objects_id", "attrs_id"), np.int64) | dict.fromkeys(
        ("objects_conf", "attrs_conf", "boxes", "features"), np.float32
    )
    count = int(row["num_boxes"])
    found = {name: np.frombuffer(base64.b64decode(row[name]), kind) for name, kind in kinds.items()}
    plain = {name: np.array(row[name] if name == "img_id" else int(row[name])) for name in SCALARS}
    return {
        **plain,
        **found,
        "boxes": found["boxes"].reshape(count, 4),
        "features": found["features"].reshape(count, -1),
    }
