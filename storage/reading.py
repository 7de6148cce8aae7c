"""Going through a store once an epoch: records one by one, or batches that threads copy into a ring of buffers."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import numpy as np
import xxhash

from storage.codecs import NUMPY
from storage.errors import StoreError
from storage.order import Order, batches
from storage.records import PackedBatch, Record
from storage.store import FeatureStore

ADVISED = 256  # records that the disk is asked for ahead of reading one by one
AHEAD_BYTES, AHEAD_BATCHES = 256 << 20, 64  # at most, that the disk is asked for beyond what is being copied
KEPT = 2  # batches that stay as they are while later ones are filled
THREADS, REMOTE_THREADS = 2, 8


class Records(Iterator[Record]):
    """Records of one share of an epoch; `state()` is enough to go on from here in another process.

    Args:
        shuffle: seed of the order, None for the store's own.
        epoch: number of the epoch; each has another order.
        rank, world: this process's number among how many.
        state: what `state()` gave; the other settings are then its.

    Raises:
        StoreError: the store has other records than when the state was taken, or them in another order.
        ValueError: rank, seed or epoch make no sense.
    """

    def __init__(
        self,
        store: FeatureStore,
        shuffle: int | None = None,
        epoch: int = 0,
        rank: int = 0,
        world: int = 1,
        state: dict[str, Any] | None = None,
    ) -> None:
        self.store = store
        self.order = Order(len(store), record_bytes(store), shuffle, epoch, rank, world)
        self._units = units_digest(store)
        self._next = 0
        if state is not None:
            self.order, self._next = resumed(store, state)
        self._fields = store.spec.carried
        self._ahead: deque[int] = deque()
        self._coming = chain.from_iterable(each.tolist() for each in self.order.positions(self._next))

    def __len__(self) -> int:
        """Records that are left."""
        return len(self.order) - self._next

    def __next__(self) -> Record:
        if len(self._ahead) <= ADVISED // 2:
            coming = list(islice(self._coming, ADVISED))
            self._ahead.extend(coming)
            with suppress(StoreError, KeyError):  # what is wrong with them is told when their turn comes
                self.store.advise(coming, self._fields)
        if not self._ahead:
            raise StopIteration
        record = self.store.at(self._ahead[0])
        self._ahead.popleft()
        self._next += 1
        return record

    def state(self) -> dict[str, Any]:
        """Where this iteration is, as plain JSON values."""
        return state_of(self.order, self._units, self._next)


@dataclass
class _Ring:
    """Buffers that batches take in turn; `turn` counts the batches that were given out of them."""

    buffers: list[np.ndarray | None]
    turn: int = 0


class BatchLoader:
    """Packed batches of one share of an epoch; iterating again starts the next epoch, or after a loop that was left
    early the same one once more.

    Threads copy records from the mapped files straight into buffers that are used again and again: a batch's values
    stay as they are until two more have been taken, be it in the next epoch. Copy what you keep, or send it to the
    device.

    Args:
        store: to read.
        batch_size: records a batch; the last one may be smaller.
        shuffle: seed of the order, None for the store's own.
        rank, world: this process's number among how many.
        fields: what else to read, as of `FeatureStore.batch`.
        drop_last: leave the last, smaller batch out.
        pin: take page-locked memory, from which torch copies to a GPU without waiting.

    Raises:
        ValueError: batch size, rank or seed make no sense.
        StoreError: a shard is missing or damaged (while iterating).
    """

    def __init__(
        self,
        store: FeatureStore,
        batch_size: int,
        shuffle: int | None = None,
        rank: int = 0,
        world: int = 1,
        fields: Sequence[str] = (),
        drop_last: bool = False,
        pin: bool = False,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch size {batch_size} must be at least 1")
        self.store, self.batch_size, self.fields = store, batch_size, tuple(fields)
        self.drop_last, self.pin = drop_last, pin
        self._record_bytes = record_bytes(store)
        self.order = Order(len(store), self._record_bytes, shuffle, 0, rank, world)
        self._units = units_digest(store)
        self._start = 0
        self._taken = 0
        self._idle: _Ring | None = None

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        whole, rest = divmod(len(self.order), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[PackedBatch]:
        self._taken = self._start
        return self._epoch(self.order, batches(self.order, self.batch_size, self._start, self.drop_last))

    def _epoch(self, order: Order, coming: Iterator[np.ndarray]) -> Iterator[PackedBatch]:
        for batch in self.read(coming):
            self._taken += len(batch.keys)
            yield batch
        if self.order is order:  # else another place was set meanwhile
            self.set_epoch(order.epoch + 1)

    def set_epoch(self, epoch: int) -> None:
        """Start the next iteration at the beginning of this epoch."""
        self.order = _with_epoch(self.order, epoch)
        self._start = self._taken = 0

    def state(self) -> dict[str, Any]:
        """Where the iteration is, as plain JSON values: after the batch that was taken last."""
        return state_of(self.order, self._units, self._taken)

    def load_state(self, state: dict[str, Any]) -> None:
        """Start the next iteration where another one was.

        Raises:
            StoreError: the store has other records than when the state was taken, or them in another order.
        """
        self.order, self._start = resumed(self.store, state)
        self._taken = self._start

    def read(self, coming: Iterable[np.ndarray | Sequence[int]]) -> Iterator[PackedBatch]:
        """Batches of any positions, in the order they come: for samplers of your own."""
        threads = THREADS if self.store.place.local else REMOTE_THREADS
        slots = threads + 1 + KEPT
        ring = self._idle or _Ring([None] * slots)
        self._idle = None  # an iteration that begins before this one ends takes buffers of its own
        ahead: deque[tuple[np.ndarray, Future[None]]] = deque()
        filling: deque[Future[PackedBatch]] = deque()
        coming = iter(coming)
        beyond = 1 + min(AHEAD_BATCHES, AHEAD_BYTES // (self._record_bytes * self.batch_size))
        # One adviser: the disk then gets the requests in the order in which the batches are waited for.
        copiers, adviser = ThreadPoolExecutor(threads), ThreadPoolExecutor(1)
        try:
            while True:
                for each in islice(coming, threads + 1 + beyond - len(filling) - len(ahead)):
                    positions = np.asarray(each, np.int64)
                    ahead.append((positions, adviser.submit(self.store.advise, positions, self.fields)))
                while ahead and len(filling) <= threads:
                    filling.append(copiers.submit(self._fill, ring, ring.turn + len(filling), *ahead.popleft()))
                if not filling:
                    return
                batch = filling.popleft().result()
                ring.turn += 1
                yield batch
        finally:
            for pool in (copiers, adviser):
                pool.shutdown(cancel_futures=True)
            self._idle = ring

    def _fill(self, ring: _Ring, turn: int, positions: np.ndarray, advised: Future[None]) -> PackedBatch:
        wait([advised])  # copying what was not asked for yet would make the system read what is around it, too
        slot, rows = turn % len(ring.buffers), self.store.rows(positions)
        buffer = ring.buffers[slot]
        if buffer is None or len(buffer) < rows:
            buffer = ring.buffers[slot] = self._buffer(rows + rows // 4)
        return self.store.batch(positions, self.fields, buffer)

    def _buffer(self, rows: int) -> np.ndarray:
        shape, dtype = (rows, self.store.spec.layout.dim), NUMPY[self.store.dtype]
        if not self.pin:
            return np.empty(shape, dtype)
        import torch

        size = int(np.prod(shape)) * dtype.itemsize
        return torch.empty(size, dtype=torch.uint8, pin_memory=True).numpy().view(dtype).reshape(shape)


def record_bytes(store: FeatureStore) -> int:
    """Bytes of a usual record of a store."""
    if not len(store):
        return 1
    number, _ = store.catalog.place_of(0)
    shard = store.catalog.unit(number).shard
    assert shard is not None
    return max(1, shard.bytes // len(store.catalog.places_near(0)[1]))


def units_digest(store: FeatureStore) -> str:
    """Equal where positions mean the same records: others may have committed, folded or compacted in between."""
    indexed = store.catalog.index.unit_ids() if store.catalog.index else []
    return xxhash.xxh3_128_hexdigest("\n".join([*indexed, *(entry.unit for entry in store.catalog.tail)]))


def state_of(order: Order, units: str, done: int) -> dict[str, Any]:
    """A place in an order of the records of these units, as plain JSON values."""
    numbers = {name: None if value is None else int(value) for name, value in vars(order).items()}
    return {**numbers, "units": units, "done": done}


def resumed(store: FeatureStore, state: dict[str, Any]) -> tuple[Order, int]:
    """The order that a state is of, and how many of its records are done.

    Raises:
        StoreError: the store has other records than when the state was taken, or them in another order.
    """
    settings = dict(state)
    done, units = settings.pop("done"), settings.pop("units")
    found = Order(**settings)
    if (found.records, units) != (len(store), units_digest(store)):
        raise StoreError(
            f"{store.place.name} has {len(store):,} records, the state to go on from is of {found.records:,} or of "
            "other shards; start the epoch anew."
        )
    return found, done


def _with_epoch(order: Order, epoch: int) -> Order:
    return Order(**{**vars(order), "epoch": epoch})
