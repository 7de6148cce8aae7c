"""SNLI-VE: does an image contradict a hypothesis, say nothing of it, or entail it?

Source: zdou0830/METER `meter/modules/objectives.py` compute_snli. Shapes in this file: B examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from trainers.data.snli_ve import LABELS
from trainers.data.submissions import write_snli_ve
from trainers.metrics import snli_ve_accuracy
from trainers.models.heads import class_loss
from trainers.tasks.base import Batches, Prediction
from trainers.tasks.common import ONE, SplitTask, labels_of_truth, numbered, one

HEAD = "snli"


class Entailment(SplitTask):
    """SNLI-VE for METER: three classes, by the head "snli" on the pooled state."""

    def collate(self, numbers: Sequence[int], epoch: int) -> Batches:
        examples, chance = self.examples(numbers), self.chances(numbers, epoch)
        rows = [self.family.row(self.family.tokenizer(example.texts[0])) for example in examples]
        looked = self.look([example.images[0] for example in examples], chance)
        return {ONE: self.family.batch(rows, looked.visual, numbered(numbers, labels=labels_of_truth(examples)))}

    def counts(self, batches: Batches) -> dict[str, float]:
        return {HEAD: len(one(batches))}

    def losses(self, model: nn.Module, batches: Batches) -> dict[str, Tensor]:
        return {HEAD: class_loss(self._logits(model, batches), one(batches).targets["labels"])}

    def predict(self, model: nn.Module, batches: Batches) -> list[Prediction]:
        found = self._logits(model, batches).argmax(-1).tolist()
        return [{"id": id, "label": LABELS[each]} for id, each in zip(self.ids(one(batches)), found, strict=True)]

    def score(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        return snli_ve_accuracy(predictions, self.split.examples)

    def write(self, predictions: Sequence[Prediction], path: Path) -> None:
        write_snli_ve(predictions, path)

    def _logits(self, model: Any, batches: Batches) -> Tensor:
        """(B, 3)."""
        states = self.family.states(model, one(batches))
        found: Tensor = model.heads[HEAD](self.family.pooled(model, states))
        return found
