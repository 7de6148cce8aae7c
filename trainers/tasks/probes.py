"""What pre-training did to METER's encoders: a linear probe of the image encoder, fine-tuning of the text encoder.

Source: METER, appendix F: a linear classifier on the fixed image encoder (CIFAR-10 and 100), and GLUE tasks with the
text encoder alone, as RoBERTa is fine-tuned for them. Shapes in this file: B examples, L tokens, D width, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from trainers.batch import Batch, Pixels, Text
from trainers.models.heads import class_loss
from trainers.models.image_towers import ImageTower
from trainers.models.text_towers import TextTower
from trainers.tasks.base import Batches, Prediction
from trainers.tasks.common import ONE, SplitTask, labels_of_truth, numbered, one
from trainers.tasks.rows import text_of


class ImageProbe(nn.Module):
    """A linear classifier on an image encoder that stays as it is: of its class token, or its tokens' mean."""

    def __init__(self, tower: ImageTower, classes: int) -> None:
        super().__init__()
        self.tower = tower.requires_grad_(False)
        self.classifier = nn.Linear(tower.dim, classes)

    def train(self, mode: bool = True) -> ImageProbe:
        """The encoder never drops anything out."""
        super().train(mode)
        self.tower.eval()
        return self

    def forward(self, batch: Batch) -> Tensor:
        """(B, C)."""
        assert isinstance(batch.visual, Pixels)
        with torch.no_grad():
            tokens = self.tower(batch.visual)
        logits: Tensor = self.classifier(tokens[:, 0] if self.tower.has_class else tokens.mean(1))
        return logits


class TextProbe(nn.Module):
    """RoBERTa's classifier on a text encoder, all of it trained: dropout, linear, tanh, dropout, linear."""

    def __init__(self, tower: TextTower, classes: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.tower = tower
        self.classifier = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(tower.dim, tower.dim),
            nn.Tanh(),
            nn.Dropout(dropout),
            nn.Linear(tower.dim, classes),
        )

    def forward(self, batch: Batch) -> Tensor:
        """(B, C)."""
        logits: Tensor = self.classifier(self.tower(batch.text)[:, 0])
        return logits


class _Classes(SplitTask):
    """One class an example; of `truth` its "label"."""

    def counts(self, batches: Batches) -> dict[str, float]:
        return {"class": len(one(batches))}

    def losses(self, model: nn.Module, batches: Batches) -> dict[str, Tensor]:
        return {"class": class_loss(model(one(batches)), one(batches).targets["labels"])}

    def predict(self, model: nn.Module, batches: Batches) -> list[Prediction]:
        found = model(one(batches)).argmax(-1).tolist()
        return [{"id": id, "label": each} for id, each in zip(self.ids(one(batches)), found, strict=True)]

    def score(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        found = np.array([each["label"] for each in predictions])
        truth = np.array([example.truth["label"] for example in self.split.examples])
        return {"accuracy": 100 * float((found == truth).mean()), "matthews": 100 * matthews(found, truth)}


class ImageClasses(_Classes):
    """Classes of images, for `ImageProbe`."""

    def collate(self, numbers: Sequence[int], epoch: int) -> Batches:
        examples, chance = self.examples(numbers), self.chances(numbers, epoch)
        looked = self.look([example.images[0] for example in examples], chance)
        text = Text(torch.zeros(len(examples), 1, dtype=torch.int64))
        return {ONE: Batch(text, looked.visual, targets=numbered(numbers, labels=labels_of_truth(examples)))}


class TextClasses(_Classes):
    """Classes of texts or of pairs of texts, for `TextProbe`."""

    def collate(self, numbers: Sequence[int], epoch: int) -> Batches:
        examples, tokenizer = self.examples(numbers), self.family.tokenizer
        rows = [self.family.row(*(tokenizer(text) for text in example.texts)) for example in examples]
        targets = numbered(numbers, labels=labels_of_truth(examples))
        return {ONE: Batch(text_of(rows, tokenizer.padding), None, targets=targets)}


def matthews(found: np.ndarray, truth: np.ndarray) -> float:
    """Matthews' correlation of classes (CoLA's metric), -1 to 1; 0 where either names one class only."""
    classes = np.union1d(found, truth)
    one_hot = [(each[:, None] == classes).astype(np.float64) for each in (found, truth)]
    centred = [each - each.mean(0) for each in one_hot]
    shared, *own = [(a * b).sum() for a, b in (centred, (centred[0],) * 2, (centred[1],) * 2)]
    return float(shared / np.sqrt(own[0] * own[1])) if own[0] * own[1] > 0 else 0.0
