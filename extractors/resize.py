"""Pillow's bilinear resize of bytes, bit for bit, on a GPU: the cores that decode take as long for it as for decoding.

Pillow multiplies bytes by whole numbers, the weights in steps of 2**-22, first along rows and then along columns, and
rounds to bytes after each: a GPU that does the same gives the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from extractors.base import Prepared

BITS = 22  # of a weight behind its point: of 32, 8 are a pixel's, and 2 are left for sums
FACTS = 13  # whole numbers that `Originals.plan` has of an image


@lru_cache(maxsize=4096)
def taps(before: int, after: int) -> tuple[np.ndarray, np.ndarray]:
    """What each of `after` pixels in a row is made of, where there are `before`.

    Source: python-pillow/Pillow `src/libImaging/Resample.c`, precompute_coeffs and normalize_coeffs_8bpc.

    Returns:
        (after,) int32, the first pixel that counts; (K, after) int32, weights of it and those behind it in 2**-BITS: 0
        where a pixel does not count, or is not there.
    """
    step = before / after
    reach = max(step, 1.0)  # pixels to both sides
    centre = (np.arange(after) + 0.5) * step
    first = np.maximum((centre - reach + 0.5).astype(np.int64), 0)
    behind = np.minimum((centre + reach + 0.5).astype(np.int64), before)
    at = first + np.arange((behind - first).max())[:, None]
    shares = np.maximum(1 - np.abs((at - centre + 0.5) * (1 / reach)), 0)
    shares[at >= behind] = 0
    weights = shares / np.add.accumulate(shares)[-1]  # added up one by one, as Pillow does
    return first.astype(np.int32), (weights * (1 << BITS) + 0.5).astype(np.int32)


@dataclass(frozen=True)
class Originals:
    """A batch of decoded images and what their resizing takes, all of it in one piece of memory.

    memory   uint8: a plan, then taps, then all images' pixels. The plan is (B, FACTS) int64, of an image in this order:
             where its first blue byte is among the pixels; from there to the next row's, column's and channel's; its
             height and width, and those that are wanted; where the taps of its columns begin and how many there are,
             and those of its rows; where its widened rows lie, between the two steps. Taps are int32, of each kind of
             row what `taps` gives.
    images   B
    begin    of the taps and of the pixels
    highest  rows that the highest image has
    widened  bytes that all images' widened rows take
    """

    memory: Tensor
    images: int
    begin: tuple[int, int]
    highest: int
    widened: int

    def resized(self, device: torch.device, count: int, shape: tuple[int, int]) -> Tensor:
        """(count, 3, *shape) uint8 BGR: each image top left, beside it anything, and black behind them."""
        from extractors.resize_kernel import resize  # Triton is no package of every machine

        memory, (taps, pixels) = self.memory.to(device, non_blocking=True), self.begin
        plan = memory[: 8 * FACTS * self.images].view(torch.int64).view(-1, FACTS)
        found = torch.empty((count, 3, *shape), dtype=torch.uint8, device=device)
        found[self.images :] = 0
        widened = torch.empty(self.widened, dtype=torch.uint8, device=device)
        resize(memory[pixels:], plan, memory[taps:pixels].view(torch.int32), self.highest, widened, found)
        return found


def originals(batch: Sequence[Prepared], pinned: bool) -> Originals:
    """Images on their way to a GPU, some of which are to be resized there; the others stay as they are.

    Args:
        pinned: whether the memory is such that a GPU copies from it by itself.
    """
    tables: list[np.ndarray] = []
    known: dict[tuple[int, int], tuple[int, int]] = {}  # of (before, after): where its taps begin, and their number
    plan, pixels, widened = [], 0, 0

    def taps_of(before: int, after: int) -> tuple[int, int]:
        if (before, after) not in known:
            first, weights = taps(before, after)
            known[before, after] = (sum(map(len, tables)), len(weights))
            tables.append(np.concatenate([first, weights.reshape(-1)]))
        return known[before, after]

    for image in batch:
        height, width = image.size
        if image.resized:  # (H, W, 3), red first
            high, wide, _ = image.pixels.shape
            steps = (pixels + 2, 3 * wide, 3, -1)
        else:
            _, high, wide = image.pixels.shape
            steps = (pixels, wide, 1, high * wide)
        plan.append((*steps, high, wide, height, width, *taps_of(wide, width), *taps_of(high, height), widened))
        pixels, widened = pixels + _room(image.pixels.numel()), widened + 3 * high * width
    whole_numbers = [torch.tensor(plan, dtype=torch.int64).view(-1), torch.from_numpy(np.concatenate(tables))]
    parts = [each.view(torch.uint8) for each in whole_numbers] + [each.pixels.reshape(-1) for each in batch]
    begins = list(accumulate((_room(len(part)) for part in parts), initial=0))
    memory = torch.empty(begins[-1], dtype=torch.uint8, pin_memory=pinned)
    for part, begin in zip(parts, begins[:-1], strict=True):
        memory[begin : begin + len(part)] = part
    return Originals(memory, len(batch), (begins[1], begins[2]), max(facts[4] for facts in plan), widened)


def _room(size: int) -> int:
    """Bytes of a part: a kernel is compiled once, and not anew where something does not begin at 16 bytes."""
    return -(-size // 16) * 16
