"""Masked RoI classification: regions are hidden, and their class told from the rest; VL-BERT's.

15 % of an image's regions are drawn; of these 9 in 10 are hidden, one stays visible, all have a label: the detector's
class (hard), or its distribution over all classes (soft, as in the official code). The whole image's region is never
drawn. Hidden regions lose their feature, or in end-to-end mode their pixels before the network sees them: the model
does that from `Regions.hidden`.

Source: jackroos/VL-BERT `pretrain/data/datasets/conceptual_captions.py` random_mask_region. Official classes begin
with the background, which a store has last. Shapes in this file: V images, N regions, C classes with the background.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trainers.batch import Batch, Regions
from trainers.models.heads import IGNORED, class_loss, soft_class_loss
from trainers.tasks.families import Family
from trainers.tasks.objective import Draft, Objective
from trainers.visual import Looked, VisualError

RATE, HIDDEN = 0.15, 0.9


def draw_regions(count: int, chance: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(count,) bool twice: the regions that are drawn, and those of them that are hidden."""
    fate = chance.random(count) / RATE
    return fate < 1, fate < HIDDEN


@dataclass(frozen=True)
class MaskedRegions(Objective):
    """Classes of drawn regions, by the head "mvrc" on their final states.

    soft  whether labels are distributions, which the store must have (`class_probs`), or classes (`class_ids`)
    """

    soft: bool = True
    name: str = "mvrc"

    @property
    def fields(self) -> tuple[str, ...]:
        """What the store must have."""
        return ("class_probs",) if self.soft else ("class_ids",)

    def look(self, drafts: Sequence[Draft], looked: Looked, targets: dict[str, Tensor]) -> Looked:
        regions = looked.visual
        if not isinstance(regions, Regions) or self.fields[0] not in looked.others:
            raise VisualError(f"masked RoI classification needs regions with {self.fields[0]}; extract them with it.")
        assert regions.lengths is not None
        drawn, hidden = (torch.zeros(regions.boxes.shape[:2], dtype=torch.bool) for _ in range(2))
        for row, (draft, count) in enumerate(zip(drafts, regions.lengths, strict=True)):
            both = draw_regions(count, draft.chances["image"])
            drawn[row, :count], hidden[row, :count] = (torch.from_numpy(each) for each in both)
        if self.soft:
            probs = looked.others["class_probs"].float().roll(1, -1)
            targets["region_classes"] = probs * drawn[..., None]
        else:
            targets["regions"] = (looked.others["class_ids"].long() + 1).where(drawn, IGNORED)
        return replace(looked, visual=replace(regions, hidden=hidden))

    def count(self, batch: Batch) -> float:
        if self.soft:
            return float(((batch.targets["region_classes"].sum(-1) - 1).abs() < 0.1).sum())
        return float((batch.targets["regions"] != IGNORED).sum())

    def loss(self, family: Family, model: nn.Module, states: Any, batch: Batch) -> Tensor:
        logits = self._logits(model, states)
        if self.soft:
            return soft_class_loss(logits, batch.targets["region_classes"])
        return class_loss(logits, batch.targets["regions"])

    def judge(self, family: Family, model: nn.Module, states: Any, batch: Batch) -> Tensor:
        found = self._logits(model, states).argmax(-1)
        if self.soft:
            classes = batch.targets["region_classes"]
            counted, labels = (classes.sum(-1) - 1).abs() < 0.1, classes.argmax(-1)
        else:
            labels = batch.targets["regions"]
            counted = labels != IGNORED
        return torch.stack([((found == labels) & counted).sum(1), counted.sum(1)], dim=1)

    def _logits(self, model: Any, states: Any) -> Tensor:
        """(V, N, C); the whole image's state, the first one, is left out."""
        found: Tensor = model.heads["mvrc"](states.visual[:, 1:])
        return found
