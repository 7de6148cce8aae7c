"""What held a job up: the sentence for each kind of job, and its place in the summary."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

import workflows.bottleneck as bottleneck
from pipeline.config import EngineConfig

CASES = {
    "model": ({"model": 95.0, "idle": 5.0, "decode": 90.0}, 4, True, "model 95 %: the GPU is busy; --dtype bfloat16"),
    "cpu": ({"model": 99.0, "idle": 1.0}, 2, False, "model 99 %: the network takes all there is"),
    "decode": (
        {"model": 81.0, "idle": 19.0, "read": 3.0, "decode": 150.0, "write": 9.0},
        2,
        True,
        "model 81 %, waiting for decode 19 %: raise --decode-workers above 2",
    ),
    "all cores": ({"model": 50.0, "idle": 50.0, "decode": 90.0}, 4, True, "decode 50 %: all cores decode; take"),
    "read": ({"model": 40.0, "idle": 60.0, "read": 90.0, "decode": 20.0}, 2, True, "waiting for read 60 %: raise"),
    "write": (
        {"model": 40.0, "idle": 60.0, "decode": 80.0, "write": 50.0},
        2,
        True,
        "waiting for write 60 %: a fast",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_each_bottleneck_has_its_advice(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bottleneck, "usable_cores", lambda: 4.0)
    seconds, decoders, on_gpu, wanted = CASES[case]
    assert wanted in bottleneck.sentence(seconds, decoders, on_gpu)


def result(seconds: float, images: int = 100) -> Any:
    job = SimpleNamespace(engine=EngineConfig("s", decode_workers=1))
    report = SimpleNamespace(images=images, seconds={"model": 50.0, "idle": 50.0, "decode": 90.0}, reasons=Counter())
    return SimpleNamespace(seconds=seconds, report=report, start=SimpleNamespace(job=job, device="cuda:0"))


def test_a_short_job_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bottleneck, "usable_cores", lambda: 4.0)
    assert bottleneck.bottleneck(result(20)) == "model 50 %, waiting for decode 50 %: raise --decode-workers above 1"
    assert bottleneck.bottleneck(result(5)) is None
    assert bottleneck.bottleneck(result(20, images=0)) is None
