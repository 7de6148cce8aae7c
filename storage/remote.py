"""Shards on an object store: read in parts, by the places that the manifest keeps. Archives are fetched whole."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from storage.columns import columns
from storage.errors import StoreError
from storage.formats import open_shard_file
from storage.manifest import ShardFacts
from storage.places import Place, UnreachableError
from storage.shard import LARGE, Layout, Shard, read_segment
from storage.spec import Spec


def open_remote_shard(place: Place, facts: ShardFacts, spec: Spec) -> Shard:
    """Fetch what every record of a shard needs but its large columns, all in one go; those are fetched image by image.

    Raises:
        StoreError: the object is missing, has another length than was committed, or holds something else.
    """
    size = place.size(facts.file)
    if size != facts.bytes:
        found = "is missing" if size is None else f"has {size:,} bytes, {facts.bytes:,} were committed"
        raise StoreError(f"{place.name}/{facts.file} {found}; `triptych verify` lists all damage.")
    if facts.layouts is None:
        return _fetched_whole(place, facts, spec)
    layouts = [Layout(**each) for each in facts.layouts]
    large = {column.name for column in columns(spec)} & set(LARGE)
    wanted = sorted({tuple(at) for each in layouts for name, at in each.places.items() if name not in large and at[1]})
    data = place.read_ranges([(facts.file, start, length) for start, length in wanted])
    parts = dict(zip((start for start, _ in wanted), data, strict=True))
    try:
        return Shard(spec, [read_segment(each, spec, _Fetched(parts), facts.file) for each in layouts])
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"{place.name}/{facts.file} cannot be read ({error}); `triptych verify` tells more."
        ) from error


class _Fetched:
    """Parts of a file, by the place where each begins."""

    def __init__(self, parts: dict[int, bytes]) -> None:
        self._parts = parts

    def __call__(self, place: int, size: int) -> np.ndarray:
        return np.frombuffer(bytearray(self._parts[place][:size]), np.uint8)


def _fetched_whole(place: Place, facts: ShardFacts, spec: Spec) -> Shard:
    with tempfile.TemporaryDirectory(prefix="triptych-") as folder:
        path = Path(folder) / Path(facts.file).name
        path.write_bytes(_whole(place, facts))
        return open_shard_file(path, spec, facts.format)  # mapped: stays readable when the name is gone


def _whole(place: Place, facts: ShardFacts) -> bytes:
    try:
        data = place.read(facts.file)
    except FileNotFoundError as error:  # compacted away since its size was asked for
        raise StoreError(f"{place.name}/{facts.file} is missing; `triptych verify` lists all damage.") from error
    if len(data) != facts.bytes:
        raise UnreachableError(
            f"{place.name}/{facts.file} gave {len(data):,} bytes instead of {facts.bytes:,}; try again."
        )
    return data
