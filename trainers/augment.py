"""RandAugment as ViLT and METER fine-tune with it: two random changes of an image's colours or shape.

Magnitude 9 of 30. Fourteen changes; of those of the usual list neither Invert, which would turn colours that are asked
for into others, nor Cutout. Every number is drawn from the generator that is given.
Source: dandelin/ViLT `vilt/transforms/__init__.py` and the RandAugment package that it borrows. Shapes: H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

CHANGES, MAGNITUDE, MOST = 2, 9, 30
SKIPPED = (0.2, 0.8)  # a change is left out with a probability that is itself drawn between these


def _affine(image: Image.Image, *numbers: float) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, numbers)


def _solarize_add(image: Image.Image, value: float) -> Image.Image:
    pixels = np.asarray(image).astype(np.int64)
    brighter = np.clip(pixels + int(value), 0, 255)
    return Image.fromarray(np.where(pixels < 128, brighter, pixels).astype(np.uint8))


# name -> (least, greatest value, whether its sign is drawn, what it does)
OPERATIONS: dict[str, tuple[float, float, bool, Callable[[Image.Image, float], Image.Image]]] = {
    "auto_contrast": (0, 1, False, lambda image, _: ImageOps.autocontrast(image)),
    "equalize": (0, 1, False, lambda image, _: ImageOps.equalize(image)),
    "rotate": (0, 30, True, lambda image, value: image.rotate(value)),
    "posterize": (0, 4, False, lambda image, value: ImageOps.posterize(image, max(1, int(value)))),
    "solarize": (0, 256, False, lambda image, value: ImageOps.solarize(image, int(value))),
    "solarize_add": (0, 110, False, _solarize_add),
    "color": (0.1, 1.9, False, lambda image, value: ImageEnhance.Color(image).enhance(value)),
    "contrast": (0.1, 1.9, False, lambda image, value: ImageEnhance.Contrast(image).enhance(value)),
    "brightness": (0.1, 1.9, False, lambda image, value: ImageEnhance.Brightness(image).enhance(value)),
    "sharpness": (0.1, 1.9, False, lambda image, value: ImageEnhance.Sharpness(image).enhance(value)),
    "shear_x": (0, 0.3, True, lambda image, value: _affine(image, 1, value, 0, 0, 1, 0)),
    "shear_y": (0, 0.3, True, lambda image, value: _affine(image, 1, 0, 0, value, 1, 0)),
    "translate_x": (0, 100, True, lambda image, value: _affine(image, 1, 0, value, 0, 1, 0)),
    "translate_y": (0, 100, True, lambda image, value: _affine(image, 1, 0, 0, 0, 1, value)),
}


def rand_augment(image: np.ndarray, chance: np.random.Generator) -> np.ndarray:
    """(H, W, 3) uint8 RGB, changed; of the same shape."""
    found = Image.fromarray(image)
    for name in chance.choice(list(OPERATIONS), CHANGES).tolist():
        if chance.random() > chance.uniform(*SKIPPED):
            continue
        least, greatest, has_sign, change = OPERATIONS[name]
        value = MAGNITUDE / MOST * (greatest - least) + least
        found = change(found, -value if has_sign and chance.random() > 0.5 else value)
    return np.asarray(found)
