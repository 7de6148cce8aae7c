"""Training by Ray Train: the loop of `trainers/` in several processes of a cluster, started again when one is lost.

Ray starts the processes, joins them to a group and starts all of them again when one dies, fewer where its node is gone
and the run may shrink. What is trained goes on from its own checkpoints (`trainers/checkpoint.py`), which lie where all
nodes can read them; nothing is reported to Ray.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from extractors import ConfigError
from pipeline.cluster import connect, last_line, ray  # first of all that imports Ray: it sets what Ray then reads
from storage.errors import TriptychError
from storage.places import Place, open_place
from trainers.config import TrainConfig
from trainers.loop import CONFIG, RunSummary, require_new, resume
from trainers.progress import TrainProgress, read_metrics
from trainers.ranks import EveryRankError
from trainers.tasks.base import Task

LOOK_EVERY = 2.0  # seconds between looks at the metrics of a run

Build = Callable[[], tuple[nn.Module, Task, Task | None]]  # model, task and what to evaluate on, made in each process


@dataclass(frozen=True)
class RayTraining:
    """Where and by how many processes a run is trained.

    workers      processes, each with a GPU where the run is on GPUs
    min_workers  go on with so few while nodes are missing; None: wait for all
    retries      times that all are started again after some were lost
    cpus_per_worker  CPUs of each
    address      as of `EngineConfig.address`

    Raises:
        ConfigError: numbers that cannot be meant.
    """

    workers: int = 1
    min_workers: int | None = None
    retries: int = 8
    cpus_per_worker: float = 1.0
    address: str | None = None

    def __post_init__(self) -> None:
        if self.workers < 1 or not 1 <= (self.min_workers or 1) <= self.workers:
            raise ConfigError(
                f"--workers {self.workers} and --min-workers {self.min_workers} must be at least 1, and in this order"
            )


def train_on_ray(
    config: TrainConfig, build: Build, engine: RayTraining, again: bool = False, about: Mapping[str, Any] = {}
) -> RunSummary:
    """Train on a Ray cluster; `build` is a function of an importable module, or a partial of one.

    Args:
        again: go on with the run in `config.out`.
        about: as of `trainers.loop.train`.

    Raises:
        TriptychError: what `train` and `resume` raise, or the cluster lacks what was asked for, or loses workers
            more often than is retried.
    """
    if not again:
        require_new(config.out)
    started_here = not ray.is_initialized()
    connect(engine.address)
    try:
        config = _settled(config, engine)
        with _shown(open_place(config.out)):
            return _fit(config, build, engine, about)
    finally:
        if started_here:
            ray.shutdown()


def _fit(config: TrainConfig, build: Build, engine: RayTraining, about: Mapping[str, Any]) -> RunSummary:
    from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError

    workers = (engine.min_workers, engine.workers) if engine.min_workers else engine.workers
    gpu = config.device == "cuda"
    each = {"CPU": engine.cpus_per_worker} | ({"GPU": 1} if gpu else {})
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"config": config, "build": build, "about": dict(about)},
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpu, resources_per_worker=each),
        run_config=RunConfig(
            name="ray",
            failure_config=FailureConfig(max_failures=engine.retries),
            logging_config=LoggingConfig(log_level="ERROR"),
            **_storage(config.out),
        ),
    )
    try:
        found = trainer.fit().return_value
    except WorkerGroupError as error:
        ours = [each for each in error.worker_failures.values() if isinstance(each, TriptychError)]
        raise (ours or [_failed(error)])[0] from error
    except TrainingFailedError as error:
        raise _failed(error) from error
    if isinstance(found, EveryRankError):
        raise found
    assert isinstance(found, RunSummary)
    return found


def _worker(given: dict[str, Any]) -> RunSummary | EveryRankError:
    """One process: begins, or goes on from the newest checkpoint."""
    model, task, validation = given["build"]()
    try:
        return resume(given["config"], model, task, validation, given["about"])
    except EveryRankError as error:  # given back, not raised: Ray would start everything again, for the same end
        return error


def _settled(config: TrainConfig, engine: RayTraining) -> TrainConfig:
    """The config with what only the cluster knows: the kind of device, and a path that other nodes understand.

    Raises:
        ConfigError: the cluster lacks CPUs or GPUs for the fewest workers.
    """
    there = ray.cluster_resources()
    gpus = int(there.get("GPU", 0))
    device = ("cuda" if gpus else "cpu") if config.device == "auto" else config.device.partition(":")[0]
    least = engine.min_workers or engine.workers
    for kind, amount in (("CPU", engine.cpus_per_worker), ("GPU", float(device == "cuda"))):
        if amount * least > there.get(kind, 0):
            raise ConfigError(
                f"{least} workers need {amount * least:g} {kind}s, and the Ray cluster has {there.get(kind, 0):g}; "
                "lower --workers or add nodes."
            )
    out = config.out if "://" in config.out else str(Path(config.out).absolute())
    return replace(config, out=out, device=device)


def _storage(out: str) -> dict[str, Any]:
    """Where Ray keeps its own notes on the run: `RUN/ray`."""
    if "://" not in out:
        return {"storage_path": out}
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    from storage.bucket import file_system

    files, root = file_system(out)
    return {"storage_path": root, "storage_filesystem": PyFileSystem(FSSpecHandler(files))}


def _failed(error: Exception) -> TriptychError:
    return TriptychError(
        f"training on Ray failed: {last_line(error)}. What was saved is kept; --resume goes on with it."
    )


@contextmanager
def _shown(place: Place) -> Iterator[None]:
    """Show the run on this terminal by the lines of metrics that it writes."""
    ended, progress = threading.Event(), TrainProgress()
    thread = threading.Thread(target=_show, args=(place, progress, ended), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        progress.stopped()


def _show(place: Place, progress: TrainProgress, ended: threading.Event) -> None:
    shown, began = -1, False
    while not ended.wait(LOOK_EVERY):
        with suppress(FileNotFoundError, TriptychError, ValueError):  # it is being written, or not there yet
            if not began:
                progress.started(0, json.loads(place.read(CONFIG))["total_steps"])
                began = True
            for line in read_metrics(place):
                if line["step"] > shown and "loss" in line:
                    shown = line["step"]
                    progress.advanced(line)
