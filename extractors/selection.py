"""Which of a detector's boxes are kept: the published rules, one function each.

All of them take one image's proposals and predictions and give `Selected`, in the order the official code gives.
Shapes: R proposals, K classes, N kept. Boxes come out in pixels of the original image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from extractors import boxes as box_ops
from extractors.faster_rcnn import Conventions, Predictions
from extractors.launching import to_device


class Frame(NamedTuple):
    """Where an image's pixels lie: sizes are (height, width), `scale` is input pixels per original pixel (Caffe)."""

    input_size: tuple[int, int]
    image_size: tuple[int, int]
    scale: float

    def to_original(self, boxes: Tensor) -> Tensor:
        """Input pixels to original pixels, an axis at a time; cut to the image as detectron2's postprocessing does."""
        return box_ops.clip(boxes * self._factors(boxes), *self.image_size)

    def to_input(self, boxes: Tensor) -> Tensor:
        return boxes / self._factors(boxes)

    def _factors(self, boxes: Tensor) -> Tensor:
        (height, width), (raw_height, raw_width) = self.input_size, self.image_size
        return box_ops.corners(boxes, raw_width / width, raw_height / height)


class Selected(NamedTuple):
    """rows (N,) int64 into the proposals, boxes (N, 4) original pixels, class_ids (N,) int64, class_scores (N,)."""

    rows: Tensor
    boxes: Tensor
    class_ids: Tensor
    class_scores: Tensor


@dataclass(frozen=True)
class Selection:
    """A rule with its thresholds.

    rule             "10-100", "class-aware", "class-agnostic", "detectron2" or "given"
    min_boxes        10-100: at least so many, by confidence where fewer reach the threshold
    max_boxes        at most so many; the number the two loops aim for
    score_threshold  all rules but class-agnostic
    nms_threshold    where the loops start; the loops rise by 0.1 to below 1
    """

    rule: str
    min_boxes: int
    max_boxes: int
    score_threshold: float
    nms_threshold: float


DEFAULTS = {
    "10-100": Selection("10-100", 10, 100, 0.2, 0.3),
    "class-aware": Selection("class-aware", 0, 36, 0.2, 0.5),
    "class-agnostic": Selection("class-agnostic", 0, 36, 0.0, 0.3),
    "detectron2": Selection("detectron2", 0, 100, 0.05, 0.5),
}
DEFAULT_RULE = {"caffe": "10-100", "py-bottom-up-attention": "class-aware", "grid-feats-vqa": "detectron2"}


def ten_to_hundred(boxes: Tensor, class_probs: Tensor, rule: Selection) -> tuple[Tensor, Tensor]:
    """The 10-100 rule: every confident box, in proposal order, but no fewer than min and no more than max.

    Source: peteanderson80/bottom-up-attention `tools/generate_tsv.py`; MILVLG/bottom-up-attention.pytorch
    `utils/extract_utils.py` save_roi_features.

    Args:
        boxes: (R, 4), the proposals in original pixels.
        class_probs: (R, K) without background.

    Returns:
        rows (N,) int64 and every proposal's confidence (R,): its best probability among the classes it survives in.
    """
    [rows], [count], [confidence] = _ten_to_hundred(boxes[None], class_probs[None], rule, None)
    return rows[:count], confidence


def _ten_to_hundred(
    boxes: Tensor, class_probs: Tensor, rule: Selection, counts: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """As `ten_to_hundred` of several images, without waiting for a GPU: rows (B, max_boxes or R), how many of them are
    kept (B,), and confidence (B, R).

    Args:
        counts: (B,), how many of the boxes are proposals; None: all.
    """
    survivors = box_ops.class_survivors_together(boxes, class_probs, rule.nms_threshold, counts)
    confidence = torch.where(survivors, class_probs, 0).amax(dim=2)
    ranked_by, most = confidence, torch.full((len(boxes),), boxes.shape[1], device=boxes.device)
    if counts is not None:
        ranked_by, most = (
            confidence.where(torch.arange(boxes.shape[1], device=boxes.device) < counts[:, None], -1),
            counts,
        )
    reached = ranked_by >= rule.score_threshold
    enough = reached.sum(dim=1)
    in_order = (~reached).to(torch.uint8).argsort(dim=1, stable=True)  # those reached come first
    ranked = ranked_by.argsort(dim=1, descending=True, stable=True)
    within = (enough >= rule.min_boxes) & (enough <= rule.max_boxes)
    rows = torch.where(within[:, None], in_order, ranked)[:, : rule.max_boxes]
    return rows, torch.minimum(enough.clamp(rule.min_boxes, rule.max_boxes), most), confidence


def by_confidence(proposals: Tensor, found: Predictions, frame: Frame, rule: Selection) -> Selected:
    """10-100 on one image: proposals over the scale, not regressed and not clipped, with their arg-max classes."""
    together = Predictions(*(each[None] for each in found))
    selected, [count] = by_confidence_together(proposals[None], together, [frame], rule, None)
    return Selected(*(each[0, :count] for each in selected))


def by_confidence_together(
    proposals: Tensor, found: Predictions, frames: Sequence[Frame], rule: Selection, counts: Tensor | None
) -> tuple[Selected, Tensor]:
    """As `by_confidence` of several images, without waiting for a GPU.

    Args:
        proposals: (B, R, 4).
        found: as for one image, with B before all.
        counts: (B,), how many of the proposals are some; None: all.

    Returns:
        what is selected, (B, N, ...), N known beforehand, and how much of it is (B,); what is behind means nothing.
    """
    scales = torch.tensor([each.scale for each in frames], dtype=torch.float32)[:, None, None]
    boxes = proposals / to_device(scales, proposals.device)
    rows, kept, _ = _ten_to_hundred(boxes, found.class_probs[..., :-1], rule, counts)
    scores, classes = box_ops.taken(found.class_probs, rows)[..., :-1].max(dim=2)
    return Selected(rows, box_ops.taken(boxes, rows), classes, scores), kept


def class_aware(regressed: Tensor, found: Predictions, frame: Frame, rule: Selection) -> Selected:
    """Exactly max_boxes where the suppression can be relaxed to give them; a proposal may appear as several classes.

    Source: airsplay/py-bottom-up-attention `demo/demo_feature_extraction_attr.ipynb`: scores above the threshold,
    per-class NMS at 0.5, 0.6, ... 0.9 until exactly max_boxes are left; otherwise the last threshold's boxes stand.
    Unlike there, a box that is empty after rescaling goes together with its feature.

    Args:
        regressed: (R, K, 4) class-specific boxes in input pixels.
    """
    confident = _confident(regressed, found, frame, rule)
    kept = confident.rows[:0]
    for threshold in np.arange(rule.nms_threshold, 1.0, 0.1):
        kept = _within_classes(confident, float(threshold))[: rule.max_boxes]
        if len(kept) == rule.max_boxes:
            break
    return in_original(_rows_of(confident, kept), frame)


def detectron2_inference(regressed: Tensor, found: Predictions, frame: Frame, rule: Selection) -> Selected:
    """What detectron2 itself detects: the best of one per-class NMS; a proposal may appear as several classes.

    Source: facebookresearch/detectron2 `modeling/roi_heads/fast_rcnn.py` fast_rcnn_inference, and its defaults. As
    there, and unlike the other rules, no box is kept to make up a number.

    Args:
        regressed: (R, K, 4) class-specific boxes in input pixels.
    """
    confident = _confident(regressed, found, frame, rule)
    ranked = _rows_of(confident, confident.class_scores.argsort(descending=True, stable=True))
    kept, count = ranked.rows[:0], 0
    while len(kept) < rule.max_boxes and count < len(ranked.rows):
        # A box is suppressed by better ones alone, so the best boxes are those of the best part: with a low threshold
        # there are 1600 times as many as proposals.
        count = max(20 * rule.max_boxes, 4 * count)
        kept = _within_classes(Selected(*(each[:count] for each in ranked)), rule.nms_threshold)[: rule.max_boxes]
    return in_original(_rows_of(ranked, kept), frame)


def class_agnostic(regressed: Tensor, found: Predictions, frame: Frame, rule: Selection) -> Selected:
    """The best class of each proposal, suppressed across classes; no score threshold.

    Source: airsplay/py-bottom-up-attention `demo/detectron2_mscoco_proposal_maxnms.py` (LXMERT's features): NMS at
    0.3, 0.4, ... 0.9 until at least max_boxes are left.
    """
    scores, classes = found.class_probs[:, :-1].max(dim=1)
    everyone = torch.arange(len(scores), device=scores.device)
    boxes = box_ops.clip(regressed[everyone, classes], *frame.input_size)
    kept = everyone[:0]
    for threshold in np.arange(rule.nms_threshold, 1.0, 0.1):
        kept = box_ops.nms(boxes, scores, float(threshold))[: rule.max_boxes]
        if len(kept) == rule.max_boxes:
            break
    return in_original(Selected(kept, boxes[kept], classes[kept], scores[kept]), frame)


def given(boxes: Tensor, regressed: Tensor | None, found: Predictions, frame: Frame) -> Selected:
    """The user's boxes in the user's order, each with its best class; regressed boxes where asked for.

    Source: airsplay/py-bottom-up-attention `demo/demo_feature_extraction_attr_given_box.ipynb`.

    Args:
        boxes: (N, 4) in original pixels.
        regressed: (N, K, 4) in input pixels, or None to keep the boxes as given.
    """
    scores, classes = found.class_probs[:, :-1].max(dim=1)
    rows = torch.arange(len(boxes), device=scores.device)
    if regressed is not None:
        boxes = frame.to_original(box_ops.clip(regressed[rows, classes], *frame.input_size))
    return Selected(rows, boxes, classes, scores)


def whole_image_box(size: tuple[int, int], conventions: Conventions) -> Tensor:
    """(1, 4): one RoI over the network's whole input, inclusive of the last pixel in Caffe's convention."""
    height, width = size
    return torch.tensor([[0.0, 0.0, width - conventions.plus, height - conventions.plus]])


ON_REGRESSED = {
    "class-aware": class_aware,
    "class-agnostic": class_agnostic,
    "detectron2": detectron2_inference,
}


def _confident(regressed: Tensor, found: Predictions, frame: Frame, rule: Selection) -> Selected:
    """Every class of every proposal that is above the score threshold; boxes still in input pixels."""
    rows, classes = (found.class_probs[:, :-1] > rule.score_threshold).nonzero(as_tuple=True)
    boxes = box_ops.clip(regressed[rows, classes], *frame.input_size)
    return Selected(rows, boxes, classes, found.class_probs[rows, classes])


def _within_classes(found: Selected, threshold: float) -> Tensor:
    return box_ops.nms_within_classes(found.boxes, found.class_scores, found.class_ids, threshold)


def _rows_of(selected: Selected, rows: Tensor) -> Selected:
    return Selected(*(each[rows] for each in selected))


def in_original(selected: Selected, frame: Frame) -> Selected:
    """Boxes in input pixels to original pixels; one that is empty then goes."""
    moved = selected._replace(boxes=frame.to_original(selected.boxes))
    good = box_ops.nonempty(moved.boxes)
    return Selected(*(each[good] for each in moved))
