"""RefCOCO+: which box does an expression speak of? VL-BERT scores every box of the image, and the whole image's.

The boxes are those that the visual input has: ground truth, extracted as given boxes, or a detector's. In training a
box is right where it meets the true one with an IoU above 0.5; an answer is right from 0.5 on, in pixels of the
original, both ends counted.
Source: jackroos/VL-BERT `refcoco/modules/resnet_vlbert_for_refcoco.py`, `refcoco/data/datasets/refcoco.py`. Shapes in
this file: B expressions, N boxes, the whole image's before them not counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainers.batch import Batch, Regions
from trainers.data.base import Example
from trainers.data.submissions import write_refcoco
from trainers.flip import mirrored_boxes, mirrored_text
from trainers.metrics import box_iou, refcoco_accuracy
from trainers.models.heads import binary_loss
from trainers.tasks.base import Batches, Prediction
from trainers.tasks.common import ONE, SplitTask, numbered, one
from trainers.visual import Looked, VisualError

HEAD, RIGHT = "refcoco", 0.5


class Expressions(SplitTask):
    """RefCOCO+ for VL-BERT, by the head "refcoco" on the states of all boxes."""

    def collate(self, numbers: Sequence[int], epoch: int) -> Batches:
        examples, chance = self.examples(numbers), self.chances(numbers, epoch)
        flips = self.flips(chance)
        texts = [
            mirrored_text(example.texts[0]) if flip else example.texts[0]
            for example, flip in zip(examples, flips, strict=True)
        ]
        rows = [self.family.row(self.family.tokenizer(text)) for text in texts]
        looked = self.look([example.images[0] for example in examples], chance, flips)
        boxes, counted = boxes_of(looked)
        truth = torch.tensor([_truth(example) for example in examples])
        other_side = mirrored_boxes(truth[:, None], looked.sizes[:, 1])[:, 0]
        truth = torch.where(torch.tensor(flips)[:, None], other_side, truth)
        overlap = box_iou(boxes.flatten(0, 1).numpy(), truth.repeat_interleave(boxes.shape[1], 0).numpy())
        right = torch.from_numpy(overlap).view(counted.shape) > RIGHT
        targets = numbered(numbers, boxes=boxes, counted=counted, right=right & counted)
        return {ONE: self.family.batch(rows, looked.visual, targets)}

    def counts(self, batches: Batches) -> dict[str, float]:
        return {HEAD: float(one(batches).targets["counted"].sum())}

    def losses(self, model: nn.Module, batches: Batches) -> dict[str, Tensor]:
        targets = one(batches).targets
        return {HEAD: binary_loss(self._logits(model, one(batches)), targets["right"], targets["counted"])}

    def predict(self, model: nn.Module, batches: Batches) -> list[Prediction]:
        """Of each expression the box with the highest score, x1 y1 x2 y2 in pixels of the original."""
        targets = one(batches).targets
        best = self._logits(model, one(batches)).masked_fill(~targets["counted"], -torch.inf).argmax(-1)
        found = targets["boxes"][torch.arange(len(best), device=best.device), best].tolist()
        return [{"id": id, "box": box} for id, box in zip(self.ids(one(batches)), found, strict=True)]

    def score(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        return refcoco_accuracy(predictions, self.split.examples)

    def write(self, predictions: Sequence[Prediction], path: Path) -> None:
        write_refcoco(predictions, path)

    def _logits(self, model: Any, batch: Batch) -> Tensor:
        """(B, 1 + N): of the whole image, then of its boxes."""
        found: Tensor = model.heads[HEAD](self.family.states(model, batch).visual)[..., 0]
        return found


def boxes_of(looked: Looked) -> tuple[Tensor, Tensor]:
    """(B, 1 + N, 4) boxes in pixels of the originals, the whole image's first, and (B, 1 + N) bool, True where real.

    Raises:
        VisualError: the visual input has no boxes.
    """
    regions = looked.visual
    if not isinstance(regions, Regions):
        raise VisualError(f"expressions speak of boxes, {type(regions).__name__} have none; use a store of regions.")
    assert regions.lengths is not None
    height, width = looked.sizes.T
    whole = torch.stack([torch.zeros_like(width), torch.zeros_like(width), width - 1, height - 1], dim=-1)
    counted = torch.arange(1 + regions.boxes.shape[1]) <= torch.tensor(regions.lengths)[:, None]
    return torch.cat([whole[:, None], looked.original_boxes()], dim=1), counted


def _truth(example: Example) -> list[float]:
    """The true box; where it is not published, one that no box meets."""
    return [float(each) for each in example.truth["box"]] if "box" in example.truth else [-2.0, -2.0, -2.0, -2.0]
