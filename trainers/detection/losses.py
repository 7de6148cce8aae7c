"""The losses of a detector in training: of its proposals, classes, boxes and attributes.

Shapes in this file: B images, N anchors of each, G true boxes, padded, S RoIs drawn of each image, K classes, A
attributes of a box, padded.

Sources. Proposals, classes and boxes: facebookresearch/detectron2 `modeling/proposal_generator/rpn.py`,
`modeling/roi_heads/roi_heads.py`, `fast_rcnn.py`; smooth L1 from 1/9 (proposals) and 1 (boxes) on, as in
facebookresearch/grid-feats-vqa `configs/Base-RCNN-grid.yaml` and in peteanderson80/bottom-up-attention
`models/vg/ResNet-101/faster_rcnn_end2end_final/train.prototxt`. Attributes: both projects take a softmax over all
attributes at foreground RoIs, with the embedding of their true class. Of a box with several attributes grid-feats-vqa
(`grid_feats/roi_heads.py`, AttributePredictor.loss) takes the mean over them, then the mean over the RoIs that have
some, times 0.2 (`grid_feats/config.py`); so it is here, for the bottom-up detector with its own weight, 0.5
(`train.prototxt`).

How many RoIs: the bottom-up detector's head is res5 on each, and its code draws 64 an image, up to half of them
foreground (`train.prototxt` cuts them apart after 32). A grid network's is two small layers; detectron2's 512 and a
quarter are taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from extractors import boxes as box_ops
from extractors.boxes import taken
from extractors.faster_rcnn import STRIDE, BottomUpDetector
from extractors.grid_detector import GridDetector
from extractors.trunk import SHARED_STAGE
from trainers.batch import Regions
from trainers.detection.targets import FOREGROUND, draw, encode, match, overlaps

UNIT = (1.0, 1.0, 1.0, 1.0)
ANCHORS, PROPOSAL_BETA, BOX_BETA = 256, 1 / 9, 1.0


@dataclass(frozen=True)
class Rules:
    """What the two detectors differ in.

    rois, foreground  RoIs drawn an image, and the largest share of foreground among them
    attributes        weight of the attributes' loss
    """

    rois: int
    foreground: float
    attributes: float


BOTTOM_UP, GRID = Rules(64, 0.5, 0.5), Rules(512, 0.25, 0.2)


@dataclass(frozen=True)
class Truth:
    """What is in the images of a batch.

    boxes       (B, G, 4) float32, in pixels of the network's input; G > 0
    real        (B, G) bool: False where a row is padding
    classes     (B, G) int64
    attributes  (B, G, A) int64, -1 where there are no more
    sizes       of each image (height, width) of its part of the input, on the host
    """

    boxes: Tensor
    real: Tensor
    classes: Tensor
    attributes: Tensor
    sizes: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, visual: Regions, classes: Tensor, attributes: Tensor) -> Truth:
        """From a batch's regions, which hold pixels."""
        assert visual.pixels is not None and visual.pixels.shapes is not None
        real = classes.new_ones(classes.shape, dtype=torch.bool) if visual.mask is None else visual.mask
        return cls(visual.boxes, real, classes, attributes, visual.pixels.shapes)


class Rois(NamedTuple):
    """What the heads are trained on: boxes (B, S, 4); of each the row (B, S) of its true box, whether it counts (too
    few may have been there to draw from), and its label (B, S) as of `match`."""

    boxes: Tensor
    rows: Tensor
    counts: Tensor
    labels: Tensor


def rules_of(detector: BottomUpDetector) -> Rules:
    return GRID if isinstance(detector, GridDetector) else BOTTOM_UP


def losses(detector: BottomUpDetector, images: Tensor, truth: Truth) -> dict[str, Tensor]:
    """Each loss, the mean over the images.

    Args:
        images: (B, 3, h, w), normalised, zero outside of each image: as in detectron2 the padding is mean colour.
    """
    cells = detector.cells(detector.backbone(images.contiguous(memory_format=torch.channels_last), SHARED_STAGE))
    logits, deltas = (each.float() for each in detector.proposal_generator.rpn_head(cells))
    with torch.autocast(images.device.type, enabled=False):
        found = proposal_losses(detector, logits, deltas, truth)
        with torch.no_grad():
            rois = _rois(detector, (logits, deltas), truth)
    features = detector.roi_heads.features_in_batch(cells, rois.boxes)
    with torch.autocast(images.device.type, enabled=False):
        return found | _head_losses(detector, features, rois, truth)


def proposal_losses(detector: BottomUpDetector, logits: Tensor, deltas: Tensor, truth: Truth) -> dict[str, Tensor]:
    """Whether anchors are objects, and where these lie: logits (B, a, h, w), deltas (B, 4a, h, w)."""
    cell = detector.proposal_generator.anchor_generator.cell
    anchors = box_ops.shifted_anchors(cell, (logits.shape[2], logits.shape[3]), STRIDE)[None]
    found = match(overlaps(truth.boxes, truth.real, anchors), 0.7, 0.3, best_too=True)
    drawn = draw(found.labels, ANCHORS, 0.5)
    scores, moves = _by_anchor(logits, deltas)
    logits, deltas = taken(scores, drawn.rows), taken(moves, drawn.rows)
    is_object = taken(found.labels, drawn.rows) == FOREGROUND
    goal = taken(truth.boxes, taken(found.rows, drawn.rows))
    is_placed = is_object & drawn.counts
    wanted = _goals(goal, taken(anchors.expand(len(goal), -1, -1), drawn.rows), UNIT, is_placed)
    scored = F.binary_cross_entropy_with_logits(logits, is_object.float(), reduction="none")
    placed = F.smooth_l1_loss(deltas, wanted, reduction="none", beta=PROPOSAL_BETA).sum(dim=2)
    per = ANCHORS * len(logits)
    return {
        "proposal": (scored * drawn.counts).sum() / per,
        "proposal_box": placed.where(is_placed, 0.0).sum() / per,
    }


def proposals(
    detector: BottomUpDetector, logits: Tensor, deltas: Tensor, sizes: Sequence[tuple[int, int]]
) -> list[Tensor]:
    """Each image's proposals (P, 4), best first."""
    generator = detector.proposal_generator
    boxes, _, counts = generator.best_of(*generator.candidates(logits, deltas, [(size, 1.0) for size in sizes]))
    return [mine[:count] for mine, count in zip(boxes, counts.tolist(), strict=True)]


def _by_anchor(logits: Tensor, deltas: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (B, a, h, w) and deltas (B, 4a, h, w) in the order of anchors: (B, N) and (B, N, 4)."""
    moves = deltas.unflatten(1, (-1, 4)).permute(0, 3, 4, 1, 2).flatten(1, 3)
    return logits.permute(0, 2, 3, 1).flatten(1), moves


def _rois(detector: BottomUpDetector, heads: tuple[Tensor, Tensor], truth: Truth) -> Rois:
    """Draw RoIs of the proposals and the true boxes."""
    rules = rules_of(detector)
    found = proposals(detector, *heads, truth.sizes)
    # what is padding overlaps nothing
    boxes = torch.cat([truth.boxes, torch.nn.utils.rnn.pad_sequence(found, batch_first=True)], dim=1)
    matches = match(overlaps(truth.boxes, truth.real, boxes), 0.5, 0.5, best_too=False)
    labels = matches.labels.masked_fill((boxes[..., 2:] <= boxes[..., :2]).any(dim=2), -1)
    drawn = draw(labels, rules.rois, rules.foreground)
    return Rois(taken(boxes, drawn.rows), taken(matches.rows, drawn.rows), drawn.counts, taken(labels, drawn.rows))


def _head_losses(detector: BottomUpDetector, features: Tensor, rois: Rois, truth: Truth) -> dict[str, Tensor]:
    """What classes, boxes and attributes of the RoIs' features (B * S, D) cost."""
    boxes, rows, counts, labels = rois
    is_object, classes = (labels == FOREGROUND) & counts, detector.config.classes
    wanted = taken(truth.classes, rows).where(is_object, classes).flatten()  # the last class is the background
    scores, deltas, attributes = (each.float() for each in detector.roi_heads.logits(features, wanted))
    scored = F.cross_entropy(scores, wanted, reduction="none") * counts.flatten()
    own = deltas.unflatten(1, (-1, 4))[torch.arange(len(wanted), device=wanted.device), wanted.clamp(max=classes - 1)]
    goal = _goals(taken(truth.boxes, rows), boxes, detector.config.conventions.box_weights, is_object).flatten(0, 1)
    placed = F.smooth_l1_loss(own, goal, reduction="none", beta=BOX_BETA).sum(dim=1)
    per = counts.sum().clamp(min=1)
    found = {"class": scored.sum() / per, "box": placed.where(is_object.flatten(), 0.0).sum() / per}
    if truth.attributes.shape[2]:
        said = taken(truth.attributes, rows).flatten(0, 1).where(is_object.flatten()[:, None], -1)
        found["attribute"] = attribute_loss(attributes, said) * rules_of(detector).attributes
    return found


def _goals(truth: Tensor, boxes: Tensor, weights: tuple[float, float, float, float], counts: Tensor) -> Tensor:
    """`encode` where it counts, else 0: the logarithm of an empty box would make the gradient of a zero no number."""
    return encode(truth, boxes, weights).where(counts[..., None], 0.0)


def attribute_loss(logits: Tensor, said: Tensor) -> Tensor:
    """The mean over rows with attributes of the mean over their attributes; 0 where no row has any.

    Args:
        logits: (R, M).
        said: (R, A) int64, -1 where there are no more.
    """
    real = said >= 0
    counts = real.sum(dim=1)
    surprise = -logits.log_softmax(dim=1).gather(1, said.clamp(min=0)).where(real, 0.0).sum(dim=1)
    return (surprise / counts.clamp(min=1)).sum() / (counts > 0).sum().clamp(min=1)
