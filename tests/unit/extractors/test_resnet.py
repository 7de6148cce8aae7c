"""Bodies: sizes and strides, against torchvision's ResNeXt with the same weights, and deformable ones at rest."""

from __future__ import annotations

from dataclasses import replace
from math import ceil

import pytest
import torch
import torchvision
from torch import Tensor, nn

from extractors.resnet import (
    BLOCKS,
    BlockShape,
    Bottleneck,
    ConvNorm,
    ResNet,
    ResNetConfig,
    infer_config,
    make_stage,
    redilated,
)
from extractors.weights import randomise

PLAIN = ResNetConfig(depth=50).narrowed(16)
NEXT = ResNetConfig(depth=50, groups=32, width_per_group=8).narrowed(16)
DEFORMABLE = replace(NEXT, deform_stages=(4, 5))
CAFFE = replace(PLAIN, ceil_pool=True, last_stage=4)


def body(config: ResNetConfig, seed: int = 0) -> ResNet:
    """A random network with norms that do something."""
    network = ResNet(config).eval()
    randomise(network, seed)
    generator = torch.Generator().manual_seed(seed)
    for name, buffer in network.named_buffers():
        if name.endswith(("running_mean", "norm.bias")):
            buffer.copy_(torch.randn(buffer.shape, generator=generator) * 0.1)
        if name.endswith("running_var"):
            buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
    return network


def picture(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)) * 50


def run(network: nn.Module, *inputs: Tensor | int) -> Tensor:
    with torch.inference_mode():
        return network(*inputs)


@pytest.mark.parametrize("size", [(64, 64), (65, 96), (33, 47), (1, 100)])
@pytest.mark.parametrize("config", [PLAIN, NEXT, DEFORMABLE], ids=["resnet", "resnext", "deformable"])
def test_every_stage_halves_and_rounds_up(config: ResNetConfig, size: tuple[int, int]) -> None:
    with torch.inference_mode():
        sizes = {name: tuple(map.shape) for name, map in body(config).stages(picture(2, 3, *size))}
    strides = {"stem": 4, "res2": 4, "res3": 8, "res4": 16, "res5": 32}
    channels = {"stem": config.stem_channels} | {f"res{stage}": config.out_channels(stage) for stage in (2, 3, 4, 5)}
    assert sizes == {name: (2, channels[name], *(ceil(side / strides[name]) for side in size)) for name in strides}


# 7x7 with stride 2: ceil(side / 2); the pool: ceil((that - 3) / 2) + 1; then twice half, rounded up. At 65 the padded
# pool of the other networks would give 5.
@pytest.mark.parametrize(("side", "cells"), [(64, 4), (65, 4), (67, 5), (600, 38), (1000, 63), (3, 1)])
def test_the_caffe_stem_pools_without_padding_and_rounds_up(side: int, cells: int) -> None:
    assert run(body(CAFFE), picture(1, 3, side, 16)).shape[1:3] == (CAFFE.out_channels(4), cells)


def test_the_body_ends_where_its_config_says() -> None:
    assert [name for name, _ in body(CAFFE).named_children()] == ["stem", "res2", "res3", "res4"]


@pytest.mark.parametrize("stage", [2, 3, 4, 5])
def test_a_run_may_end_at_any_stage(stage: int) -> None:
    network, image = body(PLAIN), picture(1, 3, 64, 64)
    with torch.inference_mode():
        wanted = dict(network.stages(image))[f"res{stage}"]
        assert torch.equal(network(image, stage), wanted)


@pytest.mark.parametrize("config", [PLAIN, NEXT, DEFORMABLE], ids=["resnet", "resnext", "deformable"])
def test_a_dilated_res5_keeps_the_size_of_res4(config: ResNetConfig) -> None:
    dilated = body(replace(config, res5_dilation=2))
    found = run(dilated, picture(1, 3, 64, 96))
    assert found.shape == (1, config.out_channels(5), 4, 6)
    assert [block.conv2.dilation for block in dilated.res5] == [(2, 2)] * 3
    assert dilated.state_dict().keys() == body(config).state_dict().keys()


@pytest.mark.parametrize("config", [PLAIN, NEXT], ids=["resnet", "resnext"])
def test_res5_at_another_dilation_is_the_same_weights_and_no_copy(config: ResNetConfig) -> None:
    plain, dilated = body(config), body(replace(config, res5_dilation=2))
    back = redilated(dilated.res5, dilated.config, dilation=1)
    image = picture(1, 3, 64, 96)
    assert torch.equal(run(back, run(dilated, image, 4)), run(plain, image))
    there, here = dilated.res5.state_dict(), back.state_dict()
    assert all(here[name].data_ptr() == tensor.data_ptr() for name, tensor in there.items())


@pytest.mark.parametrize("depth", BLOCKS)
def test_a_network_has_as_many_layers_as_its_name_says(depth: int) -> None:
    with torch.device("meta"):
        network = ResNet(ResNetConfig(depth=depth))
    convolutions = [name for name, layer in network.named_modules() if isinstance(layer, nn.Conv2d)]
    assert len([name for name in convolutions if "shortcut" not in name]) == depth - 1  # and a classifier


PUBLISHED = {
    "resnet50": ResNetConfig(depth=50),
    "resnet101": ResNetConfig(depth=101),
    "resnet152": ResNetConfig(depth=152),
    "resnext101_32x8d": ResNetConfig(depth=101, groups=32, width_per_group=8),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_widths_are_those_of_the_published_networks(name: str) -> None:
    with torch.device("meta"):
        ours = ResNet(PUBLISHED[name]).state_dict()
        theirs = dict(getattr(torchvision.models, name)().state_dict())
    ours = {torchvision_name(key): tensor.shape for key, tensor in ours.items()}
    assert ours == {
        key: tensor.shape
        for key, tensor in theirs.items()
        if not key.startswith("fc.") and not key.endswith("num_batches_tracked")
    }


def torchvision_name(name: str) -> str:
    """A tensor's name in torchvision's ResNet."""
    for ours, theirs in (("stem.", ""), ("shortcut.norm", "downsample.1"), ("shortcut", "downsample.0")):
        name = name.replace(ours, theirs)
    for conv in ("1", "2", "3"):
        name = name.replace(f"conv{conv}.norm", f"bn{conv}")
    for stage in (2, 3, 4, 5):
        name = name.replace(f"res{stage}.", f"layer{stage - 1}.")
    return name


def test_a_resnext_gives_torchvisions_features_with_the_same_weights() -> None:
    """torchvision puts a stage's stride in the 3x3, as detectron2 does for ResNeXts."""
    ours = body(ResNetConfig(depth=50, groups=4, width_per_group=4))
    theirs = torchvision.models.ResNet(
        torchvision.models.resnet.Bottleneck, [3, 4, 6, 3], groups=4, width_per_group=4
    ).eval()
    renamed = {torchvision_name(name): tensor for name, tensor in ours.state_dict().items()}
    unknown = theirs.load_state_dict(renamed, strict=False)
    assert unknown.unexpected_keys == []
    assert all(name.startswith("fc.") or name.endswith("num_batches_tracked") for name in unknown.missing_keys)
    theirs.avgpool, theirs.fc = nn.Identity(), nn.Identity()
    x = picture(1, 3, 70, 100)
    found, wanted = run(ours, x), run(theirs, x).reshape(1, 2048, 3, 4)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


def test_resnets_stride_in_the_first_1x1_and_resnexts_in_the_3x3() -> None:
    for config, strides in ((PLAIN, [(2, 2), (1, 1), (1, 1)]), (NEXT, [(1, 1), (2, 2), (1, 1)])):
        first = make_stage(config, 3, stride=2)[0]
        assert [layer.stride for layer in (first.conv1, first.conv2, first.conv3)] == strides
        assert first.shortcut.stride == (2, 2)


def test_only_the_first_block_of_a_stage_has_a_shortcut_convolution() -> None:
    assert [block.shortcut is not None for block in make_stage(PLAIN, 4, stride=2)] == [True] + 5 * [False]


def test_a_dilated_stage_keeps_size_and_reaches_twice_as_far() -> None:
    config = replace(PLAIN, res2_channels=4)
    dilated, dense = make_stage(config, 5, stride=1, dilation=2), make_stage(config, 5, stride=1)
    assert all(block.conv2.dilation == (2, 2) and block.conv2.padding == (2, 2) for block in dilated)
    assert not any(block.conv1.dilation != (1, 1) or block.conv3.dilation != (1, 1) for block in dilated)
    x = picture(1, config.out_channels(4), 14, 14)
    assert run(dilated, x).shape == run(dense, x).shape == (1, config.out_channels(5), 14, 14)


def test_a_convolution_is_followed_by_its_frozen_norm() -> None:
    layer = ConvNorm(2, 3, 1)
    layer.norm.running_mean.fill_(1.0)
    layer.norm.running_var.fill_(4.0 - 1e-5)
    layer.norm.weight.fill_(3.0)
    layer.norm.bias.fill_(0.5)
    x = picture(1, 2, 4, 4)
    plain = nn.functional.conv2d(x, layer.weight)
    torch.testing.assert_close(run(layer, x), (plain - 1) / 2 * 3 + 0.5)
    assert layer.bias is None and not list(layer.norm.parameters())


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("groups", [1, 2])
def test_a_deformable_block_with_zero_offsets_is_the_plain_one(stride: int, groups: int) -> None:
    shape = BlockShape(8, 4, 16, stride, groups=groups, stride_in_1x1=False)
    plain, deformable = Bottleneck(shape).eval(), Bottleneck(replace(shape, deformable=True)).eval()
    deformable.load_state_dict(plain.state_dict(), strict=False)
    nn.init.zeros_(deformable.conv2_offset.weight)
    nn.init.zeros_(deformable.conv2_offset.bias)
    x = picture(2, 8, 9, 11)
    torch.testing.assert_close(run(deformable, x), run(plain, x), rtol=1e-4, atol=1e-4)


def test_offsets_are_down_then_across() -> None:
    """All taps moved one pixel down see the image moved one pixel up."""
    shape = BlockShape(8, 4, 16, 1, stride_in_1x1=False)
    plain, deformable = Bottleneck(shape).eval(), Bottleneck(replace(shape, deformable=True)).eval()
    deformable.load_state_dict(plain.state_dict(), strict=False)
    nn.init.zeros_(deformable.conv2_offset.weight)
    x = picture(1, 8, 9, 11)
    y = torch.relu(run(plain.conv1, x))
    for offset, moved in (((1.0, 0.0), y[:, :, 1:]), ((0.0, 1.0), y[:, :, :, 1:])):
        offsets = torch.tensor(offset * 9)[None, :, None, None].expand(1, 18, 9, 11).contiguous()
        found, wanted = run(deformable.conv2, y, offsets), run(plain.conv2, moved)
        torch.testing.assert_close(found[:, :, 1:7, 1:7], wanted[:, :, 1:7, 1:7], rtol=1e-4, atol=1e-4)


def test_narrowing_divides_all_widths_and_keeps_the_kind() -> None:
    assert ResNetConfig(depth=101, ceil_pool=True, last_stage=4).narrowed(16) == ResNetConfig(
        101, 1, 4, 4, 16, ceil_pool=True, last_stage=4
    )
    narrow = ResNetConfig(depth=152, groups=32, width_per_group=8, deform_stages=(4, 5)).narrowed(16)
    assert (narrow.groups * narrow.width_per_group, narrow.stem_channels, narrow.res2_channels) == (16, 4, 16)
    assert narrow.groups > 1 and narrow.deform_stages == (4, 5) and narrow.depth == 152
    assert ResNetConfig().narrowed(1) == ResNetConfig()


@pytest.mark.parametrize("divisor", [2, 3, 7, 64, 1000])
def test_any_divisor_gives_a_network_that_runs(divisor: int) -> None:
    for config in (ResNetConfig(depth=50), ResNetConfig(depth=50, groups=32, width_per_group=8)):
        narrow = config.narrowed(divisor)
        assert run(body(narrow), picture(1, 3, 32, 32)).shape == (1, narrow.out_channels(5), 1, 1)


@pytest.mark.parametrize(
    "config",
    [
        ResNetConfig(depth=50),
        ResNetConfig(depth=101, ceil_pool=True, last_stage=4),
        ResNetConfig(depth=101, groups=32, width_per_group=8),
        ResNetConfig(depth=152, groups=32, width_per_group=8, deform_stages=(4, 5)),
        ResNetConfig(depth=152, groups=4, width_per_group=3, stem_channels=5, res2_channels=7),
    ],
)
def test_a_config_is_read_off_the_shapes_of_its_own_network(config: ResNetConfig) -> None:
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in ResNet(config).state_dict().items()}
    assert infer_config(shapes, config.last_stage, config.ceil_pool) == config


def test_shapes_of_something_else_are_no_config() -> None:
    with pytest.raises(KeyError):
        infer_config({}, 5, False)
    shapes = {f"res4.{block}.conv1.weight": torch.Size([1]) for block in range(6)}
    with pytest.raises(KeyError, match="res2"):
        infer_config(shapes, 5, False)
