"""`roi_pool` as a Triton kernel: one program a part of a box, all channels side by side."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

CHANNELS_AT_ONCE = 1024


def pool(cells: Tensor, boxes: Tensor, side: int, scale: float) -> Tensor:
    """As `roi_pool`; the channels of `cells` are side by side in memory, its rows and columns anywhere."""
    _, channels, height, width = cells.shape
    found = torch.empty(
        (len(boxes), channels, side, side), dtype=cells.dtype, device=cells.device, memory_format=torch.channels_last
    )
    block = min(CHANNELS_AT_ONCE, triton.next_power_of_2(channels))
    grid = (len(boxes), side * side, triton.cdiv(channels, block))
    if len(boxes):
        steps = (cells.stride(2), cells.stride(3))
        # A division that is only nearly right would move the edges of parts.
        _pool[grid](
            cells, boxes.contiguous(), found, height, width, *steps, channels, scale, SIDE=side, BLOCK=block,
            enable_fp_fusion=False,
        )  # fmt: skip
    return found


@triton.jit(do_not_specialize=["height", "width"])  # else a compilation for many a size
def _pool(
    cells, boxes, found, height, width, row_step, column_step, channels, scale, SIDE: tl.constexpr, BLOCK: tl.constexpr
):  # type: ignore[no-untyped-def]
    box, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    channel = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    inside = channel < channels
    left, right = _edges(tl.load(boxes + box * 4), tl.load(boxes + box * 4 + 2), scale, part % SIDE, width, SIDE)
    top, bottom = _edges(tl.load(boxes + box * 4 + 1), tl.load(boxes + box * 4 + 3), scale, part // SIDE, height, SIDE)
    most = tl.full((BLOCK,), float("-inf"), tl.float32)
    for row in range(top, bottom):
        for column in range(left, right):
            here = tl.load(cells + row * row_step + column * column_step + channel, mask=inside, other=0.0)
            most = tl.maximum(most, here.to(tl.float32))
    most = tl.where((bottom > top) & (right > left), most, 0.0)
    tl.store(found + (box * SIDE * SIDE + part) * channels + channel, most.to(found.dtype.element_ty), mask=inside)


@triton.jit
def _edges(low, high, scale, part, size, SIDE: tl.constexpr):  # type: ignore[no-untyped-def]
    """First cell of a part, and the one behind its last."""
    begin, end = _rounded(low * scale), _rounded(high * scale)
    share = tl.div_rn(tl.maximum(end - begin + 1, 1).to(tl.float32), SIDE * 1.0)
    first = tl.floor(part.to(tl.float32) * share).to(tl.int32) + begin
    last = tl.ceil((part + 1).to(tl.float32) * share).to(tl.int32) + begin
    return tl.minimum(tl.maximum(first, 0), size), tl.minimum(tl.maximum(last, 0), size)


@triton.jit
def _rounded(x):  # type: ignore[no-untyped-def]
    """To the nearest, halves away from zero, as C's `round`."""
    whole = tl.floor(tl.abs(x))
    away = tl.where(tl.abs(x) - whole >= 0.5, whole + 1, whole)
    return tl.where(x < 0, -away, away).to(tl.int32)
