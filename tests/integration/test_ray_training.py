"""Training by Ray Train on a local cluster: the losses of one process, also where a worker is killed on the way."""

from __future__ import annotations

import os
import pickle
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from extractors import ConfigError
from storage import open_store
from storage.errors import TriptychError
from tests.recipe_data import Data
from tests.unit.trainers.toy import Toy, told, toy_config, toy_model
from trainers.loop import DivergedError, RunSummary, train
from trainers.tasks.base import Task
from workflows.runs import built
from workflows.train import Train

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.usefixtures("local_ray"),
]


class Known(Toy):
    """Tells which processes train."""

    def __init__(self, folder: Path, slow: float) -> None:
        super().__init__(slow=slow)
        (folder / f"{os.getpid()}.pid").touch()


def build(folder: Path, slow: float = 0.0) -> tuple[nn.Module, Task, Task | None]:
    return toy_model(dropout=0), Known(folder, slow), Toy(10)


def losses(out: Path) -> list[float]:
    return [line["loss"] for line in told(out) if "loss" in line]


def test_a_killed_worker_costs_time_and_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal to 2e-4, as of two ranks in `test_ranks.py`."""
    from pipeline.train import RayTraining, train_on_ray

    monkeypatch.setenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # a process less to start, which nothing here asks
    pids = tmp_path / "pids"
    pids.mkdir()
    config = toy_config(tmp_path / "ray", steps=60, save_every=5)
    train(toy_config(tmp_path / "one", steps=60, save_every=5), toy_model(dropout=0), Toy(), Toy(10))
    killed: list[int] = []

    def kill_one() -> None:
        metrics = tmp_path / "ray" / "metrics.jsonl"
        while not metrics.exists() or metrics.read_text().count("\n") < 12:
            time.sleep(0.01)
        killed.append(int(next(pids.glob("*.pid")).stem))
        os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    summary = train_on_ray(config, partial(build, pids, slow=0.05), RayTraining(workers=2))
    assert killed
    assert len(list(pids.glob("*.pid"))) == 4  # two, and after the loss two others
    assert (summary.step, summary.interrupted) == (60, False)
    assert [line["step"] for line in told(tmp_path / "ray")] == [line["step"] for line in told(tmp_path / "one")]
    assert losses(tmp_path / "ray") == pytest.approx(losses(tmp_path / "one"), rel=2e-4)
    assert summary.scores["accuracy"] == told(tmp_path / "one")[-1]["scores"]["accuracy"]


class Here:
    """In place of Ray's trainer: runs the worker in this process, again where it raises, as Ray does."""

    def __init__(self, worker: Callable[[dict[str, Any]], object], train_loop_config: dict[str, Any], **_: Any) -> None:
        self.worker, self.config = worker, train_loop_config

    def fit(self) -> SimpleNamespace:
        for last in (False, True):
            try:
                return SimpleNamespace(return_value=pickle.loads(pickle.dumps(self.worker(self.config))))
            except Exception:
                if last:
                    raise
        raise AssertionError("the last try returns or raises")


def test_a_run_that_diverges_is_not_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.train import RayTraining, train_on_ray

    monkeypatch.setattr("ray.train.torch.TorchTrainer", Here)
    started: list[int] = []

    def build() -> tuple[nn.Module, Task, None]:
        started.append(1)
        return toy_model(), Toy(bad=(17,)), None

    with pytest.raises(DivergedError, match=r"step \d is not finite: .*pattern is nan"):
        train_on_ray(toy_config(tmp_path / "run"), build, RayTraining(workers=1))
    assert len(started) == 1


def test_what_cannot_be_is_said_before_any_worker_starts(tmp_path: Path) -> None:
    from pipeline.train import RayTraining, train_on_ray

    with pytest.raises(ConfigError, match="9 workers need 9 CPUs, and the Ray cluster has 2; lower --workers"):
        train_on_ray(toy_config(tmp_path / "run"), partial(build, tmp_path), RayTraining(workers=9))
    train(toy_config(tmp_path / "run", steps=2), toy_model(), Toy())
    with pytest.raises(TriptychError, match="has a run up to step 2"):
        train_on_ray(toy_config(tmp_path / "run", steps=2), partial(build, tmp_path), RayTraining())
    assert not list(tmp_path.glob("*.pid"))
    with pytest.raises(ConfigError, match="must be at least 1, and in this order"):
        RayTraining(workers=1, min_workers=2)


def test_a_worker_commits_what_its_cache_holds_back_when_it_ends(tmp_path: Path) -> None:
    from pipeline.train import _worker

    given = iter(Data(tmp_path / "data").arguments("vilt_vqa", tmp_path / "own", "cache-through")[1:])
    flags: dict[str, Any] = {key.removeprefix("--"): value for key, value in zip(given, given, strict=True)}
    run = Train("vilt_vqa", tiny=True, steps=2, **{**flags, "store": str(tmp_path / "filled")}).described()
    ended = _worker({"config": run.recipe.train, "build": partial(built, run, None), "about": {}})
    assert isinstance(ended, RunSummary) and ended.step == 2
    assert len(open_store(tmp_path / "filled")) > 0
