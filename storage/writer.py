"""Putting records into a store: create it, write a unit aside, and commit it so that it appears whole or not at all."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from types import TracebackType
from typing import Any

from storage.arrow import SUFFIX, ArrowShard, ArrowShardWriter
from storage.atomic import (
    PARTIAL,
    discard,
    locked,
    partial_path,
    publish,
    read_sealed,
    remove_stale_partials,
    write_sealed,
    writing,
)
from storage.errors import SpecMismatchError, StoreError
from storage.manifest import FOLDER, Entry, ErrorRow, Manifest, ShardFacts
from storage.records import Record
from storage.spec import Spec

FORMAT_VERSION = 1
HEAD, RUN, SHARDS, LOCK = "store.json", "run.json", "shards", ".commit.lock"


def unit_id(spec_id: str, keys: Iterable[str]) -> str:
    """The name of a unit of work: equal for equal spec and keys, on every machine and in every run."""
    digest = hashlib.sha256(spec_id.encode())
    for key in keys:
        encoded = key.encode()
        digest.update(len(encoded).to_bytes(4, "little") + encoded)  # lengths, so that no two lists run together
    return digest.hexdigest()[:32]


class StoreWriter:
    """One process's way into a store. Several writers, on several machines, may work on one store at once.

    Raises:
        SpecMismatchError: the store there holds features of another spec.
        StoreError: the folder is something else, or cannot be written.
    """

    def __init__(self, path: str | Path, spec: Spec, vocabulary: Mapping[str, Any] | None = None) -> None:
        self.path = Path(path)
        self.spec = spec
        _create(self.path, spec, dict(vocabulary or {}))
        for folder in (self.path, self.path / SHARDS, self.path / FOLDER):
            remove_stale_partials(folder)
        self.manifest = Manifest(self.path)
        self._committed: set[str] = set()
        self._note(self.manifest.entries.values())

    def committed(self) -> Set[str]:
        """Keys that need no more work: records and failed images, other writers' included."""
        self._note(self.manifest.refresh())
        return self._committed

    def _note(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            self._committed.update(entry.all_keys())

    def unit(self, keys: Iterable[str]) -> UnitWriter:
        """A unit to write; use it as a context, and call `commit` at its end."""
        return UnitWriter(self, unit_id(self.spec.id, keys))

    def write_run(self, facts: dict[str, Any]) -> None:
        """Keep what is known of the last job (planned images, timings, whether it ended)."""
        write_sealed(self.path / RUN, facts)

    def read_run(self) -> dict[str, Any]:
        """What is known of the last job; empty before the first, and where the note of it is damaged."""
        try:
            return read_sealed(self.path / RUN)
        except (FileNotFoundError, StoreError):
            return {}


class UnitWriter:
    """One unit under way: records go to a file nobody sees until `commit`; leaving without it discards the file."""

    def __init__(self, store: StoreWriter, unit: str) -> None:
        self.store = store
        self.unit = unit
        self.errors: list[ErrorRow] = []
        self._final = store.path / SHARDS / f"{unit}{SUFFIX}"
        self._partial = partial_path(self._final)
        with writing(self._final):
            self._shard = ArrowShardWriter(self._partial, store.spec)

    def __enter__(self) -> UnitWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._shard.abort()
        discard(self._partial)

    def append(self, record: Record) -> None:
        with writing(self._final):
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
        with locked(self.store.path / LOCK):
            taken = self.store.committed() & {*self._shard.keys, *(error.key for error in self.errors)}
            return self._publish_rest(taken, facts) if taken else self._publish(facts)

    def _close(self) -> None:
        with writing(self._final):
            self._size, self._checksum = self._shard.close()

    def _publish(self, facts: Mapping[str, Any] | None) -> Entry:
        shard = None
        if self._shard.keys:
            with writing(self._final):
                publish(self._partial, self._final)
            file = f"{SHARDS}/{self._final.name}"
            shard = ShardFacts(file, "arrow", self._size, self._checksum, self._shard.rows)
        entry = Entry(self.unit, self._shard.keys, self.errors, shard, {"committed_at": time.time(), **(facts or {})})
        self.store.manifest.add(entry)
        self.store._note([entry])
        return entry

    def _publish_rest(self, taken: Set[str], facts: Mapping[str, Any] | None) -> Entry | None:
        """The rare path: two jobs were planned differently and met."""
        errors = [error for error in self.errors if error.key not in taken]
        rows = [row for row, key in enumerate(self._shard.keys) if key not in taken]
        if not rows and not errors:
            return None
        written: Sequence[Record] | ArrowShard = ArrowShard(self._partial, self.store.spec) if rows else []
        keys = [self._shard.keys[row] for row in rows] + [error.key for error in errors]
        with self.store.unit(keys) as rest:
            for row in rows:
                rest.append(written[row])
            rest.errors = errors
            rest._close()
            return rest._publish(facts)


def _create(path: Path, spec: Spec, vocabulary: dict[str, Any]) -> None:
    head = {"format_version": FORMAT_VERSION, "spec_id": spec.id, "spec": spec.to_dict(), "vocabulary": vocabulary}
    if _is_something_else(path):
        raise StoreError(f"{path} exists and is not a store; choose a new or empty folder for --out.")
    with writing(path):
        for folder in (path / SHARDS, path / FOLDER):
            folder.mkdir(parents=True, exist_ok=True)
    with locked(path / LOCK):  # two jobs may start on one new folder at once, perhaps with different specs
        if not (path / HEAD).exists():
            write_sealed(path / HEAD, head)
    check_head(path, spec)


def _is_something_else(path: Path) -> bool:
    """True for a file, or a folder with foreign content; a store that another writer is just making is none."""
    if not path.exists() or (path / HEAD).exists():
        return False
    ours = {SHARDS, FOLDER, HEAD, LOCK}
    return not path.is_dir() or any(each.name not in ours and each.suffix != PARTIAL for each in path.iterdir())


def read_head(path: Path) -> dict[str, Any]:
    """What stands at the head of a store: format version, spec and vocabulary.

    Raises:
        StoreError: there is no store, or it is of another version, or damaged.
    """
    try:
        head = read_sealed(path / HEAD)
    except FileNotFoundError as error:
        raise StoreError(
            f"there is no store at {path} (no {HEAD}); give the folder that `triptych extract --out` named."
        ) from error
    except OSError as error:
        raise StoreError(f"{path / HEAD} cannot be read: {error.strerror or error}.") from error
    if head.get("format_version") != FORMAT_VERSION:
        raise StoreError(
            f"{path} has format version {head.get('format_version')}, this Triptych reads version {FORMAT_VERSION}; "
            "install the release that wrote it."
        )
    return head


def check_head(path: Path, spec: Spec) -> None:
    """Refuse to mix: raises SpecMismatchError where the store there is of another spec."""
    head = read_head(path)
    if head["spec_id"] != spec.id:
        raise SpecMismatchError(path, head["spec"], spec.to_dict())
