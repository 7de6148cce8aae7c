"""The sequence in which a process reads a store: each record once, split over processes, shuffled in blocks.

So that a shuffle does not read the disk at random, it moves blocks of neighbouring records (about 4 MiB), and then
mixes the records of as many blocks as make about 256 MiB. What lies together on the disk is then wanted at about the
same time, and still comes out in random order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

BLOCK_BYTES, WINDOW_BYTES = 4 << 20, 256 << 20


@dataclass(frozen=True)
class Order:
    """One process's share of one epoch.

    records       of the store
    record_bytes  of a usual record; decides how many make a block
    seed          None: in the store's own order
    epoch         another one gives another shuffle
    rank, world   this process's number among how many; their shares differ by one record at most, and do not overlap

    Raises:
        ValueError: rank, seed or epoch make no sense.
    """

    records: int
    record_bytes: int
    seed: int | None = None
    epoch: int = 0
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world:
            raise ValueError(f"rank {self.rank} is not one of {self.world} processes")
        if self.epoch < 0 or (self.seed or 0) < 0:
            raise ValueError(f"seed {self.seed} and epoch {self.epoch} must not be negative")

    def __len__(self) -> int:
        return self._share[1] - self._share[0]

    @property
    def _share(self) -> tuple[int, int]:
        return self.records * self.rank // self.world, self.records * (self.rank + 1) // self.world

    @property
    def block(self) -> int:
        """Records in a block."""
        return max(1, BLOCK_BYTES // max(1, self.record_bytes))

    @property
    def window(self) -> int:
        """Records that are mixed with each other."""
        return max(1, WINDOW_BYTES // BLOCK_BYTES) * self.block

    def positions(self, start: int = 0) -> Iterator[np.ndarray]:
        """Positions (n,) int64 in the order to read them, window by window, from the share's record `start` on."""
        first, last = self._share
        starts, lengths = self._blocks()
        ends = np.cumsum(lengths)
        skipped = start // self.window
        for at in range(first + skipped * self.window, last, self.window):
            sequence = np.arange(at, min(at + self.window, last))
            block = np.searchsorted(ends, sequence, side="right")
            found = starts[block] + sequence - (ends[block] - lengths[block])
            if self.seed is not None:
                found = np.random.default_rng([self.seed, self.epoch, 1, at]).permutation(found)
            done = max(0, first + start - at)
            if done < len(found):
                yield found[done:]

    def _blocks(self) -> tuple[np.ndarray, np.ndarray]:
        """First position and length of every block, in the order in which they are read."""
        starts = np.arange(0, max(self.records, 1), self.block)
        if self.seed is not None:
            starts = np.random.default_rng([self.seed, self.epoch, 0]).permutation(starts)
        return starts, np.minimum(self.block, self.records - starts)


def batches(order: Order, size: int, start: int = 0, drop_last: bool = False) -> Iterator[np.ndarray]:
    """Positions of batches, one after the other, from the share's record number `start` on."""
    left = np.empty(0, np.int64)
    for window in order.positions(start):
        left = np.concatenate([left, window])
        whole = len(left) // size * size
        yield from left[:whole].reshape(-1, size)
        left = left[whole:]
    if len(left) and not drop_last:
        yield left
