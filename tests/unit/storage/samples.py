"""Small specs, records and stores for the storage tests; plain functions, so that other processes can call them, too.

Everything is a function of its arguments: a record made twice is equal, so a test can compare what it reads with
what a record of that key must be.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from pathlib import Path

import numpy as np

from storage import (
    ErrorRow,
    FeatureLayout,
    GridRecord,
    PatchRecord,
    PixelRecord,
    Record,
    RegionRecord,
    Spec,
    StoreWriter,
)
from storage.codecs import record_dtype

REGIONS = Spec("regions", FeatureLayout(8))
GRID = Spec("grid", FeatureLayout(8))
PATCHES = Spec("patches", FeatureLayout(8))
PIXELS = Spec("pixels", FeatureLayout(3, "bytes"))
VIEWS = {"regions": REGIONS, "grid": GRID, "patches": PATCHES, "pixels": PIXELS}


def region_record(key: str, boxes: int | None = None, spec: Spec = REGIONS) -> RegionRecord:
    """A record that its key decides: 0 to 6 boxes where the number is left out."""
    rng = np.random.default_rng(zlib.crc32(key.encode()))
    count = int(rng.integers(0, 7)) if boxes is None else boxes
    layout = spec.layout
    dim, dtype, classes = layout.dim, record_dtype(layout.dtype), layout.class_probs
    fields = {
        "boxes": rng.random((count, 4), np.float32),
        "features": rng.random((count, dim)).astype(dtype),
        "whole_image": rng.random(dim).astype(dtype),
        "class_ids": rng.integers(0, 1600, count).astype(np.int32),
        "class_scores": rng.random(count, np.float32),
        "attribute_ids": rng.integers(-1, 400, count).astype(np.int32),
        "attribute_scores": rng.random(count, np.float32),
        "class_probs": rng.random((count, classes)).astype(layout.probs_dtype) if classes else None,
    }
    kept = {name: values for name, values in fields.items() if name not in layout.without}
    return RegionRecord(key, image_size=(int(rng.integers(1, 5000)), int(rng.integers(1, 5000))), **kept)


def grid_record(key: str, shape: tuple[int, int] | None = None, spec: Spec = GRID) -> GridRecord:
    """A record that its key decides: 1 to 4 cells a side where the shape is left out."""
    rng = np.random.default_rng(zlib.crc32(key.encode()))
    down, across = shape or (int(rng.integers(1, 5)), int(rng.integers(1, 5)))
    features = rng.random((down, across, spec.layout.dim)).astype(record_dtype(spec.layout.dtype))
    return GridRecord(key, (32 * down, 32 * across), features)


def patch_record(key: str, shape: tuple[int, int] | None = None, spec: Spec = PATCHES) -> PatchRecord:
    """As `grid_record`, with a class token."""
    grid = grid_record(key, shape, spec)
    token = np.random.default_rng(zlib.crc32(key.encode()) + 1).random(spec.layout.dim).astype(grid.features.dtype)
    return PatchRecord(key, grid.image_size, grid.features, token if "whole_image" in spec.carried else None)


def pixel_record(key: str, shape: tuple[int, int] | None = None, spec: Spec = PIXELS) -> PixelRecord:
    """A record that its key decides: 1 to 9 pixels a side where the shape is left out."""
    rng = np.random.default_rng(zlib.crc32(key.encode()))
    down, across = shape or (int(rng.integers(1, 10)), int(rng.integers(1, 10)))
    return PixelRecord(key, (2 * down, 2 * across), rng.integers(0, 256, (down, across, 3), np.uint8))


_MAKERS = {"regions": region_record, "grid": grid_record, "patches": patch_record, "pixels": pixel_record}


def record_of(key: str, spec: Spec) -> Record:
    return _MAKERS[spec.view](key, spec=spec)  # type: ignore[operator]


def error_row(key: str) -> ErrorRow:
    return ErrorRow(key, f"file:///images/{key}.jpg", "decode", "truncated", "found half an image")


def assert_same(found: Record, wanted: Record) -> None:
    """Equal in every field and every bit: NaNs and signed zeros count, too."""
    assert type(found) is type(wanted)
    for field in fields(wanted):
        left, right = getattr(found, field.name), getattr(wanted, field.name)
        if isinstance(right, np.ndarray):
            assert (left.shape, left.dtype) == (right.shape, right.dtype), field.name
            assert left.tobytes() == right.tobytes(), field.name
        else:
            assert left == right, field.name


def write_unit(writer: StoreWriter, keys: Sequence[str], failed: Sequence[str] = ()) -> None:
    """Commit one unit with the records of `keys`; those in `failed` become error rows."""
    with writer.unit(keys) as unit:
        for key in keys:
            if key in failed:
                unit.fail(error_row(key))
            else:
                unit.append(record_of(key, writer.spec))
        unit.commit()


def make_store(
    path: Path, units: Iterable[Sequence[str]], spec: Spec = REGIONS, failed: Sequence[str] = (), format: str = "arrow"
) -> Path:
    """A store with these units committed; returns its path."""
    writer = StoreWriter(path, spec, format=format)
    for keys in units:
        write_unit(writer, keys, failed)
    return path


def with_layout(spec: Spec, **changes: object) -> Spec:
    return replace(spec, layout=replace(spec.layout, **changes))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its bytes, to see that nothing was touched."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def partials(folder: Path) -> list[Path]:
    return sorted(folder.rglob(".*.partial"))
