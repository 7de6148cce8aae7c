"""The Ray engine: the same units on a pool of actors, scheduled by Ray Data. The only module that knows Ray.

Units and reports travel; pixels and features never do: an actor reads, decodes, extracts, writes and commits. Ray
Data gives scheduling, restarts of dead actors and retries of units, which are harmless: a unit commits once.
"""

from __future__ import annotations

import gc
import json
import logging
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

# Read when ray is imported. Workers run in the environment that started the job: by default Ray would rebuild it for
# every job started through `uv run`. The log level keeps notes about restarts from the terminal.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray
import ray.data
import ray.exceptions

from extractors import ConfigError, RegionConfig, make_extractor
from pipeline.config import ExtractJob
from pipeline.plan import Plan, Unit
from pipeline.sources import ImageRef, open_source
from pipeline.sources.files import absolute
from pipeline.unit import OnImages, UnitReport, Worker
from storage import StoreWriter, TriptychError
from storage.places import open_place
from storage.writer import check_head

FATAL = "fatal"
ACTORS_WITHIN = 900  # seconds until the pool must stand; nodes that have to be started first take minutes


class RayEngine:
    """Runs a plan on a pool of actors; attributes as of `LocalEngine`.

    Raises:
        TriptychError: the extractor cannot be built, or the cluster lacks what was asked for.
    """

    def __init__(self, job: ExtractJob) -> None:
        # The devices are the actors'; here the network is built only to know what it is, and let go again.
        extractor = make_extractor(replace(job.extractor, device="cpu"))
        self.spec, self.vocabulary = extractor.spec, extractor.vocabulary
        del extractor
        gc.collect()
        self._job = job
        self._started_here = not ray.is_initialized()
        _connect(job.engine.address)
        self.device = _device(job)
        self.slots = _pool_size(job, self.device)

    def run(self, plan: Plan, on_images: OnImages) -> Iterator[UnitReport]:
        """Yield a report a unit, in the order they finish.

        Raises:
            TriptychError: an actor met an error that concerns the whole job.
        """
        if not plan.units:
            return
        gpu = self.device.startswith("cuda")
        extractor = replace(self._job.extractor, device="cuda:0" if gpu else "cpu")
        job = _with_absolute_paths(replace(self._job, extractor=extractor))
        rows = [{"keys": unit.keys, "uris": [ref.uri for ref in unit.refs]} for unit in plan.units]
        data = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            _Actor,
            batch_size=1,
            fn_constructor_kwargs={"job": job},
            compute=ray.data.ActorPoolStrategy(size=min(self.slots, len(rows))),
            num_cpus=1,
            num_gpus=1 if gpu else 0,
        )
        try:
            for row in data.iter_rows():
                yield _report(row, on_images)
        except ray.exceptions.RayError as error:
            raise TriptychError(f"the Ray job failed: {_last_line(error)}. What is committed is kept.") from error

    def close(self) -> None:
        """Leave the cluster; a local one that this engine started ends."""
        if self._started_here:
            ray.shutdown()


class _Actor:
    """One process of the pool: a `Worker` kept warm between units.

    An error that concerns the whole job travels back as a row: Ray would retry it, wrap it, or lose its text.
    """

    def __init__(self, job: ExtractJob) -> None:
        self._trouble, self._worker = "", None
        try:
            extractor = make_extractor(job.extractor)
            # The driver has made the store. An actor that does not see it must not start one of its own elsewhere.
            check_head(open_place(job.engine.out), extractor.spec)
            store = StoreWriter(job.engine.out, extractor.spec, extractor.vocabulary, job.engine.format)
            source = open_source(job.source)
            self._worker = Worker(source, extractor, store, job.engine.batch_size, job.engine.decode_workers)
        except TriptychError as error:
            self._trouble = str(error)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        [keys], [uris] = batch["keys"], batch["uris"]
        unit = Unit(tuple(ImageRef(str(key), str(uri)) for key, uri in zip(keys, uris, strict=True)))
        if self._worker is None:
            return _row(UnitReport(), self._trouble)
        try:
            return _row(self._worker.run(unit), "")
        except TriptychError as error:
            return _row(UnitReport(), str(error))


def _with_absolute_paths(job: ExtractJob) -> ExtractJob:
    """The job as actors need it: their current folder is not the driver's."""
    source, network = job.source, job.extractor
    kind, colon, folder = (network.weights or "").partition(":")
    weights = network.weights
    if kind == "reference":
        weights = f"{kind}{colon}{absolute(folder)}"
    elif weights and Path(weights).expanduser().is_file():
        weights = str(absolute(Path(weights).expanduser()))
    network = replace(network, weights=weights)
    if isinstance(network, RegionConfig) and network.boxes:
        network = replace(network, boxes=str(absolute(Path(network.boxes).expanduser())))
    root = str(absolute(source.image_root)) if source.image_root else None
    source = replace(source, images=str(absolute(source.images)), image_root=root)
    return ExtractJob(source, network, replace(job.engine, out=_absolute_out(job.engine.out)))


def _absolute_out(out: str) -> str:
    return out if "://" in out else str(absolute(out))


def _row(report: UnitReport, trouble: str) -> dict[str, list[Any]]:
    return {FATAL: [trouble], "report": [json.dumps(vars(report))]}


def _report(row: dict[str, Any], on_images: OnImages) -> UnitReport:
    if row[FATAL]:
        raise TriptychError(row[FATAL])
    report = UnitReport(**json.loads(row["report"]))
    report.reasons = Counter(report.reasons)
    on_images(report.images, sum(report.reasons.values()))
    return report


def _connect(address: str | None) -> None:
    if ray.is_initialized():
        return
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", include_dashboard=None)
    except (ConnectionError, ValueError, RuntimeError) as error:
        where = f"at {address}" if address else "here"
        raise ConfigError(
            f"no Ray cluster can be reached {where} ({_last_line(error)}); start one or change --address."
        ) from error
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.max_errored_blocks = 0
    context.wait_for_min_actors_s = ACTORS_WITHIN


def _device(job: ExtractJob) -> str:
    """What the actors run on: a GPU each where the cluster has any and the job does not say otherwise."""
    wanted, gpus = job.extractor.device, int(ray.cluster_resources().get("GPU", 0))
    if wanted == "auto":
        return "cuda" if gpus else "cpu"
    if wanted.startswith("cuda") and not gpus:
        raise ConfigError(
            f"--device {wanted} was asked for, but the Ray cluster has no GPU; pass --device cpu or add GPU nodes."
        )
    return wanted


def _pool_size(job: ExtractJob, device: str) -> int:
    resource = "GPU" if device.startswith("cuda") else "CPU"
    there = int(ray.cluster_resources().get(resource, 0))
    wanted = job.engine.workers or max(1, there)
    if wanted > there:
        raise ConfigError(f"--workers {wanted} need a {resource} each, and the Ray cluster has {there}.")
    return wanted


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
