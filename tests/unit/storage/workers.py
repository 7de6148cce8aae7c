"""What other processes of these tests run: importable, so that it can be sent to them by name."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

import storage.atomic
from storage import FeatureStore, SpecMismatchError, StoreWriter
from tests.unit.storage.samples import GRID, REGIONS, write_unit

pa.array(np.zeros(1))  # pyarrow imports pandas for its first array, a third of a second: once, in the fork server


def checksums(store: FeatureStore) -> dict[str, str]:
    """One number for the features of each record."""
    return {record.key: xxhash.xxh3_128_hexdigest(record.features.tobytes()) for record in store.values()}


def write_units(path: Path, units: Sequence[Sequence[str]], failed: Sequence[str], start: Any) -> None:
    """Commit units one after the other, from when all processes are ready."""
    writer = StoreWriter(path, REGIONS)
    start.wait()
    for keys in units:
        write_unit(writer, keys, failed)


def create(path: Path, view: str, start: Any, results: Any) -> None:
    """Make a store, or find that another process made it with another spec."""
    start.wait()
    try:
        StoreWriter(path, REGIONS if view == "regions" else GRID)
        results.put((view, "made"))
    except SpecMismatchError:
        results.put((view, "refused"))


def write_until_killed(path: Path, begun: Any) -> None:
    """Commit units of three images without end; `begun` is set after the first one."""
    writer = StoreWriter(path, REGIONS)
    for done in count(writer.catalog.units):
        write_unit(writer, [f"{done:06}-{index}" for index in range(3)], failed=[f"{done:06}-1"])
        begun.set()


def write_and_die(path: Path, keys: Sequence[str], steps: int) -> None:
    """Commit one unit, but die by SIGKILL just before the step of that number: a write, sync, rename or unlink."""
    writer = StoreWriter(path, REGIONS)
    left = [steps]
    for owner, name in STEPS:
        setattr(owner, name, _dying(getattr(owner, name), left))
    write_unit(writer, keys)


STEPS: list[tuple[Any, str]] = [
    (storage.atomic.HashedFile, "write"),
    (os, "fsync"),
    (Path, "replace"),
    (Path, "unlink"),
]


def _dying(function: Callable[..., Any], left: list[int]) -> Callable[..., Any]:
    def step(*args: Any, **kwargs: Any) -> Any:
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1
        return function(*args, **kwargs)

    return step
