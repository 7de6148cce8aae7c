"""What an objective of pre-training is: it changes an example on its way into a batch, and compares states with what
it hid."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor, nn

from trainers.batch import Batch
from trainers.data.base import Example, Split
from trainers.tasks.families import Family
from trainers.tasks.rows import Row
from trainers.visual import Looked

PURPOSES = ("pair", "text", "words", "image", "answer", "cells", "colours", "more_colours", "flip")


class Chances(dict[str, np.random.Generator]):
    """A generator for each purpose, so that what one objective draws does not move another one's chance.

    They are made of what `seeds.spawn` gives, each when it is first asked for: all of them together take longer than
    the rest of a batch, and most are never asked.

    Args:
        seeds: of an example; nothing was spawned from them.
    """

    def __init__(self, seeds: np.random.SeedSequence) -> None:
        super().__init__()
        self._seeds = seeds

    def __missing__(self, purpose: str) -> np.random.Generator:
        key = (*self._seeds.spawn_key, PURPOSES.index(purpose))
        made = np.random.default_rng(np.random.SeedSequence(self._seeds.entropy, spawn_key=key))
        self[purpose] = made
        return made


class Drawn(Sequence[np.random.Generator]):
    """Of each example the generator for one purpose, made when it is asked for: nothing changes cached features."""

    def __init__(self, chances: Sequence[Mapping[str, np.random.Generator]], purpose: str) -> None:
        self._chances, self._purpose = chances, purpose

    def __len__(self) -> int:
        return len(self._chances)

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            return Drawn(self._chances[at], self._purpose)
        return self._chances[at][self._purpose]


@dataclass
class Draft:
    """One example on its way into a batch.

    text     what is read
    image    the key of the image that is read; None: none
    row      the text's tokens
    chances  a generator for each of PURPOSES
    labels   what objectives keep for `targets`, by name
    """

    example: Example
    text: str
    image: str | None
    row: Row
    chances: Mapping[str, np.random.Generator]
    labels: dict[str, Any] = field(default_factory=dict)


class Objective(ABC):
    """One thing to learn. Subclasses are frozen dataclasses; the hooks that are not abstract may be left as they are.

    name  of the loss, and of the model's head
    """

    name: str

    def pair(self, draft: Draft, split: Split) -> None:  # noqa: B027  most choose nothing
        """Choose another text or image for an example, before anything is read."""

    def draw(self, draft: Draft, family: Family) -> None:  # noqa: B027  some hide no tokens
        """Hide tokens, note labels."""

    def look(self, drafts: Sequence[Draft], looked: Looked, targets: dict[str, Tensor]) -> Looked:
        """Hide parts of the images, and put the labels into the targets."""
        return looked

    @abstractmethod
    def count(self, batch: Batch) -> float:
        """How many things the loss is the mean of."""

    @abstractmethod
    def loss(self, family: Family, model: nn.Module, states: Any, batch: Batch) -> Tensor:
        """The loss, weighted."""

    @abstractmethod
    def judge(self, family: Family, model: nn.Module, states: Any, batch: Batch) -> Tensor:
        """(B, 2) int64: of each example how much was told rightly, and how much there was."""
