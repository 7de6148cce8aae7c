"""ResNet and ResNeXt bodies, laid out and named as detectron2 lays them out, so that its checkpoints load by name.

Sources of every rule: detectron2 `modeling/backbone/resnet.py`; the ceil-mode pool and the dilated head from
airsplay/py-bottom-up-attention and MILVLG/bottom-up-attention.pytorch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from math import gcd

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from extractors.fused import convolve, joined, sample_taps
from extractors.ragged import Areas

BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


@dataclass(frozen=True)
class ResNetConfig:
    """One body.

    depth            50, 101 or 152
    groups           of the 3x3 convolutions; above 1 it is a ResNeXt
    width_per_group  channels of one group in res2; doubles with every stage
    stem_channels    after the 7x7 convolution
    res2_channels    at the end of res2; doubles with every stage
    deform_stages    stages (4, 5) whose 3x3 convolutions are deformable, version 1
    ceil_pool        the Caffe stem pool: no padding, sizes rounded up
    last_stage       5 for grid networks, 4 where res5 is the box head
    res5_dilation    2 where res5 keeps the size of res4 and dilates its 3x3 convolutions instead
    """

    depth: int = 101
    groups: int = 1
    width_per_group: int = 64
    stem_channels: int = 64
    res2_channels: int = 256
    deform_stages: tuple[int, ...] = ()
    ceil_pool: bool = False
    last_stage: int = 5
    res5_dilation: int = 1

    def narrowed(self, divisor: int) -> ResNetConfig:
        """The same body with all widths divided: for trying things out, never for features to keep."""
        bottleneck = max(1, self.groups * self.width_per_group // divisor)
        groups = gcd(self.groups, bottleneck)
        return replace(
            self,
            groups=groups,
            width_per_group=bottleneck // groups,
            stem_channels=max(1, self.stem_channels // divisor),
            res2_channels=max(1, self.res2_channels // divisor),
        )

    @property
    def stride_in_1x1(self) -> bool:
        """ResNets carry a stage's stride in the first 1x1, as Caffe did; ResNeXts in the 3x3."""
        return self.groups == 1

    def out_channels(self, stage: int) -> int:
        return self.res2_channels * 2 ** (stage - 2)


class FrozenNorm(nn.Module):
    """The statistics and weights of a batch normalisation that is never trained: (C,) float32 each."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor
    eps = 1e-5

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((channels,), value))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


class ConvNorm(nn.Conv2d):
    """A convolution without bias, followed by batch normalisation with fixed statistics (eps 1e-5).

    Folded, it is a convolution with bias and without norm, for inference only.
    """

    norm: FrozenNorm | None

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, dilation: int = 1, groups: int = 1
    ):
        padding = dilation * (kernel - 1) // 2
        super().__init__(in_channels, out_channels, kernel, stride, padding, dilation, groups, bias=False)
        self.norm = FrozenNorm(out_channels)

    def forward(self, x: Tensor, residual: Tensor | None = None, relu: bool = False) -> Tensor:
        """The layer, plus `residual`, through a ReLU where asked."""
        if self.norm is None:
            return convolve(x, self, residual, relu)
        y = self.normalise(super().forward(x))
        if residual is not None:
            y += residual
        return F.relu_(y) if relu else y

    def normalise(self, x: Tensor) -> Tensor:
        """The norm in one pass over memory: convolutions wait for that."""
        assert self.norm is not None
        found: Tensor = self.norm(x)
        return found

    @torch.no_grad()
    def fold(self) -> None:
        """Make the norm part of the weights: with fixed statistics it is a factor and a shift a channel, rounded to
        float32 as `batch_norm` itself rounds them, so that results stay closest to the official ones."""
        norm = self.norm
        assert norm is not None
        factor = norm.weight * (1 / (norm.running_var + norm.eps).sqrt())
        self.weight = nn.Parameter(self.weight * factor[:, None, None, None], requires_grad=False)
        self.bias = nn.Parameter(norm.bias - norm.running_mean * factor, requires_grad=False)
        self.norm = None


class DeformConvNorm(ConvNorm):
    """A ConvNorm whose taps are moved by offsets; outside the image reads as zero."""

    def forward(  # type: ignore[override]
        self, x: Tensor, offsets: Tensor, relu: bool = False
    ) -> Tensor:
        if self.norm is None:
            taps = sample_taps(x, offsets, self.step, self.spread)
            return joined([convolve(some, self, relu=relu) for some in taps], dim=2)
        # In float32 whatever the network computes in: the CPU kernel has no other, and offsets need the precision.
        with torch.autocast(x.device.type, enabled=False):
            y = self._forward(x.float(), offsets.float()).to(x.dtype)
        return F.relu_(y) if relu else y

    def _forward(self, x: Tensor, offsets: Tensor) -> Tensor:
        from torchvision.ops import deform_conv2d  # here, as it takes seconds to import

        y = deform_conv2d(x, offsets, self.weight, None, self.stride, self.padding, self.dilation)
        return self.normalise(y)

    def fold(self) -> None:
        """Also, become the plain convolution that follows `sample_taps`."""
        super().fold()
        self.step, self.spread = self.stride[0], self.dilation[0]
        self.stride, self.padding, self.dilation = (3, 3), (0, 0), (1, 1)


def fold(module: nn.Module) -> None:
    """Make all norms of a network part of its weights, for good: for inference, once the weights are loaded."""
    for layer in module.modules():
        if isinstance(layer, ConvNorm):
            layer.fold()
    for block in module.modules():
        if isinstance(block, Bottleneck):
            block.add_once()


@dataclass(frozen=True)
class BlockShape:
    """Widths and steps of one bottleneck block."""

    in_channels: int
    bottleneck: int
    out_channels: int
    stride: int
    dilation: int = 1
    groups: int = 1
    stride_in_1x1: bool = True
    deformable: bool = False


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 and a shortcut; a deformable block predicts 18 offsets, (dy, dx) a tap, from the 3x3's input."""

    def __init__(self, shape: BlockShape) -> None:
        super().__init__()
        first, second = (shape.stride, 1) if shape.stride_in_1x1 else (1, shape.stride)
        self.shortcut: nn.Module | None = None
        if shape.in_channels != shape.out_channels:
            self.shortcut = ConvNorm(shape.in_channels, shape.out_channels, 1, shape.stride)
        width, dilation = shape.bottleneck, shape.dilation
        self.conv1 = ConvNorm(shape.in_channels, width, 1, first)
        middle = DeformConvNorm if shape.deformable else ConvNorm
        self.conv2 = middle(width, width, 3, second, dilation, shape.groups)
        self.conv2_offset: nn.Conv2d | None = None
        if shape.deformable:
            self.conv2_offset = nn.Conv2d(width, 18, 3, second, dilation, dilation)
        self.conv3 = ConvNorm(width, shape.out_channels, 1)

    @torch.no_grad()
    def add_once(self) -> None:
        """Make the shortcut's bias part of the last layer's, folded as both are: it costs a pass over memory."""
        if isinstance(self.shortcut, ConvNorm):
            assert self.conv3.bias is not None and self.shortcut.bias is not None
            self.conv3.bias += self.shortcut.bias
            self.shortcut.bias = None

    def forward(self, x: Tensor, areas: Areas | None = None) -> Tensor:
        def middle(y: Tensor) -> Tensor:
            if areas is not None:
                areas.clear(y)
            moves = () if self.conv2_offset is None else (self.conv2_offset(y),)
            found: Tensor = self.conv2(y, *moves, relu=True)
            return found

        return self.around(x, middle)

    def around(self, x: Tensor, middle: Callable[[Tensor], Tensor]) -> Tensor:
        """The block with anything in the place of its 3x3 convolution; the rest is of 1x1."""
        y = middle(self.conv1(x, relu=True))
        found: Tensor = self.conv3(y, x if self.shortcut is None else self.shortcut(x), relu=True)
        return found


class Stage(nn.Sequential):
    """Blocks, one after the other; `areas` where the batch is padded."""

    def forward(self, x: Tensor, areas: Areas | None = None) -> Tensor:
        for block in self:
            x = block(x, areas)
        return x


def make_stage(config: ResNetConfig, stage: int, stride: int, dilation: int = 1) -> Stage:
    """The blocks of one stage (2 to 5); only the first one strides and widens."""
    out_channels = config.out_channels(stage)
    shape = BlockShape(
        in_channels=config.stem_channels if stage == 2 else config.out_channels(stage - 1),
        bottleneck=config.groups * config.width_per_group * 2 ** (stage - 2),
        out_channels=out_channels,
        stride=stride,
        dilation=dilation,
        groups=config.groups,
        stride_in_1x1=config.stride_in_1x1,
        deformable=stage in config.deform_stages,
    )
    rest = replace(shape, in_channels=out_channels, stride=1)
    count = BLOCKS[config.depth][stage - 2]
    return Stage(*(Bottleneck(shape if index == 0 else rest) for index in range(count)))


class Stem(nn.Module):
    """7x7 with stride 2, then a 3x3 max-pool with stride 2."""

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        self.conv1 = ConvNorm(3, config.stem_channels, 7, stride=2)
        self.ceil_pool = config.ceil_pool

    def forward(self, x: Tensor, areas: Areas | None = None) -> Tensor:
        x = self.conv1(x, relu=True)
        if areas is not None:
            areas.clear(x)
        return F.max_pool2d(x, 3, stride=2, padding=0 if self.ceil_pool else 1, ceil_mode=self.ceil_pool)


def make_res5(config: ResNetConfig, dilation: int) -> Stage:
    """The last stage: it halves the map or, with a dilation of 2, keeps its size."""
    return make_stage(config, 5, stride=2 if dilation == 1 else 1, dilation=dilation)


def redilated(res5: Stage, config: ResNetConfig, dilation: int) -> Stage:
    """The last stage at another dilation, folded if `res5` is, on the same tensors: nothing is copied."""
    with torch.device("meta"):
        stage = make_res5(config, dilation)
    if not any(name.endswith("norm.weight") for name in res5.state_dict()):
        fold(stage)
    stage.load_state_dict(res5.state_dict(), assign=True)
    return stage.eval()


class ResNet(nn.Module):
    """Images (B, 3, h, w), normalised, to the last stage's map (B, C, h / 16 or h / 32, ...), each step rounded up."""

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        self.config = config
        self.stem = Stem(config)
        for stage in range(2, min(config.last_stage, 4) + 1):
            self.add_module(f"res{stage}", make_stage(config, stage, stride=1 if stage == 2 else 2))
        if config.last_stage == 5:
            self.res5 = make_res5(config, config.res5_dilation)

    def stages(self, x: Tensor, areas: Areas | None = None) -> Iterator[tuple[str, Tensor]]:
        """Every stage's output by name, from "stem" on."""
        for name, stage in self.named_children():
            x = stage(x, areas)
            yield name, x

    def forward(self, x: Tensor, last_stage: int = 5, areas: Areas | None = None) -> Tensor:
        """The map of the last stage there is, or of `last_stage` (2 to 5) where it comes before; its padding, where
        there is any, holds anything."""
        stages = islice(self.stages(x, areas), last_stage)
        [(_, last)] = deque(stages, maxlen=1)  # the stem is the first; no map is kept
        return last


def infer_config(shapes: dict[str, torch.Size], last_stage: int, ceil_pool: bool) -> ResNetConfig:
    """Read a body's widths off the tensor shapes of its checkpoint (names without the `backbone.` prefix).

    Raises:
        KeyError: a tensor every body has is missing.
    """
    res4 = len({name.split(".")[1] for name in shapes if name.startswith("res4.")})
    depth = {blocks[2]: depth for depth, blocks in BLOCKS.items()}[res4]
    bottleneck, per_group = shapes["res2.0.conv2.weight"][:2]
    return ResNetConfig(
        depth=depth,
        groups=bottleneck // per_group,
        width_per_group=per_group,
        stem_channels=shapes["stem.conv1.weight"][0],
        res2_channels=shapes["res2.0.conv3.weight"][0],
        deform_stages=tuple(s for s in (2, 3, 4, 5) if f"res{s}.0.conv2_offset.weight" in shapes),
        ceil_pool=ceil_pool,
        last_stage=last_stage,
    )
