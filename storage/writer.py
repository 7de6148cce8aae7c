"""Putting records into a store: create it, write a unit aside, and commit it so that it appears whole or not at all."""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from storage.atomic import seal, writing
from storage.catalog import Catalog
from storage.errors import SpecMismatchError, StoreError
from storage.formats import format_of, open_shard_file, plain_layouts
from storage.index import FOLDER as INDEX
from storage.index import HEAD as INDEX_HEAD
from storage.manifest import FOLDER, Entry, ErrorRow, ShardFacts, read_entry, write_entry
from storage.places import FOLDING, Place, open_place, read_document, write_document
from storage.records import Record
from storage.shard import Shard
from storage.spec import Spec

FORMAT_VERSION = 2
READABLE_VERSIONS = (1, 2)
HEAD, RUN, SHARDS = "store.json", "run.json", "shards"
OURS = {SHARDS, FOLDER, INDEX, INDEX_HEAD, FOLDING}


def unit_id(spec_id: str, keys: Iterable[str]) -> str:
    """The name of a unit of work: equal for equal spec and keys, on every machine and in every run."""
    digest = hashlib.sha256(spec_id.encode())
    for key in keys:
        encoded = key.encode()
        digest.update(len(encoded).to_bytes(4, "little") + encoded)  # lengths, so that no two lists run together
    return digest.hexdigest()[:32]


class StoreWriter:
    """One process's way into a store. Several writers, on several machines, may work on one store at once.

    path     a folder, or an address that fsspec knows, such as s3://bucket/features
    format   of the shards to write; a store may hold shards of several formats

    Raises:
        SpecMismatchError: the store there holds features of another spec.
        StoreError: the folder is something else, or cannot be written.
    """

    def __init__(
        self, path: str | Path, spec: Spec, vocabulary: Mapping[str, Any] | None = None, format: str = "arrow"
    ) -> None:
        self.place = open_place(path)
        self.path: Any = self.place.local or self.place.name
        self.spec = spec
        self.format = format
        format_of(format)
        _create(self.place, spec, dict(vocabulary or {}))
        self.catalog = Catalog(self.place)

    def done(self, keys: Sequence[str]) -> np.ndarray:
        """(K,) bool: True where an image has a record or failed, and needs no more work, as `refresh` saw it."""
        return self.catalog.done(keys)

    def refresh(self, units: Iterable[str] = ()) -> None:
        """See what other writers committed.

        Args:
            units: ids of units that must be there by now, should the object store's listing lag behind.
        """
        self.catalog.refresh()
        for unit in units:
            if not self.catalog.has(unit):
                try:
                    self.catalog.add(read_entry(self.place, unit))
                except FileNotFoundError:
                    continue

    def unit(self, keys: Iterable[str], again: bool = False) -> UnitWriter:
        """A unit to write; use it as a context, and call `commit` at its end.

        Args:
            again: its images failed before; what becomes of them now takes the place of their error rows.
        """
        keys = list(keys)
        name, tries = unit_id(self.spec.id, keys), 1
        while again and self.catalog.has(name):  # they may have been a unit of their own
            name, tries = unit_id(self.spec.id, [*keys, f"again {tries}"]), tries + 1
        return UnitWriter(self, name, again)

    def write_run(self, facts: dict[str, Any]) -> None:
        """Keep what is known of the last job (planned images, timings, whether it ended)."""
        write_document(self.place, RUN, facts)

    def read_run(self) -> dict[str, Any]:
        """What is known of the last job; empty before the first, and where the note of it is damaged."""
        try:
            return read_document(self.place, RUN)
        except (FileNotFoundError, StoreError):
            return {}


class UnitWriter:
    """One unit under way: records go to a file nobody sees until `commit`; leaving without it discards the file."""

    def __init__(self, store: StoreWriter, unit: str, again: bool = False) -> None:
        self.store = store
        self.unit = unit
        self._again = again
        self.errors: list[ErrorRow] = []
        kind = format_of(store.format)
        # Without a lock, two writers may commit one unit at once; each entry must then name its own writer's bytes.
        mark = "" if store.place.local else f"-{uuid.uuid4().hex[:8]}"
        self._file = f"{SHARDS}/{unit}{mark}{kind.suffix}"
        self._draft = store.place.draft(self._file)
        try:
            with writing(self._draft):
                self._shard = kind.writer(self._draft, store.spec)
        except BaseException:  # an interruption, too: nobody else knows of the file yet
            store.place.discard(self._draft)
            raise

    def __enter__(self) -> UnitWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            self._shard.abort()
        finally:
            self.store.place.discard(self._draft)

    def append(self, record: Record) -> None:
        with writing(self._draft):
            self._shard.append(record)

    def fail(self, error: ErrorRow) -> None:
        """Note an image that yields no record."""
        self.errors.append(error)

    def commit(self, facts: Mapping[str, Any] | None = None) -> Entry | None:
        """Make the unit exist: sync, rename, manifest entry last. Harmless when the unit exists already.

        Where another writer committed some of the keys meanwhile, the rest becomes a unit of its own.

        Returns:
            The committed entry, or None where others had committed every key.
        """
        self._close()
        with self.store.place.locked():
            self.store.refresh()
            mine = [*self._shard.keys, *(error.key for error in self.errors)]
            there = self.store.catalog.find(mine) >= 0 if self._again else self.store.done(mine)
            taken = {key for key, is_there in zip(mine, there, strict=True) if is_there}
            return self._publish_rest(taken, facts) if taken else self._publish(facts)

    def _close(self) -> None:
        with writing(self._draft):
            self._size, self._checksum = self._shard.close()

    def publish_shard(self, facts: Mapping[str, Any] | None = None) -> Entry:
        """Close the shard and give it its name, without an entry: nobody reads it until something refers to it."""
        self._close()
        return self._published(facts)

    def _publish(self, facts: Mapping[str, Any] | None) -> Entry:
        entry = self._published(facts)
        write_entry(self.store.place, entry)
        self.store.catalog.add(entry)
        return entry

    def _published(self, facts: Mapping[str, Any] | None) -> Entry:
        shard = None
        if self._shard.keys:
            places = plain_layouts(self._draft, self.store.spec, self.store.format)
            self.store.place.publish(self._draft, self._file)
            shard = ShardFacts(self._file, self.store.format, self._size, self._checksum, self._shard.rows, places)
        noted = {"committed_at": time.time(), **({"again": True} if self._again else {}), **(facts or {})}
        return Entry(self.unit, self._shard.keys, self.errors, shard, noted)

    def _publish_rest(self, taken: set[str], facts: Mapping[str, Any] | None) -> Entry | None:
        """The rare path: two jobs were planned differently and met."""
        errors = [error for error in self.errors if error.key not in taken]
        rows = [row for row, key in enumerate(self._shard.keys) if key not in taken]
        if not rows and not errors:
            return None
        written: Sequence[Record] | Shard = []
        if rows:
            written = open_shard_file(self._draft, self.store.spec, self.store.format)
        keys = [self._shard.keys[row] for row in rows] + [error.key for error in errors]
        with self.store.unit(keys, self._again) as rest:
            for row in rows:
                rest.append(_as_written(written, row, self.store.spec))
            rest.errors = errors
            rest._close()
            return rest._publish(facts)


def _as_written(shard: Sequence[Record] | Shard, row: int, spec: Spec) -> Record:
    """A record in the dtype that goes into a store; what is encoded gives the same codes again."""
    if isinstance(shard, Shard) and spec.layout.dtype == "uint8":
        return shard.record(row, "float32")
    return shard[row]


def _create(place: Place, spec: Spec, vocabulary: dict[str, Any]) -> None:
    head = {"format_version": FORMAT_VERSION, "spec_id": spec.id, "spec": spec.to_dict(), "vocabulary": vocabulary}
    if place.is_something_else(HEAD, OURS):
        raise StoreError(f"{place.name} exists and is not a store; choose a new or empty folder for --out.")
    place.make((SHARDS, FOLDER))
    place.create(HEAD, seal(head))  # two jobs may start on one new store at once, perhaps with different specs
    found = check_head(place, spec)
    if found["format_version"] < FORMAT_VERSION:
        # Releases that know the older version only must not take what is written from now on for theirs.
        with place.locked():
            write_document(place, HEAD, {**found, "format_version": FORMAT_VERSION})


def read_head(place: Place) -> dict[str, Any]:
    """What stands at the head of a store: format version, spec and vocabulary.

    Raises:
        StoreError: there is no store, or it is of another version, or damaged.
    """
    try:
        head = read_document(place, HEAD)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StoreError(
            f"there is no store at {place.name} (no {HEAD}); give the folder that `triptych extract --out` named."
        ) from error
    except OSError as error:
        raise StoreError(f"{place.name}/{HEAD} cannot be read: {error.strerror or error}.") from error
    if head.get("format_version") not in READABLE_VERSIONS:
        raise StoreError(
            f"{place.name} has format version {head.get('format_version')!r:.40}, this Triptych reads versions "
            f"{' and '.join(map(str, READABLE_VERSIONS))}; install the release that wrote it."
        )
    try:
        Spec.from_dict(head["spec"])
        _ = head["vocabulary"].keys()
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StoreError(
            f"{place.name}/{HEAD} tells no spec ({type(error).__name__}: {error}); take it from a copy of this store."
        ) from error
    return head


def check_head(place: Place, spec: Spec) -> dict[str, Any]:
    """The head, where it is of this spec; refuses to mix.

    Raises:
        SpecMismatchError: the store there is of another spec.
    """
    head = read_head(place)
    if head["spec_id"] != spec.id:
        raise SpecMismatchError(place.name, head["spec"], spec.to_dict())
    return head
