"""Images for training end to end, as each model's official code prepares them; bytes that models normalise themselves.

Shapes in this file: H x W pixels of the original, h x w of the resized image, N boxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from extractors.images import resize_shortest_edge, resize_to_patches, resize_truncated
from extractors.square import Square
from trainers.batch import Pixels, Regions, stack_pixels

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
OUTLINE = 14  # cells of a box's map, down and across


def meter_square(size: int, imagenet: bool = False) -> Square:
    """METER's image: the shorter side resized, bicubic, and the middle cut out; CLIP's colours or ImageNet's (Swin).

    Source: zdou0830/METER `meter/transforms/transform.py`, clip_transform and imagenet_transform.
    """
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if imagenet else (CLIP_MEAN, CLIP_STD)
    return Square(size, size, False, "bicubic", "even", mean, std)


def square_pixels(images: Sequence[np.ndarray], square: Square) -> Pixels:
    """Images (H, W, 3) uint8 RGB as squares, as bytes with the square's colours."""
    stacked = stack_pixels([_channels_first(square.of(image)) for image in images])
    colours = torch.tensor([[value / square.scale for value in values] for values in (square.mean, square.std)])
    return replace(stacked, colours=colours.repeat(len(images), 1, 1))


def vilt_pixels(images: Sequence[np.ndarray], shorter: int = 384) -> Pixels:
    """Images (H, W, 3) uint8 RGB of whole patches, in their own shapes, as bytes."""
    return stack_pixels([_channels_first(resize_to_patches(image, shorter)) for image in images])


def grid_pixels(images: Sequence[np.ndarray], shorter: int = 600, longer: int = 1000) -> Pixels:
    """Images (H, W, 3) uint8 RGB as `extract grid` resizes them, in their own shapes, as bytes."""
    return stack_pixels([_channels_first(resize_shortest_edge(image, shorter, longer)) for image in images])


def fast_rcnn_regions(
    images: Sequence[np.ndarray], boxes: Sequence[np.ndarray], shorter: int = 600, longer: int = 1000
) -> Regions:
    """Images and their boxes for VL-BERT's own network; boxes are moved with the pixels and cut to the image.

    Args:
        images: (H, W, 3) uint8 RGB.
        boxes: (N, 4) x1 y1 x2 y2 in pixels of the originals.
        longer: 1200 for VCR.

    Source: jackroos/VL-BERT `pretrain/data/transforms/transforms.py`, `pretrain/data/datasets/conceptual_captions.py`.
    """
    resized = [resize_truncated(image, shorter, longer) for image in images]
    moved = [_moved(*each) for each in zip(boxes, images, resized, strict=True)]
    lengths = torch.tensor([len(each) for each in moved])
    padded = torch.nn.utils.rnn.pad_sequence(moved, batch_first=True)
    sizes = torch.tensor([image.shape[:2] for image in resized], dtype=torch.float32)
    mask = torch.arange(padded.shape[1]) < lengths[:, None]
    return Regions(padded, sizes, mask, pixels=stack_pixels([_channels_first(image) for image in resized]))


def outline(polygons: Sequence[np.ndarray], box: Sequence[float]) -> Tensor:
    """(14, 14) float32: 1 where a point of a box's map lies in an object, or on its edge (VCR).

    Args:
        polygons: (P, 2) x y of corners, in the box's pixels; of one object, which may have several parts.
        box: x1 y1 x2 y2, both end pixels counted.

    Source: jackroos/VL-BERT `common/utils/mask.py`, which draws with scikit-image's `polygon`.
    """
    found = np.zeros((OUTLINE, OUTLINE), bool)
    low = np.asarray(box[:2], np.float32)
    size = np.asarray([box[2] - box[0] + 1, box[3] - box[1] + 1], np.float32)
    for polygon in polygons:
        corners = np.clip((np.asarray(polygon, np.float32) - low) * (np.float32(OUTLINE) / size), 0, OUTLINE - 1)
        found |= _covered(corners.astype(np.float64))
    return torch.from_numpy(found.astype(np.float32))


def _covered(corners: np.ndarray) -> np.ndarray:
    """Which grid points a polygon holds: an odd number of its edges crosses the ray from a point to either side.

    A point where both sides disagree lies on an edge (O'Rourke, Computational Geometry in C, 7.4); edges count.
    """
    y, x = np.mgrid[:OUTLINE, :OUTLINE].astype(np.float64)
    right, left = (np.zeros((OUTLINE, OUTLINE), np.int64) for _ in range(2))
    corner = np.zeros((OUTLINE, OUTLINE), bool)
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, 1, axis=0), strict=True):
        corner |= (x0 == x) & (y0 == y)
        with np.errstate(divide="ignore", invalid="ignore"):
            crossing = (x0 - x) + (y - y0) * (x1 - x0) / (y1 - y0)
        right += ((y0 > y) != (y1 > y)) & (crossing > 0)
        left += ((y0 < y) != (y1 < y)) & (crossing < 0)
    return corner | (right % 2 == 1) | (right % 2 != left % 2)


def _moved(boxes: np.ndarray, original: np.ndarray, resized: np.ndarray) -> Tensor:
    height, width = resized.shape[:2]
    ratios = torch.tensor([width / original.shape[1], height / original.shape[0]]).repeat(2)
    limit = torch.tensor([width - 1.0, height - 1.0]).repeat(2)
    return torch.minimum((torch.from_numpy(np.asarray(boxes, np.float32)) * ratios).clamp(min=0), limit)


def _channels_first(image: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
