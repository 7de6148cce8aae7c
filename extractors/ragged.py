"""Images of several sizes in one padded batch, each as if it were alone.

A padded batch alone changes every cell: biases make the padding non-zero, and convolutions carry it inwards. Set to
zero before the max-pool and before every convolution wider than 1x1, deformable ones included, padding is to an image
what lies outside of it when it runs alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from extractors.kernels import kernels_for
from extractors.launching import to_device

Size = tuple[int, int]  # (height, width)
STEP = 8  # pixels
WASTE = 1.15  # the largest of a padded batch's images, times their number, may be so many times their pixels


class Areas:
    """Each image's own part, top left, of the maps of a padded batch.

    Args:
        sizes: of the images, in pixels.
        ceil_pool: whether the stem pools as Caffe does.
        device: where the maps are.
        padded: the batch's size, where it is not `common_size`.
    """

    def __init__(
        self, sizes: Sequence[Size], ceil_pool: bool, device: torch.device, padded: Size | None = None
    ) -> None:
        self.padded = padded or common_size(sizes)
        self._device = device
        self._sizes: dict[Size, list[Size]] = {}  # of the images, by the padded size of a map
        self._masks: dict[Size, Tensor] = {}
        for level in zip(*(_levels(size, ceil_pool) for size in (self.padded, *sizes)), strict=True):
            self._sizes[level[0]] = list(level[1:])
        own = to_device(torch.tensor([*self._sizes.values()]), device)
        self._own = dict(zip(self._sizes, own, strict=True))  # (B, 2) int64, height and width of each image's part

    def clear(self, maps: Tensor) -> Tensor:
        """Set what is outside of each image in (B, C, h, w) to zero, in place; gives the same tensor."""
        size = (maps.shape[2], maps.shape[3])
        if kernels_for(maps) and maps.is_contiguous(memory_format=torch.channels_last):
            from extractors.ragged_kernel import clear  # Triton is no package of every machine

            return clear(maps, self._own[size])
        if size not in self._masks:
            self._masks[size] = ~self.inside(size)[:, None]
        return maps.masked_fill_(self._masks[size], 0)

    def own(self, maps: Tensor) -> list[Tensor]:
        """Each image's part of (B, C, h, w), (1, C, own h, own w)."""
        sizes = self._sizes[maps.shape[2], maps.shape[3]]
        return [maps[row : row + 1, :, :height, :width] for row, (height, width) in enumerate(sizes)]

    def cells(self, maps: Tensor, images: int) -> tuple[Tensor, list[Size]]:
        """As `own_cells`, of the first images of a padded batch: one operator, however many there are."""
        size = (maps.shape[2], maps.shape[3])
        sizes = self._sizes[size][:images]
        rows = _inside(torch.tensor(sizes), size).flatten().nonzero()[:, 0]  # here: a GPU would be waited for
        return _rows(maps).index_select(0, to_device(rows, self._device)), sizes

    def inside(self, size: Size) -> Tensor:
        """(B, h, w) bool: what is of an image, in maps of this size."""
        return _inside(self._own[size], size)


def _inside(own: Tensor, size: Size) -> Tensor:
    """(B, h, w) bool: what is of an image, whose height and width are (B, 2), in maps of a size."""
    down, across = (torch.arange(side, device=own.device) < own[:, axis, None] for axis, side in enumerate(size))
    return down[:, :, None] & across[:, None, :]


def own_cells(maps: Tensor, images: int, areas: Areas | None) -> tuple[Tensor, list[Size]]:
    """Cells of the first images of (B, C, h, w), row by row and end to end, (sum h' w', C), and each one's h', w'."""
    if areas is not None:
        return areas.cells(maps, images)
    size = (maps.shape[2], maps.shape[3])
    return _rows(maps[:images]), [size] * images


def _rows(maps: Tensor) -> Tensor:
    """(B, C, h, w) to (B h w, C); no copy where maps are channels_last."""
    return maps.permute(0, 2, 3, 1).flatten(0, 2)


def own_parts(maps: Tensor, areas: Areas | None) -> list[Tensor]:
    """Each image's part of (B, C, h, w); without areas, all of it."""
    return list(maps.split(1)) if areas is None else areas.own(maps)


def padded_count(images: int) -> int:
    """How many images a batch is filled up to: 1, 2, 3, 4, 6, 8, 12, 16, ... A GPU's library chooses its kernels anew
    for each shape of a batch, which takes as long as thirty images, and so there should be few."""
    steps = (step << power for power in range(images.bit_length() + 1) for step in (2, 3))
    return 1 if images == 1 else min(step for step in steps if step >= images)


def common_size(sizes: Sequence[Size]) -> Size:
    """The size that a batch of images is padded to: where they differ, one of few, for the same reason. The last maps
    grow by one cell a side at most, and where nothing is pooled as by Caffe by none."""
    if len(set(sizes)) == 1:
        return sizes[0]
    height, width = (-(-side // STEP) * STEP for side in largest(sizes))
    return height, width


def largest(sizes: Sequence[Size]) -> Size:
    """The smallest size that holds all of them."""
    return max(height for height, _ in sizes), max(width for _, width in sizes)


def groups(sizes: Sequence[Size]) -> list[list[int]]:
    """Which images run together: rows of `sizes`, all of them or similar ones, as `fits` says."""
    rows = sorted(range(len(sizes)), key=lambda row: sizes[row])
    if fits(sizes):
        return [rows] if rows else []
    found: list[list[int]] = []
    together = Together()
    for row in rows:
        if not found or not together.admits(sizes[row]):
            found.append([])
            together = Together()
            together.admits(sizes[row])
        found[-1].append(row)
    return found


def fits(sizes: Sequence[Size]) -> bool:
    """Whether little of their batch is padding, before its sides go up to one of `common_size` and it is filled up."""
    height, width = largest(sizes) if sizes else (0, 0)
    return _full(height * width * len(sizes), sum(high * wide for high, wide in sizes))


def _full(padded: int, pixels: int) -> bool:
    return padded <= WASTE * pixels


class Together:
    """Images that are to run together, one after the other: `fits` step by step."""

    def __init__(self) -> None:
        self._height = self._width = self._images = self._pixels = 0

    def admits(self, size: Size) -> bool:
        """Whether they fit with this one, which then is one of them."""
        height, width = max(self._height, size[0]), max(self._width, size[1])
        images, pixels = self._images + 1, self._pixels + size[0] * size[1]
        if not _full(height * width * images, pixels):
            return False
        self._height, self._width, self._images, self._pixels = height, width, images, pixels
        return True


def _levels(size: Size, ceil_pool: bool) -> list[Size]:
    """Sizes of the maps on the way from an image to res5: half a step each, rounded up; Caffe's pool rounds down."""
    levels = [size]
    for step in range(5):
        pooled = ceil_pool and step == 1
        height, width = (side // 2 if pooled else (side + 1) // 2 for side in levels[-1])
        levels.append((height, width))
    return levels
