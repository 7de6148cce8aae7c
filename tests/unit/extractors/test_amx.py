"""float32 convolutions by AMX are the convolutions, round no more than oneDNN's, and are optional."""

from __future__ import annotations

import gc
import os
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from extractors import amx, fused
from extractors.fused import convolve, multiply

needs_amx = pytest.mark.usefixtures("built")
CELLS = torch.channels_last


@pytest.fixture(scope="module")
def built() -> None:
    """Values need the unit itself; how it is built, refused and done without is tested on any machine."""
    if amx.library() is None:
        pytest.skip(f"no AMX: {amx.missing() or 'the processor has none'}")


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def layer(inputs: int, outputs: int, *shape: int, groups: int = 1, dilation: int = 1, bias: bool = True) -> nn.Conv2d:
    """A convolution of (size, stride, padding)."""
    torch.manual_seed(0)
    return nn.Conv2d(inputs, outputs, *shape, groups=groups, dilation=dilation, bias=bias).requires_grad_(False)


def error(found: Tensor, true: Tensor) -> float:
    """The root of the mean square, as a share of the true values' deviation."""
    return float((found.double() - true).square().mean().sqrt() / true.std())


@st.composite
def cases(draw: st.DrawFn) -> tuple[nn.Conv2d, Tensor]:
    size, stride, dilation = draw(st.sampled_from([1, 3])), draw(st.integers(1, 3)), draw(st.integers(1, 2))
    groups, own = draw(st.sampled_from([(1, 32), (1, 40), (1, 70), (2, 16), (4, 33), (8, 4), (32, 8), (33, 1)]))
    outputs = groups * draw(st.sampled_from([1, 4, 16, 17, 40]))
    conv = layer(
        groups * own, outputs, size, stride, draw(st.integers(0, 2)), groups=groups, dilation=dilation,
        bias=draw(st.booleans()),
    )  # fmt: skip
    sides = draw(st.integers(5, 20)), draw(st.integers(5, 40))
    return conv, noise(draw(st.integers(1, 3)), groups * own, *sides, seed=draw(st.integers(0, 99)))


@needs_amx
@torch.inference_mode()
@settings(deadline=None, max_examples=150)
@given(cases(), st.booleans(), st.booleans(), st.integers(1, 3))
def test_it_is_the_convolution(case: tuple[nn.Conv2d, Tensor], added: bool, relu: bool, threads: int) -> None:
    conv, x = case
    assert amx.takes(x, conv)
    true = F.conv2d(x.double(), conv.weight.double(), None if conv.bias is None else conv.bias.double(), conv.stride,
                    conv.padding, conv.dilation, conv.groups)  # fmt: skip
    residual = noise(*true.shape, seed=100) if added else None
    kept, before = x.clone(), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = convolve(x, conv, residual, relu)
    finally:
        torch.set_num_threads(before)
    wanted = true if residual is None else true + residual.double()
    wanted = wanted.relu() if relu else wanted
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=1e-6 * float(wanted.abs().max()) + 1e-12)
    assert torch.equal(x, kept) and (residual is None or torch.equal(residual, noise(*true.shape, seed=100)))
    assert found.dtype == torch.float32 and found.is_contiguous(memory_format=CELLS)


@needs_amx
@torch.inference_mode()
@pytest.mark.parametrize(
    ("conv", "sides"),
    [
        (layer(64, 64, 1), (40, 50)),
        (layer(1024, 256, 1), (19, 31)),
        (layer(512, 512, 3, 1, 1, groups=32), (20, 30)),
        (layer(256, 64, 3, 1, 1), (20, 30)),
        (layer(256, 64, 3, 2, 1), (20, 30)),
    ],
)
def test_it_rounds_no_more_than_onednn(conv: nn.Conv2d, sides: tuple[int, int], monkeypatch: Any) -> None:
    x = noise(1, conv.in_channels, *sides).relu()
    true = conv.double()(x.double())
    conv.float()
    ours = error(convolve(x, conv), true)
    monkeypatch.setattr(amx, "takes", lambda x, conv: False)
    assert ours <= error(convolve(x, conv), true) and ours < 5e-7


@needs_amx
@torch.inference_mode()
@pytest.mark.parametrize("conv", [layer(64, 64, 1), layer(64, 64, 3, 1, 1, groups=8), layer(64, 40, 3, 2, 1)])
def test_an_image_has_the_same_values_beside_any_others_and_on_any_number_of_threads(conv: nn.Conv2d) -> None:
    x, before = noise(3, 64, 70, 90), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = torch.cat([convolve(each[None], conv) for each in x])
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            assert torch.equal(convolve(x, conv), alone)
            assert torch.equal(convolve(x.flip(0), conv).flip(0), alone)
    finally:
        torch.set_num_threads(before)


@needs_amx
@torch.inference_mode()
def test_it_leaves_onednns_own_use_of_the_unit_as_it_was() -> None:
    """Both set the unit up for their tiles, and oneDNN remembers for each thread what it last set up."""
    conv, x, narrow = layer(64, 64, 1), noise(1, 64, 30, 30), layer(48, 24, 1).bfloat16()
    cells = noise(1, 48, 9, 7).bfloat16()
    wanted, ours = convolve(cells, narrow), convolve(x, conv)
    for _ in range(3):
        assert torch.equal(convolve(cells, narrow), wanted) and torch.equal(convolve(x, conv), ours)


@needs_amx
@torch.inference_mode()
def test_what_is_none_stays_none_and_nothing_makes_nothing() -> None:
    conv, x = layer(32, 32, 1), noise(1, 32, 4, 5)
    x[0, 3, 1, 2] = float("nan")
    found = convolve(x, conv, relu=True)
    assert found[0, :, 1, 2].isnan().all() and found.isnan().sum() == 32
    assert convolve(x[:, :, :, :0], conv).shape == (1, 32, 4, 0)


@pytest.fixture
def packings(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What is packed from now on; without AMX, too."""
    seen: list[Tensor] = []

    def pack(weight: Tensor, groups: int) -> Tensor:
        seen.append(weight)
        return weight.clone()

    monkeypatch.setattr(amx, "_pack", pack)
    return seen


@torch.inference_mode()
def test_frozen_weights_are_packed_once_and_again_when_they_change(packings: list[Tensor]) -> None:
    with torch.inference_mode(False):
        conv, other = layer(32, 8, 1), layer(32, 8, 1)

    def times() -> int:
        packings.clear()
        for _ in range(2):
            assert torch.equal(amx._packed(conv.weight), conv.weight)
        return len(packings)

    assert times() == 1 and times() == 0
    with torch.inference_mode(False), torch.no_grad():
        conv.weight += 1
        assert times() == 1 and times() == 0
        conv.load_state_dict(other.state_dict())
        assert times() == 1
        conv.half().float()  # other memory, which may lie where the first did
        assert times() == 1
        conv.weight = other.weight
        assert times() == 1 and times() == 0


@torch.inference_mode()
def test_weights_that_may_change_with_every_image_are_not_kept(packings: list[Tensor]) -> None:
    with torch.inference_mode(False):
        trained = layer(32, 8, 1).requires_grad_(True).weight
    for weight in (trained, noise(8, 32, 1, 1)):
        amx._packed(weight)
        amx._packed(weight)
        assert len(packings) == 2 and weight not in amx._kept
        packings.clear()


def test_what_was_packed_goes_with_its_weights(packings: list[Tensor]) -> None:
    conv = layer(32, 8, 1)
    parts = weakref.ref(amx._packed(conv.weight))
    assert parts() is not None and conv.weight in amx._kept
    packings.clear()
    del conv
    gc.collect()
    assert parts() is None


@needs_amx
def test_one_weight_with_other_groups_is_packed_for_each() -> None:
    two, four = layer(64, 64, 3, groups=2), layer(64, 64, 3, groups=2)
    weight = nn.Parameter(two.weight[:, :16].detach().clone(), requires_grad=False)
    for conv, groups in ((two, 2), (four, 4)):
        conv.requires_grad_(False)
        conv.weight, conv.groups, conv.in_channels = weight, groups, 16 * groups
        x = noise(1, conv.in_channels, 5, 6)
        torch.testing.assert_close(convolve(x, conv), conv(x), rtol=1e-5, atol=1e-5)


@needs_amx
def test_what_does_not_fit_is_told_as_torch_tells_it() -> None:
    """It reads memory by addresses: nothing else would notice."""
    conv = layer(64, 64, 3).requires_grad_(False)
    for channels in (16, 256):
        with pytest.raises(RuntimeError, match="channels"):
            convolve(noise(1, channels, 8, 8), conv)
    x = noise(1, 64, 8, 8)
    with pytest.raises(RuntimeError, match="expand"):
        convolve(x, conv, noise(1, 64, 3, 6))
    for added in (noise(1, 64, 1, 1), noise(1, 64, 6, 6).double()):
        torch.testing.assert_close(convolve(x, conv, added), conv(x) + added.float(), rtol=1e-5, atol=1e-5)
    conv.bias = nn.Parameter(conv.bias.double(), requires_grad=False)  # type: ignore[union-attr]
    with pytest.raises(RuntimeError, match="expects|type"):
        convolve(x, conv)


def test_gradients_are_not_for_it() -> None:
    conv, x = layer(32, 32, 1).requires_grad_(True), noise(1, 32, 4, 5)
    assert convolve(x, conv).requires_grad
    assert multiply(noise(2, 3, 4).requires_grad_(True), noise(2, 5, 4)).requires_grad


@torch.inference_mode()
@pytest.mark.parametrize("plain", [False, True])
def test_products_of_many_matrices(plain: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if plain:
        monkeypatch.setattr(amx, "library", lambda: None)
    for shape in [(3, 50, 40, 17), (2, 1, 32, 64), (2, 0, 8, 8)]:
        count, rows, inputs, outputs = shape
        x, weight = noise(count, rows, inputs), noise(count, outputs, inputs, seed=1)
        torch.testing.assert_close(multiply(x, weight), x @ weight.mT, rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_layers_that_it_does_not_take_go_another_way(monkeypatch: pytest.MonkeyPatch) -> None:
    x = noise(1, 32, 9, 9)
    monkeypatch.setattr(amx, "library", lambda: object())
    taken = layer(32, 8, 3, 1, 1)
    assert amx.takes(x, taken) and not amx.takes(x.bfloat16(), taken)
    others = [layer(32, 8, 5), layer(32, 8, (1, 3)), layer(32, 8, 3, (1, 2)), layer(16, 8, 3)]
    others += [nn.Conv2d(32, 8, 3, padding="same"), nn.Conv2d(32, 8, 3, padding=1, padding_mode="reflect")]
    assert not any(amx.takes(x, each) for each in others)
    monkeypatch.setattr(amx, "library", lambda: None)
    assert not amx.takes(x, taken)
    torch.testing.assert_close(convolve(x, taken, relu=True), taken(x).relu(), rtol=1e-5, atol=1e-5)


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A processor with AMX, nothing built yet, and no compiler but those put into the folder."""
    monkeypatch.setenv("TRIPTYCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(amx, "on_processor", lambda: True)
    amx._opened.cache_clear()
    yield tmp_path
    amx._opened.cache_clear()


@pytest.fixture
def compiler(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    def put(script: str) -> Path:
        path = fresh / "bin" / "g++"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setenv("PATH", f"{path.parent}{os.pathsep}/usr/bin{os.pathsep}/bin")
        monkeypatch.setattr(amx, "COMPILERS", ("g++",))
        return path

    return put


def test_without_a_compiler_it_says_so(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(fresh))
    assert amx.library() is None and amx.missing() == "there is no C++ compiler: install g++"


def test_a_compiler_that_cannot_says_so(compiler: Callable[[str], Path]) -> None:
    path = compiler("echo 'g++: error: unrecognized -mamx-bf16' >&2; exit 1")
    wanted = f"{path} cannot build amx.cpp (g++: error: unrecognized -mamx-bf16): install a newer g++"
    assert amx.library() is None and amx.missing() == wanted


def test_what_cannot_be_loaded_says_so(compiler: Callable[[str], Path]) -> None:
    compiler('while [ "$1" != -o ]; do shift; done; echo nothing > "$2"')
    missing = amx.missing()
    assert amx.library() is None and missing is not None and "cannot be loaded" in missing


@needs_amx
def test_it_is_built_once_and_kept(
    fresh: Path, compiler: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = compiler('echo built >> "$(dirname "$0")/calls"; exec /usr/bin/c++ "$@"')
    for _ in range(2):
        amx._opened.cache_clear()
        assert amx.library() is not None and amx.missing() is None
    assert (path.parent / "calls").read_text() == "built\n"
    (kept,) = (fresh / "cache" / "kernels").iterdir()
    monkeypatch.setenv("TRIPTYCH_CACHE", str(fresh / "other"))
    (fresh / "other" / "kernels").mkdir(parents=True)
    (fresh / "other" / "kernels" / kept.name).write_bytes(b"half a file")
    amx._opened.cache_clear()
    assert amx.library() is not None and (path.parent / "calls").read_text() == "built\n" * 2
    assert (fresh / "other" / "kernels" / kept.name).read_bytes() == kept.read_bytes()


@needs_amx
def test_a_place_that_cannot_be_written_is_done_without(fresh: Path, compiler: Callable[[str], Path]) -> None:
    compiler('exec /usr/bin/c++ "$@"')
    (fresh / "cache").write_text("a file where a folder is wanted")
    assert amx.library() is not None


def test_a_processor_without_it_lacks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(amx, "on_processor", lambda: False)
    assert amx.library() is None and amx.missing() is None


def test_what_is_trained_or_counted_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Benchmarks count operations by torch, which must see them."""
    monkeypatch.setattr(fused, "has_fused", lambda dtype: False)
    monkeypatch.setattr(amx, "convolve", None)
    monkeypatch.setattr(amx, "multiply", None)
    with torch.inference_mode():
        convolve(noise(1, 32, 4, 4), layer(32, 8, 1))
        multiply(noise(2, 3, 4), noise(2, 5, 4))
