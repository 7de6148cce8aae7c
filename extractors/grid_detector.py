"""The detectors that the grid networks were trained as: regions from the very network that gives the grids.

Sources: facebookresearch/grid-feats-vqa `configs/Base-RCNN-grid.yaml` and the layout of its checkpoints (Jiang et al.
2020, "In Defense of Grid Features for Visual Question Answering"): Faster R-CNN on res5, which has a dilation of 2 and
so the size of res4; RoIAlign (aligned, 2 x 2 samples) to 1 x 1, two layers of 1024, and a head for 400 attributes.

Two things the official code leaves open, since it extracts grids only:

- What a region's feature is. Here it is what the box head gives and the class scores are told from, 1024 wide, as
  detectron2 has it; Grid-VLP (Yan et al. 2021), which compares grids with 100 regions of such a network, says neither
  width nor layer.
- Whose embedding the attribute head is given. Training gives it the true class of labelled boxes, so here it is the
  best class that is not background.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from extractors.faster_rcnn import STRIDE, BottomUpDetector, DetectorConfig, Heads, Predictions
from extractors.ragged import Areas

SAMPLES = 2  # a side, in each RoI


class BoxHead(nn.Module):
    """Two layers, each followed by a ReLU."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu_(self.fc2(F.relu_(self.fc1(x))))


class ClassPredictor(nn.Module):
    """(R, D) to class logits (R, K + 1), background last, and box deltas (R, 4K)."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.cls_score = nn.Linear(width, classes + 1)
        self.bbox_pred = nn.Linear(width, 4 * classes)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return self.cls_score(features), self.bbox_pred(features)


class AttributePredictor(nn.Module):
    """(R, D) and class ids (R,) to attribute logits (R, M); there is no class for "no attribute"."""

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        self.obj_embed = nn.Embedding(config.classes + 1, config.embedding)
        width = config.box_hidden + config.embedding
        self.fc = nn.Sequential(nn.Linear(width, config.attribute_hidden), nn.ReLU())
        self.attr_score = nn.Linear(config.attribute_hidden, config.attributes)

    def forward(self, features: Tensor, classes: Tensor) -> Tensor:
        logits: Tensor = self.attr_score(self.fc(torch.cat([features, self.obj_embed(classes)], dim=1)))
        return logits


class GridHeads(Heads):
    """RoIAlign 1 x 1, the box head, and what it is asked for."""

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        self.box_head = BoxHead(config.map_channels, config.box_hidden)
        self.box_predictor = ClassPredictor(config.box_hidden, config.classes)
        self.attribute_predictor = AttributePredictor(config)

    def lower(self, dtype: torch.dtype) -> None:
        self.box_head.to(dtype)

    def pool(self, maps: Tensor, boxes: Sequence[Tensor]) -> Tensor:
        """Maps (B, C, h, w) and of each boxes (R, 4) in input pixels to (sum R, C) float32."""
        from torchvision.ops import roi_align  # here, as it takes seconds to import

        found: Tensor = roi_align(maps.float(), list(boxes), 1, 1 / STRIDE, SAMPLES, aligned=True)
        return found.flatten(1)

    def features_of(self, maps: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
        return self._read(torch.cat([self.pool(cells, [mine]) for cells, mine in zip(maps, boxes, strict=True)]))

    def features_in_batch(self, maps: Tensor, boxes: Tensor) -> Tensor:
        return self._read(self.pool(maps, list(boxes)))

    def _read(self, pooled: Tensor) -> Tensor:
        found: Tensor = self.box_head(pooled.to(self.box_head.fc1.weight.dtype))
        return found.float()

    def predict(self, features: Tensor) -> Predictions:
        classes, deltas = self.box_predictor(features)
        attributes = self.attribute_predictor(features, classes[:, :-1].argmax(dim=1))
        return Predictions(classes.softmax(dim=1), deltas, attributes.softmax(dim=1))

    def logits(self, features: Tensor, classes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return *self.box_predictor(features), self.attribute_predictor(features, classes)


class GridDetector(BottomUpDetector):
    """The whole network; `backbone` ends with the dilated res5."""

    @staticmethod
    def make_heads(config: DetectorConfig) -> Heads:
        return GridHeads(config)

    def cells(self, res4: Tensor, areas: Areas | None = None) -> Tensor:
        found: Tensor = self.backbone.res5(res4, areas)
        return found
