"""From one store to another of the same records: other shard format, other number type, one archive out of many files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from storage.codecs import cast, record_dtype
from storage.diff import Difference, diff_stores, open_both
from storage.errors import StoreError
from storage.records import Record
from storage.spec import Spec
from storage.store import FeatureStore, open_store
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
    store = open_store(source)
    spec = with_dtype(store.spec, dtype or store.spec.layout.dtype)
    exact = FeatureStore(source, record_dtype(store.spec.layout.dtype).name)
    writer = StoreWriter(out, spec, store.vocabulary, format)
    done = 0
    for entry in store.catalog.entries():
        if not writer.done(list(entry.all_keys())).all():
            with writer.unit(entry.all_keys()) as unit:
                for key in entry.keys:
                    unit.append(in_dtype(exact[key], record_dtype(spec.layout.dtype).name))
                unit.errors = list(entry.errors)
                unit.commit(entry.facts)
        done += len(entry.keys)
        on_records(done, len(store))
    writer.write_run({**store.run, "converted_from": str(source)})
    difference = diff_stores(*open_both(source, out))
    if spec.id == store.spec.id and not difference.same:
        raise StoreError(f"{out} does not hold what {source} holds; delete it and convert again.")
    return Conversion(difference, shard_bytes(store), shard_bytes(open_store(out)))


def with_dtype(spec: Spec, dtype: str) -> Spec:
    """The same spec with features stored in another dtype."""
    return replace(spec, layout=replace(spec.layout, dtype=dtype))


def in_dtype(record: Record, dtype: str) -> Record:
    """The same record with its features in another dtype.

    Raises:
        StoreError: a value does not fit.
    """
    changed: dict[str, Any] = {"features": cast(record.features, dtype)}
    if any(each.name == "whole_image" for each in fields(record)):
        whole: np.ndarray | None = getattr(record, "whole_image")  # noqa: B009
        changed["whole_image"] = None if whole is None else cast(whole, dtype)
    return replace(record, **changed)


def shard_bytes(store: FeatureStore) -> int:
    """Bytes of a store's shards."""
    return sum(unit.shard.bytes for unit in store.units if unit.shard)
