"""Ways to a GPU and back: batches arrive whole beside other work, and numbers are read late; and a run there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.unit.trainers.toy import Toy, told, toy_config, toy_model
from trainers.device import Late, Mover, sent
from trainers.loop import train

on_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
DEVICES = ["cpu", pytest.param("cuda", marks=on_gpu)]


@pytest.mark.parametrize("name", DEVICES)
def test_what_is_sent_arrives_and_comes_back(name: str) -> None:
    device = torch.device(name)
    found = Late(sent([1, 2.5, True], device) * 2)
    assert found.read() == [2, 5, 2]


@pytest.mark.parametrize("name", DEVICES)
def test_batches_arrive_whole_with_targets_and_layout(name: str) -> None:
    device, model, move = torch.device(name), toy_model(), Mover(torch.device(name))
    for numbers in ((0, 1, 2), (3, 4, 5, 6)) * 20:  # long enough for memory to be given away and taken again
        batch = Toy().collate(numbers, 0)["toy"]
        pinned = batch.pin_memory() if name == "cuda" else batch
        moved = move({"toy": pinned})["toy"]
        assert moved.visual is not None and moved.visual.features.device.type == device.type  # type: ignore[union-attr]
        assert torch.equal(moved.visual.features.cpu(), batch.visual.features)  # type: ignore[union-attr]
        assert torch.equal(moved.targets["words"].cpu(), batch.targets["words"])
    assert model.layout(batch).order.device.type == "cpu"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_a_run_on_a_gpu_has_the_losses_of_one_on_the_cpu(tmp_path: Path) -> None:
    for device in ("cpu", "cuda"):
        config = toy_config(tmp_path / device, device=device, micro_batch=3, log_every=4)
        train(config, toy_model(dropout=0), Toy(), Toy(10))
    for mine, theirs in zip(told(tmp_path / "cuda"), told(tmp_path / "cpu"), strict=True):
        if "losses" in theirs:
            assert mine["losses"] == pytest.approx(theirs["losses"], rel=1e-2)
