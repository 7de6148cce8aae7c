"""Fewer and larger files: folding the manifest into its index and merging small shards, while others read and write."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from storage.codecs import exact_dtype
from storage.errors import StoreError
from storage.index import write_index
from storage.manifest import Entry, entry_file, entry_names
from storage.places import Place
from storage.store import FeatureStore
from storage.verify import check_bytes
from storage.writer import StoreWriter

SHARD_BYTES = 256 << 20
FOLD_FROM = 16  # units; reading so many entries one by one takes as long as opening the index


@dataclass(frozen=True)
class Compaction:
    """What compacting did: units before and after, and how many bytes of shards were written anew."""

    units_before: int
    units_after: int
    bytes_written: int


def fold(path: str | Path, at_least: int = 1) -> int:
    """Move the manifest's entries into the index, so that opening the store need not read them; returns how many.

    Args:
        at_least: leave fewer than so many where they are.

    Raises:
        StoreError: there is no store, it is damaged, or it cannot be written.
        BusyError: the store is on an object store, and another process is folding or compacting it.
    """
    store = FeatureStore(path)
    if len(store.catalog.tail) < at_least:
        return 0
    with store.place.alone():
        return _fold(path, store)


def _fold(path: str | Path, store: FeatureStore) -> int:
    writer = StoreWriter(path, store.spec)
    with writer.place.locked():
        writer.refresh()
        return _replace(writer, [], [])


def compact(path: str | Path, shard_bytes: int = SHARD_BYTES) -> Compaction:
    """Merge neighbouring shards smaller than half of `shard_bytes`, and fold the manifest.

    Readers go on: what they have mapped stays readable, and what they have not, they find in the new shards.

    Raises:
        StoreError: there is no store, it is damaged, or it cannot be written.
        BusyError: the store is on an object store, and another process is folding or compacting it.
    """
    with FeatureStore(path).place.alone():
        return _compact(path, shard_bytes)


def _compact(path: str | Path, shard_bytes: int) -> Compaction:
    _fold(
        path, FeatureStore(path)
    )  # first: units that are merged must not have entries beside the index, where a kill would leave them
    store = FeatureStore(path)
    before, written = store.catalog.units, 0
    for group in list(_groups(store, shard_bytes)):
        written += _merge(path, store, group)
    _fold(path, FeatureStore(path))
    return Compaction(before, FeatureStore(path).catalog.units, written)


def _groups(store: FeatureStore, shard_bytes: int) -> Iterator[list[Entry]]:
    """Runs of small units of one format that together make about one shard; units without records join any."""
    group: list[Entry] = []
    size = 0
    for entry in sorted(store.catalog.entries(), key=lambda entry: entry.shard.format if entry.shard else ""):
        if entry.shard and entry.shard.bytes >= shard_bytes // 2:
            continue
        formats = {each.shard.format for each in [*group, entry] if each.shard}
        if group and (len(formats) > 1 or size >= shard_bytes):
            yield group
            group, size = [], 0
        group.append(entry)
        size += entry.shard.bytes if entry.shard else 0
    if group:
        yield group


def _merge(path: str | Path, store: FeatureStore, group: list[Entry]) -> int:
    """Make one unit of several; returns the bytes written, 0 where there was nothing to merge."""
    if len(group) < 2:
        return 0
    format = next((entry.shard.format for entry in group if entry.shard), "arrow")
    writer = StoreWriter(path, store.spec, store.vocabulary, format)
    exact = FeatureStore(path, exact_dtype(store.spec.layout.dtype))
    with writer.unit(key for entry in group for key in entry.all_keys()) as unit:
        if writer.catalog.has(unit.unit):  # one of the group already, where the others are empty
            return 0
        for entry in group:
            _check_source(writer, group, entry)
            for key in entry.keys:
                unit.append(exact[key])
            for error in entry.errors:
                unit.fail(error)
        with writer.place.locked():
            _check_current(writer, group)
            merged = unit.publish_shard({"merged_units": len(group)})  # its name may be that of another's live shard
            try:
                _replace(writer, group, [merged])
            except StoreError:
                with contextlib.suppress(StoreError):
                    _withdraw(writer, merged)
                raise
    return merged.shard.bytes if merged.shard else 0


def _check_source(writer: StoreWriter, group: list[Entry], entry: Entry) -> None:
    """Damage must not get a fitting checksum by being copied."""
    what = check_bytes(writer.place, entry.shard) if entry.shard else ""
    if what and entry.shard:
        _check_current(writer, group)
        raise StoreError(f"{writer.place.name}/{entry.shard.file}: {what}; run `triptych repair`, then compact again.")


def _check_current(writer: StoreWriter, group: list[Entry]) -> None:
    writer.refresh()
    if not all(writer.catalog.has(entry.unit) for entry in group):
        raise StoreError(f"{writer.place.name} is being compacted by another process; try again when it is done.")


def _withdraw(writer: StoreWriter, merged: Entry) -> None:
    """Remove a shard that did not come into the index after all."""
    writer.refresh()
    if merged.shard and not writer.catalog.has(merged.unit):
        writer.place.remove(merged.shard.file)


def _replace(writer: StoreWriter, old: list[Entry], new: list[Entry]) -> int:
    """Switch to an index with the whole manifest in it, some units replaced by others; then delete what it replaces."""
    place, catalog = writer.place, writer.catalog
    indexed = set(catalog.index.unit_ids()) if catalog.index else set()
    # Left by a fold that was killed; they must not outlive their units.
    place.remove(*(entry_file(unit) for unit in entry_names(place) if unit in indexed))
    dropped = frozenset(entry.unit for entry in old)
    tail = [entry for entry in catalog.tail if entry.unit not in dropped]
    write_index(place, catalog.index, [*tail, *new], dropped)
    place.remove(*(entry_file(entry.unit) for entry in catalog.tail))
    remove_shards(place, old)
    return len(tail)


def remove_shards(place: Place, entries: list[Entry]) -> None:
    """Delete shards that nothing refers to any more; who has them mapped keeps them."""
    place.remove(*(entry.shard.file for entry in entries if entry.shard))
