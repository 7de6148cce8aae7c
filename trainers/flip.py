"""Mirrored images, as VL-BERT trains on them: boxes and pixels change sides, cached features stay as they are.

Where a text may tell sides, in VQA and RefCOCO+, its words "left" and "right" change places.
Source: jackroos/VL-BERT `pretrain/data/transforms/transforms.py`, `vqa/data/datasets/vqa.py`,
`refcoco/data/datasets/refcoco.py`. Shapes in this file: V images, N regions.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from trainers.batch import Pixels, Regions
from trainers.visual import Looked

_SIDES = re.compile(r"\b(left|right)\b", re.IGNORECASE)


def mirrored_text(text: str) -> str:
    """The text with its sides changed; of capitals only their being small is kept."""
    return _SIDES.sub(lambda found: "right" if found[0].lower() == "left" else "left", text)


def mirrored_boxes(boxes: Tensor, widths: Tensor) -> Tensor:
    """(V, N, 4) x1 y1 x2 y2 in images of widths (V,), both end pixels counted."""
    left, top, right, bottom = boxes.unbind(-1)
    last = widths[:, None] - 1
    return torch.stack([last - right, top, last - left, bottom], dim=-1)


def mirrored(looked: Looked, chosen: Sequence[bool]) -> Looked:
    """The images that are chosen, mirrored; others as they are."""
    regions, flip = looked.visual, torch.tensor(list(chosen))
    assert isinstance(regions, Regions), "only regions are mirrored"
    real = flip[:, None] if regions.mask is None else regions.mask & flip[:, None]
    boxes = torch.where(real[..., None], mirrored_boxes(regions.boxes, regions.image_sizes[:, 1]), regions.boxes)
    outlines = regions.outlines
    if outlines is not None:
        outlines = torch.where(flip[:, None, None, None], outlines.flip(-1), outlines)
    pixels = None if regions.pixels is None else _mirrored_pixels(regions.pixels, chosen)
    return replace(looked, visual=replace(regions, boxes=boxes, outlines=outlines, pixels=pixels))


def _mirrored_pixels(pixels: Pixels, chosen: Sequence[bool]) -> Pixels:
    """Each image within its own width; the padding stays at the right."""
    assert pixels.shapes is not None
    images = pixels.images.clone()
    for image, (_, width), flip in zip(images, pixels.shapes, chosen, strict=True):
        if flip:
            image[..., :width] = image[..., :width].flip(-1)
    return replace(pixels, images=images)
