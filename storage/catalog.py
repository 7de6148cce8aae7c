"""What is committed in a store: the folded index, and the entries committed since. Keys lead to positions, positions to
units and rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from storage.errors import StoreError
from storage.index import Index, UnitFacts, index_head, open_index
from storage.manifest import Entry, ErrorRow, committed_at, entry_file, entry_names, read_entry
from storage.places import Place

ATTEMPTS = 20
READERS, PARALLEL_FROM = 16, 4
REMEMBERED = 200_000  # keys of the index whose positions are kept once they were looked up: some 20 MB


class Catalog:
    """The committed units of one store, as far as they have been read; `refresh` reads what is new.

    Positions number the records: those of the index first, then those of later units. They stay what they are until
    `refresh` meets a manifest that was folded meanwhile.

    Raises:
        StoreError: an entry or the index is damaged.
    """

    def __init__(self, place: Place) -> None:
        self.place = place
        self.reload()

    def reload(self) -> None:
        """Read everything anew."""
        for _ in range(ATTEMPTS):
            self.index: Index | None = open_index(self.place)
            self._units = dict.fromkeys(self.index.unit_ids(), -1) if self.index else {}
            self.tail: list[Entry] = []
            self._tail_keys: list[str] = []
            self._seen: dict[str, int] = {}
            self._tail_places: list[tuple[int, int]] = []
            self._tail_positions: dict[str, int] = {}
            self._failed: set[str] | None = None
            if self._read_tail():
                return
        raise StoreError(f"{self.place.name}: its manifest changes faster than it can be read; try again.")

    def refresh(self) -> None:
        """See what was committed since."""
        if not self._read_tail():
            self.reload()

    def is_outdated(self) -> bool:
        """True where the manifest was folded or compacted since it was read."""
        return index_head(self.place) != (self.index.head if self.index else None)

    def _read_tail(self) -> bool:
        """Read new entries; False where they were folded into a newer index meanwhile."""
        names = [unit for unit in entry_names(self.place) if unit not in self._units]
        read = partial(_entry_or_none, self.place)
        if self.place.local or len(names) < PARALLEL_FROM:
            found = [read(unit) for unit in names]
        else:
            with ThreadPoolExecutor(READERS) as threads:
                found = list(threads.map(read, names))
        # One that is listed and not there was folded meanwhile, or its deletion is not listed yet.
        new = [entry for entry in found if entry is not None]
        names = [unit for unit, entry in zip(names, found, strict=True) if entry is not None]
        for unit, entry in zip(names, new, strict=True):
            if entry.unit != unit:
                raise StoreError(f"{self.place.name}/{entry_file(unit)} is of another unit; run `triptych repair`.")
        if self.is_outdated():
            return False
        for entry in new:
            self.add(entry)
        return True

    def add(self, entry: Entry) -> None:
        """Take in one more unit."""
        number = self.units
        self._units[entry.unit] = number
        self.tail.append(entry)
        # Only writers without a lock between them can have committed a key twice; the first unit then keeps it.
        repeated = set() if self.place.local or not self.index else self._indexed(entry.keys)
        for row, key in enumerate(entry.keys):
            if key not in self._tail_positions and key not in repeated:
                self._tail_positions[key] = len(self)
                self._tail_keys.append(key)
                self._tail_places.append((number, row))
        if self._failed is not None:
            self._failed.update(error.key for error in entry.errors)

    def __len__(self) -> int:
        return (len(self.index) if self.index else 0) + len(self._tail_keys)

    @property
    def units(self) -> int:
        """How many units are committed."""
        return (self.index.units if self.index else 0) + len(self.tail)

    def has(self, unit: str) -> bool:
        """True where the unit of this id is committed."""
        return unit in self._units

    def find(self, keys: Sequence[str]) -> np.ndarray:
        """Positions (K,) int64 of keys; -1 where a key has no record."""
        tail, seen = self._tail_positions, self._seen
        found = np.array([seen[key] if key in seen else tail.get(key, -1) for key in keys], np.int64)
        if self.index and len(self.index):
            missing = np.flatnonzero(found < 0).tolist()
            if missing:
                asked = [keys[at] for at in missing]
                found[missing] = self.index.find(asked)
                if len(seen) < REMEMBERED:
                    seen.update((key, at) for key, at in zip(asked, found[missing].tolist(), strict=True) if at >= 0)
        return found

    def position(self, key: str) -> int:
        """One key's position; -1 where it has no record."""
        at = self._tail_positions.get(key, -1)
        if at < 0 and self.index:
            at = self._seen.get(key, -1)
            at = int(self.find([key])[0]) if at < 0 else at
        return at

    def key(self, position: int) -> str:
        indexed = len(self.index) if self.index else 0
        if self.index and position < indexed:
            return self.index.key(position)
        return self._tail_keys[position - indexed]

    def keys(self) -> Iterator[str]:
        if self.index:
            yield from self.index.keys()
        yield from self._tail_keys

    def place_of(self, position: int) -> tuple[int, int]:
        """The number of the unit that holds a position, and the row in its shard."""
        indexed = len(self.index) if self.index else 0
        if self.index and position < indexed:
            return int(self.index.unit_of[position]), int(self.index.row_of[position])
        return self._tail_places[position - indexed]

    def places_near(self, position: int) -> tuple[int, np.ndarray]:
        """All rows of the unit that holds a position, and the position of the first; those of the others follow."""
        indexed = len(self.index) if self.index else 0
        if self.index and position < indexed:
            number = self.index.unit_of[position]
            first, last = np.searchsorted(self.index.unit_of, [number, number + 1])
            return int(first), np.asarray(self.index.row_of[first:last])
        number, _ = self._tail_places[position - indexed]
        first = last = position - indexed
        while first and self._tail_places[first - 1][0] == number:
            first -= 1
        while last < len(self._tail_places) and self._tail_places[last][0] == number:
            last += 1
        return first + indexed, np.array([row for _, row in self._tail_places[first:last]])

    def unit(self, number: int) -> UnitFacts:
        """A unit without its keys, by its number."""
        indexed = self.index.units if self.index else 0
        if self.index and number < indexed:
            return self.index.unit(number)
        entry = self.tail[number - indexed]
        return UnitFacts(entry.unit, entry.shard, entry.facts)

    def all_units(self) -> Iterator[UnitFacts]:
        return (self.unit(number) for number in range(self.units))

    def entries(self) -> Iterator[Entry]:
        """Every unit with its keys, in order of position."""
        if self.index:
            yield from self.index.entries()
        yield from self.tail

    def errors(self) -> Iterator[ErrorRow]:
        """Failed images; of one that failed again when it was tried again, the last row is the one that counts."""
        if self.index:
            yield from (row for _, row in self.index.errors())
        last = {row.key: row for entry in sorted(self.tail, key=committed_at) for row in entry.errors}
        for entry in self.tail:
            yield from (row for row in entry.errors if last[row.key] is row)

    def done(self, keys: Sequence[str]) -> np.ndarray:
        """(K,) bool: True where an image needs no more work, because it has a record or failed."""
        if self._failed is None:
            self._failed = {row.key for row in self.errors()}
        failed = self._failed
        return (self.find(keys) >= 0) | np.array([key in failed for key in keys], bool)

    def _indexed(self, keys: Iterable[str]) -> set[str]:
        named = list(keys)
        assert self.index is not None
        return {key for key, at in zip(named, self.index.find(named).tolist(), strict=True) if at >= 0}


def _entry_or_none(place: Place, unit: str) -> Entry | None:
    try:
        return read_entry(place, unit)
    except FileNotFoundError:
        return None
