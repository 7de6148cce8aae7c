"""NLVR2: is a sentence true of two images? Each image passes the model with the sentence; both states decide together.

Source: dandelin/ViLT `vilt/modules/objectives.py` compute_nlvr2; airsplay/lxmert `src/tasks/nlvr2_model.py`. Shapes in
this file: B examples, E width of what is pooled.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainers.data.submissions import write_nlvr2
from trainers.metrics import nlvr2_scores
from trainers.models.heads import class_loss
from trainers.tasks.base import Batches, Prediction
from trainers.tasks.common import SplitTask, labels_of_truth, numbered

FIRST, SECOND = "first", "second"
HEAD = "nlvr2"


class Reasoning(SplitTask):
    """NLVR2 for Grid-VLP, PixelBERT, ViLT and METER: two classes, by the head "nlvr2"."""

    def collate(self, numbers: Sequence[int], epoch: int) -> Batches:
        examples, chance = self.examples(numbers), self.chances(numbers, epoch)
        rows = [self.family.row(self.family.tokenizer(example.texts[0])) for example in examples]
        targets = numbered(numbers, labels=labels_of_truth(examples))
        other = [{**each, "colours": each["more_colours"]} for each in chance]
        looked = {
            name: self.look([example.images[place] for example in examples], draws)
            for place, (name, draws) in enumerate(((FIRST, chance), (SECOND, other)))
        }
        return {name: self.family.batch(rows, each.visual, targets) for name, each in looked.items()}

    def counts(self, batches: Batches) -> dict[str, float]:
        return {HEAD: len(batches[FIRST])}

    def losses(self, model: nn.Module, batches: Batches) -> dict[str, Tensor]:
        return {HEAD: class_loss(self._logits(model, batches), batches[FIRST].targets["labels"])}

    def predict(self, model: nn.Module, batches: Batches) -> list[Prediction]:
        found = self._logits(model, batches).argmax(-1).tolist()
        return [{"id": id, "answer": bool(each)} for id, each in zip(self.ids(batches[FIRST]), found, strict=True)]

    def score(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        return nlvr2_scores(predictions, self.split.examples)

    def write(self, predictions: Sequence[Prediction], path: Path) -> None:
        write_nlvr2(predictions, path)

    def _logits(self, model: Any, batches: Batches) -> Tensor:
        """(B, 2)."""
        pooled = [
            self.family.pooled(model, self.family.states(model, batches[name], second_image=name == SECOND))
            for name in (FIRST, SECOND)
        ]
        found: Tensor = model.heads[HEAD](torch.cat(pooled, dim=-1))
        return found
