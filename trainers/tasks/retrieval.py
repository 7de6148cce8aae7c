"""Image and text retrieval: training against false texts, and the scores of all pairs of a split.

Training: each image with its text and 15 false ones, any of the split's; which is right is a choice of 16. Scoring: a
pair's score is the ranking head's, or before fine-tuning the match class of the pair head, with which the ranking head
begins. METER reads an image once for all texts; ViLT cannot, its layers see both.

Source: dandelin/ViLT `vilt/modules/objectives.py` compute_irtr, compute_irtr_recall. Shapes in this file: B images,
V visual inputs, F false texts, N texts of the split, C texts at once.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from trainers.batch import Batch, Text, VisualInput
from trainers.metrics import retrieval_recalls
from trainers.models.heads import class_loss
from trainers.models.meter import Meter, Seen
from trainers.tasks.base import Batches, Prediction
from trainers.tasks.common import ONE, SplitTask, numbered, one, percent
from trainers.tasks.families import Family
from trainers.tasks.rows import text_of

FALSE_TEXTS = 15
AT_ONCE = 128 * 768  # texts that are scored together, times the model's width: of a narrow one more, in equal memory
IMAGES, TEXTS = "images", "texts"
P = TypeVar("P")


class RetrievalTraining(SplitTask):
    """Texts among false ones, by the head "rank"; an example is an image and one of its texts (`one_a_text`)."""

    def collate(self, numbers: Sequence[int], epoch: int) -> Batches:
        chance, rows, images = self.chances(numbers, epoch), [], []
        for row, (number, each) in enumerate(zip(numbers, chance, strict=True)):
            false = each["pair"].integers(len(self), size=FALSE_TEXTS).tolist()
            texts = [self.split.examples[text].texts[0] for text in (number, *false)]
            rows += [self.family.row(self.family.tokenizer(text)) for text in texts]
            images += [row] * (1 + FALSE_TEXTS)
        looked = self.look([example.images[0] for example in self.examples(numbers)], chance)
        return {ONE: self.family.batch(rows, looked.visual, numbered(numbers), images)}

    def counts(self, batches: Batches) -> dict[str, float]:
        return {"rank": len(one(batches).text) // (1 + FALSE_TEXTS)}

    def losses(self, model: nn.Module, batches: Batches) -> dict[str, Tensor]:
        scores = self._scores(model, one(batches))
        return {"rank": class_loss(scores, torch.zeros(len(scores), dtype=torch.int64, device=scores.device))}

    def predict(self, model: nn.Module, batches: Batches) -> list[Prediction]:
        """Whether each text is chosen among its false ones."""
        right = (self._scores(model, one(batches)).argmax(-1) == 0).tolist()
        return [{"id": id, "right": each} for id, each in zip(self.ids(one(batches)), right, strict=True)]

    def score(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        return {"accuracy": percent(sum(each["right"] for each in predictions), len(predictions))}

    def _scores(self, model: Any, batch: Batch) -> Tensor:
        """(B, 1 + F): the right text's first."""
        pooled = self.family.pooled(model, self.family.states(model, batch))
        found: Tensor = model.heads["rank"](pooled).view(-1, 1 + FALSE_TEXTS)
        return found


class Retrieval(SplitTask):
    """The scores of every image with all texts of the split, in batches of texts; zero-shot where the model has no head
    for ranking but one for pairs. An example is an image with all its texts."""

    metric = "recall_mean"

    def collate(self, numbers: Sequence[int], epoch: int) -> Batches:
        looked = self.visual.look([self.split.examples[number].images[0] for number in numbers])
        rows = [self.family.row(()) for _ in numbers]
        padding = self.family.tokenizer.padding
        return {
            IMAGES: Batch(text_of(rows, padding), looked.visual, targets=numbered(numbers)),
            TEXTS: Batch(self._texts),
        }

    def counts(self, batches: Batches) -> dict[str, float]:
        return {}

    def losses(self, model: nn.Module, batches: Batches) -> dict[str, Tensor]:
        return {}

    def predict(self, model: nn.Module, batches: Batches) -> list[Prediction]:
        """Of each image its scores with all texts, float32 in base64."""
        visual = batches[IMAGES].visual
        assert visual is not None
        scores = all_scores(self.family, model, visual, batches[TEXTS].text)
        return [
            {"id": id, "scores": base64.b64encode(row.numpy().tobytes()).decode()}
            for id, row in zip(self.ids(batches[IMAGES]), scores.float().cpu(), strict=True)
        ]

    def score(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        scores = np.stack([np.frombuffer(base64.b64decode(each["scores"]), np.float32) for each in predictions])
        image_of = [number for number, example in enumerate(self.split.examples) for _ in example.texts]
        found = retrieval_recalls(scores, image_of)
        return {**found, self.metric: float(np.mean(list(found.values())))}

    @cached_property
    def _texts(self) -> Text:
        texts = [text for example in self.split.examples for text in example.texts]
        rows = [self.family.row(self.family.tokenizer(text)) for text in texts]
        return text_of(rows, self.family.tokenizer.padding)


def all_scores(family: Family, model: Any, visual: VisualInput, texts: Text) -> Tensor:
    """(V, N): each image with each text."""
    at_once = max(1, AT_ONCE // model.config.layer.dim)
    if isinstance(model, Meter):
        seen = model.see(visual)
        return torch.stack(
            [
                torch.cat([_ranks(model, _fused(model, text, _row(seen, image))) for text in _chunks(texts, at_once)])
                for image in range(len(visual))
            ]
        )
    rows = []
    for image in range(len(visual)):
        alone, scores = nth(visual, image), []
        for text in _chunks(texts, at_once):
            batch = Batch(text, alone, (0,) * len(text))
            batch = replace(batch, layout=family.layout(batch))
            scores.append(_ranks(model, family.pooled(model, family.states(model, batch))))
        rows.append(torch.cat(scores))
    return torch.stack(rows)


def _fused(model: Meter, text: Text, seen: Seen) -> Tensor:
    of = torch.zeros(len(text), dtype=torch.int64, device=seen.tokens.device)
    return model.pooled(model.fuse(text, seen, of))


def _ranks(model: Any, pooled: Tensor) -> Tensor:
    """(C,) scores of pairs."""
    scores: Tensor = model.heads["rank"](pooled)[:, 0] if "rank" in model.heads else model.heads["itm"](pooled)[:, 1]
    return scores


def _row(seen: Seen, image: int) -> Seen:
    mask = None if seen.mask is None else seen.mask[image : image + 1]
    return replace(seen, tokens=seen.tokens[image : image + 1], mask=mask)


def _chunks(texts: Text, at_once: int) -> Iterator[Text]:
    """So many texts at a time, padded to the longest of them."""
    assert texts.lengths is not None
    for start in range(0, len(texts), at_once):
        lengths = texts.lengths[start : start + at_once]
        width, stop = max(lengths), start + len(lengths)
        mask = None if texts.mask is None else texts.mask[start:stop, :width]
        yield Text(texts.ids[start:stop, :width], mask, lengths=lengths)


def nth(visual: P, number: int) -> P:
    """One image of a visual input."""
    assert is_dataclass(visual) and not isinstance(visual, type)
    found = {each.name: _part(getattr(visual, each.name), number) for each in fields(visual)}
    return replace(visual, **found)


def _part(value: Any, number: int) -> Any:
    if isinstance(value, Tensor | tuple):
        return value[number : number + 1]
    return value if value is None else nth(value, number)
