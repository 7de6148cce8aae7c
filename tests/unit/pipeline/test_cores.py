"""Cores: a container's share of them, and the decode threads that come of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import cores
from pipeline.config import EngineConfig


def test_a_containers_share_of_the_cores_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores.os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setattr(Path, "read_text", lambda self: "150000 100000")
    assert cores.usable_cores() == 1.5
    monkeypatch.setattr(Path, "read_text", lambda self: "max 100000")
    assert cores.usable_cores() == 8.0


@pytest.mark.parametrize(("there", "threads"), [(1, 2), (8, 8), (64, 16)])
def test_a_gpu_has_a_decoding_thread_a_core(there: int, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.config.usable_cores", lambda: float(there))
    assert EngineConfig("").decode_threads(on_gpu=True) == threads
    assert EngineConfig("").decode_threads(on_gpu=False) == 2
    assert EngineConfig("", engine="ray", cpus_per_worker=4).decode_threads(on_gpu=True) == 4
    assert EngineConfig("", decode_workers=5).decode_threads(on_gpu=True) == 5
