"""Reading one shard of either format: where each column lies in the file, and records as views of the mapped bytes.

A format only says where its columns are (a `Layout`); what a column means, checking it and reading it is written here
once. The same layout, kept in the manifest, is what lets a shard on an object store be read in parts.
"""

from __future__ import annotations

import mmap
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from storage.codecs import cast, decode, default_dtype
from storage.columns import PER_BOX_COLUMNS, SIZES, Column, columns
from storage.records import GridRecord, PatchRecord, PixelRecord, Record, RegionRecord
from storage.spec import Spec

Read = Callable[[int, int], np.ndarray]  # (place in the file, number of bytes) -> uint8
LARGE = ("features", "pixels", "class_probs", "whole_image")  # columns that are not read whole from an object store


@dataclass(frozen=True)
class Layout:
    """Where the columns of consecutive images lie in a file.

    images, rows   how many; rows are boxes, cells or pixels
    places         column name -> (place in the file, bytes): those of `storage.columns`, the sizes, "image_id" (UTF-8,
                   end to end, with int32 "image_id.offsets"; or all of one length, zero-padded, without them) and
                   "offsets" (images + 1 row numbers, int32 or int64)
    """

    images: int
    rows: int
    places: dict[str, tuple[int, int]]


class MappedFile:
    """A file's bytes, private and writable: torch.from_numpy warns of read-only arrays.

    Nothing written to the views can reach the file.
    """

    def __init__(self, path: Path) -> None:
        with path.open("rb") as handle:
            self.bytes = np.frombuffer(mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_COPY), np.uint8)

    def __call__(self, place: int, size: int) -> np.ndarray:
        if not 0 <= place <= place + size <= len(self.bytes):
            raise ValueError(f"a column leads outside the file ({size:,} bytes at {place:,})")
        return self.bytes[place : place + size]


@dataclass
class Segment:
    """Consecutive images whose columns are in reach as arrays.

    places  column name -> (place in the file, bytes)
    remote  columns that stay on an object store: place in the file, what the column is, and the file
    """

    keys: list[str]
    sizes: dict[str, np.ndarray]
    offsets: np.ndarray
    arrays: dict[str, np.ndarray]
    places: dict[str, tuple[int, int]] = field(default_factory=dict)
    remote: dict[str, tuple[int, Column, str]] = field(default_factory=dict)
    _bytes: dict[str, memoryview] = field(default_factory=dict)

    def bytes_of(self, name: str) -> memoryview:
        """A column as bytes, whose slices cost less than an array's."""
        if name not in self._bytes:
            self._bytes[name] = self.arrays[name].reshape(-1).view(np.uint8).data
        return self._bytes[name]

    def rows(self, image: int) -> tuple[int, int]:
        """First row of an image in the segment, and the one after its last."""
        return int(self.offsets[image]), int(self.offsets[image + 1])


def read_segment(layout: Layout, spec: Spec, read: Read, file: str | None = None) -> Segment:
    """Bring one segment in reach; of a remote file, the large columns only get their place noted.

    Raises:
        ValueError: lengths or offsets disagree: the file is damaged.
    """
    get = _Getter(layout, read)
    offsets = get.numbers("offsets", layout.images + 1)
    if offsets[0] != 0 or offsets[-1] != layout.rows or (np.diff(offsets) < 0).any():
        raise ValueError("its row offsets are not those of its rows")
    sizes = {name: get.typed(name, np.dtype(np.int32), layout.images) for name in SIZES}
    cells = sizes["grid_h"].astype(np.int64) * sizes["grid_w"]
    if spec.view != "regions" and not np.array_equal(cells, np.diff(offsets)):
        raise ValueError(f"its grid shapes are not those of the {spec.values}")
    segment = Segment(get.keys(), sizes, offsets, {}, layout.places)
    for column in columns(spec):
        count = layout.rows if column.per_row else layout.images
        if file and column.name in LARGE:
            segment.remote[column.name] = (layout.places[column.name][0], column, file)
            continue
        flat = get.typed(column.name, column.dtype, count * max(column.width, 1))
        segment.arrays[column.name] = flat.reshape(count, column.width) if column.width else flat
    return segment


class _Getter:
    """Typed arrays out of a layout, each checked against the length it must have."""

    def __init__(self, layout: Layout, read: Read) -> None:
        self.layout, self.read = layout, read

    def typed(self, name: str, dtype: np.dtype[Any], count: int) -> np.ndarray:
        place, size = self.layout.places.get(name, (0, -1))
        if size != count * dtype.itemsize:
            raise ValueError(f"column {name!r} has {size:,} bytes instead of {count * dtype.itemsize:,}")
        return self.read(place, size).view(dtype) if size else np.empty(0, dtype)

    def numbers(self, name: str, count: int) -> np.ndarray:
        """Integers of 4 or 8 bytes, as their column's length tells."""
        wide = self.layout.places.get(name, (0, -1))[1] == 8 * count
        return self.typed(name, np.dtype(np.int64 if wide else np.int32), count)

    def keys(self) -> list[str]:
        images = self.layout.images
        if not images:
            return []
        data = self.read(*self.layout.places["image_id"]).tobytes()
        if "image_id.offsets" in self.layout.places:
            ends = self.numbers("image_id.offsets", images + 1).tolist()
            return [data[start:end].decode() for start, end in pairwise(ends)]
        width = len(data) // images
        return [data[at * width : (at + 1) * width].rstrip(b"\0").decode() for at in range(images)]


class Shard:
    """One shard's records, by row. `path` is None where the bytes do not lie in a local file as they are read."""

    def __init__(self, spec: Spec, segments: list[Segment], path: Path | None = None) -> None:
        self.spec, self.path = spec, path
        self.segments = segments
        self._starts = [0]
        for segment in segments:
            self._starts.append(self._starts[-1] + len(segment.keys))

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, row: int) -> Record:
        """The record in this row; arrays are views of the file where the stored dtype is the one to read."""
        return self.record(row, default_dtype(self.spec.layout.dtype))

    def locate(self, row: int) -> tuple[Segment, int]:
        """The segment that holds a row, and the image's number in it."""
        index = bisect_right(self._starts, row) - 1
        return self.segments[index], row - self._starts[index]

    def record(self, row: int, dtype: str) -> Record:
        """The record in this row, its features in `dtype`."""
        segment, image = self.locate(row)
        return record_from(self.spec, segment, image, dtype)


def record_from(spec: Spec, segment: Segment, image: int, dtype: str) -> Record:
    """One image's record out of the columns of its segment."""
    arrays = segment.arrays
    start, stop = segment.rows(image)
    key = segment.keys[image]
    size = (int(segment.sizes["height"][image]), int(segment.sizes["width"][image]))
    scale = arrays["features_scale"][start:stop] if "features_scale" in arrays else None
    features = as_asked(arrays[spec.values][start:stop], scale, dtype)
    if spec.view != "regions":
        shape = (int(segment.sizes["grid_h"][image]), int(segment.sizes["grid_w"][image]), spec.layout.dim)
        features = features.reshape(shape)
    if spec.view == "grid":
        return GridRecord(key, size, features)
    if spec.view == "pixels":
        return PixelRecord(key, size, features)
    whole = arrays["whole_image"][image : image + 1] if "whole_image" in arrays else None
    if whole is not None:
        scale = arrays["whole_image_scale"][image : image + 1] if "whole_image_scale" in arrays else None
        whole = as_asked(whole, scale, dtype)[0]
    if spec.view == "patches":
        return PatchRecord(key, size, features, whole)
    # Opening the segment has checked what building a record checks; here it would cost as much as all the rest.
    record = object.__new__(RegionRecord)
    record.__dict__.update(key=key, image_size=size, boxes=arrays["boxes"][start:stop], features=features)
    for name, attribute in _REST:
        record.__dict__[attribute] = arrays[name][start:stop] if name in arrays else None
    record.__dict__["whole_image"] = whole
    return record


_REST = [*((name, each) for name, (each, _) in PER_BOX_COLUMNS.items()), ("class_probs", "class_probs")]


def as_asked(rows: np.ndarray, scale: np.ndarray | None, dtype: str) -> np.ndarray:
    """Stored feature rows in the dtype a reader asks for; the same array where that is what is stored."""
    return cast(rows, dtype) if scale is None else decode(rows, scale, dtype)
