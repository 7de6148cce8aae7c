"""Arrow IPC shards: many images in one immutable file that is mapped, not loaded.

storage/README.md describes them column by column. 256 region images or 16 grids in a record batch, features as
`list<fixed_size_list<half, D>>`, no body compression (it costs the memory map) except in archives.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from storage.atomic import HashedFile
from storage.codecs import NUMPY
from storage.columns import SIZES, Column, columns
from storage.errors import StoreError
from storage.gather import Gathered, check_fits, gather
from storage.records import Record
from storage.shard import Layout, MappedFile, Segment, Shard, read_segment
from storage.spec import Spec

SUFFIX = ".arrow"
VERSION = "1"  # of the columns; a shard of a kind that version 1 of the format had is still written as it was then
IMAGES_PER_BATCH = {"regions": 256, "grid": 16, "patches": 16, "pixels": 16}
ARCHIVE_IMAGES_PER_BATCH = 16  # what one read of an archive unpacks
BOXES = "x1 y1 x2 y2, pixels of the upright original image"
FRACTIONS = "x1 y1 x2 y2, fractions of the image's width and height"
_TYPES = {
    "float16": pa.float16(),
    "float32": pa.float32(),
    "bfloat16": pa.uint16(),  # Arrow has none; the metadata tells
    "uint8": pa.uint8(),
    "int32": pa.int32(),
}


def shard_metadata(spec: Spec) -> dict[str, str]:
    """What every shard says of itself, besides its columns."""
    found = {
        "triptych.version": VERSION,
        "triptych.view": spec.view,
        "triptych.spec_id": spec.id,
    }
    if spec.view in ("regions", "grid"):  # version 1 said so of grids, too
        found["triptych.boxes"] = BOXES if spec.layout.box_units == "pixels" else FRACTIONS
    if spec.layout.dtype in ("bfloat16", "uint8", "bytes"):
        found["triptych.dtype"] = spec.layout.dtype
    return found


def shard_schema(spec: Spec) -> pa.Schema:
    """Columns and metadata of every shard of a store with this spec; all columns are non-null."""
    fields = [("image_id", pa.string())] + [(name, pa.int32()) for name in SIZES]
    fields += [(column.name, _arrow_type(column)) for column in columns(spec)]
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in fields], shard_metadata(spec))


class ArrowShardWriter:
    """Append records, then close: one file, its checksum taken while it is written.

    archive   compress the columns (zstd): smaller, and slow to read at random
    checksum  False only to measure what it costs
    """

    def __init__(self, path: Path, spec: Spec, archive: bool = False, checksum: bool = True) -> None:
        self.spec = spec
        self.rows = 0
        self.keys: list[str] = []
        self._schema = shard_schema(spec)
        self._waiting: list[Record] = []
        self._file = HashedFile(path, checksum)
        self._batch = ARCHIVE_IMAGES_PER_BATCH if archive else IMAGES_PER_BATCH[spec.view]
        options = pa.ipc.IpcWriteOptions(compression=pa.Codec("zstd", 1) if archive else None)
        self._writer = pa.ipc.new_file(pa.PythonFile(self._file, mode="w"), self._schema, options=options)

    def append(self, record: Record) -> None:
        """Take one record.

        Raises:
            StoreError: the record is of another view, width or dtype than the store.
        """
        check_fits(record, self.spec)
        self._waiting.append(record)
        self.keys.append(record.key)
        self.rows += int(np.prod(record.features.shape[:-1]))
        if len(self._waiting) == self._batch:
            self._flush()

    def close(self) -> tuple[int, str]:
        """Finish and sync the file; returns its size in bytes and its XXH3-128."""
        if self._waiting:
            self._flush()
        self._writer.close()
        return self._file.finish()

    def abort(self) -> None:
        self._file.abort()

    def _flush(self) -> None:
        self._writer.write_batch(_record_batch(gather(self._waiting, self.spec), self._schema, self.spec))
        self._waiting = []


def arrow_layouts(path: Path, spec: Spec) -> list[Layout]:
    """Where the columns of a shard lie.

    Raises:
        StoreError: the file is not a shard of this spec.
        ValueError, OSError, pa.ArrowException: it is damaged.
    """
    mapped = MappedFile(path)
    return [_layout(batch, mapped, spec) for batch in _batches(pa.py_buffer(mapped.bytes), path, spec)]


def _batches(source: pa.Buffer, path: Path, spec: Spec) -> list[pa.RecordBatch]:
    reader = _open(source, path, spec)
    batches = [reader.get_batch(index) for index in range(reader.num_record_batches)]
    for batch in batches:  # lengths and offsets only; without it, a damaged offset reads outside the map
        batch.validate(full=True)
    return batches


def _open(source: pa.Buffer, path: Path, spec: Spec) -> pa.RecordBatchFileReader:
    reader = pa.ipc.open_file(source)
    if not reader.schema.equals(shard_schema(spec), check_metadata=True):
        raise StoreError(f"{path} has another schema than its store; `triptych verify` tells more.")
    return reader


class ArchiveShard(Shard):
    """A compressed shard: reading unpacks the sixteen images around the one asked for, and keeps the last ones.

    Raises:
        ValueError, OSError, pa.ArrowException: the file is damaged.
    """

    def __init__(self, path: Path, spec: Spec) -> None:
        super().__init__(spec, [])
        self._path = path
        self._reader = _open(pa.py_buffer(MappedFile(path).bytes), path, spec)
        self._kept: tuple[int, Segment] | None = None
        count = self._reader.num_record_batches
        self._images = 0
        if count:
            self._images = (count - 1) * ARCHIVE_IMAGES_PER_BATCH + self._reader.get_batch(count - 1).num_rows

    def __len__(self) -> int:
        return self._images

    def locate(self, row: int) -> tuple[Segment, int]:
        index, image = divmod(row, ARCHIVE_IMAGES_PER_BATCH)
        kept = self._kept
        if kept is None or kept[0] != index:
            kept = (index, self._unpack(index))
            self._kept = kept
        return kept[1], image

    def _unpack(self, index: int) -> Segment:
        try:
            batch = self._reader.get_batch(index)
            batch.validate(full=True)
            buffers = _Buffers()
            return read_segment(_layout(batch, buffers, self.spec), self.spec, buffers)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise StoreError(f"{self._path} cannot be read ({error}); `triptych verify` tells more.") from error


class _Buffers:
    """Buffers of an unpacked batch under made-up places, so that a layout can name them as if they lay in a file."""

    def __init__(self) -> None:
        self._arrays: dict[int, np.ndarray] = {0: np.empty(0, np.uint8)}
        self._next = 1

    def place(self, buffer: pa.Buffer) -> int:
        self._arrays[self._next] = np.frombuffer(buffer, np.uint8).copy()  # writable, as mapped ones are
        self._next += 1
        return self._next - 1

    def __call__(self, place: int, size: int) -> np.ndarray:
        return self._arrays[place][:size]


def _layout(batch: pa.RecordBatch, mapped: Any, spec: Spec) -> Layout:
    """The places of one record batch's columns; the lists of all columns must have the same lengths."""
    keys, features = batch.column("image_id"), batch.column(spec.values)
    rows = len(features.values)
    places = {
        "image_id": _place(keys.buffers()[2], mapped),
        "image_id.offsets": _place(keys.buffers()[1], mapped, 4 * (len(keys) + 1)),
        "offsets": _place(features.buffers()[1], mapped, 4 * (len(features) + 1)),
    }
    for name in SIZES:
        places[name] = _place(batch.column(name).buffers()[1], mapped, 4 * len(keys))
    for column in columns(spec):
        array = batch.column(column.name)
        if column.per_row and not array.offsets.equals(features.offsets):
            raise ValueError(f"column {column.name!r} has other list lengths than the features")
        while not pa.types.is_primitive(array.type):
            array = array.values
        size = (rows if column.per_row else len(keys)) * max(column.width, 1) * column.dtype.itemsize
        if len(array) * array.type.byte_width != size:
            raise ValueError(f"column {column.name!r} has {len(array):,} values")
        places[column.name] = _place(array.buffers()[1], mapped, size)
    return Layout(len(keys), rows, places)


def _place(buffer: pa.Buffer | None, mapped: Any, size: int | None = None) -> tuple[int, int]:
    """Where an Arrow buffer lies in the file it was read from, without the padding at its end."""
    length = 0 if buffer is None else buffer.size if size is None else size
    if buffer is None or not length:
        return 0, 0
    if isinstance(mapped, _Buffers):
        return mapped.place(buffer), length
    return buffer.address - mapped.bytes.ctypes.data, length


def _record_batch(gathered: Gathered, schema: pa.Schema, spec: Spec) -> pa.RecordBatch:
    images = len(gathered.keys)
    values_of = {**gathered.arrays, spec.values: _end_to_end(gathered.features, spec)}
    offsets = pa.py_buffer(gathered.offsets.astype(np.int32))
    arrays: dict[str, pa.Array] = {"image_id": text_column(gathered.keys)}
    arrays |= {
        name: _flat(np.ascontiguousarray(gathered.sizes[:, at]), schema.field(name).type)
        for at, name in enumerate(SIZES)
    }
    for column in columns(spec):
        values = values_of[column.name]
        kind = schema.field(column.name).type
        item = kind.value_type if column.per_row else kind
        flat = _flat(values, item.value_type if column.width else item)
        if column.width:
            flat = pa.Array.from_buffers(item, len(values), [None], children=[flat])
        if column.per_row:
            flat = pa.Array.from_buffers(kind, images, [None, offsets], children=[flat])
        arrays[column.name] = flat
    return pa.record_batch([arrays[name] for name in schema.names], schema=schema)


_scratch = threading.local()


def _end_to_end(parts: list[np.ndarray], spec: Spec) -> np.ndarray:
    """Features of a record batch in one piece of memory, which the next one uses again: fresh memory is slow."""
    dtype, dim = NUMPY[spec.layout.dtype], spec.layout.dim
    rows = sum(len(part) for part in parts)
    size = rows * dim * dtype.itemsize
    if not hasattr(_scratch, "memory") or len(_scratch.memory) < size:
        _scratch.memory = np.zeros(size, np.uint8)
    found: np.ndarray = _scratch.memory[:size].view(dtype).reshape(rows, dim)
    if parts:
        np.concatenate(parts, out=found)
    return found


def _flat(values: np.ndarray, kind: pa.DataType) -> pa.Array:
    return pa.Array.from_buffers(kind, values.size, [None, pa.py_buffer(values.reshape(-1).view(np.uint8))])


def text_column(values: list[str]) -> pa.StringArray:
    """A column. Unlike `pa.array`, this does not import pandas, which takes a second: longer than a small job."""
    builder = pa.lib.StringBuilder()
    builder.append_values(values)
    return builder.finish()


def _arrow_type(column: Column) -> pa.DataType:
    kind = _TYPES[column.dtype.name]
    if column.width:
        kind = pa.list_(pa.field("item", kind, nullable=False), column.width)
    return pa.list_(pa.field("item", kind, nullable=False)) if column.per_row else kind
