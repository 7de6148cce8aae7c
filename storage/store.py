"""Reading a store: keys, lookup, packed batches, iteration. Opening reads the manifest only."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from storage.arrow import ArrowShard
from storage.atomic import read_sealed
from storage.errors import StoreError
from storage.manifest import Entry, ErrorRow, Manifest
from storage.records import PackedBatch, Record, pack
from storage.spec import Spec
from storage.writer import RUN, read_head


class FeatureStore(Mapping[str, Record]):
    """The committed records of one store: a mapping from keys, in shard order, to records.

    Going through it reads each shard once and in order. Picklable, and safe under fork and spawn: shards are mapped
    when they are first asked for, in each process.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        head = read_head(self.path)
        self.spec = Spec.from_dict(head["spec"])
        self.vocabulary: dict[str, Any] = head["vocabulary"]
        self._manifest = Manifest(self.path)
        self._place: dict[str, tuple[str, int]] = {}
        self._shards: dict[str, ArrowShard] = {}
        self._index(list(self._manifest.entries.values()))

    def refresh(self) -> None:
        """See what other processes committed since the store was opened."""
        self._index(self._manifest.refresh())

    def __len__(self) -> int:
        return len(self._place)

    def __contains__(self, key: object) -> bool:
        return key in self._place

    def __iter__(self) -> Iterator[str]:
        return iter(self._place)

    __eq__ = object.__eq__  # a mapping's own would read and compare every array
    __hash__ = object.__hash__

    def __getitem__(self, key: str) -> Record:
        """One record; its arrays are views of the memory map.

        Raises:
            KeyError: the key has no record; the message says whether the image failed, or names the nearest key.
            StoreError: the shard is missing or damaged.
        """
        try:
            unit, row = self._place[key]
        except KeyError:
            raise KeyError(self._why_absent(key)) from None
        return self._shard(unit)[row]

    def get(self, key: str, default: Any = None) -> Any:
        """The record, or `default`; unlike `store[key]` it does not look for what a missing key may have meant."""
        return self[key] if key in self._place else default

    def batch(self, keys: Sequence[str]) -> PackedBatch:
        """Records end to end, in the order asked for: values (sum N, D), offsets (B + 1,), boxes, image sizes."""
        return pack([self[key] for key in keys])

    def errors(self) -> list[ErrorRow]:
        """One row for each image that has no record."""
        return [row for entry in self._manifest.entries.values() for row in entry.errors if row.key not in self._place]

    @property
    def run(self) -> dict[str, Any]:
        """What is known of the last job that wrote here; empty before the first."""
        path = self.path / RUN
        return read_sealed(path) if path.exists() else {}

    @property
    def entries(self) -> list[Entry]:
        return list(self._manifest.entries.values())

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_shards": {}}

    def _index(self, entries: list[Entry]) -> None:
        for entry in entries:
            for row, key in enumerate(entry.keys):
                self._place.setdefault(key, (entry.unit, row))

    def _shard(self, unit: str) -> ArrowShard:
        if unit not in self._shards:
            self._shards[unit] = open_shard(self.path, self._manifest.entries[unit], self.spec)
        return self._shards[unit]

    def _why_absent(self, key: str) -> str:
        for row in self.errors():
            if row.key == key:
                return f"{key!r} failed when it was extracted ({row.stage}: {row.reason}): {row.message}"
        near = difflib.get_close_matches(str(key), list(self._place)[:100_000], n=1)
        hint = f"; the nearest is {near[0]!r}" if near else ""
        return f"{key!r} is not among the {len(self):,} keys of {self.path}{hint}"


def open_shard(store: Path, entry: Entry, spec: Spec) -> ArrowShard:
    """Map the shard of a committed unit.

    Raises:
        StoreError: the file is absent, has another length than was committed, or holds something else.
    """
    assert entry.shard is not None  # a unit without records has no key that leads here
    path = store / entry.shard.file
    size = path.stat().st_size if path.exists() else None
    if size != entry.shard.bytes:
        found = "is missing" if size is None else f"has {size:,} bytes, {entry.shard.bytes:,} were committed"
        raise StoreError(f"{path} {found}; `triptych verify` lists all damage.")
    shard = ArrowShard(path, spec)
    if len(shard) != len(entry.keys):
        raise StoreError(f"{path} holds {len(shard)} records, its manifest entry {len(entry.keys)}.")
    return shard


def open_store(path: str | Path) -> FeatureStore:
    """Open a store for reading.

    Raises:
        StoreError: no store is there, or its head or manifest is damaged.
    """
    return FeatureStore(path)
