"""What a job will cost, from running a few of its images: the answer of `triptych plan`."""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from extractors.views import Views
from pipeline.config import ExtractJob
from pipeline.plan import Plan, Unit
from pipeline.sources import ImageRef
from pipeline.unit import UnitReport, Worker, make_worker

WARM_UP = 8  # images, at most: a GPU picks its kernels, and `--batch-size auto` finds its size


@dataclass(frozen=True)
class Probe:
    """What a few images took.

    images   that were run, the first batch left out of the times: it warms up
    seconds  of wall clock
    bytes    of records, shards included
    reasons  of those that failed
    stages   seconds by stage, summed over threads
    """

    images: int
    seconds: float
    bytes: int
    reasons: Counter[str] = field(default_factory=Counter)
    stages: dict[str, float] = field(default_factory=dict)

    @property
    def images_per_second(self) -> float:
        return self.images / self.seconds

    def seconds_for(self, images: int, workers: int = 1) -> float:
        """Seconds for so many images, `workers` at once."""
        return self.seconds / max(self.images, 1) * images / workers

    def bytes_for(self, images: int) -> int:
        return round(self.bytes / max(self.images, 1) * images)


def spread(units: Sequence[Unit], images: int) -> list[ImageRef]:
    """About so many images of a plan, evenly spread over its units: neighbours are often alike."""
    if not units:
        return []
    chosen = sorted({round(at * (len(units) - 1) / max(images - 1, 1)) for at in range(images)})
    each = -(-images // len(chosen))
    return [ref for at in chosen for ref in _evenly(units[at].refs, each)][:images]


def _evenly(refs: Sequence[ImageRef], count: int) -> list[ImageRef]:
    count = min(count, len(refs))
    return [refs[at * len(refs) // count] for at in range(count)]


def probe(worker: Worker, refs: Sequence[ImageRef]) -> Probe:
    """Run images as a job would; what they make goes where the worker's store is, so give it a temporary one.

    Args:
        refs: at least two; the first ones warm up.
    """
    warm_up = max(1, min(len(refs) // 4, WARM_UP))
    worker.run(Unit(tuple(refs[:warm_up])))
    timed = tuple(refs[warm_up:]) or tuple(refs)
    began = time.perf_counter()
    report: UnitReport = worker.run(Unit(timed))
    return Probe(len(timed), time.perf_counter() - began, report.bytes, report.reasons, report.seconds)


def probe_job(job: ExtractJob, views: Views, plan: Plan, images: int) -> Probe:
    """Run a few images of a plan on this machine, into stores that are thrown away.

    Raises:
        TriptychError: the job itself is wrong.
    """
    with tempfile.TemporaryDirectory(prefix="triptych-probe-") as folder:
        trial = replace(job, engine=replace(job.engine, out=f"{folder}/store"))
        worker = make_worker(trial, views)
        try:
            return probe(worker, spread(plan.units, images))
        finally:
            worker.close()
