"""What the tasks share: examples by number, their chance, and predictions on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from trainers.batch import Batch
from trainers.cache_through import flush
from trainers.data.base import Example, Split
from trainers.data.files import write_json
from trainers.flip import mirrored
from trainers.models.heads import IGNORED
from trainers.tasks.base import Batches, Prediction, Task, seeds
from trainers.tasks.families import Family
from trainers.tasks.objective import Chances, Drawn
from trainers.visual import Looked, Visual

FLIPPED = 0.5
ONE = "pairs"  # the name of the batch of tasks that have one


class OnSplit(Task, Protocol):
    """A task whose examples are known, and where their images come from: whatever is a `SplitTask`, whole."""

    split: Split
    visual: Visual


class SplitTask:
    """A task on one split of a data set.

    Args:
        split: what to learn, or to answer.
        family: of the model.
        visual: where its images come from.
        seed: of all chance.
        training: whether images may be changed at random.
    """

    metric = "accuracy"

    def __init__(self, split: Split, family: Family, visual: Visual, seed: int = 0, training: bool = False) -> None:
        self.split, self.family, self.visual, self.seed, self.training = split, family, visual, seed, training

    def __len__(self) -> int:
        return len(self.split.examples)

    def examples(self, numbers: Sequence[int]) -> list[Example]:
        return [self.split.examples[number] for number in numbers]

    def chances(self, numbers: Sequence[int], epoch: int) -> list[dict[str, np.random.Generator]]:
        """Of each example a generator for each purpose."""
        return [Chances(seeds(self.seed, epoch, number)) for number in numbers]

    def flips(self, chance: Sequence[Mapping[str, np.random.Generator]]) -> list[bool]:
        """Of each example, whether its image is mirrored: half of them, while a model trains that is trained so."""
        wanted = self.training and self.family.mirrors
        return [wanted and bool(each["flip"].random() < FLIPPED) for each in chance]

    def look(
        self,
        keys: Sequence[str],
        chance: Sequence[Mapping[str, np.random.Generator]],
        flips: Sequence[bool] = (),
    ) -> Looked:
        """Images, each changed by the chance of its example while training, and those mirrored that `flips` names."""
        found = self.visual.look(keys, Drawn(chance, "colours") if self.training else None)
        return mirrored(found, flips) if any(flips) else found

    def ids(self, batch: Batch) -> list[str]:
        """Of a batch's examples; their numbers are in its targets."""
        return [self.split.examples[number].id for number in batch.targets["numbers"].tolist()]

    def write(self, predictions: Sequence[Prediction], path: Path) -> None:
        """Predictions as they are, in JSON."""
        write_json(path, list(predictions))


def numbered(numbers: Sequence[int], **targets: Any) -> dict[str, Tensor]:
    """Targets, with the examples' numbers among them."""
    found = {name: torch.as_tensor(value) for name, value in targets.items()}
    return {"numbers": torch.tensor(list(numbers)), **found}


def one(batches: Batches) -> Batch:
    """The batch of a task that has one."""
    return batches[ONE]


def labels_of_truth(examples: Sequence[Example]) -> list[int]:
    """The classes of examples; IGNORED where they are not published."""
    return [int(example.truth.get("label", IGNORED)) for example in examples]


def percent(right: int, count: int) -> float:
    return 100 * right / count if count else 0.0


def flush_task(task: Task) -> None:
    """Commit what a cache that fills itself from this task's images still holds back."""
    if isinstance(task, SplitTask):
        flush(task.visual)
