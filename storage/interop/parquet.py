"""Parquet files that Hugging Face `datasets` loads with the right features: one row an image, nothing else needed.

The features stand in the schema's metadata where `datasets` looks for them (huggingface/datasets
`src/datasets/arrow_writer.py`, key `huggingface`), and the Arrow types follow from them (`features.py`).
Shapes in this file: B images of a row group, N boxes, H x W cells, D feature width.
"""

from __future__ import annotations

import io
import json
import os
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from storage.atomic import discard, partial_path, publish, remove_stale_partials, writing
from storage.errors import StoreError
from storage.interop.base import ExportReport
from storage.interop.features import IMAGE, arrow_type, feature_dtype, features_of, label_names
from storage.records import PackedBatch
from storage.spec import canonical_json
from storage.store import FeatureStore
from storage.writer import unit_id

FOLDER, SPLIT = "data", "train"  # where `datasets` looks, and what it calls a data set that is not split
UNFINISHED = ".unfinished"  # where files wait until all are there: `datasets` would load a part as if it were all
FILE_BYTES = 256 << 20  # of a store's shards, to a file
GROUP_BYTES = 16 << 20  # the same, to a row group: what a reader of a stream waits for, and this holds at once
UNIT, SPEC = "triptych.unit", "triptych.spec"


@dataclass(frozen=True)
class _Plan:
    """Which images go together: so many to a file and to a row group; the same for the same store."""

    store: FeatureStore
    per_file: int
    per_group: int

    @classmethod
    def of(cls, store: FeatureStore) -> _Plan:
        image = max(1, sum(unit.shard.bytes for unit in store.units if unit.shard) // max(1, len(store)))
        return cls(store, max(1, FILE_BYTES // image), max(1, GROUP_BYTES // image))

    def paths(self, folder: Path) -> list[Path]:
        count = -(-len(self.store) // self.per_file)
        return [folder / f"{SPLIT}-{number:05}-of-{count:05}.parquet" for number in range(count)]

    def positions(self, number: int) -> range:
        return range(number * self.per_file, min(len(self.store), (number + 1) * self.per_file))


def write_parquet(store: FeatureStore, out: Path) -> ExportReport:
    """Write a store as `out/data/train-*.parquet`. The folder appears when all is written; a call that was stopped
    leaves its whole files aside, and the next one writes what is missing.

    Raises:
        StoreError: the store is empty, `out` has Parquet files of something else, a class has no name, a shard is
            damaged, or the disk refuses.
    """
    if not len(store):
        raise StoreError(f"{store.place.name} has no record yet; there is nothing to export.")
    store = FeatureStore(store.place.address, feature_dtype(store))
    plan, whole = _Plan.of(store), out / FOLDER
    folder = whole if whole.exists() else out / UNFINISHED
    paths = plan.paths(folder)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        remove_stale_partials(folder)
    _refuse_others(folder, paths)
    keys = iter(store)
    for number, path in enumerate(paths):
        unit = unit_id(store.spec.id, islice(keys, plan.per_file))
        if not _is_written(path, unit):
            _write(plan, plan.positions(number), path, unit)
    if folder != whole:
        with writing(whole):
            publish(folder, whole)
    return ExportReport(len(store), len(paths), _notes(store, out))


def _refuse_others(folder: Path, paths: list[Path]) -> None:
    """`datasets` would read them as more of this store."""
    others = sorted(set(folder.glob("*.parquet")) - set(paths))
    if others:
        raise StoreError(f"{others[0]} is of another export; remove it, or choose another --out.")


def _is_written(path: Path, unit: str) -> bool:
    if not path.exists():
        return False
    if _noted(_head(path), UNIT) != unit.encode():
        raise StoreError(f"{path} holds images of another store, or other ones; remove it, or choose another --out.")
    return True


def _head(path: Path) -> pq.FileMetaData:
    try:
        return pq.read_metadata(path)
    except (OSError, pa.ArrowException) as error:
        raise StoreError(f"{path} cannot be read ({error}); remove it, and run the export again.") from error


def _noted(head: pq.FileMetaData, name: str) -> bytes:
    """What this module noted in a file; nothing in others' files."""
    found: bytes = (head.metadata or {}).get(name.encode(), b"")
    return found


def exported(store: FeatureStore, out: Path) -> bool:
    """Whether a whole Parquet export of this store lies in a folder.

    Raises:
        StoreError: one of something else does, or a part of one.
    """
    paths = sorted((out / FOLDER).glob("*.parquet"))
    rows = 0
    for path in paths:
        head = _head(path)
        if _noted(head, SPEC) != canonical_json(store.spec.to_dict()):
            raise StoreError(f"{path} is no export of {store.place.name}; write the card into another folder.")
        rows += head.num_rows
    if paths and rows != len(store):
        raise StoreError(f"{out / FOLDER} has {rows} of {len(store)} records; run the export once more, then this.")
    return bool(paths)


def _write(plan: _Plan, positions: range, path: Path, unit: str) -> None:
    schema = _schema(plan.store, unit)
    partial = partial_path(path)
    try:
        with writing(path):
            with partial.open("wb") as handle:
                with pq.ParquetWriter(handle, schema, compression="zstd", use_dictionary=False) as writer:
                    for start in range(0, len(positions), plan.per_group):
                        writer.write_table(_table(plan.store, positions[start : start + plan.per_group], schema))
                handle.flush()
                os.fsync(handle.fileno())
            publish(partial, path)
    finally:
        discard(partial)


def _schema(store: FeatureStore, unit: str) -> pa.Schema:
    features = features_of(store)
    metadata = {
        "huggingface": json.dumps({"info": {"features": features}}),
        SPEC: canonical_json(store.spec.to_dict()).decode(),
        UNIT: unit,
    }
    return pa.schema([(name, arrow_type(feature)) for name, feature in features.items()], metadata)


def _table(store: FeatureStore, positions: range, schema: pa.Schema) -> pa.Table:
    numbers = np.array(positions, np.int64)
    if store.spec.view == "pixels":
        columns = _pictures(store, positions)
    else:
        fields = [name for name in (*store.spec.carried, "class_probs") if name in schema.names]
        columns = _arrays(store.batch(numbers, fields), store)
    return pa.table([columns[name].cast(schema.field(name).type) for name in schema.names], schema=schema)


def _arrays(batch: PackedBatch, store: FeatureStore) -> dict[str, pa.Array]:
    found = {
        "key": pa.array(batch.keys, pa.string()),
        "height": pa.array(batch.image_sizes[:, 0]),
        "width": pa.array(batch.image_sizes[:, 1]),
        "features": _maps(batch) if batch.grid_shapes is not None else _ragged(batch.offsets, _rows(batch.values)),
    }
    if batch.boxes is not None:
        found["boxes"] = _ragged(batch.offsets, _rows(batch.boxes))
    for name, values in (batch.others or {}).items():
        _check_named(name, values, store)
        array = pa.array(values) if values.ndim == 1 else _rows(values)
        found[name] = array if name == "whole_image" else _ragged(batch.offsets, array)
    return found


def _rows(values: np.ndarray) -> pa.Array:
    """(rows, D) as lists of D."""
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(values).reshape(-1)), values.shape[1])


def _ragged(offsets: np.ndarray, values: pa.Array) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values)


def _maps(batch: PackedBatch) -> pa.Array:
    """(B,) lists of H lists of W cells."""
    assert batch.grid_shapes is not None
    down, across = batch.grid_shapes[:, 0], batch.grid_shapes[:, 1]
    lines = _ragged(np.cumsum([0, *np.repeat(across, down)]), _rows(batch.values))
    return _ragged(np.cumsum([0, *down]), lines)


def _check_named(name: str, values: np.ndarray, store: FeatureStore) -> None:
    """`datasets` refuses numbers beyond the names when somebody loads them: too late."""
    names = label_names(store, name)
    if names and len(values) and values.max() >= len(names):
        raise StoreError(
            f"{name} has {values.max()}, and the vocabulary of {store.place.name} names {len(names)}; "
            "it belongs to another detector."
        )


def _pictures(store: FeatureStore, positions: range) -> dict[str, pa.Array]:
    records = [store.at(position) for position in positions]
    pictures = [{"bytes": _png(record.features), "path": None} for record in records]
    return {
        "key": pa.array([record.key for record in records], pa.string()),
        "height": pa.array([record.image_size[0] for record in records], pa.int32()),
        "width": pa.array([record.image_size[1] for record in records], pa.int32()),
        "image": pa.array(pictures, IMAGE),
    }


def _png(pixels: np.ndarray) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _notes(store: FeatureStore, out: Path) -> tuple[str, ...]:
    notes = [f'datasets.load_dataset("{out}", split="{SPLIT}") reads it']
    stored = store.spec.layout.dtype
    if stored in ("bfloat16", "uint8"):
        notes.append(f"features are {store.dtype}: Parquet has nothing like the store's {stored}")
    if store.spec.layout.box_units == "fractions":
        notes.append("boxes are fractions of width and height, as in the store")
    return tuple(notes)
