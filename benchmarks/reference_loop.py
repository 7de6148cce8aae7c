"""The extraction loop that the official scripts run, on networks of ours with the same weights.

As in facebookresearch/grid-feats-vqa `extract_grid_feature.py` and MILVLG/bottom-up-attention.pytorch
`extract_features.py`: one image at a time, float32, planes (NCHW), norms as modules of their own, all RoIs through the
box head at once, suppression one class after the other.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import nms, roi_pool

from extractors.base import Prepared
from extractors.faster_rcnn import BottomUpDetector, RoIHeads
from extractors.regions import RegionExtractor
from extractors.resnet import ResNet
from extractors.trunk import TrunkExtractor
from extractors.weights import randomise


class ReferenceLoop:
    """Runs images as the official script does, on the device and with the weights of an extractor.

    Args:
        extractor: with weights random:0.

    Attributes:
        network: what it runs.
    """

    def __init__(self, extractor: TrunkExtractor) -> None:
        self._device, self._mean, self._std = extractor.device, extractor.mean, extractor.std
        regions = isinstance(extractor, RegionExtractor)
        self.network = BottomUpDetector(extractor.detector.config) if regions else ResNet(extractor.network.config)
        self.network.eval()
        randomise(self.network, 0)
        self.network.to(self._device)

    @torch.inference_mode()
    def extract(self, images: Sequence[Prepared]) -> None:
        for image in images:
            x = image.pixels[None].to(self._device).float()
            if isinstance(self.network, BottomUpDetector):
                _detect(self.network, x, image)
            else:
                self.network((x - self._mean) / self._std).cpu()


def _detect(made: BottomUpDetector, x: Tensor, image: Prepared) -> tuple[Tensor, Tensor]:
    """Rows of the kept boxes, and their features."""
    heads = made.roi_heads
    assert isinstance(heads, RoIHeads)
    res4 = made.backbone(x)
    head = made.proposal_generator.rpn_head
    hidden = F.relu(head.conv(res4))
    maps = head.objectness_logits(hidden), head.anchor_deltas(hidden)
    boxes, _ = made.proposal_generator.propose(*maps, (x.shape[2], x.shape[3]), image.scale)
    features = heads.res5(roi_pool(res4, [boxes], 14, 1 / 16)).mean(dim=(2, 3))
    probs = heads.predict(features).class_probs[:, :-1]
    confidence = torch.zeros(len(boxes), device=boxes.device)
    for column in range(probs.shape[1]):
        scores = probs[:, column]
        kept = nms(boxes / image.scale, scores, 0.3)
        confidence[kept] = torch.where(scores[kept] > confidence[kept], scores[kept], confidence[kept])
    rows = confidence.argsort(descending=True)[:36]
    return rows.cpu(), features[rows].cpu()
