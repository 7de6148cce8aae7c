"""Where stored cells lie on their image, by what the spec says of how it was resized."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CELL = 32  # pixels a side of a grid's cell, where its store says no other
Frame = tuple[float, float, float, float]  # x1 y1 x2 y2 in pixels of the image


def resized_shape(height: int, width: int, shorter: int, longer: int) -> tuple[int, int]:
    """(height, width) after scaling the shorter side to `shorter`, or the longer one to `longer` if that is smaller.

    The rule of facebookresearch/detectron2:detectron2/data/transforms/augmentation_impl.py, ResizeShortestEdge,
    operation by operation, since its floats decide the rounding int(x + 0.5); but no side below 1 pixel.
    """
    scale = shorter / min(height, width)
    new_height, new_width = (shorter, scale * width) if height < width else (scale * height, shorter)
    if max(new_height, new_width) > longer:
        scale = longer / max(new_height, new_width)
        new_height, new_width = new_height * scale, new_width * scale
    return max(1, int(new_height + 0.5)), max(1, int(new_width + 0.5))


def cached_frame(
    preprocess: Mapping[str, Any], model: Mapping[str, Any], size: tuple[int, int], cells: tuple[int, int]
) -> Frame:
    """What stored cells cover of an image of `size`, height and width; all of it, where their store does not say."""
    height, width = size
    if "shorter" in preprocess:  # of grids: cells are of equal pixels, the last ones of some beyond the image
        down, across = resized_shape(height, width, preprocess["shorter"], preprocess["longer"])
        step = model.get("stride", CELL)
        return (0, 0, cells[1] * step * width / across, cells[0] * step * height / down)
    if preprocess.get("aspect", "squashed") == "squashed":
        return (0, 0, width, height)
    return middle(height, width, preprocess["size"] / preprocess["resized"])


def middle(height: int, width: int, part: float = 1.0) -> Frame:
    """The square in the middle of an image, its side a part of the shorter one."""
    side = min(height, width) * part
    return ((width - side) / 2, (height - side) / 2, (width + side) / 2, (height + side) / 2)
