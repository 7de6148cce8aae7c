"""Which of a detector's boxes are kept: the published rules, one function each.

All but the one for given boxes take the proposals of a batch and give `Selected`, in the order the official code gives.
A GPU is not waited for: what there is, is counted on it, and every image has room for as much as there can be.
Shapes: B images, R proposals, K classes, N kept. Boxes come out in pixels of the original image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from extractors import boxes as box_ops
from extractors.faster_rcnn import Conventions, Predictions
from extractors.launching import to_device
from extractors.suppression import taken

Regress = Callable[[Tensor, Tensor], Tensor]
Candidates = tuple[Tensor, Tensor, Tensor]  # rows, classes and scores, all (B, N); a score of -inf is of none


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


class Proposed(NamedTuple):
    """What there is to select from in B images.

    boxes    (B, R, 4) float32 proposals in input pixels
    counts   (B,) int64, how many of them are some; behind these are any boxes, which are none
    found    what the heads say, with B before all
    frames   of each image
    regress  from rows and classes, (B, N) int64 both, to where these proposals are moved as these classes, (B, N, 4) in
             input pixels, not clipped
    """

    boxes: Tensor
    counts: Tensor
    found: Predictions
    frames: Sequence[Frame]
    regress: Regress

    @property
    def class_probs(self) -> Tensor:
        """(B, R, K), without background."""
        return self.found.class_probs[..., :-1]

    @property
    def there(self) -> Tensor:
        """(B, R) bool: which are some."""
        return within(self.counts, self.boxes.shape[1])


class Selected(NamedTuple):
    """rows (B, N) int64 into the proposals, boxes (B, N, 4) original pixels, class_ids (B, N) int64, class_scores
    (B, N); of given boxes without B."""

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


def select(proposed: Proposed, rule: Selection) -> tuple[Selected, Tensor]:
    """By any of `RULES`: what is selected, N known beforehand, and how much of it is (B,); behind this is anything."""
    return RULES[rule.rule](proposed, rule)


def by_confidence(proposed: Proposed, rule: Selection) -> tuple[Selected, Tensor]:
    """The 10-100 rule: every confident box, in proposal order, but no fewer than min and no more than max.

    They are proposals over the scale, not regressed and not clipped, with their arg-max classes.

    Source: peteanderson80/bottom-up-attention `tools/generate_tsv.py`; MILVLG/bottom-up-attention.pytorch
    `utils/extract_utils.py` save_roi_features.
    """
    scales = torch.tensor([each.scale for each in proposed.frames], dtype=torch.float32)[:, None, None]
    boxes = proposed.boxes / to_device(scales, proposed.boxes.device)
    confidence = confidences(boxes, proposed.class_probs, rule.nms_threshold, proposed.counts)
    ranked_by = confidence.where(proposed.there, -1)
    reached = ranked_by >= rule.score_threshold
    enough = reached.sum(dim=1)
    in_order = (~reached).to(torch.uint8).argsort(dim=1, stable=True)  # those reached come first
    ranked = ranked_by.argsort(dim=1, descending=True, stable=True)
    between = (enough >= rule.min_boxes) & (enough <= rule.max_boxes)
    rows = torch.where(between[:, None], in_order, ranked)[:, : rule.max_boxes]
    scores, classes = taken(proposed.class_probs, rows).max(dim=2)
    kept = torch.minimum(enough.clamp(rule.min_boxes, rule.max_boxes), proposed.counts)
    return Selected(rows, taken(boxes, rows), classes, scores), kept


def confidences(boxes: Tensor, class_probs: Tensor, threshold: float, counts: Tensor) -> Tensor:
    """Of every proposal (B, R, 4) in original pixels its best probability among the classes it survives in, (B, R)."""
    survivors = box_ops.class_survivors_together(boxes, class_probs, threshold, counts)
    return torch.where(survivors, class_probs, 0).amax(dim=2)


def class_aware(proposed: Proposed, rule: Selection) -> tuple[Selected, Tensor]:
    """Exactly max_boxes where the suppression can be relaxed to give them; a proposal may appear as several classes.

    Source: airsplay/py-bottom-up-attention `demo/demo_feature_extraction_attr.ipynb`: scores above the threshold,
    per-class NMS at 0.5, 0.6, ... 0.9 until exactly max_boxes are left; otherwise the last threshold's boxes stand.
    Unlike there, a box that is empty after rescaling goes together with its feature.
    """
    candidates = _confident(proposed, rule.score_threshold)
    return _suppressed(proposed, candidates, _rising(rule), rule.max_boxes, by_class=True)


def detectron2_inference(proposed: Proposed, rule: Selection) -> tuple[Selected, Tensor]:
    """What detectron2 itself detects: the best of one per-class NMS; a proposal may appear as several classes.

    Source: facebookresearch/detectron2 `modeling/roi_heads/fast_rcnn.py` fast_rcnn_inference, and its defaults. As
    there, and unlike the other rules, no box is kept to make up a number.
    """
    candidates = _confident(proposed, rule.score_threshold)
    return _suppressed(proposed, candidates, [rule.nms_threshold], rule.max_boxes, by_class=True)


def class_agnostic(proposed: Proposed, rule: Selection) -> tuple[Selected, Tensor]:
    """The best class of each proposal, suppressed across classes; no score threshold.

    Source: airsplay/py-bottom-up-attention `demo/detectron2_mscoco_proposal_maxnms.py` (LXMERT's features): NMS at
    0.3, 0.4, ... 0.9 until at least max_boxes are left.
    """
    scores, classes = proposed.class_probs.max(dim=2)
    rows = torch.arange(scores.shape[1], device=scores.device).expand_as(classes)
    scores = scores.where(proposed.there, -torch.inf)
    return _suppressed(proposed, (rows, classes, scores), _rising(rule), rule.max_boxes, by_class=False)


RULES = {
    "10-100": by_confidence,
    "class-aware": class_aware,
    "class-agnostic": class_agnostic,
    "detectron2": detectron2_inference,
}


def given(boxes: Tensor, regress: Regress | None, found: Predictions, frame: Frame) -> Selected:
    """One image's boxes that the user gave, in the user's order, each with its best class; regressed where asked for.

    Source: airsplay/py-bottom-up-attention `demo/demo_feature_extraction_attr_given_box.ipynb`.

    Args:
        boxes: (N, 4) in original pixels.
        regress: as in `Proposed`, of one image, or None to keep the boxes as given.
    """
    scores, classes = found.class_probs[:, :-1].max(dim=1)
    rows = torch.arange(len(boxes), device=scores.device)
    if regress is not None:
        boxes = frame.to_original(box_ops.clip(regress(rows[None], classes[None])[0], *frame.input_size))
    return Selected(rows, boxes, classes, scores)


def whole_image_box(size: tuple[int, int], conventions: Conventions) -> Tensor:
    """(1, 4): one RoI over the network's whole input, inclusive of the last pixel in Caffe's convention."""
    height, width = size
    return torch.tensor([[0.0, 0.0, width - conventions.plus, height - conventions.plus]])


def within(counts: Tensor, places: int) -> Tensor:
    """(B, places) bool: the first `counts` (B,) of each row."""
    return torch.arange(places, device=counts.device) < counts[:, None]


def _rising(rule: Selection) -> list[float]:
    """The thresholds that suppression is relaxed by."""
    return [float(each) for each in np.arange(rule.nms_threshold, 1.0, 0.1)]


def _confident(proposed: Proposed, threshold: float) -> Candidates:
    """Every class of every proposal that is above a score threshold, by proposal and then by class."""
    probs, there = proposed.class_probs, proposed.there[..., None]
    proposals, classes = probs.shape[1:]
    # The probabilities of a proposal sum to 1, but for their rounding.
    most = min(classes, int(1 / threshold) + 1) if threshold * classes > 1 else classes
    scores, ids = probs.topk(most, dim=2)
    ids, order = ids.sort(dim=2)
    scores = scores.gather(2, order)
    rows = torch.arange(proposals, device=ids.device)[:, None].expand_as(ids)
    scores = scores.where((scores > threshold) & there, -torch.inf)
    return rows.flatten(1), ids.flatten(1), scores.flatten(1)


def _suppressed(
    proposed: Proposed, candidates: Candidates, thresholds: Sequence[float], most: int, by_class: bool
) -> tuple[Selected, Tensor]:
    """The best candidates that suppression leaves, at the first threshold that leaves `most`, or at the last."""
    rows, classes, scores = candidates
    frames = to_device(_frames(proposed.frames), scores.device)
    boxes = box_ops.clip_to(proposed.regress(rows, classes), frames[0])
    kept, counts = box_ops.nms_together(boxes, scores, thresholds, 0, most, classes if by_class else None)
    boxes = box_ops.clip_to(taken(boxes, kept) * frames[1], frames[2])
    # A box that is empty in original pixels goes: those that stay come first.
    good = box_ops.nonempty(boxes) & within(counts, kept.shape[1])
    order = (~good).to(torch.uint8).argsort(dim=1, stable=True)
    kept = kept.gather(1, order)
    of_kept = (each.gather(1, kept) for each in (classes, scores))
    return Selected(rows.gather(1, kept), taken(boxes, order), *of_kept), good.sum(dim=1)


def _frames(frames: Sequence[Frame]) -> Tensor:
    """(3, B, 1, 4) float32, of x, y, x, y: sizes in input pixels, factors to original ones, sizes in these."""
    found = []
    for (height, width), (raw_height, raw_width), _ in frames:
        pairs = ((width, height), (raw_width / width, raw_height / height), (raw_width, raw_height))
        found.append([[*pair, *pair] for pair in pairs])
    return torch.tensor(found, dtype=torch.float32).transpose(0, 1)[:, :, None]
