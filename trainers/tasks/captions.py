"""Captions: METER's by masked words, taught one word a time and searched with five beams (appendix C).

In training an example is an image and one of its captions (`one_a_text`), in scoring an image with all of them. Shapes
in this file: B captions, T positions, W words.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainers.batch import Batch
from trainers.data.base import Split
from trainers.data.submissions import write_captions
from trainers.metrics import caption_scores
from trainers.metrics_captions import require_scorer
from trainers.models.beam_search import Search
from trainers.models.captioning import caption, cut_captions
from trainers.models.heads import class_loss
from trainers.tasks.base import Batches, Prediction
from trainers.tasks.common import ONE, SplitTask, numbered, one, percent
from trainers.tasks.families import Family
from trainers.tasks.rows import text_of
from trainers.visual import Visual

LONGEST, BEAMS = 30, 5


class CaptionTraining(SplitTask):
    """One word of each caption, drawn anew every epoch, told from those before it and the image."""

    metric = "word_accuracy"

    def collate(self, numbers: Sequence[int], epoch: int) -> Batches:
        examples, chance, tokenizer = self.examples(numbers), self.chances(numbers, epoch), self.family.tokenizer
        rows = [self.family.row(tokenizer(example.texts[0])) for example in examples]
        lengths = torch.tensor([len(row) for row in rows])
        cuts = [int(each["words"].integers(1, len(row))) for each, row in zip(chance, rows, strict=True)]
        ids = text_of(rows, tokenizer.padding).ids
        text, labels = cut_captions(ids, lengths, torch.tensor(cuts), (tokenizer.mask, tokenizer.padding))
        looked = self.look([example.images[0] for example in examples], chance)
        rows_told = torch.arange(len(rows)), torch.tensor(cuts)
        targets = numbered(numbers, places=rows_told[0] * text.ids.shape[1] + rows_told[1], words=labels[rows_told])
        return {ONE: Batch(text, looked.visual, None, targets)}

    def counts(self, batches: Batches) -> dict[str, float]:
        return {"caption": len(one(batches))}

    def losses(self, model: nn.Module, batches: Batches) -> dict[str, Tensor]:
        return {"caption": class_loss(self._logits(model, one(batches)), one(batches).targets["words"])}

    def predict(self, model: nn.Module, batches: Batches) -> list[Prediction]:
        right = (self._logits(model, one(batches)).argmax(-1) == one(batches).targets["words"]).tolist()
        return [{"id": id, "right": each} for id, each in zip(self.ids(one(batches)), right, strict=True)]

    def score(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        return {self.metric: percent(sum(each["right"] for each in predictions), len(predictions))}

    def _logits(self, model: Any, batch: Batch) -> Tensor:
        """(B, W) at the word that is to be told."""
        states = self.family.states(model, batch)
        told = self.family.words(states).flatten(0, 1).index_select(0, batch.targets["places"])
        return self.family.word_logits(model, told)


class Captioning(SplitTask):
    """A caption of every image, the best of five beams; scored against the split's by the caption metrics.

    Args:
        split, family, visual, seed, training: as of `SplitTask`.

    Raises:
        TriptychError: captions cannot be scored here.
    """

    metric = "CIDEr"

    def __init__(self, split: Split, family: Family, visual: Visual, seed: int = 0, training: bool = False) -> None:
        require_scorer()
        super().__init__(split, family, visual, seed, training)

    def collate(self, numbers: Sequence[int], epoch: int) -> Batches:
        looked = self.visual.look([example.images[0] for example in self.examples(numbers)])
        rows = [self.family.row(()) for _ in numbers]
        text = text_of(rows, self.family.tokenizer.padding)
        return {ONE: Batch(text, looked.visual, targets=numbered(numbers))}

    def counts(self, batches: Batches) -> dict[str, float]:
        return {}

    def losses(self, model: nn.Module, batches: Batches) -> dict[str, Tensor]:
        return {}

    def predict(self, model: Any, batches: Batches) -> list[Prediction]:
        tokenizer, visual = self.family.tokenizer, one(batches).visual
        assert visual is not None
        search = Search(tokenizer.start, tokenizer.end, BEAMS, LONGEST)
        ids, _ = caption(model, visual, search, tokenizer.mask)
        texts = [tokenizer.text(row) for row in ids.tolist()]
        return [{"id": id, "caption": text} for id, text in zip(self.ids(one(batches)), texts, strict=True)]

    def score(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        return caption_scores(predictions, self.split.examples)

    def write(self, predictions: Sequence[Prediction], path: Path) -> None:
        write_captions(predictions, path)
