"""HDF5 shards: the same columns as plain contiguous data sets, which h5py reads by name and this package maps.

A contiguous data set cannot grow, so a writer keeps a shard's records until it closes. HDF5 makes the file with room
for the features at its end; they are then written straight to that room, in one piece and hashed on the way.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from storage.arrow import shard_metadata
from storage.atomic import HashedFile
from storage.codecs import NUMPY
from storage.columns import SIZES, columns
from storage.errors import StoreError
from storage.gather import Gathered, check_fits, gather
from storage.records import Record
from storage.shard import Layout
from storage.spec import Spec

SUFFIX = ".h5"
ALIGNMENT = 4096  # large data sets start on a page
LARGE_FROM = 65536
MOST_ROWS = 2**31 - 1  # readers count the rows of a shard in 32 bits
_ROWS = {"regions": "boxes", "grid": "cells", "patches": "patches", "pixels": "pixels"}
_OPTIONS: dict[str, Any] = {
    "libver": "latest",
    "alignment_threshold": LARGE_FROM,
    "alignment_interval": ALIGNMENT,
}
_STORED = {"bfloat16": np.dtype(np.uint16)}  # HDF5 has no such type; the file's attributes tell


class Hdf5ShardWriter:
    """Append records, then close: one file and its checksum.

    checksum  False only to measure what it costs
    """

    def __init__(self, path: Path, spec: Spec, checksum: bool = True) -> None:
        self.path, self.spec = path, spec
        self.rows = 0
        self.keys: list[str] = []
        self._records: list[Record] = []
        self._checksum = checksum
        self._file: HashedFile | None = None
        path.touch()  # so that a folder which cannot be written is noticed before the work is done

    def append(self, record: Record) -> None:
        """Take one record.

        Raises:
            StoreError: the record is of another view, width or dtype than the store, or the shard is full.
        """
        check_fits(record, self.spec)
        if record.key.endswith("\0"):
            raise StoreError(
                f"key {record.key!r} ends with a zero byte, with which HDF5 fills up keys; use --format arrow."
            )
        rows = int(np.prod(record.features.shape[:-1]))
        if self.rows + rows > MOST_ROWS:
            raise StoreError(
                f"an HDF5 shard holds {MOST_ROWS:,} {_ROWS[self.spec.view]} at most; put fewer images in one."
            )
        self._records.append(record)
        self.keys.append(record.key)
        self.rows += rows

    def close(self) -> tuple[int, str]:
        """Write, finish and sync the file; returns its size in bytes and its XXH3-128."""
        gathered = gather(self._records, self.spec)
        self._records = []
        head, large = _head(gathered, self.spec)
        self._file = HashedFile(self.path, self._checksum)
        self._file.write(head)
        for part in gathered.features if large else []:
            self._file.write(np.ascontiguousarray(part).reshape(-1).view(np.uint8))
        return self._file.finish()

    def abort(self) -> None:
        self._records = []
        if self._file:
            self._file.abort()


def hdf5_layouts(path: Path, spec: Spec) -> list[Layout]:
    """Where the columns of a shard lie.

    Raises:
        StoreError: the file is not a shard of this spec.
        ValueError, OSError, KeyError, RuntimeError: it is damaged.
    """
    with h5py.File(path, "r", locking=False) as file:
        found = {name: value for name, value in file.attrs.items() if name.startswith("triptych.")}
        if found != {name: np.bytes_(value) for name, value in shard_metadata(spec).items()}:
            raise StoreError(f"{path} has another schema than its store; `triptych verify` tells more.")
        images, rows = len(file["image_id"]), len(file[spec.values])
        places = {"image_id": _place(file["image_id"]), "offsets": _place(file["offsets"])}
        places |= {name: _place(file[name]) for name in SIZES}
        for column in columns(spec):
            data = file[column.name]
            count = rows if column.per_row else images
            shape = (count, column.width) if column.width else (count,)
            if data.shape != shape or data.dtype != _STORED.get(column.dtype.name, column.dtype):
                raise ValueError(f"data set {column.name!r} is {data.dtype} {data.shape}")
            places[column.name] = _place(data)
    return [Layout(images, rows, places)]


def _place(data: h5py.Dataset) -> tuple[int, int]:
    if not data.size:
        return 0, 0
    place = data.id.get_offset()
    if place is None or data.chunks is not None:
        raise ValueError(f"data set {data.name!r} is not contiguous")
    return int(place), int(data.size * data.dtype.itemsize)


def _head(gathered: Gathered, spec: Spec) -> tuple[bytes, bool]:
    """The file without its features, if they are large: these then follow right behind. Small ones are in it.

    HDF5 writes it into memory: on a full disk, a process whose HDF5 file cannot be written is lost.
    """
    stored = NUMPY[spec.layout.dtype]
    dtype = _STORED.get(stored.name, stored)
    shape = (int(gathered.offsets[-1]), spec.layout.dim)
    large = shape[0] * shape[1] * dtype.itemsize >= LARGE_FROM
    memory = io.BytesIO()
    with h5py.File(memory, "w", **_OPTIONS) as file:
        for name, value in shard_metadata(spec).items():
            file.attrs[name] = np.bytes_(value)  # variable lengths lie in a heap without a checksum
        encoded = [key.encode() for key in gathered.keys]
        kind = h5py.string_dtype("utf-8", max([1, *map(len, encoded)]))
        file.create_dataset("image_id", data=np.array(encoded, dtype=kind))
        for at, name in enumerate(SIZES):
            file.create_dataset(name, data=np.ascontiguousarray(gathered.sizes[:, at]))
        file.create_dataset("offsets", data=gathered.offsets)
        for column in columns(spec)[1:]:
            file.create_dataset(column.name, data=_plain(gathered.arrays[column.name]))
        if large:
            # Its room is allocated by the first write.
            file.create_dataset(spec.values, shape, dtype, fill_time="never")
        else:
            parts = [_plain(part) for part in gathered.features]
            file.create_dataset(spec.values, data=np.concatenate(parts) if shape[0] else np.empty(shape, dtype))
    if not large:
        return memory.getvalue(), False
    with h5py.File(memory, "r+", **_OPTIONS) as file:  # closed in between: all of HDF5's own tables lie before the room
        file[spec.values][0, 0] = 0
        place = int(file[spec.values].id.get_offset())
    head = memory.getvalue()
    if len(head) > place + dtype.itemsize:
        raise StoreError(f"HDF5 {h5py.version.hdf5_version} did not put the features at the end of the file.")
    return head[:place].ljust(place, b"\0"), True


def _plain(values: np.ndarray) -> np.ndarray:
    return values.view(_STORED.get(values.dtype.name, values.dtype))
