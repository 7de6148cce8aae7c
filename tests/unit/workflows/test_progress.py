"""How an extraction looks in a pipe: whole lines now and then, and nothing that only a terminal understands."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import pytest

from workflows import progress
from workflows.progress import TerminalProgress


def start(images: int) -> Any:
    plan = SimpleNamespace(images=images, done=0, to_do=images)
    listing = SimpleNamespace(passed_over=1, repeated=0)
    job = SimpleNamespace(source=SimpleNamespace(images="photos [1]"))
    return SimpleNamespace(plan=plan, listing=listing, job=job, device="cpu", weights_origin="random:0")


def test_in_a_pipe_there_are_whole_lines_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    stream = io.StringIO()
    shown = TerminalProgress(stream)
    shown.started(start(40))
    for _ in range(4):
        now += 6.0
        shown.advanced(6, 1)
    shown.stopped()
    assert stream.getvalue().splitlines() == [
        "40 images in photos [1], 0 of them done, on cpu",
        "1 other file passed over: no images by their names, or excluded",
        "weights are random:0: these features are for trying things out only",
        "12/40 images  1.00 images/s  ETA 0:28  2 failed",
        "24/40 images  1.00 images/s  ETA 0:16  4 failed",
    ]
