"""Faster R-CNN with object and attribute heads: the bottom-up attention detector, and the grid networks' detectors.

Two published variants of the bottom-up detector, ResNet-101 C4, share the network and differ in conventions (Anderson
et al. 2018, "Bottom-Up and Top-Down Attention"): MILVLG/bottom-up-attention.pytorch keeps those of the original Caffe
code, airsplay/py-bottom-up-attention moved the weights to detectron2's. The networks of facebookresearch/grid-feats-vqa
were trained as detectors with a dilated res5 in the backbone; their heads are in `extractors/grid_detector.py`. Module
names are detectron2's, so that all checkpoints load by name.

Shapes in this file: R proposals, K object classes, M attributes, A anchors a cell, C channels of the map that boxes are
found on (res4, or the dilated res5), D of one box's feature.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from extractors import boxes as box_ops
from extractors.fused import compute_dtype, convolve, joined
from extractors.launching import to_device
from extractors.ragged import Areas
from extractors.resnet import ResNet, ResNetConfig, fold, make_stage
from extractors.roi_pool import roi_pool
from extractors.suppression import taken
from extractors.winograd import PhasedStage, mean_of_phases, split_phases

STRIDE = 16
POOL = 14
ROIS_AT_ONCE = 25  # what measured fastest on a CPU; also bounds activations to about 0.1 GB
ROIS_AT_ONCE_ON_GPU = 1300  # four images' worth: enough to fill it, in about 4 GB of activations
HEADS_ONLY = "-heads"  # ends a --dtype that is of the box head alone
PRE_NMS, PROPOSAL_NMS = 6000, 0.7
InputFrame = tuple[
    tuple[int, int], float
]  # (height, width) of the network's input, and input pixels per original pixel
TRAINING_COUNTS = (2000, 1000)  # ranked and kept in training, where 64 or 512 of them are sampled


@dataclass(frozen=True)
class Conventions:
    """What the variants disagree on.

    plus              1 where widths count both end pixels
    background_first  class 0 and attribute 0 mean "none"; else the last ones do
    paired_logits     the RPN has a background and a foreground logit an anchor, compared by softmax
    box_weights       by which the box head's deltas are multiplied
    min_side          proposals narrower than this, in pixels of the original image, are dropped before ranking
    resize            "pil-bilinear" on bytes, mean after; or "cv2-linear" on floats, mean before
    anchor_sizes      sides of the square anchors: in pixels, or in Caffe's base of 16
    """

    name: str
    plus: int
    background_first: bool
    paired_logits: bool
    box_weights: tuple[float, float, float, float]
    min_side: int
    resize: str
    anchor_sizes: tuple[int, ...]


CAFFE = Conventions("caffe", 1, True, True, (1.0, 1.0, 1.0, 1.0), 16, "cv2-linear", (4, 8, 16, 32))
PY_BOTTOM_UP = Conventions(
    "py-bottom-up-attention", 0, False, False, (10.0, 10.0, 5.0, 5.0), 0, "pil-bilinear", (64, 128, 256, 512)
)
GRID_FEATS = replace(PY_BOTTOM_UP, name="grid-feats-vqa", anchor_sizes=(32, 64, 128, 256, 512))

R101_C4 = ResNetConfig(depth=101, ceil_pool=True, last_stage=4)


@dataclass(frozen=True)
class DetectorConfig:
    """One detector; the defaults are the published one's.

    box_hidden  width of the two layers that are the box head where res5 is not
    """

    conventions: Conventions = CAFFE
    body: ResNetConfig = R101_C4
    rpn_channels: int = 512
    classes: int = 1600
    attributes: int = 400
    embedding: int = 256
    attribute_hidden: int = 512
    proposals: int = 300
    box_hidden: int = 1024

    @property
    def map_channels(self) -> int:
        """Channels of the map that boxes are found on."""
        return self.body.out_channels(self.body.last_stage)

    @property
    def feature_dim(self) -> int:
        """Width of one box's feature."""
        return self.body.out_channels(5) if self.body.last_stage == 4 else self.box_hidden

    @property
    def anchors(self) -> Tensor:
        """(A, 4), around one cell."""
        sizes = self.conventions.anchor_sizes
        return box_ops.caffe_anchors(sizes) if self.conventions.plus else box_ops.detectron2_anchors(sizes)


class Predictions(NamedTuple):
    """What the heads say of R boxes. Background and "no attribute" are sorted out: ids count real classes only.

    class_probs      (R, K + 1) float32, background last
    box_deltas       (R, K * 4) float32, of the K object classes
    attribute_probs  (R, M) float32
    """

    class_probs: Tensor
    box_deltas: Tensor
    attribute_probs: Tensor


class RPNHead(nn.Module):
    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        anchors = len(config.anchors)
        self.conv = nn.Conv2d(config.map_channels, config.rpn_channels, 3, padding=1)
        self.objectness_logits = nn.Conv2d(
            config.rpn_channels, anchors * (2 if config.conventions.paired_logits else 1), 1
        )
        self.anchor_deltas = nn.Conv2d(config.rpn_channels, anchors * 4, 1)

    def forward(self, cells: Tensor) -> tuple[Tensor, Tensor]:
        hidden = convolve(cells.to(self.conv.weight.dtype), self.conv, relu=True).float()
        return self.objectness_logits(hidden), self.anchor_deltas(hidden)


class AnchorGenerator(nn.Module):
    """The anchors of one cell, (A, 4), as a buffer: the checkpoint's win over the variant's own."""

    def __init__(self, cell: Tensor) -> None:
        super().__init__()
        self.cell_anchors = nn.Module()
        self.cell_anchors.register_buffer("0", cell)

    @property
    def cell(self) -> Tensor:
        return self.cell_anchors.get_buffer("0")


class ProposalGenerator(nn.Module):
    """Ranks and suppresses anchors into at most `proposals` boxes an image; in training, `TRAINING_COUNTS` of them."""

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        self.config = config
        self.rpn_head = RPNHead(config)
        self.anchor_generator = AnchorGenerator(config.anchors)

    @property
    def counts(self) -> tuple[int, int]:
        """How many boxes are suppressed, the best, and how many are proposals at most."""
        return TRAINING_COUNTS if self.training else (PRE_NMS, self.config.proposals)

    def rank(self, logits: Tensor) -> Tensor:
        """Logits (B, A or 2A, h, w) to scores (B, h * w * A): a logit, or Caffe's foreground probability."""
        if self.config.conventions.paired_logits:
            logits = torch.stack(logits.chunk(2, dim=1)).softmax(0)[1]  # background, foreground
        return logits.permute(0, 2, 3, 1).flatten(1)

    def propose(self, logits: Tensor, deltas: Tensor, size: tuple[int, int], scale: float) -> tuple[Tensor, Tensor]:
        """One image's proposals, boxes (R, 4) and scores (R,), best first, from what `candidates` takes."""
        boxes, scores, counts = self.best_of(*self.candidates(logits, deltas, [(size, scale)]))
        return boxes[0, : counts[0]], scores[0, : counts[0]]

    def best_of(self, boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Each image's proposals from its candidates, best first, without waiting for a GPU: boxes (B, R, 4) in input
        pixels, scores (B, R), and how many there are (B,); behind these are any boxes."""
        plus, most = self.config.conventions.plus, self.counts[1]
        rows, counts = box_ops.nms_together(boxes, scores, [PROPOSAL_NMS], plus, most)
        return taken(boxes, rows), taken(scores, rows), counts

    def candidates(
        self, logits: Tensor, deltas: Tensor, frames: Sequence[InputFrame], inside: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """What proposals of images are chosen from: the best anchors of each, moved.

        Args:
            logits: (B, A or 2A, h, w) float32.
            deltas: (B, 4A, h, w) float32.
            frames: of each image, (height, width) of the network's input and input pixels per original pixel.
            inside: (B, h, w) bool, where there is an image in a padded batch.

        Returns:
            boxes (B, N, 4) in input pixels, best first, and their scores (B, N), -inf where there is no box, or it is
            too small.
        """
        rules = self.config.conventions
        ranked, _ = self.counts
        cell = self.anchor_generator.cell
        anchors = box_ops.shifted_anchors(cell, (logits.shape[2], logits.shape[3]), STRIDE).expand(len(logits), -1, -1)
        moves = deltas.unflatten(1, (-1, 4)).permute(0, 3, 4, 1, 2).flatten(1, 3)
        scores = self.rank(logits)
        if inside is not None:
            scores = scores.where(inside.flatten(1)[..., None].expand(-1, -1, len(cell)).flatten(1), -torch.inf)
        if not rules.plus:  # detectron2 cuts to the best 6000 first, Caffe after it dropped the small ones
            scores, rows = _best(scores, ranked)
            anchors, moves = taken(anchors, rows), taken(moves, rows)
        moved = box_ops.decode(moves.flatten(0, 1), anchors.flatten(0, 1), (1.0, 1.0, 1.0, 1.0), rules.plus)
        limits = to_device(self._limits(frames), logits.device)
        boxes = box_ops.clip_to(moved.view_as(anchors), limits[..., :4])
        good = (boxes[..., 2:] > boxes[..., :2]).all(dim=2)
        if rules.min_side:
            good &= (boxes[..., 2:] - boxes[..., :2] + rules.plus > limits[..., 4:]).all(dim=2)
        # To drop them here, a GPU would have to tell how many there are; at -inf they suppress and displace none.
        scores = scores.where(good, -torch.inf)
        if rules.plus:
            scores, rows = _best(scores, ranked)
            boxes = taken(boxes, rows)
        return boxes, scores

    def _limits(self, frames: Sequence[InputFrame]) -> Tensor:
        """(B, 1, 5) float32: the largest x1, y1, x2, y2 of each image's boxes, and what their sides must exceed."""
        rules, rows = self.config.conventions, []
        for (height, width), scale in frames:
            ends = (width - rules.plus, height - rules.plus)
            rows.append([*ends, *ends, rules.min_side * scale])
        return torch.tensor(rows, dtype=torch.float32)[:, None]


class BoxPredictor(nn.Module):
    """Classes, box deltas and attributes of pooled features; the latter also from the best class's embedding."""

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        width, classes = config.body.out_channels(5), config.classes + 1
        self.background_first = config.conventions.background_first
        self.cls_score = nn.Linear(width, classes)
        self.bbox_pred = nn.Linear(width, 4 * (classes if self.background_first else config.classes))
        self.cls_embedding = nn.Embedding(classes, config.embedding)
        self.fc_attr = nn.Linear(width + config.embedding, config.attribute_hidden)
        self.attr_score = nn.Linear(config.attribute_hidden, config.attributes + 1)

    def attribute_logits(self, features: Tensor, classes: Tensor) -> Tensor:
        """(R, D) and class ids (R,) in checkpoint order to attribute logits (R, M + 1), likewise."""
        hidden = F.relu(self.fc_attr(torch.cat([features, self.cls_embedding(classes)], dim=1)))
        found: Tensor = self.attr_score(hidden)
        return found

    def logits(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(R, D) to class logits (R, K + 1), box deltas (R, ...), attribute logits (R, M + 1), in checkpoint order."""
        classes = self.cls_score(features)
        # The arg-max runs over all classes, background included, in both official codes.
        return classes, self.bbox_pred(features), self.attribute_logits(features, classes.argmax(dim=1))

    def forward(self, features: Tensor) -> Predictions:
        classes, deltas, attributes = self.logits(features)
        probs = classes.softmax(dim=1)
        if self.background_first:
            # Caffe's softmax runs over "no attribute" too; py-bottom-up-attention drops that column first.
            return Predictions(probs.roll(-1, dims=1), deltas[:, 4:], attributes.softmax(dim=1)[:, 1:])
        return Predictions(probs, deltas, attributes[:, :-1].softmax(dim=1))


class Heads(nn.Module, ABC):
    """What follows the proposals."""

    @abstractmethod
    def features_of(self, maps: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
        """Images' maps (1, C, h, w) and boxes (R, 4) in input pixels to a feature a box, (sum R, D) float32."""

    @abstractmethod
    def predict(self, features: Tensor) -> Predictions:
        """What the heads say of features (R, D)."""

    @abstractmethod
    def features_in_batch(self, maps: Tensor, boxes: Tensor) -> Tensor:
        """For training: `features_of` maps (B, C, h, w) and boxes (B, R, 4), (B * R, D). All RoIs run at once, as norms
        that are trained take their statistics over them."""

    @abstractmethod
    def logits(self, features: Tensor, classes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """For training: class logits (R, K + 1), box deltas (R, ...) and attribute logits (R, M or M + 1) of features
        (R, D) whose true classes (R,) are known; all in checkpoint order."""

    @abstractmethod
    def lower(self, dtype: torch.dtype) -> None:
        """Turn to a lower number type what is large; the last layers, whose outputs are compared, stay float32."""

    def settle(self) -> None:
        """Make what speeds the final weights up, where they now are."""

    def features(self, cells: Tensor, boxes: Tensor) -> Tensor:
        """`features_of` one image."""
        return self.features_of([cells], [boxes])


class RoIHeads(Heads):
    """RoIPool 14x14, res5 with stride 1 and dilation 2, mean."""

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        self.res5 = make_stage(config.body, 5, stride=1, dilation=2)
        self.phased: PhasedStage | None = None
        self.box_predictor = BoxPredictor(config)

    def lower(self, dtype: torch.dtype) -> None:
        self.res5.to(dtype)

    def settle(self) -> None:
        weight = next(self.res5.parameters())
        if weight.device.type == "cpu" and weight.dtype == torch.float32:
            self.phased = PhasedStage(self.res5, POOL // 2)

    def pool(self, res4: Tensor, boxes: Tensor, at_once: int = ROIS_AT_ONCE) -> Iterator[Tensor]:
        """(1, C, h, w) and (R, 4) in input pixels to (R, C, 14, 14) of the next `at_once` boxes, float32 or, on a GPU,
        in res5's number type."""
        if res4.device.type == "cuda":  # the largest of rounded values is the largest one, rounded
            res4 = res4.to(next(self.res5.parameters()).dtype)
        return roi_pool(res4, boxes, POOL, 1.0 / STRIDE, at_once)

    def features_of(self, maps: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
        at_once = ROIS_AT_ONCE if maps[0].device.type == "cpu" else ROIS_AT_ONCE_ON_GPU
        pools = chain.from_iterable(self.pool(*each, at_once) for each in zip(maps, boxes, strict=True))
        return torch.cat([self._mean_of_res5(rois) for rois in _gathered(pools, at_once)])

    def features_in_batch(self, maps: Tensor, boxes: Tensor) -> Tensor:
        from torchvision.ops import roi_pool  # has gradients

        return self._mean_of_res5(roi_pool(maps.float(), list(boxes), POOL, 1.0 / STRIDE))

    def predict(self, features: Tensor) -> Predictions:
        found: Predictions = self.box_predictor(features)
        return found

    def logits(self, features: Tensor, classes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        predictor = self.box_predictor
        attributes = predictor.attribute_logits(features, classes)
        return predictor.cls_score(features), predictor.bbox_pred(features), attributes

    def _mean_of_res5(self, rois: Tensor) -> Tensor:
        if not len(rois):
            return rois.new_zeros(0, self.box_predictor.cls_score.in_features)
        if self.phased is not None:
            return mean_of_phases(self.phased(split_phases(rois)), len(rois))
        x = rois.to(next(self.res5.parameters()).dtype, memory_format=torch.channels_last)
        x = self.res5(x)
        by_itself = x.device.type == "cpu" and x.dtype != torch.float32  # else all is written in float32 first
        at_once = 1 if by_itself else len(x)
        return torch.cat([part.mean(dim=(2, 3), dtype=torch.float32) for part in x.split(at_once)])


def _gathered(parts: Iterable[Tensor], most: int) -> Iterator[Tensor]:
    """The same rows in batches of about `most`: small parts are put together."""
    held: list[Tensor] = []
    for part in parts:
        if held and sum(map(len, held)) + len(part) > most:
            yield joined(held)
            held = []
        held.append(part)
    yield joined(held)


class BottomUpDetector(nn.Module):
    """The whole network; its stages are called in this order: backbone, proposals, features, predict."""

    roi_heads: Heads

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = ResNet(config.body)
        self.proposal_generator = ProposalGenerator(config)
        self.roi_heads = self.make_heads(config)

    @staticmethod
    def make_heads(config: DetectorConfig) -> Heads:
        return RoIHeads(config)

    def ready(self, dtype: str, device: torch.device) -> None:
        """Make the network one for inference, in what `--dtype` names; what compares boxes and scores stays float32.

        In float32 the backbone of the bottom-up detector keeps its norms: rounded otherwise than in the official codes,
        some corners of thin boxes would move by a hundredth of a pixel. It takes a fifteenth of the time.
        """
        self.requires_grad_(False)
        fold(self.roi_heads)
        self.roi_heads.lower(compute_dtype(dtype.removesuffix(HEADS_ONLY)))
        lower = not dtype.endswith(HEADS_ONLY) and compute_dtype(dtype) != torch.float32
        if lower or self.config.body.last_stage == 5:
            fold(self.backbone)
        if lower:
            self.backbone.to(compute_dtype(dtype))
            self.proposal_generator.rpn_head.conv.to(compute_dtype(dtype))
        self.to(device).to(memory_format=torch.channels_last)
        self.roi_heads.settle()

    def cells(self, res4: Tensor, areas: Areas | None = None) -> Tensor:
        """The map that boxes are found on, from res4: res4 itself, where res5 is the box head."""
        return res4

    def proposals(
        self, cells: Tensor, frames: Sequence[InputFrame], areas: Areas | None = None
    ) -> tuple[Tensor, Tensor]:
        """Each image's proposals (B, R, 4) in input pixels, best first, and how many there are (B,); behind these are
        any boxes. A GPU is not waited for.

        Args:
            cells: (B, C, h, w), zero outside of the images; more than frames if the batch was filled up.
            frames: of each image, (height, width) of the network's input and input pixels per original pixel.
            areas: where the images are, in a padded batch.
        """
        logits, deltas = (each[: len(frames)] for each in self.proposal_generator.rpn_head(cells))
        inside = None if areas is None else areas.inside((cells.shape[2], cells.shape[3]))[: len(frames)]
        boxes, _, counts = self.proposal_generator.best_of(
            *self.proposal_generator.candidates(logits, deltas, frames, inside)
        )
        return boxes, counts

    def decode(self, proposals: Tensor, deltas: Tensor, rows: Tensor, classes: Tensor) -> Tensor:
        """Proposals as some of their classes move them, in input pixels, not clipped.

        Args:
            proposals: (B, R, 4).
            deltas: (B, R, K * 4).
            rows, classes: (B, N) int64: which proposals, and as which classes.

        Returns:
            (B, N, 4).
        """
        rules, images = self.config.conventions, torch.arange(len(rows), device=rows.device)[:, None]
        mine, start = deltas.unflatten(2, (-1, 4))[images, rows, classes], taken(proposals, rows)
        moved = box_ops.decode(mine.flatten(0, 1), start.flatten(0, 1), rules.box_weights, rules.plus)
        return moved.view_as(mine)


def _best(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Each image's highest scores (B, N) and their rows, descending; equal scores in row order."""
    ordered, rows = scores.sort(dim=1, descending=True, stable=True)
    return ordered[:, :count], rows[:, :count]
