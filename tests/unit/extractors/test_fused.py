"""The fused steps and the plain ones they stand for give the same, with oneDNN's operators and without."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import deform_conv2d

from extractors import fused
from extractors.fused import convolve, has_fused, sample_taps
from extractors.resnet import BlockShape, Bottleneck, ConvNorm, fold
from extractors.weights import randomise

CLOSE = {"rtol": 1e-5, "atol": 1e-5}  # float32 sums in another order


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=["fused", "plain"])
def operators(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """oneDNN's operators where this processor has them, and torch's own."""
    if request.param == "plain":
        monkeypatch.setattr(fused, "has_fused", lambda dtype: False)
    yield request.param


def block(shape: BlockShape) -> Bottleneck:
    """A random block with norms that do something."""
    made = Bottleneck(shape).eval()
    randomise(made, 0)
    for seed, (name, buffer) in enumerate(made.named_buffers()):
        buffer.copy_(noise(*buffer.shape, seed=seed) * 0.1 if name.endswith(("mean", "bias")) else buffer + 0.5)
    return made


@torch.inference_mode()
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_step_is_convolution_addition_and_relu(
    operators: str, relu: bool, added: bool, groups: int, dtype: torch.dtype
) -> None:
    conv = torch.nn.Conv2d(8, 12, 3, 2, 1, groups=groups).requires_grad_(False)
    x, residual = noise(2, 8, 9, 7), noise(2, 12, 5, 4, seed=1)
    wanted = conv(x) + (residual if added else 0)
    kept = residual.to(dtype)
    found = convolve(x.to(dtype), conv.to(dtype), kept if added else None, relu)
    close = CLOSE if dtype == torch.float32 else {"rtol": 0.02, "atol": 0.05}
    torch.testing.assert_close(found.float(), wanted.relu() if relu else wanted, **close)
    assert torch.equal(kept, residual.to(dtype)) and found.dtype == dtype


@torch.inference_mode()
@pytest.mark.parametrize(
    "shape",
    [
        BlockShape(8, 4, 16, 2),
        BlockShape(16, 4, 16, 1, dilation=2),
        BlockShape(8, 8, 16, 2, groups=4, stride_in_1x1=False),
        BlockShape(8, 8, 16, 2, groups=4, stride_in_1x1=False, deformable=True),
        BlockShape(16, 8, 16, 1, groups=2, stride_in_1x1=False, deformable=True),
    ],
)
def test_a_folded_block_is_the_block(operators: str, shape: BlockShape) -> None:
    plain, folded = block(shape), block(shape)
    fold(folded)
    x = noise(2, shape.in_channels, 9, 11)
    before = x.clone()
    torch.testing.assert_close(folded(x.contiguous(memory_format=torch.channels_last)), plain(x), **CLOSE)
    assert torch.equal(x, before)
    assert not any("norm" in name for name in folded.state_dict())


@torch.inference_mode()
@settings(deadline=None, max_examples=40)
@given(
    size=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    stride=st.sampled_from([1, 2]),
    dilation=st.sampled_from([1, 2]),
    reach=st.sampled_from([0.0, 0.7, 5.0]),
    batch=st.integers(1, 2),
    at_once=st.sampled_from([1, 3000, 10**6]),  # bytes: a row, two or three of the widest, all
)
def test_sampled_taps_are_torchvisions_deformable_convolution(
    size: tuple[int, int], stride: int, dilation: int, reach: float, batch: int, at_once: int
) -> None:
    x, weight = noise(batch, 4, *size), noise(6, 2, 3, 3, seed=1)
    down, across = ((side - 1) // stride + 1 for side in size)
    offsets = noise(batch, 18, down, across, seed=2) * reach
    wanted = deform_conv2d(x, offsets, weight, None, stride, dilation, dilation)
    taps = list(sample_taps(x, offsets, stride, dilation, at_once))
    assert at_once > 1 or len(taps) == down
    found = torch.cat([torch.nn.functional.conv2d(some, weight, stride=3, groups=2) for some in taps], dim=2)
    torch.testing.assert_close(found, wanted, **CLOSE)


def test_samples_at_places_that_are_no_numbers_are_none() -> None:
    """They are that image's error; an index of them would end the job, and a GPU's context with it."""
    x, offsets = noise(1, 4, 5, 6), torch.zeros(1, 18, 5, 6)
    offsets[0, 3, 2, 4], offsets[0, 3, 0, 0] = torch.nan, torch.inf
    (taps,) = sample_taps(x, offsets, 1, 1)
    lost = taps.isnan().any(dim=1)[0]
    assert lost.sum() == 1 and lost[6, 13]  # the second tap, a column, of the cell in row 2 and column 4
    assert not taps[0, :, 0, 1].any(), "infinitely far is outside"
    torch.testing.assert_close(taps[0, :, 1::3, 1::3], x[0])


@pytest.mark.parametrize("wanted", ["bias", "residual"])
def test_a_gradient_of_what_is_added_alone_is_not_lost(wanted: str) -> None:
    conv = torch.nn.Conv2d(64, 64, 3, padding=1).requires_grad_(False)
    residual = noise(1, 64, 4, 4)
    leaf = conv.bias if wanted == "bias" else residual
    assert leaf is not None
    leaf.requires_grad_()
    convolve(noise(1, 64, 4, 4), conv, residual, relu=True).sum().backward()
    assert leaf.grad is not None and leaf.grad.any()


def test_float32_is_fused_wherever_torch_has_the_operators() -> None:
    assert has_fused(torch.float32) == (
        torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
    )
    assert not has_fused(torch.float16)


def test_a_norm_that_is_not_folded_still_learns() -> None:
    layer = ConvNorm(2, 3, 1)
    layer(noise(1, 2, 4, 4), noise(1, 3, 4, 4), relu=True).sum().backward()
    assert layer.weight.grad is not None and layer.weight.grad.any()
