"""What holds for every model: compiled in one piece, never waiting for the device, in bfloat16, and checkpointed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests.unit.trainers import meters, test_adapters, test_grid_vlp, test_vilt, test_vl_bert
from trainers.batch import Batch, Pixels, Text


class Case(NamedTuple):
    """One model with a batch of several lengths, its layout made ahead."""

    model: Any
    batch: Batch

    def run(self) -> Tensor:
        """Its pooled states."""
        return pooled(self.model, self.batch)


def pooled(model: Any, batch: Batch) -> Tensor:
    found: Tensor = model.pooled(model(batch))
    return found


def planned(model: Any, batch: Batch) -> Case:
    return Case(model, replace(batch, layout=model.layout(batch)))


def grid_vlp(pixels: bool, **changes: Any) -> Case:
    config = test_grid_vlp.END_TO_END if pixels else test_grid_vlp.TINY
    visual = test_grid_vlp.pixels() if pixels else test_grid_vlp.cells()
    return planned(test_grid_vlp.model_of(replace(config, **changes)), Batch(meters.text(), visual))


def cached_meter(**changes: Any) -> Case:
    return planned(meters.meter(replace(meters.CACHED, **changes)), meters.cached_batch())


def meter_of_pixels(name: str, size: int = 32, **changes: Any) -> Case:
    return planned(meters.meter(meters.end_to_end(name, **changes)), Batch(meters.text(), meters.pixels(size=size)))


def adapted(name: str) -> Case:
    return planned(test_adapters.adapter(name), Batch(meters.text(), test_adapters.regions()))


CASES: dict[str, Callable[[], Case]] = {
    "vl-bert": lambda: planned(test_vl_bert.model_of(), test_vl_bert.batch_of()),
    "vl-bert of pixels": lambda: planned(test_vl_bert.model_of(test_vl_bert.END_TO_END), test_vl_bert.pixels_batch()),
    "grid-vlp": lambda: grid_vlp(False),
    "grid-vlp of pixels": lambda: grid_vlp(True),
    "pixel-bert": lambda: grid_vlp(True, tuned=True, pool=2),
    "vilt": lambda: planned(test_vilt.model_of(), test_vilt.batch_of()),
    "meter": lambda: cached_meter(),
    "meter merged": lambda: cached_meter(fusion="merged"),
    "meter with a decoder": lambda: cached_meter(layers=1, decoder_layers=1),
    "meter of pixels": lambda: meter_of_pixels("clip"),
    "meter of pixels, swin": lambda: meter_of_pixels("swin", 64),
    "meter of pixels, gated": lambda: meter_of_pixels("clip", gated=True),
    "lxmert": lambda: adapted("lxmert"),
    "visual_bert": lambda: adapted("visual_bert"),
}
OURS = [name for name in CASES if name not in ("lxmert", "visual_bert")]


@cache
def case(name: str) -> Case:
    return CASES[name]()


def gradients(model: nn.Module) -> list[Tensor]:
    found = [each.grad for each in model.parameters() if each.grad is not None]
    model.zero_grad()
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vl-bert", "grid-vlp", "vilt", "meter", "meter of pixels"])
def test_it_compiles_without_breaks_forward_and_back(name: str) -> None:
    model, batch = case(name)
    model.eval()
    torch._dynamo.reset()
    compiled = torch.compile(pooled, fullgraph=True, backend="aot_eager")
    losses = []
    for run in (pooled, compiled):
        loss = run(model, batch)
        loss.square().sum().backward()
        losses.append((loss.detach(), gradients(model)))
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_inductor_s_code_gives_the_same() -> None:
    model, batch = case("vilt")
    torch._dynamo.reset()
    compiled = torch.compile(pooled, fullgraph=True)
    torch.testing.assert_close(compiled(model, batch), pooled(model, batch), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_bfloat16_is_near(name: str) -> None:
    model, batch = case(name)
    with torch.no_grad():
        wanted = pooled(model.eval(), batch)
        with torch.autocast("cpu", torch.bfloat16):
            found = pooled(model, batch)
    assert bool(found.isfinite().all()) and not torch.equal(found.float(), wanted)
    assert (found.float() - wanted).norm() < 0.1 * wanted.norm()


@pytest.mark.parametrize("name", OURS)
def test_checkpointing_changes_no_gradient(name: str) -> None:
    model, batch = CASES[name]()
    model.train()
    found = []
    for again in (False, True):
        if again:
            model.checkpoint()
        torch.manual_seed(0)
        pooled(model, batch).square().sum().backward()
        found.append(gradients(model))
    torch.testing.assert_close(*found)


# No waiting for the device, told without one: tensors that have a device and a shape, but no numbers.


class Copies(TorchDispatchMode):
    """Refuses what copies from the host to the device while it is on: from ordinary memory that waits."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        given = [each for each in args if isinstance(each, Tensor) and each.ndim]
        if isinstance(found, Tensor) and found.is_cuda and any(each.device.type == "cpu" for each in given):
            raise AssertionError(f"{func} reads {[tuple(each.shape) for each in given]} of the host")
        return found


@pytest.fixture
def pretend() -> Iterator[Callable[[Any, Batch], Tensor]]:
    """Runs a model on a GPU that is not there."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)

    def run(model: nn.Module, batch: Batch) -> Tensor:
        with mode:
            held = {**dict(model.named_parameters()), **dict(model.named_buffers())}
            moved = {name: torch.empty_like(each, device="cuda") for name, each in held.items()}
            batch = batch.to("cuda")
            with Copies():
                return torch.func.functional_call(Pooled(model), {f"model.{k}": v for k, v in moved.items()}, (batch,))

    yield run


class Pooled(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> Tensor:
        return pooled(self.model, batch)


@pytest.mark.parametrize("name", CASES)
def test_it_never_waits_for_the_device(name: str, pretend: Any) -> None:
    model, batch = case(name)
    found = pretend(model.eval(), batch)
    assert found.device.type == "cuda" and found.shape[0] == len(batch)


def test_waiting_would_be_seen(pretend: Any) -> None:
    class Asks(nn.Module):
        def forward(self, batch: Batch) -> Tensor:
            return batch.text.ids * int(batch.text.ids.sum())

        def pooled(self, states: Tensor) -> Tensor:
            return states

    class Copies(Asks):
        def forward(self, batch: Batch) -> Tensor:
            return batch.text.ids + torch.ones(2, dtype=torch.int64).to(batch.text.ids.device)

    batch = Batch(Text(torch.ones(3, 2, dtype=torch.int64)), Pixels(torch.zeros(3, 3, 4, 4)))
    with pytest.raises(DataDependentOutputException):
        pretend(Asks(), batch)
    with pytest.raises(AssertionError, match="of the host"):
        pretend(Copies(), batch)
