"""From positions to records and packed batches: where each image's columns are in reach, and copying them once."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import numpy as np

from storage.codecs import NUMPY
from storage.columns import PER_BOX_COLUMNS
from storage.errors import StoreError
from storage.places import Place
from storage.records import PackedBatch, Record, pack
from storage.shard import LARGE, Segment, Shard, as_asked, record_from
from storage.spec import OPTIONAL, Spec

SEGMENT, IMAGE, START, COUNT, HEIGHT, WIDTH, GRID_H, GRID_W = range(8)
FIELDS = (*OPTIONAL, "class_probs")
ADVICE_BYTES = 256 << 10
_COLUMN_OF = {field: name for name, (field, _) in PER_BOX_COLUMNS.items()} | {
    "class_probs": "class_probs",
    "whole_image": "whole_image",
}


class Located:
    """Where the images of a store's open shards are: one row of eight numbers for each position, zero where unknown.

    The table is as long as the store, but only the parts that are filled take memory.
    """

    def __init__(self, positions: int) -> None:
        self.table = np.zeros((positions, 8), np.int32)
        self.segments: list[Segment] = []
        self.paths: list[Path | None] = []
        self.packed: list[Shard] = []  # archives: their images are unpacked one by one

    def mapped(self, position: int) -> tuple[Segment, int] | None:
        """The segment of a position and its number there, if it is open, and in no archive or object store."""
        if not 0 <= position < len(self.table):
            return None
        number, image = self.table[position, :2].tolist()
        if number < 1 or self.segments[number - 1].remote:
            return None
        return self.segments[number - 1], image

    def unknown(self, positions: np.ndarray) -> list[int]:
        """Positions whose shard is not open yet."""
        missing: list[int] = positions[self.table[positions, SEGMENT] == 0].tolist()
        return missing

    def add(self, first: int, rows: np.ndarray, shard: Shard) -> None:
        """Note the images of a shard: position `first + i` is row `rows[i]`."""
        target = self.table[first : first + len(rows)]
        if not shard.segments:
            self.packed.append(shard)
            target[:, IMAGE] = rows
            target[:, SEGMENT] = -len(self.packed)  # last, as below
            return
        found = np.concatenate([self._rows_of(segment, shard.path) for segment in shard.segments])[rows]
        target[:, IMAGE:] = found[:, IMAGE:]
        target[:, SEGMENT] = found[:, SEGMENT]  # last: from now on, other threads take the row as known

    def _rows_of(self, segment: Segment, path: Path | None) -> np.ndarray:
        self.segments.append(segment)
        self.paths.append(path)
        images = len(segment.keys)
        sizes = (segment.sizes[name] for name in ("height", "width", "grid_h", "grid_w"))
        counts = np.diff(segment.offsets)
        numbers = [np.full(images, len(self.segments)), np.arange(images), segment.offsets[:-1], counts, *sizes]
        return np.stack(numbers, axis=1).astype(np.int32)


class Reading:
    """Some images of a store, with their columns in reach."""

    def __init__(self, located: Located, positions: np.ndarray, place: Place, spec: Spec, dtype: str) -> None:
        self.rows = located.table[positions]
        self.located, self.place, self.spec, self.dtype = located, place, spec, dtype

    @property
    def is_complete(self) -> bool:
        """True where every image's shard is open."""
        return bool(self.rows[:, SEGMENT].all())

    @property
    def total(self) -> int:
        """Rows of all images together."""
        if self.rows[:, SEGMENT].min(initial=1) < 0:
            return len(self._packed_batch((), None).values)
        return int(self.rows[:, COUNT].sum())

    def record(self) -> Record:
        """The one image's record."""
        number, image = int(self.rows[0, SEGMENT]), int(self.rows[0, IMAGE])
        if number < 0:
            return self.located.packed[-number - 1].record(image, self.dtype)
        segment = self.located.segments[number - 1]
        if not segment.remote:
            return record_from(self.spec, segment, image, self.dtype)
        return self._fetched_record(segment, image)

    def batch(self, fields: tuple[str, ...], out: np.ndarray | None, keys: Sequence[str] | None = None) -> PackedBatch:
        """All images, end to end; `keys` are theirs, where they are at hand."""
        _check_fields(fields, self.spec)
        numbers, images, _, counts = self.rows[:, :4].T.tolist()
        if min(numbers) < 0:
            return self._packed_batch(fields, out)
        segments = [self.located.segments[number - 1] for number in numbers]
        offsets = np.array([0, *accumulate(counts)], np.int64)
        values = self._values(self.spec.values, "features_scale", segments, out, int(offsets[-1]))
        regions = self.spec.view == "regions"
        if keys is None:
            keys = [segment.keys[image] for segment, image in zip(segments, images, strict=True)]
        return PackedBatch(
            keys=list(keys),
            values=values,
            offsets=offsets,
            image_sizes=self.rows[:, HEIGHT : WIDTH + 1],
            boxes=self._joined("boxes", segments) if regions else None,
            grid_shapes=None if regions else self.rows[:, GRID_H : GRID_W + 1],
            others={name: self._other(name, segments) for name in fields} or None,
        )

    def columns(self, fields: Sequence[str]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Row offsets (B + 1,) of all images, and some small fields end to end; features are not touched."""
        _check_fields(fields, self.spec)
        numbers = self.rows[:, SEGMENT].tolist()
        if min(numbers) < 0:
            packed = self._packed_batch(tuple(fields), None)
            return packed.offsets, packed.others or {}
        segments = [self.located.segments[number - 1] for number in numbers]
        offsets = np.array([0, *accumulate(self.rows[:, COUNT].tolist())], np.int64)
        return offsets, {name: self._other(name, segments) for name in fields}

    def ranges(self, name: str | None = None) -> list[tuple[Path, int, int]]:
        """File, place and length of a column's rows of each image, where they lie in files that are mapped."""
        name, found = name or self.spec.values, []
        for number, image, start, count in self.rows[:, :4].tolist():
            path = self.located.paths[number - 1] if number > 0 else None
            if path is not None:
                segment = self.located.segments[number - 1]
                array, (place, _) = segment.arrays[name], segment.places[name]
                first, count = (image, 1) if name.startswith("whole_image") else (start, count)
                size = array.itemsize * (array.shape[1] if array.ndim > 1 else 1)
                found.append((path, place + first * size, count * size))
        return found

    def ranges_to_read(self, fields: Sequence[str]) -> list[tuple[Path, int, int]]:
        """All that a batch with these fields will touch: the rows of large columns, and small columns as a whole.

        Small ones, too, since a page of a map that is missing makes the system read up to megabytes around it.
        """
        _check_fields(fields, self.spec)
        names = {"boxes", "features_scale", *(_COLUMN_OF[field] for field in fields)}
        names |= {f"{name}_scale" for name in names & {"whole_image"}}
        found = self.ranges()
        for name in names & set(LARGE):
            found += self.ranges(name)
        for number in np.unique(self.rows[:, SEGMENT]).tolist():
            path = self.located.paths[number - 1] if number > 0 else None
            if path is not None:
                places = self.located.segments[number - 1].places
                found += [(path, *places[name]) for name in sorted(names - set(LARGE)) if name in places]
        return found

    def _values(self, name: str, scale: str, segments: list[Segment], out: np.ndarray | None, rows: int) -> np.ndarray:
        parts = self._parts(name, segments)
        wanted = None if out is None else _checked(out, rows, self.spec.layout.dim, self.dtype)
        if self.spec.layout.dtype == self.dtype:
            return np.concatenate(parts, out=wanted)
        scales = np.concatenate(self._parts(scale, segments)) if self.spec.layout.dtype == "uint8" else None
        values = as_asked(np.concatenate(parts), scales, self.dtype)
        if wanted is None:
            return values
        wanted[:] = values
        return wanted

    def _other(self, name: str, segments: list[Segment]) -> np.ndarray:
        if name == "whole_image":
            return self._values(name, "whole_image_scale", segments, None, len(segments))
        return self._joined(_COLUMN_OF[name], segments)

    def _joined(self, name: str, segments: list[Segment]) -> np.ndarray:
        """One column's rows of all images; small ones as bytes: numpy takes longer to look at them than to copy."""
        if any(segment.remote for segment in segments) or name in LARGE:
            return np.concatenate(self._parts(name, segments))
        array = segments[0].arrays[name]
        size = array.itemsize * (array.shape[1] if array.ndim > 1 else 1)
        _, _, starts, counts = (self.rows[:, :4] * [1, 1, size, size]).T.tolist()
        parts = [
            segment.bytes_of(name)[start : start + count]
            for segment, start, count in zip(segments, starts, counts, strict=True)
        ]
        return np.frombuffer(bytearray().join(parts), array.dtype).reshape(-1, *array.shape[1:])

    def _parts(self, name: str, segments: list[Segment]) -> list[np.ndarray]:
        """One column's rows of each image; views, or fetched all at once from an object store."""
        per_image = name.startswith("whole_image")
        first, count = self.rows[:, IMAGE if per_image else START], self.rows[:, COUNT]
        stops = (first + 1 if per_image else first + count).tolist()
        bounds = list(zip(segments, first.tolist(), stops, strict=True))
        if any(name in segment.remote for segment in segments):
            return self._fetched(name, bounds)
        return [segment.arrays[name][start:stop] for segment, start, stop in bounds]

    def _fetched(self, name: str, bounds: Iterable[tuple[Segment, int, int]]) -> list[np.ndarray]:
        ranges, shapes = [], []
        for segment, start, stop in bounds:
            place, column, file = segment.remote[name]
            size = column.dtype.itemsize * max(column.width, 1)
            ranges.append((file, place + start * size, (stop - start) * size))
            shapes.append((column.dtype, (stop - start, column.width) if column.width else (stop - start,)))
        data = self.place.read_ranges(ranges)
        return [
            np.frombuffer(bytearray(each), dtype).reshape(shape)
            for each, (dtype, shape) in zip(data, shapes, strict=True)
        ]

    def _fetched_record(self, segment: Segment, image: int) -> Record:
        """One record from an object store: its large columns are fetched and stand alone, as if in a segment of one."""
        start, stop = segment.rows(image)
        arrays = {
            name: array[image : image + 1] if name.startswith("whole_image") else array[start:stop]
            for name, array in segment.arrays.items()
        }
        arrays |= {name: self._parts(name, [segment])[0] for name in segment.remote}
        alone = Segment(
            [segment.keys[image]],
            {name: each[image : image + 1] for name, each in segment.sizes.items()},
            np.array([0, stop - start]),
            arrays,
        )
        return record_from(self.spec, alone, 0, self.dtype)

    def _packed_batch(self, fields: tuple[str, ...], out: np.ndarray | None) -> PackedBatch:
        """The slow way, for archives."""
        records = [Reading.one(self, row).record() for row in range(len(self.rows))]
        batch = pack(records)
        join = {"whole_image": np.stack}
        others = {name: join.get(name, np.concatenate)([getattr(each, name) for each in records]) for name in fields}
        values = batch.values
        if out is not None:
            values = _checked(out, len(values), self.spec.layout.dim, self.dtype)
            values[:] = batch.values
        return replace(batch, values=values, others=others or None)

    def one(self, row: int) -> Reading:
        """One image of these."""
        single = object.__new__(Reading)
        single.__dict__.update(self.__dict__, rows=self.rows[row : row + 1])
        return single


def advise(ranges: Sequence[tuple[Path, int, int]]) -> None:
    """Ask the system to read parts of files into its cache, without waiting.

    In pieces: of a longer one Linux reads only as much as the disk takes in one request.
    """
    if not hasattr(os, "posix_fadvise"):  # macOS
        return
    by_file: dict[Path, list[tuple[int, int]]] = {}
    for path, start, size in ranges:
        by_file.setdefault(path, []).append((start, size))
    for path, parts in by_file.items():
        try:
            handle = os.open(path, os.O_RDONLY)
        except OSError:  # compacted away meanwhile; the mapped bytes are still there
            continue
        try:
            for start, size in parts:
                for place in range(start, start + size, ADVICE_BYTES):
                    length = min(ADVICE_BYTES, start + size - place)
                    os.posix_fadvise(handle, place, length, os.POSIX_FADV_WILLNEED)
        finally:
            os.close(handle)


def _checked(out: np.ndarray, rows: int, dim: int, dtype: str) -> np.ndarray:
    if out.dtype != NUMPY[dtype] or out.ndim != 2 or out.shape[1] != dim or len(out) < rows:
        wanted = f"{NUMPY[dtype]} ({rows}, {dim})"
        raise ValueError(f"out is {out.dtype} {out.shape}, but the batch needs {wanted} or more rows")
    return out[:rows]


def _check_fields(fields: Sequence[str], spec: Spec) -> None:
    for name in fields:
        if name not in FIELDS:
            raise StoreError(f"field {name!r} is not known; choose from {', '.join(FIELDS)}.")
        has = bool(spec.layout.class_probs) if name == "class_probs" else name in spec.carried
        if not has:
            raise StoreError(f"this store does not have {name}.")
