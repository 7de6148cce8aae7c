"""What the training loop asks of a task.

    batches = task.collate(numbers, epoch)   on the host, in a loading thread: texts, masks, negatives, visual inputs
    counts = task.counts(batches)            how many things each loss is the mean of
    losses = task.losses(model, batches)     on the device: each loss by name, the mean over this batch

Chance. Whatever is drawn for an example (masks, negatives, an answer among several, crops) comes from `generator(seed,
epoch, number)` alone, so that it depends on no batch, worker or rank.

Means. The loop weighs each loss by its share of `counts` over all ranks and accumulated parts, so that a step's loss is
the mean over the global batch however that was cut.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import Tensor, nn

from trainers.batch import Batch

Batches = Mapping[str, Batch]  # by name: what a step runs through the model; most tasks have one
Prediction = Mapping[str, Any]  # of one example, JSON-like, with its "id"


class Task(Protocol):
    """One task on one split.

    metric  the score, out of those that `score` gives, by which checkpoints are compared; larger is better
    """

    metric: str

    def __len__(self) -> int:
        """Examples in the split."""

    def collate(self, numbers: Sequence[int], epoch: int) -> Batches:
        """Examples by number, as the model takes them, each batch with its layout; the same for the same arguments."""

    def counts(self, batches: Batches) -> dict[str, float]:
        """Of each loss, how many things it is the mean of; known on the host."""

    def losses(self, model: nn.Module, batches: Batches) -> dict[str, Tensor]:
        """Each loss, weighted as the paper has it: their sum is minimised. 0 where nothing counts."""

    def predict(self, model: nn.Module, batches: Batches) -> list[Prediction]:
        """What the model answers, one an example, in order; called without gradients."""

    def score(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        """Metrics of a whole split's predictions, in percent where the field reports percent."""

    def write(self, predictions: Sequence[Prediction], path: Path) -> None:
        """The official submission format."""


def generator(seed: int, epoch: int, number: int) -> np.random.Generator:
    """The chance of one example in one epoch."""
    return np.random.default_rng(seeds(seed, epoch, number))


def seeds(seed: int, epoch: int, number: int) -> np.random.SeedSequence:
    """What the chance of one example in one epoch is made of: in itself it costs a third of a generator."""
    return np.random.SeedSequence([seed, epoch, number])
