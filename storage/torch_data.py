"""A store as torch data sets: by index, or as a stream that splits itself over ranks and DataLoader workers.

For cached features, `storage.reading.BatchLoader` is many times faster than a DataLoader with workers: those send every
batch through shared memory once more. These are for code that is built around a DataLoader.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from storage.errors import StoreError
from storage.order import Order
from storage.reading import units_digest
from storage.records import Record
from storage.store import FeatureStore, open_store


class _Opened:
    """What both data sets share: a store that other processes open for themselves, and that must be the same there."""

    store: FeatureStore

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "units": units_digest(self.store)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        units = state.pop("units")
        vars(self).update(state)
        if units_digest(self.store) != units:
            raise StoreError(f"{self.store.place.name} has changed since this data set was made; make it anew.")


class StoreDataset(_Opened, Dataset[dict[str, Any]]):
    """Records by index, as dictionaries of tensors: `features` (or `pixels`), and what else the store has, as `boxes`.

    Args:
        path: of the store.
        keys: what to serve, in this order; default: everything.
        dtype: of the features; default: as stored.

    Works in forked and in spawned processes, which map the shards themselves; those that are spawned refuse a store
    to which others have committed since.

    Raises:
        KeyError: a key has no record.
        StoreError: there is no such store.
    """

    def __init__(self, path: str | Path, keys: Sequence[str] | None = None, dtype: str | None = None) -> None:
        self.store = open_store(path, dtype)
        self.positions = np.arange(len(self.store)) if keys is None else self.store.positions(keys)

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return tensors(self.store.at(int(self.positions[index])))


class StoreIterable(_Opened, IterableDataset[dict[str, Any]]):
    """Records as a stream of dictionaries of tensors, each once an epoch over all ranks and workers together.

    Args:
        path: of the store.
        shuffle: seed of the order, None for the store's own.
        dtype: of the features; default: as stored.
        rank, world: this process's number among how many; default: what torch.distributed says, where it runs.

    Call `set_epoch` before each epoch, or all have the same order. Shares differ by one record at most.

    Raises:
        StoreError: there is no such store.
        ValueError: rank or seed make no sense.
    """

    def __init__(
        self,
        path: str | Path,
        shuffle: int | None = None,
        dtype: str | None = None,
        rank: int | None = None,
        world: int | None = None,
    ) -> None:
        self.store = open_store(path, dtype)
        self.shuffle = shuffle
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # workers that live on see it change
        running = torch.distributed.is_available() and torch.distributed.is_initialized()
        self.rank = (torch.distributed.get_rank() if running else 0) if rank is None else rank
        self.world = (torch.distributed.get_world_size() if running else 1) if world is None else world
        Order(0, 1, shuffle, 0, self.rank, self.world)  # refuses what makes no sense before workers are started

    def set_epoch(self, epoch: int) -> None:
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        """Records of this rank."""
        return len(self.store) * (self.rank + 1) // self.world - len(self.store) * self.rank // self.world

    def __iter__(self) -> Iterator[dict[str, Any]]:
        # A rank's share is cut on among its workers: rank r of w with worker i of n is share r * n + i of w * n.
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        share = self.rank * workers + number
        for record in self.store.iter(self.shuffle, int(self._epoch), share, self.world * workers):
            yield tensors(record)


def tensors(record: Record) -> dict[str, Any]:
    """A record's arrays as tensors that share their memory, with `key` and `image_size` as they are."""
    found: dict[str, Any] = {}
    for name, value in vars(record).items():
        if value is not None:
            found[name] = as_tensor(value) if isinstance(value, np.ndarray) else value
    return found


def as_tensor(array: np.ndarray) -> torch.Tensor:
    """A tensor over the same memory; numpy's bfloat16 becomes torch's."""
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)
