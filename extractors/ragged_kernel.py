"""`Areas.clear` as a Triton kernel, which writes the padding alone: what is of an image it neither reads nor writes."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


def clear(maps: Tensor, own: Tensor) -> Tensor:
    """Set what is outside of each image to zero, in place; gives the same tensor.

    Args:
        maps: (B, C, h, w), channels_last.
        own: (B, 2) int64, height and width of each image's part.
    """
    images, channels, height, width = maps.shape
    _clear[(images * height,)](maps, own, height, width * channels, channels, BLOCK=BLOCK)
    return maps


@triton.jit(do_not_specialize=["height", "row_length"])  # else a compilation for many a size
def _clear(maps, own, height, row_length, channels, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.program_id(0)
    image, row = at // height, at % height
    high, wide = tl.load(own + image * 2), tl.load(own + image * 2 + 1)
    first = tl.where(row < high, (wide * channels).to(tl.int32), 0)
    begin = maps + at.to(tl.int64) * row_length
    for place in range(first, row_length, BLOCK):
        lane = place + tl.arange(0, BLOCK)
        tl.store(begin + lane, 0.0, mask=lane < row_length)
