"""`Originals.resized` as two Triton kernels: one makes rows as wide as they are to be, the other columns as high."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from extractors.resize import BITS as BITS_OF_WEIGHTS
from extractors.resize import FACTS as FACTS_OF_IMAGE

BLOCK = 256
FACTS, BITS = tl.constexpr(FACTS_OF_IMAGE), tl.constexpr(BITS_OF_WEIGHTS)
HALF = tl.constexpr(1 << (BITS_OF_WEIGHTS - 1))


def resize(pixels: Tensor, plan: Tensor, taps: Tensor, highest: int, widened: Tensor, found: Tensor) -> None:
    """Put images into the batch `found`, (B or more, 3, h, w) uint8.

    The other arguments are those of `Originals`, on the device; of `widened` it is memory.
    """
    images, (_, _, *shape) = len(plan), found.shape
    # Rows first: of the second number a GPU takes 65,535 at most, and a thin image may have more.
    _widen[(highest, images)](pixels, plan, taps, widened, BLOCK=BLOCK)
    _heighten[(shape[0], images)](widened, plan, taps, found, *shape, BLOCK=BLOCK)


@triton.jit
def _widen(pixels, plan, taps, widened, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row, image = tl.program_id(0), tl.program_id(1)
    facts = plan + image * FACTS
    high, wide, width = _whole(facts + 4), _whole(facts + 5), _whole(facts + 7)
    if row < high:
        begin = pixels + tl.load(facts) + row * tl.load(facts + 1)
        step, next_channel = tl.load(facts + 2), tl.load(facts + 3)
        table, count = taps + tl.load(facts + 8), _whole(facts + 9)
        target = widened + tl.load(facts + 12) + row * width
        for place in range(0, width, BLOCK):
            x = place + tl.arange(0, BLOCK)
            inside = x < width
            first = tl.load(table + x, mask=inside, other=0)
            for channel in tl.static_range(3):
                total = tl.full((BLOCK,), HALF, tl.int32)
                for tap in range(count):
                    weight = tl.load(table + (tap + 1) * width + x, mask=inside, other=0)
                    at = begin + channel * next_channel + tl.minimum(first + tap, wide - 1) * step
                    total += tl.load(at, mask=inside, other=0).to(tl.int32) * weight
                value = tl.minimum(total >> BITS, 255).to(tl.uint8)
                tl.store(target + channel * high * width + x, value, mask=inside)


@triton.jit(do_not_specialize=["padded_height", "padded_width"])  # else a compilation for many a size
def _heighten(widened, plan, taps, found, padded_height, padded_width, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row, image = tl.program_id(0), tl.program_id(1)
    facts = plan + image * FACTS
    high, height, width = _whole(facts + 4), _whole(facts + 6), _whole(facts + 7)
    if row < height:
        table, count = taps + tl.load(facts + 10), _whole(facts + 11)
        first = tl.load(table + row)
        for channel in tl.static_range(3):
            begin = widened + tl.load(facts + 12) + channel * high * width
            target = found + ((image.to(tl.int64) * 3 + channel) * padded_height + row) * padded_width
            for place in range(0, width, BLOCK):
                x = place + tl.arange(0, BLOCK)
                inside = x < width
                total = tl.full((BLOCK,), HALF, tl.int32)
                for tap in range(count):
                    weight = tl.load(table + (tap + 1) * height + row)
                    at = begin + tl.minimum(first + tap, high - 1) * width + x
                    total += tl.load(at, mask=inside, other=0).to(tl.int32) * weight
                tl.store(target + x, tl.minimum(total >> BITS, 255).to(tl.uint8), mask=inside)


@triton.jit
def _whole(place):  # type: ignore[no-untyped-def]
    return tl.load(place).to(tl.int32)
