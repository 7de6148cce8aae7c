"""Dilated 3x3 convolutions of small maps with a third of the multiplications, as three matrix products.

Winograd's algorithm F(4x4, 3x3) (Lavin and Gray 2016, "Fast Algorithms for Convolutional Neural Networks"): 36
products make 16 outputs that take 144 otherwise. With a dilation of 2 the even and the odd rows and columns of a map do
not meet: a map of 14 x 14 is four of 7 x 7, each two tiles a side. Where all maps are of one small size, the transforms
with their padding and tiles are one matrix each, so that nothing is copied between the three products.

A convolution of 1x1 does not care in which order the cells are. So a whole stage keeps maps as `split_phases` lays them
out: (1, C, 49, R) channels_last, R phases of maps, each a column of 7 x 7 cells.

Rounding. With the usual points 0, 1, -1, 2 and -2, errors are four times those of a plain convolution; with ours they
are as large as its own (`tests/unit/extractors/test_winograd.py` measures it).
"""

from __future__ import annotations

from functools import cache, partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from extractors.fused import multiply
from extractors.resnet import Bottleneck, Stage

DILATION = 2
TILE, TAPS = 4, 3  # outputs a side of a tile, taps a side of the kernel
INPUTS = TILE + TAPS - 1
POINTS = (0.0, 0.75, -0.75, 1.5, -1.5)  # and infinity; of those tried they round least, as little as a plain sum


def split_phases(maps: Tensor) -> Tensor:
    """(N, C, 2s, 2s) to (1, C, s * s, 4N) channels_last: even and odd rows and columns apart, cells slowest."""
    count, channels, high, wide = maps.shape
    cells = maps.view(count, channels, high // DILATION, DILATION, wide // DILATION, DILATION)
    rows = cells.permute(2, 4, 0, 3, 5, 1).reshape(1, (high // DILATION) * (wide // DILATION), -1, channels)
    return rows.permute(0, 3, 1, 2)


def mean_of_phases(x: Tensor, count: int) -> Tensor:
    """The mean over each map's cells, (N, C), of what `split_phases` laid out."""
    return x[0].permute(1, 2, 0).mean(dim=0).unflatten(0, (count, -1)).mean(dim=1)  # the slowest first: one pass


class PhasedConv(nn.Module):
    """A folded 3x3 convolution with a dilation and padding of 2, on maps that `split_phases` laid out; no gradients.

    Args:
        conv: dense, with bias.
        side: s, of a phase.
    """

    into: Tensor
    weight: Tensor
    back: Tensor

    def __init__(self, conv: nn.Conv2d, side: int) -> None:
        super().__init__()
        into, kernel, back = transforms(side)
        taps = conv.weight.detach().double().permute(2, 3, 0, 1).flatten(0, 1)  # (9, K, C)
        weight = torch.einsum("pt,tkc->pkc", torch.from_numpy(np.kron(kernel, kernel)), taps)
        self.register_buffer("into", torch.from_numpy(into).float())
        self.register_buffer("weight", weight.float())
        self.register_buffer("back", torch.from_numpy(back).float())
        assert conv.bias is not None, "a folded convolution has a bias"
        self.bias = conv.bias

    def forward(self, x: Tensor, relu: bool = False) -> Tensor:
        """(1, C, s * s, R) to (1, K, s * s, R), channels_last both."""
        cells, phases = x.shape[2:]
        inputs = x[0].permute(1, 2, 0).reshape(cells, -1)  # no copy: channels_last
        points = len(self.weight)
        products = multiply((self.into @ inputs).view(points, -1, x.shape[1]), self.weight)
        y = (self.back @ products.view(self.back.shape[1], -1)).view(cells, phases, -1)
        y += self.bias
        return (F.relu_(y) if relu else y).permute(2, 0, 1)[None]


class PhasedStage(nn.Module):
    """The blocks of a folded res5 with a dilation of 2, on maps that `split_phases` laid out. It shares their weights;
    of 3x3 convolutions it has its own, of how they are now.

    Args:
        side: of a phase, in cells.
    """

    def __init__(self, stage: Stage, side: int) -> None:
        super().__init__()
        self.blocks = stage
        self.middles = nn.ModuleList(PhasedConv(block.conv2, side) for block in self._blocks())

    def forward(self, x: Tensor) -> Tensor:
        for block, middle in zip(self._blocks(), self.middles, strict=True):
            x = block.around(x, partial(middle, relu=True))
        return x

    def _blocks(self) -> list[Bottleneck]:
        return [block for block in self.blocks if isinstance(block, Bottleneck)]


@cache
def transforms(side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The algorithm's matrices, float64, for a square of `side` cells with a border of zeros.

    Returns:
        (36 * tiles^2, side^2) from cells to points of tiles, (6, 3) of the kernel, an axis, and (side^2, 36 * tiles^2)
        back; points slowest.
    """
    inputs, kernel, outputs = toom_cook(TILE, TAPS, POINTS)
    tiles = -(-side // TILE)
    into, back = np.zeros((INPUTS, tiles, side)), np.zeros((side, INPUTS, tiles))
    for tile in range(tiles):
        first = tile * TILE
        for place in range(INPUTS):
            if 0 <= first + place - 1 < side:
                into[:, tile, first + place - 1] = inputs[:, place]
        last = min(first + TILE, side)
        back[first:last, :, tile] = outputs[: last - first]
    both = np.einsum("itx,juy->ijtuxy", into, into).reshape(-1, side * side)
    return both, kernel, np.einsum("xit,yju->xyijtu", back, back).reshape(side * side, -1)


def toom_cook(outputs: int, taps: int, points: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Matrices (n, n), (n, taps), (outputs, n) that make `outputs` sums of `taps` products from n products.

    Polynomials are multiplied by their values at n - 1 points and at infinity; the correlation is that, transposed.
    """
    count = outputs + taps - 1
    assert len(points) == count - 1, "one point less than products; the last is infinity"
    finite = np.array(points)
    others = [np.delete(finite, each) for each in range(len(finite))]
    inputs = np.zeros((count, count))
    for row, rest in enumerate(others):
        inputs[row, : count - 1] = np.poly(rest)[::-1]
    inputs[-1] = np.poly(finite)[::-1]
    scale = np.array([np.prod(point - rest) for point, rest in zip(finite, others, strict=True)])
    kernel = np.vstack([finite[:, None] ** np.arange(taps) / scale[:, None], np.eye(taps)[-1]])
    back = np.hstack([(finite[:, None] ** np.arange(outputs)).T, np.eye(outputs)[:, -1:]])
    return inputs, kernel, back
