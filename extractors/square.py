"""Squares for vision transformers: an image resized and cropped as the tower's own library does it, on its bytes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from PIL import Image

from extractors.images import resampled

WHOLE_PIXELS = 1 << 24  # larger than any usual photograph resized for a tower


@dataclass(frozen=True)
class Square:
    """How an image becomes the square that a tower sees.

    size           side of the square, pixels
    resized        side that the image is resized to first: its shorter one, or both where it is squashed
    squash         True: the whole image, its aspect ratio lost; False: the middle of it, its aspect ratio kept
    interpolation  Pillow's filter, anti-aliased when it shrinks: "nearest", "bilinear", "bicubic", "lanczos", ...
    rounding       of a crop's place where the margins cannot be equal: "down" as transformers does, "even" (Python's
                   round) as torchvision and so timm do
    scale          bytes are multiplied by this, ...
    mean, std      ... then the mean is taken off and the rest divided by the deviation, red green blue
    """

    size: int
    resized: int
    squash: bool
    interpolation: str
    rounding: Literal["down", "even"]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: float = 1 / 255

    def at(self, size: int) -> Square:
        """The same for another size, with the same margins in proportion."""
        return replace(self, size=size, resized=max(size, int(size * self.resized / self.size)))

    def of(self, image: np.ndarray) -> np.ndarray:
        """uint8 (H, W, 3) to uint8 (size, size, 3).

        Images so long that they would fill the memory when resized have only their middle resized; Pillow then computes
        the same sums, whose rounding may differ by one step.
        """
        height, width = self._resized_shape(*image.shape[:2])
        top, left = self._margin(height), self._margin(width)
        if image.shape[:2] == (height, width):
            return image[top : top + self.size, left : left + self.size]
        opened, kind = Image.fromarray(image), Image.Resampling[self.interpolation.upper()]
        if height * width <= WHOLE_PIXELS:
            whole = resampled(opened, (width, height), kind)
            return np.asarray(whole.crop((left, top, left + self.size, top + self.size)))
        down, across = image.shape[0] / height, image.shape[1] / width
        box = (left * across, top * down, (left + self.size) * across, (top + self.size) * down)
        return np.asarray(opened.resize((self.size, self.size), kind, box))

    def _resized_shape(self, height: int, width: int) -> tuple[int, int]:
        if self.squash:
            return self.resized, self.resized
        longer = int(self.resized * max(height, width) / min(height, width))
        return (self.resized, longer) if height <= width else (longer, self.resized)

    def _margin(self, side: int) -> int:
        spare = side - self.size
        return spare // 2 if self.rounding == "down" else round(spare / 2)
