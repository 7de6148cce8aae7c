"""The folded manifest: every committed unit, key and failed image in a few Arrow tables that are mapped, not loaded.

Opening it and finding a key in it cost the same for a thousand and for ten million records. `index.json` names the
current tables; they are never changed, only replaced by others. What was committed since lies beside it, one JSON entry
a unit, until it is folded in as well.
"""

from __future__ import annotations

import contextlib
import json
import os
import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from storage.atomic import HashedFile, cache_folder, discard, publish, writing
from storage.errors import StoreError
from storage.manifest import Entry, ErrorRow, ShardFacts, committed_at
from storage.places import Place, inside, read_document, write_document
from storage.shard import MappedFile

HEAD, FOLDER = "index.json", "index"
TABLES = {
    "keys": pa.schema([("key", pa.large_string()), ("unit", pa.uint32()), ("row", pa.uint32())]),
    "lookup": pa.schema([("hash", pa.uint64()), ("position", pa.uint32())]),
    "buckets": pa.schema([("start", pa.uint32())]),
    "units": pa.schema([("unit", pa.string()), ("shard", pa.string()), ("facts", pa.string())]),
    "errors": pa.schema(
        [("unit", pa.uint32())] + [(name, pa.string()) for name in ("key", "uri", "stage", "reason", "message")]
    ),
}


@dataclass(frozen=True)
class UnitFacts:
    """A unit without its keys."""

    unit: str
    shard: ShardFacts | None
    facts: dict[str, Any]


class Index:
    """The tables of one folded manifest. Positions number its records: unit by unit, in shard order.

    Raises:
        StoreError: a table is missing or of another length than it was written with.
    """

    def __init__(self, place: Place, head: dict[str, Any]) -> None:
        self.head, self._name = head, place.name
        tables = {name: _Table(_local(place, head["tables"][name])) for name in TABLES}
        self._tables = tables
        self.unit_of, self.row_of = tables["keys"].numbers("unit"), tables["keys"].numbers("row")
        self._hashes, self._positions = tables["lookup"].column("hash"), tables["lookup"].column("position")
        self._ends, self._text = tables["keys"].text("key")
        self._buckets = tables["buckets"].numbers("start")
        self._shift = _shift(len(self))
        self._units = tables["units"].batch
        self._errors = tables["errors"].batch

    def __len__(self) -> int:
        return len(self.unit_of)

    def __bool__(self) -> bool:
        return True  # an index of failed images only is one, too

    @property
    def units(self) -> int:
        return int(self._units.num_rows)

    def find(self, keys: Sequence[str]) -> np.ndarray:
        """Positions (K,) int64 of keys; -1 where a key has no record."""
        # File names may hold surrogates, which no key does.
        found = (self._find(key.encode(errors="surrogatepass")) for key in keys)
        with self._reading():
            return np.fromiter(found, np.int64, len(keys))

    def _find(self, key: bytes) -> int:
        """One bucket of hashes is read, about a hundred; mapping them would make resident whatever is touched."""
        wanted = xxhash.xxh3_64_intdigest(key)
        first, last = self._buckets[wanted >> self._shift : (wanted >> self._shift) + 2].tolist()
        for at in np.flatnonzero(self._hashes.read(first, last) == np.uint64(wanted)).tolist():
            position = int(self._positions.read(first + at, first + at + 1)[0])
            if self._bytes(position) == key:
                return position
        return -1

    def key(self, position: int) -> str:
        with self._reading():
            return self._bytes(position).decode()

    def keys(self) -> Iterator[str]:
        column = self._tables["keys"].batch.column("key")
        for start in range(0, len(self), 65536):
            yield from self._values(column.slice(start, 65536))

    def unit(self, number: int) -> UnitFacts:
        row = self._units.slice(number, 1)
        [unit], [shard], [facts] = (self._values(row.column(name)) for name in ("unit", "shard", "facts"))
        with self._reading():
            return UnitFacts(unit, ShardFacts.from_dict(json.loads(shard)) if shard else None, json.loads(facts))

    def unit_ids(self) -> list[str]:
        return self._values(self._units.column("unit"))

    def errors(self) -> Iterator[tuple[int, ErrorRow]]:
        """Failed images with the number of their unit."""
        for start in range(0, self._errors.num_rows, 65536):
            rows = self._errors.slice(start, 65536)
            for number, *texts in zip(*(self._values(rows.column(name)) for name in rows.schema.names), strict=True):
                yield number, ErrorRow(*texts)

    def rows(self, number: int) -> np.ndarray:
        """Rows of a unit's shard that are records of the store; another unit may have had the others first."""
        first, last = np.searchsorted(self.unit_of, [number, number + 1])
        return np.asarray(self.row_of[first:last])

    def entries(self) -> Iterator[Entry]:
        """The units as they were committed, each with its keys."""
        errors: dict[int, list[ErrorRow]] = {}
        for number, row in self.errors():
            errors.setdefault(number, []).append(row)
        column = self._tables["keys"].batch.column("key")
        bounds = np.searchsorted(self.unit_of, np.arange(self.units + 1))
        for number in range(self.units):
            each = self.unit(number)
            keys = self._values(column.slice(bounds[number], bounds[number + 1] - bounds[number]))
            yield Entry(each.unit, keys, errors.get(number, []), each.shard, each.facts)

    def _values(self, column: Any) -> list[Any]:
        """A slice as Python values, once its offsets are seen to lead nowhere outside the table."""
        with self._reading():
            column.validate(full=True)
            if column.null_count:
                raise ValueError("a value is missing")
            values: list[Any] = column.to_pylist()
            return values

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """Opening compares the lengths of the tables only; other damage is met here."""
        try:
            yield
        except (pa.ArrowException, OSError, ValueError, LookupError, TypeError) as error:
            raise StoreError(f"{self._name}/{HEAD} names a table that is damaged; run `triptych repair`.") from error

    def _bytes(self, position: int) -> bytes:
        start, stop = self._ends.read(position, position + 2).tolist()
        return self._text.read(start, stop).tobytes()

    def parts(self) -> dict[str, Any]:
        """What building the next index takes from this one: keys, unit and row numbers, and hashes by position."""
        hashes = np.empty(len(self), np.uint64)
        hashes[self._positions.read(0, len(self))] = self._hashes.read(0, len(self))
        return {"keys": self._tables["keys"].batch.column("key"), "hashes": hashes}


def index_head(place: Place) -> dict[str, Any] | None:
    """What names the current tables; None where nothing was folded yet.

    Raises:
        StoreError: it is damaged.
    """
    try:
        return read_document(place, HEAD)
    except FileNotFoundError:
        return None


def open_index(place: Place) -> Index | None:
    """The current index; None where nothing was folded yet.

    Raises:
        StoreError: it is damaged.
    """
    for _ in range(20):
        head = index_head(place)
        if head is None:
            return None
        try:
            return Index(place, head)
        except FileNotFoundError as error:  # replaced by a newer one between the two reads
            missing = error
        except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{place.name}/{HEAD} names a table that is damaged; run `triptych repair`.") from error
    raise StoreError(f"{place.name}/{HEAD} names a table that is missing ({missing}); run `triptych repair`.")


def write_index(place: Place, old: Index | None, new: Iterable[Entry], dropped: frozenset[str] = frozenset()) -> None:
    """Replace the current index by one without the units in `dropped` and with the new entries. Call it under the lock.

    Raises:
        StoreError: the disk refuses; the old index stays.
    """
    tables = _built(old, list(new), dropped)
    place.make((FOLDER,))
    try:
        head = {"tables": {name: _write_table(place, name, table) for name, table in tables.items()}}
        write_document(place, HEAD, head)
    except StoreError:
        with contextlib.suppress(StoreError):
            _sweep(place, index_head(place) or {"tables": {}})  # perhaps the new one, if only a sync was refused
        raise
    _sweep(place, head)


def _write_table(place: Place, name: str, table: pa.RecordBatch) -> dict[str, Any]:
    """Write one table under a name of its own; returns what the head says of it."""
    draft = place.draft(f"{FOLDER}/{name}.arrow")
    try:
        with writing(draft):
            file = HashedFile(draft)
            try:
                with pa.ipc.new_file(pa.PythonFile(file, mode="w"), table.schema) as writer:
                    writer.write_batch(table)
                size, digest = file.finish()
            finally:
                file.abort()
        final = f"{FOLDER}/{name}-{digest[:16]}.arrow"
        place.publish(draft, final)
    finally:
        place.discard(draft)
    return {"file": final, "bytes": size, "xxh3_128": digest}


def _sweep(place: Place, head: dict[str, Any]) -> None:
    """Remove tables that this head does not name."""
    kept = {each["file"] for each in head["tables"].values()}
    place.remove(*(file for file in (f"{FOLDER}/{name}" for name in place.names(FOLDER)) if file not in kept))


def _built(old: Index | None, new: list[Entry], dropped: frozenset[str]) -> dict[str, pa.RecordBatch]:
    keys, hashes, unit_of, row_of, units, errors = _kept(old, dropped)
    first = len(units)
    for entry in new:
        units.append((entry.unit, json.dumps(asdict(entry.shard)) if entry.shard else "", json.dumps(entry.facts)))
    fresh_errors = [
        [(number, row.key, row.uri, row.stage, row.reason, row.message) for row in entry.errors]
        for number, entry in enumerate(new, first)
    ]
    in_time = sorted(zip(map(committed_at, new), fresh_errors, strict=True), key=itemgetter(0))
    last = {row[1]: row for rows in (errors, *(rows for _, rows in in_time)) for row in rows}
    errors += chain.from_iterable(fresh_errors)
    fresh = [key for entry in new for key in entry.keys]
    counts = [len(entry.keys) for entry in new]
    keys = pa.concat_arrays([keys, pa.array(fresh, pa.large_string())])
    digests = (xxhash.xxh3_64_intdigest(key.encode()) for key in fresh)
    hashes = np.concatenate([hashes, np.fromiter(digests, np.uint64, len(fresh))])
    unit_of = np.concatenate([unit_of, np.repeat(np.arange(first, first + len(new)), counts)]).astype(np.uint32)
    row_of = np.concatenate([row_of, *[np.arange(count) for count in counts]]).astype(np.uint32)
    order = np.argsort(hashes, kind="stable")
    doubled = _doubled(keys, hashes, order)
    if len(doubled):
        keep = np.ones(len(hashes), bool)
        keep[doubled] = False
        keys, hashes, unit_of, row_of = keys.filter(pa.array(keep)), hashes[keep], unit_of[keep], row_of[keep]
        order = np.argsort(hashes, kind="stable")
    if errors:  # a key with a record in another unit is no error; one that failed in two failed as it last did
        failed = pa.array([row[1] for row in errors], pa.large_string())
        seen = set(keys.filter(pc.is_in(keys, value_set=failed)).to_pylist())
        errors = [row for row in errors if row[1] not in seen and last[row[1]] is row]
    arrays = {
        "keys": [keys, pa.array(unit_of), pa.array(row_of)],
        "lookup": [pa.array(hashes[order]), pa.array(order.astype(np.uint32))],
        "buckets": [pa.array(_starts(hashes[order]))],
        "units": [pa.array([row[at] for row in units], pa.string()) for at in range(3)],
        "errors": [pa.array([row[at] for row in errors], kind) for at, kind in enumerate(TABLES["errors"].types)],
    }
    return {name: pa.record_batch(arrays[name], schema=schema) for name, schema in TABLES.items()}


def _starts(ordered: np.ndarray) -> np.ndarray:
    """Where each bucket of sorted hashes begins, and where the last one ends."""
    shift = _shift(len(ordered))
    borders = np.arange(1 << (64 - shift), dtype=np.uint64) << np.uint64(shift)
    return np.append(np.searchsorted(ordered, borders), len(ordered)).astype(np.uint32)


def _kept(old: Index | None, dropped: frozenset[str]) -> tuple[Any, ...]:
    """What stays of the old index: keys, hashes, unit and row numbers, units and errors as rows."""
    if old is None:
        return pa.array([], pa.large_string()), np.empty(0, np.uint64), np.empty(0), np.empty(0), [], []
    ids = old.unit_ids()
    stays = np.array([unit not in dropped for unit in ids], bool)
    number = np.cumsum(stays) - 1
    mask = stays[old.unit_of]
    parts = old.parts()
    units = []
    for at in np.flatnonzero(stays).tolist():
        each = old.unit(at)
        units.append((each.unit, json.dumps(asdict(each.shard)) if each.shard else "", json.dumps(each.facts)))
    errors = [
        (int(number[at]), row.key, row.uri, row.stage, row.reason, row.message) for at, row in old.errors() if stays[at]
    ]
    keys = parts["keys"] if mask.all() else pc.filter(parts["keys"], pa.array(mask))
    return keys, parts["hashes"][mask], number[old.unit_of[mask]], np.asarray(old.row_of[mask]), units, errors


def _doubled(keys: pa.Array, hashes: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Positions of keys that stand earlier, too: two writers without a lock may both have committed one."""
    ordered = hashes[order]
    same = np.flatnonzero(ordered[1:] == ordered[:-1])
    found = []
    for at in same.tolist():
        start = at
        while start and ordered[start - 1] == ordered[at]:
            start -= 1
        later = int(order[at + 1])
        if any(keys[int(order[other])].as_py() == keys[later].as_py() for other in range(start, at + 1)):
            found.append(later)
    return np.array(found, np.int64)


# Asking Arrow for these, or for an array out of a list, imports pandas, which takes longer than all else here.
_NUMPY: dict[pa.DataType, type[np.generic]] = {pa.uint32(): np.uint32, pa.uint64(): np.uint64}


class _Column:
    """Numbers in a file, read where they are asked for."""

    def __init__(self, handle: int, place: int, dtype: type[np.generic], count: int) -> None:
        self._handle, self._place, self._dtype, self._count = handle, place, np.dtype(dtype), count

    def read(self, start: int, stop: int) -> np.ndarray:
        """Values `start` to `stop`."""
        if not 0 <= start <= stop <= self._count:
            raise ValueError(f"rows {start:,} to {stop:,} lead outside a table of {self._count:,}")
        size = self._dtype.itemsize
        parts, place, left = [], self._place + start * size, (stop - start) * size
        while left and (part := os.pread(self._handle, min(left, 1 << 30), place)):
            parts.append(part)
            place, left = place + len(part), left - len(part)
        return np.frombuffer(b"".join(parts), self._dtype)


class _Table:
    """One table's file: mapped, and also open to be read in parts. It has one record batch."""

    def __init__(self, path: Path) -> None:
        self._handle = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._handle)
        self._mapped = MappedFile(path)
        reader = pa.ipc.open_file(pa.py_buffer(self._mapped.bytes))
        self.batch = reader.get_batch(0)

    def numbers(self, name: str) -> np.ndarray:
        """A column as a view of the map."""
        array = self.batch.column(name)
        buffer, dtype = array.buffers()[1], _NUMPY[array.type]
        return np.frombuffer(buffer, dtype, len(array)) if len(array) else np.empty(0, dtype)

    def column(self, name: str) -> _Column:
        array = self.batch.column(name)
        return self._column(array.buffers()[1], _NUMPY[array.type], len(array))

    def text(self, name: str) -> tuple[_Column, _Column]:
        """A large_string column as offsets, one more than rows, and UTF-8 bytes."""
        array = self.batch.column(name)
        _, offsets, data = array.buffers()
        size = 0 if data is None else data.size
        return self._column(offsets, np.int64, len(array) + 1), self._column(data, np.uint8, size)

    def _column(self, buffer: pa.Buffer | None, dtype: type[np.generic], count: int) -> _Column:
        place = buffer.address - self._mapped.bytes.ctypes.data if buffer is not None and buffer.size else 0
        return _Column(self._handle, place, dtype, count if buffer is not None and buffer.size else 0)


def _shift(keys: int) -> int:
    """Which bits of a hash name its bucket: those above this one; about a hundred keys share a bucket."""
    return 64 - max(1, keys.bit_length() - 7)


def _local(place: Place, facts: dict[str, Any]) -> Path:
    """A table as a local file: where it lies, or a copy of an object's in the cache, named by its content."""
    if place.local:
        path = place.local / inside(facts["file"])
        if path.stat().st_size != facts["bytes"]:
            raise StoreError(f"{path} has another length than was written; run `triptych repair`.")
        return path
    folder = cache_folder("index")
    path = folder / f"{facts['xxh3_128']}.arrow"
    if not (path.exists() and path.stat().st_size == facts["bytes"]):
        folder.mkdir(parents=True, exist_ok=True)
        data = place.read(facts["file"])
        if xxhash.xxh3_128_hexdigest(data) != facts["xxh3_128"]:
            raise StoreError(f"{place.name}/{facts['file']} is damaged; run `triptych repair`.")
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            draft.write_bytes(data)
            publish(draft, path)
        finally:
            discard(draft)
    return path
