"""An extraction job from its settings to its summary: plan, run on an engine, account for every image."""

from __future__ import annotations

import importlib.metadata
import platform
import signal
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from math import ceil
from types import FrameType
from typing import Any, Protocol

import numpy as np
import torch

from extractors import ConfigError, RegionConfig
from extractors.given_boxes import read_boxes
from pipeline.config import RAY_DEFAULTS, EngineConfig, ExtractJob
from pipeline.decoding import refuse_here
from pipeline.local import LocalEngine
from pipeline.plan import Plan, Units, images_per_unit, make_plan
from pipeline.probe import Probe, probe_job
from pipeline.settings import settings_of
from pipeline.sources import ImageRef, Listing, Refs, open_source
from pipeline.unit import OnImages, UnitReport, open_writers
from storage import Spec, StoreWriter, TriptychError, open_store
from storage.compact import FOLD_FROM, fold
from storage.places import BusyError, open_place
from storage.secrets import shown
from storage.writer import HEAD, unit_id

FINISHED, TOO_MANY_ERRORS, INTERRUPTED = 0, 3, 130
UNITS_A_SLOT = 4  # so that no actor waits long for the last one
FOLD_EVERY = 1000  # units; a listing of an object store gives as many names at once


class Engine(Protocol):
    """Runs the units of a plan. `slots` is how many at once; specs and vocabularies go by view."""

    specs: dict[str, Spec]
    vocabularies: dict[str, dict[str, list[str]]]
    device: str
    slots: int

    def run(self, plan: Plan, on_images: OnImages) -> Iterator[UnitReport]: ...
    def close(self) -> None: ...


class Progress(Protocol):
    """Whoever shows a running job."""

    def started(self, start: JobStart) -> None: ...
    def advanced(self, images: int, failed: int) -> None: ...
    def reported(self, total: UnitReport) -> None: ...
    def stopped(self) -> None: ...


@dataclass(frozen=True)
class JobStart:
    """What is known before the first image."""

    job: ExtractJob
    listing: Listing
    plan: Plan
    device: str
    weights: dict[str, str]

    @property
    def weights_origin(self) -> str:
        """Where the networks' weights come from: "checkpoint" where all do, or none is needed."""
        return next((origin for origin in self.weights.values() if origin != "checkpoint"), "checkpoint")


@dataclass
class JobResult:
    """What became of a job.

    report   of this run alone
    errors   failed images of this source by reason, earlier runs included
    startup  seconds before the first unit: weights, listing, plan, cluster
    seconds  of wall clock, from the first unit to the last commit
    status   exit status: 0, 3 (more errors than allowed) or 130 (interrupted)
    """

    start: JobStart
    report: UnitReport
    errors: Counter[str]
    startup: float
    seconds: float
    status: int

    @property
    def images_per_second(self) -> float:
        return self.report.images / self.seconds if self.seconds else 0.0


def run_job(job: ExtractJob, progress: Progress, again: Sequence[ImageRef] | None = None) -> JobResult:
    """Run a job to its end, or to Ctrl-C; what is committed stays.

    Args:
        again: failed images to try once more, and no others; their source is not listed.

    Raises:
        TriptychError: the job itself is wrong; nothing was damaged.
    """
    refuse_here()
    began = time.perf_counter()
    if again is None:
        listing = open_source(job.source).list()
        _check_boxes(job, listing)
    else:
        listing = Listing(Refs.of(again))
    engine = _make_engine(job)
    try:
        stores = open_writers(job, engine)
        before = {view: store.read_run() for view, store in stores.items()}
        start = _start(job, listing, engine, stores, again is not None)
        ready = time.perf_counter()
        report, interrupted = _run(engine, start, progress)
        seconds = time.perf_counter() - ready
    finally:
        engine.close()
    errors = _errors(start)
    status = INTERRUPTED if interrupted else FINISHED
    if not interrupted:
        _check_all_there(start, stores)
    if not interrupted and sum(errors.values()) > job.engine.errors_allowed(start.plan.images):
        status = TOO_MANY_ERRORS
    result = JobResult(start, report, errors, ready - began, seconds, status)
    for view, store in stores.items():
        store.write_run(_run_facts(result, before[view], again is not None))
    if not interrupted:
        _fold(job.outs.values(), FOLD_FROM)
    return result


def plan_job(job: ExtractJob, images: int) -> tuple[JobStart, Probe | None]:
    """What `run_job` would do, and what a probe of so many images says it would cost; nothing is written.

    Raises:
        TriptychError: the job itself is wrong.
    """
    listing = open_source(job.source).list()
    _check_boxes(job, listing)
    engine = LocalEngine(replace(job, engine=replace(job.engine, engine="local", **RAY_DEFAULTS)))
    engine.slots = job.engine.workers or 1
    stores = [_store_there(out, engine.specs[view]) for view, out in job.outs.items()]
    there = [store for store in stores if store]
    done = partial(_done, there) if len(there) == len(stores) else lambda keys: np.zeros(len(keys), bool)
    plan = make_plan(listing, done, 1, job.engine.limit)
    plan = plan.cut(_images_per_unit(job.engine, engine, plan.to_do))
    start = JobStart(job, listing, plan, engine.device, _weights(engine))
    return start, probe_job(job, engine.views, plan, images) if images and plan.to_do else None


def _store_there(out: str, spec: Spec) -> StoreWriter | None:
    """A way into a store that exists; making one would be a first step of the job."""
    place = open_place(out)
    return StoreWriter(out, spec) if place.size(HEAD) is not None else None


def _check_boxes(job: ExtractJob, listing: Listing) -> None:
    """Boxes under other keys than the images' are a wrong job, not as many bad images."""
    network = job.extractor
    if not isinstance(network, RegionConfig) or not (network.boxes and network.box_format and network.box_units):
        return
    keys = read_boxes(network.boxes, network.box_format, network.box_units).boxes.keys()
    if not any(ref.key in keys for ref in listing.refs):
        example, found = listing.refs[0].key, next(iter(keys), None)
        raise ConfigError(f"--boxes {network.boxes} has no key of an image: it has {found!r}, an image is {example!r}.")


def _check_all_there(start: JobStart, stores: Mapping[str, StoreWriter]) -> None:
    """images = records + errors in every store, or the job has failed, whatever its engine reported."""
    units = start.plan.units
    for view, store in stores.items():
        store.refresh(unit_id(store.spec.id, unit.keys) for unit in units)
        lost = units.left.select(partial(_left, store))
        if len(lost):
            raise TriptychError(
                f"{len(lost)} of {start.plan.images} images are neither records nor errors of "
                f"{shown(start.job.outs[view])}, the first is {lost[0].key!r}; run the same command again, and see "
                "that all workers write to this folder."
            )


def _left(store: StoreWriter, keys: Sequence[str]) -> np.ndarray:
    return ~store.done(keys)


def _make_engine(job: ExtractJob) -> Engine:
    if job.engine.engine == "local":
        return LocalEngine(job)
    from pipeline.cluster import RayEngine  # Ray takes seconds to import, and the local engine runs without it

    return RayEngine(job)


def _start(
    job: ExtractJob, listing: Listing, engine: Engine, stores: Mapping[str, StoreWriter], again: bool
) -> JobStart:
    if again:
        refs = Refs.of(listing.refs)
        plan = Plan(Units(refs, 1, again=True), refs, 0)
    else:
        plan = make_plan(listing, partial(_done, tuple(stores.values())), 1, job.engine.limit)
    plan = plan.cut(_images_per_unit(job.engine, engine, plan.to_do))
    for store in stores.values() if not again else ():
        images = {"images": plan.images, "source_images": len(listing.refs)}
        about = {"source": shown(job.source.images), "settings": settings_of(job)}  # now: a killed job can be retried
        store.write_run({"complete": False, **about, **images})
    return JobStart(job, listing, plan, engine.device, _weights(engine))


def _weights(engine: Engine) -> dict[str, str]:
    """Where each network's weights come from, by view."""
    told = {view: spec.model.get("weights") for view, spec in engine.specs.items()}
    return {view: each["origin"] for view, each in told.items() if isinstance(each, dict) and "origin" in each}


def _done(stores: Sequence[StoreWriter], keys: Sequence[str]) -> np.ndarray:
    """(K,) bool: True where an image needs no more work in any of the stores."""
    return np.logical_and.reduce([store.done(keys) for store in stores])


def _images_per_unit(config: EngineConfig, engine: Engine, left: int) -> int:
    if config.images_per_shard:
        return config.images_per_shard
    fitting = min(images_per_unit(spec, engine.device == "cpu") for spec in engine.specs.values())
    return min(fitting, max(1, ceil(left / (engine.slots * UNITS_A_SLOT)))) if engine.slots > 1 else fitting


def _run(engine: Engine, start: JobStart, progress: Progress) -> tuple[UnitReport, bool]:
    total, interrupted = UnitReport(), False
    progress.started(start)
    try:
        with _sigterm_as_interrupt(), ThreadPoolExecutor(1) as beside:
            for number, report in enumerate(engine.run(start.plan, progress.advanced), 1):
                total += report
                progress.reported(total)
                if number % FOLD_EVERY == 0:
                    beside.submit(_fold, start.job.outs.values(), FOLD_EVERY // 2)
    except KeyboardInterrupt:
        interrupted = True
    finally:
        progress.stopped()
    return total, interrupted


def _fold(outs: Iterable[str], at_least: int) -> None:
    """Opening a store, and the listing before a commit, then cost the same however many units there are."""
    for out in outs:
        with suppress(BusyError):  # another job's end or a compaction does it
            fold(out, at_least)


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """Schedulers ask a job to end with SIGTERM; it ends as on Ctrl-C. Outside the main thread signals cannot be set."""

    def interrupt(_: int, __: FrameType | None) -> None:
        raise KeyboardInterrupt

    try:
        before: Any = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _errors(start: JobStart) -> Counter[str]:
    """This source's failed images by reason, each once: for what it failed in the first view that has no record."""
    reasons: dict[str, str] = {}
    for out in start.job.outs.values():
        for row in open_store(out).errors():
            reasons.setdefault(row.key, row.reason)
    mine = start.plan.refs.holding(reasons)
    return Counter(reason for key, reason in reasons.items() if key in mine)


def _run_facts(result: JobResult, before: dict[str, Any], again: bool) -> dict[str, Any]:
    """What is kept of a job; one that found nothing to do, or tried again, leaves what is there."""
    job, start, report = result.start.job, result.start, result.report
    if again:
        return before
    now = {
        "complete": result.status != INTERRUPTED,
        "source": shown(job.source.images),
        "images": start.plan.images,
        "source_images": len(start.listing.refs),
        "passed_over": start.listing.passed_over,
        "settings": settings_of(job),
    }
    if not report.images:
        return {**before, **now}
    return {
        **now,
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "engine": job.engine.engine,
        "device": start.device,
        "hardware": hardware(start.device),
        "version": version(),
        "images_this_run": report.images,
        "seconds": round(result.seconds, 3),
        "images_per_second": round(result.images_per_second, 3),
        "stage_seconds": {stage: round(value, 3) for stage, value in sorted(report.seconds.items())},
        "peak_rss": report.peak_rss,
    }


def version() -> str:
    """Of this package; a checkout that is run where it lies has none."""
    try:
        return importlib.metadata.version("triptych")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def hardware(device: str) -> str:
    """The machine's name for a report: processor and, where it is used, the GPU."""
    gpu = f", {torch.cuda.get_device_name(0)}" if device.startswith("cuda") and torch.cuda.is_available() else ""
    return f"{platform.machine()} {platform.system()}, {torch.get_num_threads()} threads{gpu}"
