"""Plain pixels: decoded once, upright and resized, kept as bytes, so that end-to-end training decodes no JPEG again.

The usual rule and filter are those of the other views (detectron2's, Pillow's bilinear). `--rule vilt` is ViLT's own:
bicubic, both sides rounded down to whole patches of 32, the longer one at most 1333/800 of the shorter one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from extractors.base import DECODE_POLICY, Extractor, Prepared, prepare_pil
from extractors.configs import PixelConfig
from extractors.images import ImageError, resize_to_patches
from storage.records import PixelRecord, Record
from storage.spec import FeatureLayout, Spec


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
                **_resize_facts(config),
                "colour": "RGB",
            },
        )

    def prepare(self, key: str, image: np.ndarray) -> Prepared:
        if self.config.rule == "shortest-edge":
            return prepare_pil(key, image, self.config)
        resized = resize_to_patches(image, self.config.shorter)
        pixels = torch.from_numpy(np.ascontiguousarray(resized[:, :, ::-1].transpose(2, 0, 1)))
        height, width = image.shape[:2]
        return Prepared(key, (height, width), pixels, min(resized.shape[:2]) / min(height, width))

    def extract(self, batch: Sequence[Prepared]) -> list[Record | ImageError]:
        return self.forward(list(batch))

    def forward(self, batch: list[Prepared]) -> list[Record | ImageError]:
        return [self._record(image) for image in batch]

    def _record(self, image: Prepared) -> Record:
        rgb = image.pixels.numpy()[::-1].transpose(1, 2, 0)  # prepared as the other views want them, blue first
        return PixelRecord(image.key, image.image_size, np.ascontiguousarray(rgb))


def _resize_facts(config: PixelConfig) -> dict[str, object]:
    if config.rule == "vilt":
        return {"resize": "vilt-bicubic-32", "shorter": config.shorter}
    return {"resize": "pil-bilinear", "shorter": config.shorter, "longer": config.longer}
