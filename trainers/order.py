"""Which examples each update takes: a new permutation an epoch, cut into global batches, ranks' shares and parts.

Epochs follow each other without a gap: every example has its turn once an epoch, and every batch is full; the one at
the seam takes from both. The order depends on seed, number of examples and batch size alone, so that any number of
ranks walks through the same batches.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby

import numpy as np

from extractors import ConfigError


@dataclass(frozen=True)
class Cut:
    """Examples of one epoch that run through the model together, by number."""

    epoch: int
    numbers: tuple[int, ...]


@dataclass(frozen=True)
class Order:
    """The order of a run.

    examples    how many there are
    batch_size  of all ranks together
    seed        of the permutations

    Raises:
        ConfigError: there are none.
    """

    examples: int
    batch_size: int
    seed: int

    def __post_init__(self) -> None:
        if self.examples < 1:
            raise ConfigError("there are no examples to train on; see `triptych data check`")

    def batch(self, step: int) -> list[tuple[int, int]]:
        """Epoch and number of each example of one update, counted from 0."""
        start = step * self.batch_size
        turns = (divmod(place, self.examples) for place in range(start, start + self.batch_size))
        return [(epoch, int(_permutation(self.examples, self.seed, epoch)[place])) for epoch, place in turns]

    def cuts(self, step: int, rank: int = 0, world: int = 1, most: int | None = None) -> list[Cut]:
        """A rank's share of one update, in parts of at most `most` examples.

        Raises:
            ConfigError: there are more ranks than examples in a batch.
        """
        size = self.batch_size
        if world > size:
            raise ConfigError(
                f"{world} workers cannot share batches of {size}; lower --workers or raise the batch size"
            )
        share = self.batch(step)[size * rank // world : size * (rank + 1) // world]
        return [
            cut
            for epoch, turns in groupby(share, key=lambda turn: turn[0])
            for cut in chunks(epoch, [number for _, number in turns], most or size)
        ]


def chunks(epoch: int, numbers: list[int], most: int) -> Iterator[Cut]:
    """Examples in parts of at most `most`."""
    for start in range(0, len(numbers), most):
        yield Cut(epoch, tuple(numbers[start : start + most]))


@lru_cache(2)
def _permutation(examples: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(examples)
