"""Arrow IPC shards: many images in one immutable file that is mapped, not loaded.

storage/README.md describes them column by column. No body compression (it costs the memory map), 256 region images or
16 grids in a record batch, features as `list<fixed_size_list<half, D>>`.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from bisect import bisect_right
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import xxhash

from storage.errors import StoreError
from storage.records import GridRecord, Record, RegionRecord
from storage.spec import Spec

SUFFIX = ".arrow"
VERSION = "1"
IMAGES_PER_BATCH = {"regions": 256, "grid": 16}
_HALF_OR_FLOAT = {"float16": pa.float16(), "float32": pa.float32()}
_PER_BOX = {
    "cls_id": ("class_ids", pa.int32()),
    "cls_score": ("class_scores", pa.float32()),
    "attr_id": ("attribute_ids", pa.int32()),
    "attr_score": ("attribute_scores", pa.float32()),
}


def shard_schema(spec: Spec) -> pa.Schema:
    """Columns and metadata of every shard of a store with this spec; all columns are non-null."""
    layout, dtype = spec.layout, _HALF_OR_FLOAT[spec.layout.dtype]
    columns: list[tuple[str, pa.DataType]] = [("image_id", pa.string())]
    columns += [(name, pa.int32()) for name in ("width", "height", "grid_h", "grid_w")]
    columns.append(("features", _rows_of(dtype, layout.dim)))
    if spec.view == "regions":
        columns.append(("boxes", _rows_of(pa.float32(), 4)))
        columns += [(name, _list_of(kind)) for name, (_, kind) in _PER_BOX.items()]
        columns.append(("whole_image", _fixed(dtype, layout.dim)))
    if layout.class_probs:
        columns.append(("class_probs", _rows_of(pa.float16(), layout.class_probs)))
    metadata = {
        "triptych.version": VERSION,
        "triptych.view": spec.view,
        "triptych.spec_id": spec.id,
        "triptych.boxes": "x1 y1 x2 y2, pixels of the upright original image",
    }
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in columns], metadata)


class ArrowShardWriter:
    """Append records, then close: one file, its checksum taken while it is written."""

    def __init__(self, path: Path, spec: Spec) -> None:
        self.spec = spec
        self.rows = 0
        self.keys: list[str] = []
        self._schema = shard_schema(spec)
        self._waiting: list[Record] = []
        self._file = HashingFile(path)
        self._writer = pa.ipc.new_file(pa.PythonFile(self._file, mode="w"), self._schema)

    def append(self, record: Record) -> None:
        """Take one record.

        Raises:
            StoreError: the record is of another view, width or dtype than the store.
        """
        _check_fits(record, self.spec)
        self._waiting.append(record)
        self.keys.append(record.key)
        self.rows += int(np.prod(record.features.shape[:-1]))
        if len(self._waiting) == IMAGES_PER_BATCH[self.spec.view]:
            self._flush()

    def close(self) -> tuple[int, str]:
        """Finish and sync the file; returns its size in bytes and its XXH3-128."""
        if self._waiting:
            self._flush()
        self._writer.close()
        return self._file.finish()

    def abort(self) -> None:
        with contextlib.suppress(OSError):  # closing flushes, and on a full disk fails once more
            self._file.handle.close()

    def _flush(self) -> None:
        self._writer.write_batch(_record_batch(self._waiting, self._schema))
        self._waiting = []


class HashingFile:
    """The file object Arrow writes to; hashes on the way, so that no byte is read twice."""

    def __init__(self, path: Path) -> None:
        self.handle: BinaryIO = path.open("wb")
        self.digest = xxhash.xxh3_128()
        self.size = 0

    def write(self, data: Any) -> int:
        self.digest.update(data)
        written = self.handle.write(data)
        self.size += written
        return written

    def finish(self) -> tuple[int, str]:
        self.handle.flush()
        os.fsync(self.handle.fileno())
        self.handle.close()
        return self.size, self.digest.hexdigest()

    def flush(self) -> None:
        self.handle.flush()

    @property
    def closed(self) -> bool:
        return self.handle.closed

    def close(self) -> None:
        """Arrow closes what it is given; the handle stays open until `finish` has synced it."""


class ArrowShard:
    """One shard, mapped. Records are views into the map: nothing is copied.

    Raises:
        StoreError: the file is not a shard of this spec.
    """

    def __init__(self, path: Path, spec: Spec) -> None:
        self.spec = spec
        try:
            mapped = _Map(path)
            reader = pa.ipc.open_file(pa.py_buffer(mapped.bytes))
            if not reader.schema.equals(shard_schema(spec), check_metadata=True):
                raise StoreError(f"{path} has another schema than its store; `triptych verify` tells more.")
            batches = [reader.get_batch(index) for index in range(reader.num_record_batches)]
            for batch in batches:  # lengths and offsets only; without it, a damaged offset reads outside the map
                batch.validate(full=True)
            self._batches = [_Views(batch, mapped) for batch in batches]
        except (OSError, ValueError, pa.ArrowException) as error:
            raise StoreError(f"{path} cannot be read ({error}); `triptych verify` tells more.") from error
        self._starts = [0]
        for batch in batches:
            self._starts.append(self._starts[-1] + batch.num_rows)

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, row: int) -> Record:
        """The record in this row of the shard; arrays are views of the map."""
        index = bisect_right(self._starts, row) - 1
        return self._batches[index].record(row - self._starts[index], self.spec)


class _Views:
    """numpy views of one record batch, made once: per-read Arrow scalars cost 3 to 20 times as much."""

    def __init__(self, batch: pa.RecordBatch, mapped: _Map) -> None:
        self.keys = batch.column("image_id").to_pylist()
        names = set(batch.schema.names)
        self.scalars = {name: mapped.flat(batch.column(name)) for name in ("width", "height", "grid_h", "grid_w")}
        lists = names & {"features", "boxes", "class_probs", *_PER_BOX}
        self.columns = {name: mapped.ragged(batch.column(name)) for name in lists}
        for name, (offsets, _) in self.columns.items():
            if not np.array_equal(offsets, self.columns["features"][0]):
                raise ValueError(f"column {name!r} has other list lengths than the features")
        cells = self.scalars["grid_h"].astype(np.int64) * self.scalars["grid_w"]
        if "boxes" not in names and not np.array_equal(cells, np.diff(self.columns["features"][0])):
            raise ValueError("its grid shapes are not those of the features")
        self.whole = mapped.matrix(batch.column("whole_image")) if "whole_image" in names else None

    def record(self, row: int, spec: Spec) -> Record:
        size = (int(self.scalars["height"][row]), int(self.scalars["width"][row]))
        if spec.view == "grid":
            shape = (int(self.scalars["grid_h"][row]), int(self.scalars["grid_w"][row]), spec.layout.dim)
            return GridRecord(self.keys[row], size, self._rows("features", row).reshape(shape))
        assert self.whole is not None  # the schema was checked: region shards have the column
        return RegionRecord(
            self.keys[row],
            size,
            boxes=self._rows("boxes", row),
            features=self._rows("features", row),
            whole_image=self.whole[row],
            class_probs=self._rows("class_probs", row) if spec.layout.class_probs else None,
            **{field: self._rows(name, row) for name, (field, _) in _PER_BOX.items()},
        )

    def _rows(self, name: str, row: int) -> np.ndarray:
        offsets, values = self.columns[name]
        return values[offsets[row] : offsets[row + 1]]


def _record_batch(records: list[Record], schema: pa.Schema) -> pa.RecordBatch:
    lengths = [int(np.prod(record.features.shape[:-1])) for record in records]
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    column: dict[str, pa.Array] = {
        "image_id": pa.array([record.key for record in records], pa.string()),
        "height": pa.array([record.image_size[0] for record in records], pa.int32()),
        "width": pa.array([record.image_size[1] for record in records], pa.int32()),
        "features": _ragged(offsets, [each.features.reshape(-1, each.features.shape[-1]) for each in records]),
    }
    shapes = [each.features.shape[:2] if isinstance(each, GridRecord) else (0, 0) for each in records]
    column["grid_h"] = pa.array([down for down, _ in shapes], pa.int32())
    column["grid_w"] = pa.array([across for _, across in shapes], pa.int32())
    regions = [record for record in records if isinstance(record, RegionRecord)]
    if regions:
        column["boxes"] = _ragged(offsets, [each.boxes for each in regions])
        column["whole_image"] = _fixed_array(np.stack([each.whole_image for each in regions]))
        for name, (field, _) in _PER_BOX.items():
            values = pa.array(np.concatenate([getattr(each, field) for each in regions]))
            column[name] = pa.ListArray.from_arrays(offsets, values)
    if "class_probs" in schema.names:
        column["class_probs"] = _ragged(offsets, [each.class_probs for each in regions if each.class_probs is not None])
    return pa.record_batch([column[name].cast(schema.field(name).type) for name in schema.names], schema=schema)


def _check_fits(record: Record, spec: Spec) -> None:
    wanted = RegionRecord if spec.view == "regions" else GridRecord
    found = (record.features.shape[-1], record.features.dtype.name)
    if not isinstance(record, wanted) or found != (spec.layout.dim, spec.layout.dtype):
        raise StoreError(
            f"record {record.key!r} ({type(record).__name__}, width {found[0]}, {found[1]}) does not fit the store: "
            f"{spec.view}, width {spec.layout.dim}, {spec.layout.dtype}."
        )
    probs = record.class_probs if isinstance(record, RegionRecord) else None
    if (0 if probs is None else probs.shape[1]) != spec.layout.class_probs:
        raise StoreError(f"record {record.key!r} must carry {spec.layout.class_probs} class probabilities a box.")


def _list_of(kind: pa.DataType) -> pa.DataType:
    return pa.list_(pa.field("item", kind, nullable=False))


def _fixed(kind: pa.DataType, width: int) -> pa.DataType:
    return pa.list_(pa.field("item", kind, nullable=False), width)


def _rows_of(kind: pa.DataType, width: int) -> pa.DataType:
    return _list_of(_fixed(kind, width))


def _fixed_array(rows: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])


def _ragged(offsets: pa.Array, parts: list[np.ndarray]) -> pa.Array:
    return pa.ListArray.from_arrays(offsets, _fixed_array(np.concatenate(parts)))


_NUMPY: dict[pa.DataType, np.dtype[Any]] = {
    pa.float16(): np.dtype(np.float16),
    pa.float32(): np.dtype(np.float32),
    pa.int32(): np.dtype(np.int32),
}


class _Map:
    """A shard's bytes, private and writable: torch.from_numpy warns of read-only arrays, and Arrow's own views are.

    Nothing written to the views can reach the file.
    """

    def __init__(self, path: Path) -> None:
        with path.open("rb") as handle:
            self.bytes = np.frombuffer(mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_COPY), np.uint8)

    def flat(self, values: pa.Array) -> np.ndarray:
        """Numbers of one Arrow column as a view of the map."""
        if len(values) == 0:
            return np.empty(0, _NUMPY[values.type])
        return self._view(values.buffers()[1], _NUMPY[values.type], len(values))

    def matrix(self, column: pa.Array) -> np.ndarray:
        """A fixed-size-list column as (rows, width)."""
        return self.flat(column.values).reshape(-1, column.type.list_size)

    def ragged(self, column: pa.Array) -> tuple[np.ndarray, np.ndarray]:
        """A list column as offsets (images + 1,) and values (rows, width) or (rows,)."""
        offsets = self._view(column.buffers()[1], np.dtype(np.int32), len(column) + 1)
        is_matrix = pa.types.is_fixed_size_list(column.values.type)
        return offsets, self.matrix(column.values) if is_matrix else self.flat(column.values)

    def _view(self, buffer: pa.Buffer, dtype: np.dtype[Any], count: int) -> np.ndarray:
        start = buffer.address - self.bytes.ctypes.data
        return self.bytes[start : start + count * dtype.itemsize].view(dtype)
