"""Fewer multiplications give the same convolution."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from extractors.faster_rcnn import POOL, DetectorConfig, RoIHeads
from extractors.resnet import ResNetConfig, fold, make_stage
from extractors.weights import randomise
from extractors.winograd import POINTS, PhasedConv, PhasedStage, mean_of_phases, split_phases, toom_cook

BODY = ResNetConfig(depth=50, last_stage=4).narrowed(16)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def together(phases: Tensor, count: int, side: int) -> Tensor:
    """What `split_phases` took apart, (N, C, 2s, 2s)."""
    cells = phases[0].permute(1, 2, 0).reshape(side, side, count, 2, 2, -1)
    return cells.permute(2, 5, 0, 3, 1, 4).reshape(count, -1, 2 * side, 2 * side)


@pytest.mark.parametrize(("outputs", "points"), [(2, (0.0, 1.0, -1.0)), (4, POINTS)])
def test_sums_of_products_come_out_of_fewer_products(outputs: int, points: tuple[float, ...]) -> None:
    rng = np.random.default_rng(0)
    signal, taps = rng.normal(size=outputs + 2), rng.normal(size=3)
    inputs, kernel, back = toom_cook(outputs, 3, points)
    wanted = [signal[at : at + 3] @ taps for at in range(outputs)]
    np.testing.assert_allclose(back @ ((kernel @ taps) * (inputs @ signal)), wanted, atol=1e-12)


def test_a_layout_keeps_every_cell() -> None:
    maps = noise(3, 5, 8, 8)
    phases = split_phases(maps)
    assert phases.shape == (1, 5, 16, 12) and phases.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(together(phases, 3, 4), maps)
    torch.testing.assert_close(mean_of_phases(phases, 3), maps.mean(dim=(2, 3)))


@torch.inference_mode()
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("side", [1, 2, 4, 5, 7])
def test_it_is_the_convolution_with_its_border(side: int, relu: bool) -> None:
    conv = nn.Conv2d(8, 12, 3, padding=2, dilation=2)
    maps = noise(3, 8, 2 * side, 2 * side)
    found = together(PhasedConv(conv, side)(split_phases(maps), relu), 3, side)
    wanted = conv(maps)
    torch.testing.assert_close(found, wanted.relu() if relu else wanted, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_it_rounds_no_more_than_a_plain_convolution() -> None:
    """At full width, where a sum has 4608 terms."""
    torch.manual_seed(0)
    conv = nn.Conv2d(512, 512, 3, padding=2, dilation=2)
    maps = noise(1, 512, 14, 14).relu()
    exact = F.conv2d(maps.double(), conv.weight.double(), conv.bias.double(), padding=2, dilation=2)  # type: ignore[union-attr]
    found = together(PhasedConv(conv, 7)(split_phases(maps)), 1, 7)
    # Libraries add in as many lanes as a processor has, and round less; what is plain adds one term after the other.
    terms, weight = F.unfold(maps, 3, dilation=2, padding=2)[0], conv.weight.flatten(1)
    plain = conv.bias[:, None].expand(-1, terms.shape[1])  # type: ignore[index]
    for at, term in enumerate(terms):
        plain = plain + weight[:, at, None] * term
    errors = [
        float((each.double().flatten() - wanted.flatten()).abs().max() / exact.abs().max())
        for each, wanted in ((found, exact), (plain, exact))
    ]
    assert errors[0] < 2 * errors[1], errors


@torch.inference_mode()
def test_a_stage_gives_what_its_blocks_give() -> None:
    stage = make_stage(BODY, 5, stride=1, dilation=2).eval()
    randomise(stage, 0)
    fold(stage)
    stage.to(memory_format=torch.channels_last)
    maps = noise(3, 64, 14, 14)
    found = PhasedStage(stage, 7)(split_phases(maps))
    torch.testing.assert_close(together(found, 3, 7), stage(maps), atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_a_box_head_gives_the_same_features_settled() -> None:
    heads = RoIHeads(DetectorConfig(body=BODY, classes=5, attributes=3, embedding=4, attribute_hidden=8)).eval()
    randomise(heads, 0)
    fold(heads)
    heads.to(memory_format=torch.channels_last)
    cells, corners = noise(1, 64, 20, 30).relu(), torch.rand(7, 2) * 150
    boxes = torch.cat([corners, corners + 10 + torch.rand(7, 2) * 150], dim=1)
    plain = heads.features(cells, boxes)
    heads.settle()
    assert heads.phased is not None and POOL == 14
    torch.testing.assert_close(heads.features(cells, boxes), plain, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(heads.features(cells, boxes[:2]), plain[:2], atol=1e-5, rtol=1e-5)
    assert heads.features(cells, boxes[:0]).shape == (0, 128)


def test_lower_number_types_keep_the_plain_convolution() -> None:
    heads = RoIHeads(DetectorConfig(body=BODY, classes=5, attributes=3, embedding=4, attribute_hidden=8)).eval()
    fold(heads)
    heads.lower(torch.bfloat16)
    heads.settle()
    assert heads.phased is None
