"""What a run shows, on a terminal and in a pipe, and TensorBoard's files."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from storage.places import open_place
from trainers import progress
from trainers.progress import Metrics, TrainProgress

LINE = {"step": 5, "loss": 1.25, "losses": {"mlm": 1.25}, "images_per_s": 80.0, "data_wait": 0.0123, "lr": 1e-4}


def test_in_a_pipe_there_are_plain_lines_now_and_then_and_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    stream = io.StringIO()
    shown = TrainProgress(stream)
    shown.started(0, 20)
    for step in (5, 10, 15, 20):
        now += 6.0
        shown.advanced(LINE | {"step": step})
    shown.said("accuracy [50]")
    shown.stopped()
    assert stream.getvalue().splitlines() == [
        "step 10/20  loss 1.2500  80.0 images/s  1.2% waiting for data  ETA 0:00:12",
        "step 20/20  loss 1.2500  80.0 images/s  1.2% waiting for data  ETA 0:00:00",
        "accuracy [50]",
    ]


def test_on_a_terminal_one_line_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    shown = TrainProgress(stream)
    shown.started(2, 20)
    shown.advanced(LINE)
    shown.stopped()
    assert "5/20" in stream.getvalue() and "loss 1.2500" in stream.getvalue()


def test_tensorboard_gets_every_number(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra `tensorboard` is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    metrics = Metrics(open_place(tmp_path), 0)
    metrics.add(LINE)
    metrics.add({"step": 6, "scores": {"vqa": 55.5}})
    metrics.close()
    found = EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    assert set(found.Tags()["scalars"]) == {"loss", "losses/mlm", "images_per_s", "data_wait", "lr", "scores/vqa"}
    [score] = found.Scalars("scores/vqa")
    assert (score.step, score.value) == (6, 55.5)
