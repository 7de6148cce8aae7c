"""A convolution and what follows it in one step: bias, addition, ReLU; and deformed samples as one gather.

On a CPU the step is one of oneDNN's fused operators, which torch has for its own compiler: three passes over memory
less a convolution, for any shape and without compiling anything. Its weights are not packed beforehand: what is packed
for one shape is unpacked again, slowly, for another, and the packing itself is about a hundredth of a convolution.
Where the processor has AMX, float32 goes through its matrix unit instead (`extractors/amx.py`).
On a GPU the step is one of cuDNN's, which torch has for its own compiler, too: where the steps are apart, three fifths
of a ResNeXt's time go into them. Elsewhere, and for number types that this processor's oneDNN lacks, it is torch's
convolution and steps in place.

Shapes in this file: B images, C channels, h x w cells.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from extractors import amx
from extractors.kernels import has_gradient

SAMPLES = 8 * 2**20  # bytes: in cache, and in memory that the allocator keeps; it gives large pieces back to the system


def compute_dtype(name: str) -> torch.dtype:
    """The type of the tensors, for what `--dtype` names."""
    dtype: torch.dtype = torch.float32 if name == "tf32" else getattr(torch, name)
    return dtype


@cache
def has_fused(dtype: torch.dtype) -> bool:
    """Whether this torch and this processor have the fused operators for a number type."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_convolution_pointwise"):
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32


def convolve(x: Tensor, conv: nn.Conv2d, residual: Tensor | None = None, relu: bool = False) -> Tensor:
    """conv(x), plus `residual`, through a ReLU where asked. Neither input is changed."""
    trained = has_gradient(x, conv.weight, conv.bias, residual)
    if not trained and x.device.type == "cpu" and has_fused(x.dtype):
        if amx.takes(x, conv):
            return amx.convolve(x, conv, residual, relu)
        if residual is None or _adds(conv):
            return _fused(x.to(memory_format=torch.channels_last), conv, residual, relu)
    if not trained and x.device.type == "cuda" and relu and conv.bias is not None:
        return _fused_by_cudnn(x, conv, residual)
    y = F.conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups)
    if residual is not None:
        y += residual
    return F.relu_(y) if relu else y


def multiply(x: Tensor, weight: Tensor) -> Tensor:
    """x @ weight.mT, P at once: (P, M, C) and (P, K, C) to (P, M, K)."""
    plain = x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32 and has_fused(torch.float32)
    if plain and not has_gradient(x, weight) and amx.library() is not None:
        return amx.multiply(x, weight)
    return torch.bmm(x, weight.mT)


def _adds(conv: nn.Conv2d) -> bool:
    """Whether oneDNN adds within the step: not to groups, and only in channels_last, which one channel is not."""
    return conv.groups == 1 and conv.in_channels > 1


def _fused(x: Tensor, conv: nn.Conv2d, residual: Tensor | None, relu: bool) -> Tensor:
    layer = (conv.weight, conv.bias, conv.padding, conv.stride, conv.dilation, conv.groups)
    operator = torch.ops.mkldnn._convolution_pointwise
    if residual is None:
        return operator(x, *layer, "relu" if relu else "none", [], "")
    return operator.binary(x, residual, *layer, "add", None, "relu" if relu else None, [], "")


def _fused_by_cudnn(x: Tensor, conv: nn.Conv2d, residual: Tensor | None) -> Tensor:
    """With a ReLU; without one cuDNN fuses nothing."""
    steps: tuple[Any, ...] = (conv.stride, conv.padding, conv.dilation, conv.groups)
    if residual is None:
        return torch.cudnn_convolution_relu(x, conv.weight, conv.bias, *steps)
    if not residual.is_contiguous(memory_format=torch.channels_last):
        residual = residual.to(memory_format=torch.channels_last)
    return torch.cudnn_convolution_add_relu(x, conv.weight, residual, 1.0, conv.bias, *steps)


def sample_taps(x: Tensor, offsets: Tensor, stride: int, dilation: int, at_once: int = SAMPLES) -> Iterator[Tensor]:
    """What the nine taps of a deformable 3x3 convolution (version 1, one deform group, padding = dilation) read.

    Args:
        x: (B, C, h, w).
        offsets: (B, 18, h', w'), (dy, dx) a tap, as torchvision and detectron2 order them.
        at_once: bytes of samples, of some rows, on a CPU; a GPU gives all at once.

    Yields:
        (B, C, 3 r, 3 w') of the next r output rows: side by side the 3 x 3 samples of each output cell, bilinear, zero
        outside of x; a plain 3x3 convolution with a stride of 3 then is the deformable one.
    """
    batch, channels, height, width = x.shape
    rows, columns = _places(offsets.float(), stride, dilation)  # (B, h', 3, w', 3): positions need the precision
    corners, shares = _corners(rows, columns, height, width)
    corners += torch.arange(batch, device=x.device).view(-1, 1, 1, 1, 1, 1) * (height * width)
    cells = x.permute(0, 2, 3, 1).reshape(-1, channels)  # no copy where x is channels_last
    _, down, _, across, _ = rows.shape
    fit = at_once // (9 * batch * across * channels * x.element_size())
    some = max(1, fit) if x.device.type == "cpu" else down
    for places, weights in zip(corners.split(some, dim=1), shares.to(x.dtype).split(some, dim=1), strict=True):
        samples = F.embedding_bag(places.reshape(-1, 4), cells, mode="sum", per_sample_weights=weights.reshape(-1, 4))
        yield samples.view(batch, -1, 3 * across, channels).permute(0, 3, 1, 2)


def joined(parts: list[Tensor], dim: int = 0) -> Tensor:
    """As `torch.cat`, which would copy a single one."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def _places(offsets: Tensor, stride: int, dilation: int) -> tuple[Tensor, Tensor]:
    """Row and column in x that each tap reads at, (B, h', 3, w', 3) each: output row, tap row, output column, tap."""
    down, across = offsets.shape[2:]
    taps = (torch.arange(3, device=offsets.device) - 1) * dilation
    y = (torch.arange(down, device=offsets.device) * stride)[:, None, None, None] + taps[:, None, None]
    x = (torch.arange(across, device=offsets.device) * stride)[:, None] + taps
    moves = offsets.unflatten(1, (3, 3, 2)).permute(0, 4, 1, 5, 2, 3)
    return moves[..., 0] + y, moves[..., 1] + x


def _corners(rows: Tensor, columns: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """The four cells around every place, as rows of the flattened map, and their shares; (..., 4) each."""
    top, left = rows.floor(), columns.floor()
    low, right = rows - top, columns - left
    y = torch.stack([top, top, top + 1, top + 1], dim=-1)
    x = torch.stack([left, left + 1, left, left + 1], dim=-1)
    shares = torch.stack([(1 - low) * (1 - right), (1 - low) * right, low * (1 - right), low * right], dim=-1)
    shares = shares.masked_fill((y < 0) | (y >= height) | (x < 0) | (x >= width), 0)
    at = y.clamp(0, height - 1) * width + x.clamp(0, width - 1)
    return at.nan_to_num(0).long(), shares  # shares that are none make the sample none
