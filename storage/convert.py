"""From one store to another of the same records: another shard format, another number type, or an archive."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from storage.codecs import NUMPY, cast, exact_dtype
from storage.diff import Difference, diff_stores, open_both
from storage.errors import StoreError
from storage.manifest import Entry
from storage.places import open_place
from storage.records import Record
from storage.spec import Spec
from storage.store import FeatureStore, open_store
from storage.verify import check_bytes
from storage.writer import StoreWriter

OnRecords = Callable[[int, int], None]  # told of records converted so far, and of all


@dataclass(frozen=True)
class Conversion:
    """What a conversion made: how far the new store is from the old one, and the bytes of both stores' shards."""

    difference: Difference
    bytes_before: int
    bytes_after: int


def convert(
    source: str | Path,
    out: str | Path,
    format: str,
    dtype: str | None = None,
    on_records: OnRecords = lambda done, total: None,
) -> Conversion:
    """Copy a store into another format, unit by unit; the same call again goes on where it stopped.

    Args:
        format: of the new store's shards: "arrow", "hdf5" or "arrow-zstd".
        dtype: stored dtype of the new store; default: the same. Another one makes another spec.

    Raises:
        StoreError: the source is damaged, a value does not fit the new dtype, or the copy is not what it should be.
    """
    if is_same_place(source, out):
        raise StoreError(f"{out} is the store to be converted; choose another --out folder.")
    store = open_store(source)
    run = store.run
    spec = with_dtype(store.spec, dtype or store.spec.layout.dtype)
    exact = FeatureStore(source, exact_dtype(store.spec.layout.dtype))
    writer = StoreWriter(out, spec, store.vocabulary, format)
    done = 0
    failed = {row.key: row for row in store.errors()}
    for entry in store.catalog.entries():
        errors = [row for row in entry.errors if failed.get(row.key) == row]  # not those of images tried again
        keys = [*entry.keys, *(row.key for row in errors)]
        if not writer.done(keys).all():
            check_source(store, entry)
            with writer.unit(keys) as unit:
                for key in entry.keys:
                    unit.append(in_dtype(exact[key], exact_dtype(spec.layout.dtype)))
                unit.errors = errors
                unit.commit(entry.facts)
        done += len(entry.keys)
        on_records(done, len(store))
    writer.write_run({**run, "converted_from": str(source)})
    difference = diff_stores(*open_both(source, out))
    if spec.id == store.spec.id and not difference.same:
        raise StoreError(f"{out} does not hold what {source} holds; delete it and convert again.")
    return Conversion(difference, shard_bytes(store), shard_bytes(open_store(out)))


def is_same_place(one: str | Path, other: str | Path) -> bool:
    """True where two paths or addresses lead to the same store."""
    places = [open_place(each) for each in (one, other)]
    names = [place.local.resolve() if place.local else place.name for place in places]
    return names[0] == names[1]


def check_source(store: FeatureStore, entry: Entry) -> None:
    """Damage must not get a fitting checksum by being copied.

    Raises:
        StoreError: the unit's shard is not what was committed.
    """
    what = check_bytes(store.place, entry.shard) if entry.shard else ""
    if what and entry.shard and not store.catalog.is_outdated():  # else it was merged into another, which is as good
        raise StoreError(f"{store.place.name}/{entry.shard.file}: {what}; run `triptych repair` on it first.")


def with_dtype(spec: Spec, dtype: str) -> Spec:
    """The same spec with features stored in another dtype."""
    return replace(spec, layout=replace(spec.layout, dtype=dtype))


def in_dtype(record: Record, dtype: str) -> Record:
    """The same record with its features in another dtype.

    Raises:
        StoreError: a value does not fit.
    """
    if record.features.dtype == NUMPY[dtype]:
        return record
    changed: dict[str, Any] = {"features": cast(record.features, dtype)}
    if any(each.name == "whole_image" for each in fields(record)):
        whole: np.ndarray | None = getattr(record, "whole_image")  # noqa: B009
        changed["whole_image"] = None if whole is None else cast(whole, dtype)
    return replace(record, **changed)


def shard_bytes(store: FeatureStore) -> int:
    """Bytes of a store's shards."""
    return sum(unit.shard.bytes for unit in store.units if unit.shard)
