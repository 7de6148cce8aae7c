"""Questions about images whose answers are classes: VQA and GQA.

    VQA  soft scores of 3,129 answers, binary cross-entropy; the score is VQA accuracy
    GQA  one of 1,842 answers, the same loss in LXMERT's way; the score is accuracy

VL-BERT answers at a [MASK] behind the question, the others by their pooled state (`Family.question`, `Family.answer`).
Source: jackroos/VL-BERT `vqa/modules/resnet_vlbert_for_vqa.py`; dandelin/ViLT `vilt/modules/objectives.py` compute_vqa;
airsplay/lxmert `src/tasks/vqa.py`, `gqa.py`. Shapes in this file: B examples, A answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor, nn

from trainers.data.answers import AnswerVocabulary
from trainers.data.base import Split
from trainers.data.submissions import write_gqa, write_vqa
from trainers.flip import mirrored_text
from trainers.metrics import gqa_accuracy, vqa_accuracy
from trainers.models.heads import answer_loss
from trainers.tasks.base import Batches, Prediction
from trainers.tasks.common import ONE, SplitTask, numbered, one
from trainers.tasks.families import Family
from trainers.visual import Visual


class Answers(SplitTask):
    """VQA or GQA.

    Args:
        answers: the vocabulary; its order is the head's.
        kind: "vqa" or "gqa": how answers are scored and written. Of a model with a head of that name it is that one,
            else "vqa".
        split, family, visual, seed, training: as of `SplitTask`.
    """

    def __init__(
        self,
        split: Split,
        family: Family,
        visual: Visual,
        answers: AnswerVocabulary,
        kind: Literal["vqa", "gqa"] = "vqa",
        seed: int = 0,
        training: bool = False,
    ) -> None:
        super().__init__(split, family, visual, seed, training)
        self.answers, self.kind = answers, kind

    def collate(self, numbers: Sequence[int], epoch: int) -> Batches:
        examples, chance = self.examples(numbers), self.chances(numbers, epoch)
        flips = self.flips(chance)
        texts = [
            mirrored_text(example.texts[0]) if flip else example.texts[0]
            for example, flip in zip(examples, flips, strict=True)
        ]
        rows = [self.family.question(self.family.tokenizer(text)) for text in texts]
        looked = self.look([example.images[0] for example in examples], chance, flips)
        scores = np.zeros((len(examples), len(self.answers)), np.float32)
        for row, example in zip(scores, examples, strict=True):
            for answer, score in self.answers.targets(example.truth.get("scores", {})).items():
                row[answer] = score
        targets = numbered(numbers, scores=scores)
        return {ONE: self.family.batch(rows, looked.visual, targets)}

    def counts(self, batches: Batches) -> dict[str, float]:
        return {self.kind: len(one(batches))}

    def losses(self, model: nn.Module, batches: Batches) -> dict[str, Tensor]:
        return {self.kind: answer_loss(self._logits(model, batches), one(batches).targets["scores"])}

    def predict(self, model: nn.Module, batches: Batches) -> list[Prediction]:
        found = self._logits(model, batches).argmax(-1).tolist()
        words = [self.answers.answers[each] for each in found]
        return [{"id": id, "answer": word} for id, word in zip(self.ids(one(batches)), words, strict=True)]

    def score(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        rule = gqa_accuracy if self.kind == "gqa" else vqa_accuracy
        return rule(predictions, self.split.examples)

    def write(self, predictions: Sequence[Prediction], path: Path) -> None:
        (write_gqa if self.kind == "gqa" else write_vqa)(predictions, path)

    def _logits(self, model: Any, batches: Batches) -> Tensor:
        """(B, A)."""
        batch = one(batches)
        head = model.heads[self.kind if self.kind in model.heads else "vqa"]
        found: Tensor = head(self.family.answer(model, self.family.states(model, batch), batch))
        return found
