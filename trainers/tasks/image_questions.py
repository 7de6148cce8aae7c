"""Image question answering as an objective of pre-training: LXMERT's, which Grid-VLP takes over.

A question's answer is one class of 9,500; where people gave several, one is drawn in proportion to its score. Captions,
questions without an answer in the vocabulary, and questions about a stranger's image have no label.
Source: airsplay/lxmert `src/pretrain/lxmert_data.py`, `lxmert_pretrain.py`. Shapes in this file: B examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trainers.batch import Batch
from trainers.data.answers import AnswerVocabulary
from trainers.models.heads import IGNORED, class_loss
from trainers.tasks.families import Family
from trainers.tasks.objective import Draft, Objective
from trainers.visual import Looked


@dataclass(frozen=True)
class ImageQuestions(Objective):
    """Answers told from the pooled state by the head "qa".

    answers  the vocabulary
    """

    answers: AnswerVocabulary
    name: str = "qa"

    def draw(self, draft: Draft, family: Family) -> None:
        scores = self.answers.targets(draft.example.truth.get("scores", {}))
        draft.labels[self.name] = IGNORED
        if scores and draft.labels.get("itm", 1) == 1:
            classes, weights = list(scores), np.array(list(scores.values()))
            draft.labels[self.name] = int(draft.chances["answer"].choice(classes, p=weights / weights.sum()))

    def look(self, drafts: Sequence[Draft], looked: Looked, targets: dict[str, Tensor]) -> Looked:
        targets[self.name] = torch.tensor([draft.labels[self.name] for draft in drafts])
        return looked

    def count(self, batch: Batch) -> float:
        return float((batch.targets[self.name] != IGNORED).sum())

    def loss(self, family: Family, model: nn.Module, states: Any, batch: Batch) -> Tensor:
        return class_loss(self._logits(family, model, states), batch.targets[self.name])

    def judge(self, family: Family, model: nn.Module, states: Any, batch: Batch) -> Tensor:
        labels = batch.targets[self.name]
        right = self._logits(family, model, states).argmax(-1) == labels
        return torch.stack([right, labels != IGNORED], dim=1).long()

    def _logits(self, family: Family, model: Any, states: Any) -> Tensor:
        found: Tensor = model.heads[self.name](family.pooled(model, states))
        return found
