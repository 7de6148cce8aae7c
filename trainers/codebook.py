"""Discrete codes of images: DALL-E's image tokenizer, for masked patches that are told by their code.

The encoder is transformers' `FlavaImageCodebook`, which has DALL-E's weights: a code for each 8 x 8 pixels, out of
8,192. Shapes in this file: V images, P patches of an image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from trainers.batch import Pixels
from trainers.models.borrowed import Kind, build

KIND = Kind("FlavaImageCodebookConfig", "FlavaImageCodebook", "facebook/flava-image-codebook", argument={})
STRIDE = 8  # pixels a side of what has a code
MARGIN = 0.1  # what is free below and above the colours, as DALL-E was trained


@dataclass(frozen=True)
class CodebookConfig:
    """One image tokenizer.

    weights   a folder or a name on the hub, or random:SEED; None: the published ones, DALL-E's
    settings  of transformers' configuration, for random weights
    """

    weights: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


class Codebook:
    """Images to the codes of their patches.

    Raises:
        WeightsError: the weights cannot be had, or do not fit.
    """

    def __init__(self, config: CodebookConfig) -> None:
        self.model: Any = build(KIND, config.weights, config.settings).eval()

    def codes(self, pixels: Pixels, side: int) -> Tensor:
        """(V, P) int64, row by row, of images resized so that each patch has one code (METER 3.3).

        In float32, on the images' device.

        Args:
            pixels: bytes, of one size.
            side: of a patch, in pixels.

        Raises:
            ValueError: the images are of several sizes, or normalised.
        """
        if pixels.sizes is not None:
            raise ValueError("codes are of images of one size; cut them to a square")
        if pixels.images.dtype != torch.uint8:
            raise ValueError(f"codes are of bytes, not of {pixels.images.dtype}; give images that are not normalised")
        images, device = pixels.images, pixels.images.device
        height, width = (STRIDE * (length // side) for length in images.shape[2:])
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            small = F.interpolate(images / 255, (height, width), mode="bicubic", antialias=True).clamp(0, 1)
            model = self.model.to(device)
            codes: Tensor = model.get_codebook_indices((1 - 2 * MARGIN) * small + MARGIN)
        return codes.flatten(1)
