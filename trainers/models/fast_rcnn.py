"""VL-BERT's Fast R-CNN: a Caffe-style ResNet whose res5 runs on every box, trained along with the transformer.

Source: jackroos/VL-BERT `common/fast_rcnn.py`, `common/backbone/resnet/resnet.py`. Shapes in this file: V images, R
boxes of all of them, C channels.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from extractors.networks import BUTD_MEAN
from extractors.resnet import ResNet, ResNetConfig, make_res5
from extractors.trunk import UNIT_STD
from trainers.batch import Pixels

R101 = ResNetConfig(depth=101, last_stage=4)
POOL, STRIDE = 14, 16


class FastRCNN(nn.Module):
    """Pixels and boxes to one feature a box: res4 of the image, RoIAlign, dilated res5, mean.

    Batch normalisation has fixed statistics, stem and res2 are frozen, the rest is trained. Images are blue green red,
    0 to 255, less the mean of the bottom-up detector; bytes are brought there.
    """

    def __init__(self, config: ResNetConfig = R101) -> None:
        super().__init__()
        self.backbone = ResNet(replace(config, last_stage=4))
        self.res5 = make_res5(config, dilation=2)
        self.backbone.stem.requires_grad_(False)
        self.backbone.get_submodule("res2").requires_grad_(False)

    def ready(self, pixels: Pixels) -> Pixels:
        """Pixels as the network takes them."""
        return pixels.normalised(BUTD_MEAN, UNIT_STD, bgr=True)

    def forward(self, pixels: Pixels, rois: Tensor, outlines: Tensor | None = None) -> Tensor:
        """(R, C) features.

        Args:
            rois: (R, 5) float32: number of the image, x1 y1 x2 y2 in its pixels.
            outlines: (R, 14, 14), by which each box's map is multiplied before its mean.
        """
        from torchvision.ops import roi_align  # here, as it takes seconds to import

        cells = self.backbone(self.ready(pixels).images)
        # In float32 whatever the network computes in: coordinates need the precision.
        boxes = roi_align(cells.float(), rois.float(), POOL, 1 / STRIDE, sampling_ratio=1, aligned=False)
        maps = self.res5(boxes.to(cells.dtype))
        if outlines is not None:
            maps = maps * outlines[:, None].to(maps.dtype)
        return maps.mean((2, 3))


def hide(pixels: Pixels, boxes: Tensor, hidden: Tensor) -> Pixels:
    """Images with all pixels of the hidden boxes set to 0, which is the mean colour.

    Args:
        pixels: normalised.
        boxes: (V, N, 4) in pixels of the images; a box covers the pixels from int(x1) to int(x2), both counted.
        hidden: (V, N) bool.

    Source: jackroos/VL-BERT `pretrain/data/datasets/conceptual_captions.py`.
    """
    height, width = pixels.images.shape[2:]
    first, last = boxes[..., :2].trunc(), boxes[..., 2:].trunc()
    across = _between(first[..., 0], last[..., 0], width) & hidden[..., None]  # (V, N, W)
    down = _between(first[..., 1], last[..., 1], height)  # (V, N, H)
    covered = torch.einsum("vnh,vnw->vhw", down.float(), across.float()) > 0
    return replace(pixels, images=pixels.images.masked_fill(covered[:, None], 0))


def _between(first: Tensor, last: Tensor, size: int) -> Tensor:
    place = torch.arange(size, device=first.device)
    return (place >= first[..., None]) & (place <= last[..., None])
