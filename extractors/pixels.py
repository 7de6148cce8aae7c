"""Plain pixels: decoded once, upright and resized, kept as bytes, so that end-to-end training decodes no JPEG again.

The default sizes are ViLT's, 384 and (before it rounds down to patches) 640. The rule and the filter are those of the
other views (detectron2's, Pillow's bilinear), where ViLT resizes bicubically: cut or resize further in training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from extractors.base import DECODE_POLICY, Extractor, Prepared, ResizedConfig, prepare_pil
from extractors.images import ImageError
from storage.records import PixelRecord, Record
from storage.spec import FeatureLayout, Spec


@dataclass(frozen=True)
class PixelConfig(ResizedConfig):
    """Settings of a pixel extraction."""

    shorter: int = 384
    """Resize the shorter side to this many pixels ..."""
    longer: int = 640
    """... unless the longer side would pass this many."""


class PixelExtractor(Extractor):
    """Pixels to `PixelRecord`s; there is no network and nothing to compute."""

    def __init__(self, config: PixelConfig) -> None:
        self.config = config
        self.device = torch.device("cpu")
        self.vocabulary = {}
        self.spec = Spec(
            view="pixels",
            layout=FeatureLayout(3, "bytes"),
            model={"name": "none"},
            preprocess={
                "decode": DECODE_POLICY,
                "resize": "pil-bilinear",
                "shorter": config.shorter,
                "longer": config.longer,
                "colour": "RGB",
            },
        )

    def prepare(self, key: str, image: np.ndarray) -> Prepared:
        return prepare_pil(key, image, self.config)

    def extract(self, batch: Sequence[Prepared]) -> list[Record | ImageError]:
        return self.forward(list(batch))

    def forward(self, batch: list[Prepared]) -> list[Record | ImageError]:
        return [self._record(image) for image in batch]

    def _record(self, image: Prepared) -> Record:
        rgb = image.pixels.numpy()[::-1].transpose(1, 2, 0)  # prepared as the other views want them, blue first
        return PixelRecord(image.key, image.image_size, np.ascontiguousarray(rgb))
