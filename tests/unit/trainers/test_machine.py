"""The machine that something is measured on."""

from __future__ import annotations

import pytest
import torch

from trainers.machine import give_back, held_gib, peak_gib, reset_peak


def test_a_gpu_that_nothing_has_used_yet_is_measured_as_empty() -> None:
    """A process that has not begun with its GPU; torch itself raises there."""
    device = torch.device("cuda")
    if not torch.cuda.is_initialized():
        reset_peak(device)
        assert (held_gib(device), peak_gib(device)) == (0.0, 0.0) and not torch.cuda.is_initialized()


def test_what_torch_keeps_of_a_gpu_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    given = list[str]()
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: given.append("all"))
    give_back(torch.device("cpu"))
    assert not given
    give_back(torch.device("cuda:1"))
    assert given == ["all"]
