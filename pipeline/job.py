"""An extraction job from its settings to its summary: plan, run on an engine, account for every image."""

from __future__ import annotations

import platform
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from math import ceil
from types import FrameType
from typing import Any, Protocol

import torch

from extractors import ConfigError, RegionConfig
from extractors.given_boxes import read_boxes
from pipeline.config import ExtractJob
from pipeline.local import LocalEngine
from pipeline.plan import Plan, images_per_unit, make_plan
from pipeline.sources import Listing, open_source
from pipeline.unit import OnImages, UnitReport
from storage import Spec, StoreWriter, TriptychError, open_store
from storage.compact import FOLD_FROM, fold
from storage.places import BusyError
from storage.writer import unit_id

FINISHED, TOO_MANY_ERRORS, INTERRUPTED = 0, 3, 130
UNITS_A_SLOT = 4  # so that no actor waits long for the last one


class Engine(Protocol):
    """Runs the units of a plan. `slots` is how many at once."""

    spec: Spec
    vocabulary: dict[str, list[str]]
    device: str
    slots: int

    def run(self, plan: Plan, on_images: OnImages) -> Iterator[UnitReport]: ...
    def close(self) -> None: ...


class Progress(Protocol):
    """Whoever shows a running job."""

    def started(self, start: JobStart) -> None: ...
    def advanced(self, images: int, failed: int) -> None: ...
    def stopped(self) -> None: ...


@dataclass(frozen=True)
class JobStart:
    """What is known before the first image."""

    job: ExtractJob
    listing: Listing
    plan: Plan
    device: str
    weights_origin: str


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


def run_job(job: ExtractJob, progress: Progress) -> JobResult:
    """Run a job to its end, or to Ctrl-C; what is committed stays.

    Raises:
        TriptychError: the job itself is wrong; nothing was damaged.
    """
    began = time.perf_counter()
    listing = open_source(job.source).list()
    _check_boxes(job, listing)
    engine = _make_engine(job)
    try:
        store = StoreWriter(job.engine.out, engine.spec, engine.vocabulary, job.engine.format)
        before = store.read_run()
        start = _start(job, listing, engine, store)
        ready = time.perf_counter()
        report, interrupted = _run(engine, start, progress)
        seconds = time.perf_counter() - ready
    finally:
        engine.close()
    errors = _errors(job, listing)
    status = INTERRUPTED if interrupted else FINISHED
    if not interrupted:
        _check_all_there(start, store)
    if not interrupted and sum(errors.values()) > job.engine.errors_allowed(start.plan.images):
        status = TOO_MANY_ERRORS
    result = JobResult(start, report, errors, ready - began, seconds, status)
    store.write_run(_run_facts(result, before))
    if not interrupted:
        with suppress(BusyError):  # another job's end or a compaction does it
            fold(job.engine.out, at_least=FOLD_FROM)  # so that opening the store costs the same however many units
    return result


def _check_boxes(job: ExtractJob, listing: Listing) -> None:
    """Boxes under other keys than the images' are a wrong job, not as many bad images."""
    network = job.extractor
    if not isinstance(network, RegionConfig) or not (network.boxes and network.box_format and network.box_units):
        return
    keys = read_boxes(network.boxes, network.box_format, network.box_units).boxes.keys()
    if not any(ref.key in keys for ref in listing.refs):
        example, found = listing.refs[0].key, next(iter(keys), None)
        raise ConfigError(f"--boxes {network.boxes} has no key of an image: it has {found!r}, an image is {example!r}.")


def _check_all_there(start: JobStart, store: StoreWriter) -> None:
    """images = records + errors, or the job has failed, whatever its engine reported."""
    planned = [unit.keys for unit in start.plan.units]
    store.refresh(unit_id(store.spec.id, keys) for keys in planned)
    keys = [key for unit in planned for key in unit]
    lost = [key for key, done in zip(keys, store.done(keys), strict=True) if not done]
    if lost:
        raise TriptychError(
            f"{len(lost)} of {start.plan.images} images are neither records nor errors of {start.job.engine.out}, the "
            f"first is {min(lost)!r}; run the same command again, and see that all workers write to this folder."
        )


def _make_engine(job: ExtractJob) -> Engine:
    if job.engine.engine == "local":
        return LocalEngine(job)
    from pipeline.cluster import RayEngine  # Ray takes seconds to import, and the local engine runs without it

    return RayEngine(job)


def _start(job: ExtractJob, listing: Listing, engine: Engine, store: StoreWriter) -> JobStart:
    left = int((~store.done([ref.key for ref in listing.refs[: job.engine.limit]])).sum())
    per_unit = job.engine.images_per_shard or images_per_unit(engine.spec, engine.device == "cpu")
    if engine.slots > 1 and not job.engine.images_per_shard:
        per_unit = min(per_unit, max(1, ceil(left / (engine.slots * UNITS_A_SLOT))))
    plan = make_plan(listing, store.done, per_unit, job.engine.limit)
    images = {"images": plan.images, "source_images": len(listing.refs)}
    store.write_run({"complete": False, "source": job.source.images, **images})
    return JobStart(job, listing, plan, engine.device, engine.spec.model["weights"]["origin"])


def _run(engine: Engine, start: JobStart, progress: Progress) -> tuple[UnitReport, bool]:
    total, interrupted = UnitReport(), False
    progress.started(start)
    try:
        with _sigterm_as_interrupt():
            for report in engine.run(start.plan, progress.advanced):
                total += report
    except KeyboardInterrupt:
        interrupted = True
    finally:
        progress.stopped()
    return total, interrupted


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


def _errors(job: ExtractJob, listing: Listing) -> Counter[str]:
    mine = {ref.key for ref in listing.refs[: job.engine.limit]}
    return Counter(row.reason for row in open_store(job.engine.out).errors() if row.key in mine)


def _run_facts(result: JobResult, before: dict[str, Any]) -> dict[str, Any]:
    """What is kept of a job; one that found nothing to do leaves the speed of the one that did the work."""
    job, start, report = result.start.job, result.start, result.report
    now = {
        "complete": result.status != INTERRUPTED,
        "source": job.source.images,
        "images": start.plan.images,
        "source_images": len(start.listing.refs),
        "passed_over": start.listing.passed_over,
    }
    if not report.images:
        return {**before, **now}
    return {
        **now,
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "engine": job.engine.engine,
        "device": start.device,
        "hardware": hardware(start.device),
        "images_this_run": report.images,
        "seconds": round(result.seconds, 3),
        "images_per_second": round(result.images_per_second, 3),
        "stage_seconds": {stage: round(value, 3) for stage, value in sorted(report.seconds.items())},
        "peak_rss": report.peak_rss,
    }


def hardware(device: str) -> str:
    """The machine's name for a report: processor and, where it is used, the GPU."""
    gpu = f", {torch.cuda.get_device_name(0)}" if device.startswith("cuda") and torch.cuda.is_available() else ""
    return f"{platform.machine()} {platform.system()}, {torch.get_num_threads()} threads{gpu}"
