"""Reading a store: keys, lookup, packed batches, iteration. Opening reads the manifest only."""

from __future__ import annotations

import difflib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from storage.batches import SEGMENT, Located, Reading, advise
from storage.catalog import Catalog
from storage.codecs import READABLE, default_dtype
from storage.errors import StoreError
from storage.formats import open_shard_file
from storage.index import UnitFacts
from storage.limits import allow_open_files
from storage.manifest import Entry, ErrorRow, ShardFacts
from storage.places import Place, UnreachableError, open_place, read_document
from storage.records import PackedBatch, PaddedBatch, Record, pad
from storage.remote import open_remote_shard
from storage.shard import Shard, record_from
from storage.spec import Spec
from storage.writer import RUN, read_head

if TYPE_CHECKING:
    from storage.reading import Records

NEAREST_AMONG = 100_000
T = TypeVar("T")


class FeatureStore(Mapping[str, Record]):
    """The committed records of one store: a mapping from keys, in shard order, to records.

    path   a folder, or an address that fsspec knows
    dtype  of the features that come out: "float16", "float32" or "bfloat16". Default: as stored, which for 8-bit stores
           means float16; pixels are read as they are

    Going through it reads each shard once and in order. Records have positions, 0 to `len(store)` - 1, in that order.
    Picklable, and safe under fork and spawn: shards are mapped when they are first asked for, in each process.

    Raises:
        StoreError: no store is there, or its head or manifest is damaged.
    """

    def __init__(self, path: str | Path, dtype: str | None = None) -> None:
        self.place = open_place(path)
        self.path: Any = self.place.local or self.place.name
        head = read_head(self.place)
        self.spec = Spec.from_dict(head["spec"])
        self.vocabulary: dict[str, Any] = head["vocabulary"]
        self.dtype = dtype or default_dtype(self.spec.layout.dtype)
        readable = ("bytes",) if self.spec.view == "pixels" else READABLE
        if self.dtype not in readable:
            raise StoreError(
                f"{self.spec.values} cannot be read as {self.dtype!r}; choose one of {', '.join(readable)}."
            )
        self.catalog = Catalog(self.place)
        self._located = Located(0)
        self._newer: FeatureStore | None = None
        self._opening = threading.RLock()

    def refresh(self) -> None:
        """See what other processes committed since the store was opened."""
        self.catalog.refresh()
        self._located = Located(0)
        self._newer = None

    def __len__(self) -> int:
        return len(self.catalog)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self.catalog.position(key) >= 0

    def __iter__(self) -> Iterator[str]:
        return self.catalog.keys()

    __eq__ = object.__eq__  # a mapping's own would read and compare every array
    __hash__ = object.__hash__

    def __getitem__(self, key: str) -> Record:
        """One record; its arrays are views of the memory map where the stored dtype is the one to read.

        Raises:
            KeyError: the key has no record; the message says whether the image failed, or names the nearest key.
            StoreError: the shard is missing or damaged.
        """
        position = self.catalog.position(key)
        if position < 0:
            raise KeyError(self._why_absent(key))
        return self.at(position)

    def at(self, position: int) -> Record:
        """The record at a position."""
        found = self._located.mapped(position)  # by far the most frequent case, and then worth no more than this
        if found is not None:
            return record_from(self.spec, *found, self.dtype)
        return self._read([position], Reading.record)

    def get(self, key: str, default: Any = None) -> Any:
        """The record, or `default`; unlike `store[key]` it does not look for what a missing key may have meant."""
        position = self.catalog.position(key)
        return default if position < 0 else self.at(position)

    def positions(self, keys: Sequence[str]) -> np.ndarray:
        """Positions (K,) int64 of keys, to be looked up once and read many times.

        Raises:
            KeyError: a key has no record.
        """
        found = self.catalog.find(keys)
        if len(found) and found.min() < 0:
            raise KeyError(self._why_absent(keys[int(np.argmin(found))]))
        return found

    def batch(
        self,
        keys: Sequence[str] | np.ndarray,
        fields: Sequence[str] = (),
        out: np.ndarray | None = None,
    ) -> PackedBatch:
        """Records end to end, in the order asked for: values (sum N, D), offsets (B + 1,), boxes, image sizes.

        Args:
            keys: keys, or positions as an integer array.
            fields: what else to read, out of class_ids, class_scores, attribute_ids, attribute_scores, class_probs,
                whole_image.
            out: (at least sum N, D) in the dtype of this store's features; `values` is then its beginning. Filling
                memory that was used before is twice as fast as filling fresh memory.

        Raises:
            KeyError: a key has no record.
            StoreError: a shard is missing or damaged, or the store does not have a field.
            ValueError: no key was given, or `out` is too small or of another dtype.
        """
        positions = keys if isinstance(keys, np.ndarray) else self.positions(keys)
        if not len(positions):
            raise ValueError("a batch needs at least one key")
        known = None if isinstance(keys, np.ndarray) else keys
        return self._read(positions, lambda reading: reading.batch(tuple(fields), out, known))

    def columns(self, positions: np.ndarray, fields: Sequence[str]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Fields of many records, end to end, without their features: for searching.

        Args:
            positions: (B,) integers, at least one.
            fields: as of `batch`.

        Returns:
            offsets (B + 1,) int64 of each record's rows, and the fields by name. Errors as of `batch`.
        """
        return self._read(positions, lambda reading: reading.columns(fields))

    def pack(self, keys: Sequence[str] | np.ndarray, max_boxes: int) -> PaddedBatch:
        """Records side by side: each cut to its first `max_boxes` rows in the detector's order, or padded with zeros.

        The mask tells the rows that are real; none is invented. Errors as of `batch`.

        Raises:
            StoreError: the store holds pixels.
        """
        if self.spec.view == "pixels":
            raise StoreError(f"{self.place.name} holds pixels, which have no boxes to cut; use batch() or iter().")
        return pad(self.batch(keys), max_boxes)

    def rows(self, positions: np.ndarray) -> int:
        """How many boxes, cells or pixels these records have together."""
        return self._reading(positions).total

    def iter(
        self,
        shuffle: int | None = None,
        epoch: int = 0,
        rank: int = 0,
        world: int = 1,
        state: dict[str, Any] | None = None,
    ) -> Records:
        """Go through the records once, each shard's neighbours at about the same time.

        Args:
            shuffle: seed of the order, None for the store's own. Equal seed and epoch give the equal order.
            epoch: number of the epoch; each has another order.
            rank, world: this process's number among how many. Shares do not overlap, and differ by one record at most.
            state: what `state()` of an earlier iteration gave: go on there.

        Raises:
            StoreError: the store has other records than when the state was taken.
        """
        from storage.reading import Records

        return Records(self, shuffle, epoch, rank, world, state)

    def to_webdataset(self, out: str | Path, shard_bytes: int = 256 << 20) -> list[Path]:
        """Write the records as webdataset shards, tar files with a few .npy and a .json for each key; returns them.

        Raises:
            StoreError: a shard is damaged, or `out` cannot be written, or has tar files already.
            ValueError: `shard_bytes` is not positive.
        """
        from storage.tar_shards import write_tar_shards

        return write_tar_shards(self, Path(out), shard_bytes)

    def advise(self, positions: Sequence[int] | np.ndarray, fields: Sequence[str] = ()) -> None:
        """Ask the system to bring records from the disk, without waiting for them. Harmless for what is in memory.

        `fields` as of `batch`.
        """
        advise(self._reading(positions).ranges_to_read(fields))

    def errors(self) -> list[ErrorRow]:
        """One row for each image that has no record."""
        rows = {row.key: row for row in self.catalog.errors() if row.key not in self}
        return list(rows.values())  # each once, where two writers without a lock both noted it

    @property
    def run(self) -> dict[str, Any]:
        """What is known of the last job that wrote here; empty before the first."""
        try:
            return read_document(self.place, RUN)
        except FileNotFoundError:
            return {}

    @property
    def entries(self) -> list[Entry]:
        """Every committed unit with its keys; `units` costs less."""
        return list(self.catalog.entries())

    @property
    def units(self) -> list[UnitFacts]:
        """Every committed unit: its shard, and what the job noted of it."""
        return list(self.catalog.all_units())

    def __getstate__(self) -> dict[str, Any]:
        return {"place": self.place, "dtype": self.dtype}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["place"].address, state["dtype"])  # type: ignore[misc]

    def _read(self, positions: Sequence[int] | np.ndarray, get: Callable[[Reading], T]) -> T:
        """What `get` takes from these images; from the new objects, where a compaction removed those opened before."""
        reading = self._reading(positions)
        try:
            return get(reading)
        except UnreachableError:
            raise
        except StoreError:
            if self.place.local or not self._is_outdated():
                raise
        return get(self._moved(np.asarray(positions, np.int64)))

    def _reading(self, positions: Sequence[int] | np.ndarray) -> Reading:
        """These images with their shards open."""
        numbers = np.asarray(positions, np.int64)
        located = self._table()
        reading = Reading(located, numbers, self.place, self.spec, self.dtype)
        if reading.is_complete:
            return reading
        for position in located.unknown(numbers):
            with self._opening:
                if not located.table[position, SEGMENT] and not self._locate(located, position):
                    return self._moved(numbers)
        return Reading(located, numbers, self.place, self.spec, self.dtype)

    def _table(self) -> Located:
        """Where images are; one for the whole of a reading, as other threads may refresh the store meanwhile."""
        located = self._located
        if len(located.table) != len(self):
            with self._opening:
                located = self._located
                if len(located.table) != len(self):
                    located = self._located = Located(len(self))
        return located

    def _locate(self, located: Located, position: int) -> bool:
        """Open the shard of a position; False where it was compacted away since this store was opened."""
        number, _ = self.catalog.place_of(position)
        unit = self.catalog.unit(number)
        if unit.shard is None:
            raise StoreError(f"{self.place.name}: unit {unit.unit} has records and no shard; run `triptych repair`.")
        try:
            shard = self._open(unit.shard)
        except StoreError:
            if not self._is_outdated():
                raise
            return False
        first, rows = self.catalog.places_near(position)
        if len(rows) and rows.max() >= len(shard):
            raise StoreError(f"{self.place.name}/{unit.shard.file} holds {len(shard)} records, its entry more.")
        located.add(first, rows, shard)
        return True

    def _open(self, facts: ShardFacts) -> Shard:
        if not self.place.local:
            return open_remote_shard(self.place, facts, self.spec)
        allow_open_files(len(self._located.segments))
        return open_shard(self.place, facts, self.spec)

    def _is_outdated(self) -> bool:
        return self._newer is not None or self.catalog.is_outdated()

    def _moved(self, positions: np.ndarray) -> Reading:
        """The same images in the store as it is now; this one goes on with what it has mapped."""
        if self._newer is None:
            self._newer = FeatureStore(self.place.address, self.dtype)
        keys = [self.catalog.key(position) for position in positions.tolist()]
        return self._newer._reading(self._newer.positions(keys))

    def _why_absent(self, key: str) -> str:
        for row in self.catalog.errors():
            if row.key == key:
                return f"{key!r} failed when it was extracted ({row.stage}: {row.reason}): {row.message}"
        near = difflib.get_close_matches(str(key), list(islice(self, NEAREST_AMONG)), n=1)
        hint = f"; the nearest is {near[0]!r}" if near else ""
        return f"{key!r} is not among the {len(self):,} keys of {self.place.name}{hint}"


def open_shard(place: Place, facts: ShardFacts, spec: Spec) -> Shard:
    """Map the shard of a committed unit.

    Raises:
        StoreError: the file is absent, has another length than was committed, or holds something else.
    """
    assert place.local is not None
    path, size = place.local / facts.file, place.size(facts.file)
    if size != facts.bytes:
        found = "is missing" if size is None else f"has {size:,} bytes, {facts.bytes:,} were committed"
        raise StoreError(f"{path} {found}; `triptych verify` lists all damage.")
    return open_shard_file(path, spec, facts.format)


def open_store(path: str | Path, dtype: str | None = None) -> FeatureStore:
    """Open a store for reading.

    Args:
        path: a folder, or an address that fsspec knows, such as s3://bucket/features.
        dtype: of the features that come out; default: as stored (8-bit stores: float16).

    Raises:
        StoreError: no store is there, or its head or manifest is damaged.
    """
    return FeatureStore(path, dtype)
