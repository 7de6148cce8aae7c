"""RoI max-pooling of one image's boxes, bit for bit torchvision's: by tables on a CPU, as a Triton kernel on a GPU.

torchvision's own kernels take maps in planes and in float32 only, and what they give must then be turned to the layout
and number type that the box head computes in: a fifth of a detector's time in bfloat16.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import torch
from torch import Tensor

from extractors.kernels import has_gradient, kernels_for

FEWEST = 16  # boxes that tables are worth making for
TABLES = 256 << 20  # bytes that they may take: three times those of an image of 600/1000


def roi_pool(cells: Tensor, boxes: Tensor, side: int, scale: float, at_once: int) -> Iterator[Tensor]:
    """The largest value in each of `side` x `side` parts of every box.

    Source of the rounding: torchvision `ops/roi_pool.py`, which is Fast R-CNN's (Girshick 2015, section 2.1).

    Args:
        cells: (1, C, h, w).
        boxes: (R, 4) in the network's input pixels.
        scale: cells per input pixel.
        at_once: boxes that are pooled, and held, at once.

    Yields:
        (R, C, side, side) of the next `at_once` boxes, channels_last: on a GPU in the number type of the cells, else
        float32.
    """
    if cells.device.type == "cpu" and len(boxes) >= FEWEST and not has_gradient(cells):
        yield from _by_tables(cells, boxes, side, scale, at_once)
    elif kernels_for(cells) and cells.stride(1) == 1:
        from extractors.roi_pool_kernel import pool  # Triton is no package of every machine

        for part in boxes.split(at_once):
            yield pool(cells, part, side, scale)
    else:
        yield from _by_torchvision(cells, boxes, side, scale, at_once)


def _by_torchvision(cells: Tensor, boxes: Tensor, side: int, scale: float, at_once: int) -> Iterator[Tensor]:
    from torchvision.ops import roi_pool  # here, as it takes seconds to import

    kind = torch.float32 if cells.device.type == "cpu" else cells.dtype
    for part in boxes.split(at_once):
        yield roi_pool(cells.float(), [part], side, scale).to(kind, memory_format=torch.channels_last)


def _by_tables(cells: Tensor, boxes: Tensor, side: int, scale: float, at_once: int) -> Iterator[Tensor]:
    """A part of any size is the largest of four rectangles within it whose sides are powers of two; of those, tables
    hold the largest values at every cell."""
    channels, height, width = cells.shape[1:]
    top, bottom = _edges(boxes[:, 1], boxes[:, 3], side, scale, height)
    left, right = _edges(boxes[:, 0], boxes[:, 2], side, scale, width)
    down, across = _power(bottom - top), _power(right - left)
    deepest = max(down.flatten().tolist(), default=0), max(across.flatten().tolist(), default=0)
    if (deepest[0] + 1) * (deepest[1] + 1) * cells.numel() * 4 > TABLES:
        yield from _by_torchvision(cells, boxes, side, scale, at_once)
        return
    largest = _largest(cells[0].permute(1, 2, 0), *deepest)
    table = (down[:, :, None] * (deepest[1] + 1) + across[:, None, :]) * height
    empty = (bottom <= top)[:, :, None] | (right <= left)[:, None, :]
    corners = product((top, bottom - 2**down), (left, right - 2**across))
    rows = torch.stack(
        [
            ((table + y[:, :, None]) * width + x[:, None, :]).masked_fill(empty, len(largest) - 1).flatten(1)
            for y, x in corners
        ],
        dim=1,
    )
    other = torch.empty(side * side, channels)
    for part in rows.split(at_once):
        found = torch.empty(len(part), side * side, channels)
        for mine, four in zip(found, part, strict=True):  # one by one they stay in the second-level cache
            torch.index_select(largest, 0, four[0], out=mine)
            for each in four[1:]:
                torch.index_select(largest, 0, each, out=other)
                torch.maximum(mine, other, out=mine)
        yield found.unflatten(1, (side, side)).permute(0, 3, 1, 2)


def _largest(cells: Tensor, down: int, across: int) -> Tensor:
    """(h, w, C) to ((down + 1) * (across + 1) * h * w + 1, C) float32: table by table, at each cell the largest value
    of the 2**i x 2**j that begin there, where they are all in the map; and a row of zeros."""
    height, width, channels = cells.shape
    found = torch.empty((down + 1) * (across + 1) * height * width + 1, channels)
    found[-1] = 0
    tables = found[:-1].view(down + 1, across + 1, height, width, channels)
    tables[0, 0] = cells
    for i in range(down + 1):
        if i:
            half, before = 2 ** (i - 1), tables[i - 1, 0]
            torch.maximum(before[:-half], before[half:], out=tables[i, 0, :-half])
        for j in range(1, across + 1):
            half, before = 2 ** (j - 1), tables[i, j - 1]
            torch.maximum(before[:, :-half], before[:, half:], out=tables[i, j, :, :-half])
    return found


def _edges(low: Tensor, high: Tensor, side: int, scale: float, size: int) -> tuple[Tensor, Tensor]:
    """Of (R,) edges in input pixels: the first cell of each part (R, side), and the one behind its last."""
    begin, end = _rounded(low * scale), _rounded(high * scale)
    share = ((end - begin + 1).clamp(min=1) / side)[:, None]
    part = torch.arange(side, dtype=share.dtype)
    first = (part * share).floor() + begin[:, None]
    last = ((part + 1) * share).ceil() + begin[:, None]
    return first.clamp(0, size).long(), last.clamp(0, size).long()


def _rounded(x: Tensor) -> Tensor:
    """To the nearest, halves away from zero, as C's `round`."""
    whole = x.abs().floor()
    return (whole + (x.abs() - whole >= 0.5)).copysign(x)


def _power(lengths: Tensor) -> Tensor:
    """The largest i with 2**i within a length; 0 for none."""
    return torch.frexp(lengths.clamp(min=1).float()).exponent.long() - 1
