"""What runs in an actor's process: a `Worker` kept warm between units, which tells how far it is.

Units and short notes travel; pixels and features do not, unless images are decoded on other nodes.
"""

from __future__ import annotations

import os
import queue
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import ray

from extractors.views import make_views
from pipeline.cluster_loading import NodeLoader
from pipeline.config import ExtractJob
from pipeline.plan import Unit
from pipeline.unit import UnitReport, Worker, make_worker
from storage import TriptychError
from storage.places import open_place
from storage.writer import check_head

Counts = tuple[int, int]  # images, and how many of them failed


@dataclass(frozen=True)
class Standing:
    """An actor that is ready: where it runs, or the error of the whole job that it met."""

    node: str
    address: str
    process: int
    trouble: str = ""


@dataclass(frozen=True)
class Note:
    """What an actor says while it runs a unit.

    images, failed  finished since the note before
    report          of the whole unit, once it is committed
    trouble         an error that concerns the whole job
    """

    images: int = 0
    failed: int = 0
    report: UnitReport | None = None
    trouble: str = ""


class Actor:
    """One process of the pool.

    An error that concerns the whole job travels back as text: Ray would wrap it, or lose its words.
    """

    def __init__(self, job: ExtractJob) -> None:
        self._trouble, self._worker = "", None
        try:
            self._worker = worker_of(job)
        except TriptychError as error:
            self._trouble = str(error)

    def standing(self) -> Standing:
        """Where this actor runs; the call returns once it has been built."""
        context = ray.get_runtime_context()
        return Standing(context.get_node_id(), ray.util.get_node_ip_address(), os.getpid(), self._trouble)

    def run(self, unit: Unit, every: float) -> Iterator[Note]:
        """Extract and commit a unit.

        Args:
            every: seconds between two notes, at least; 0 tells of each image as it is finished.
        """
        if self._worker is None:
            yield Note(trouble=self._trouble)
            return
        told: queue.SimpleQueue[Counts | None] = queue.SimpleQueue()
        with ThreadPoolExecutor(1) as beside:  # the unit has a thread of its own, so that this one can speak meanwhile
            running = beside.submit(self._worker.run, unit, lambda images, failed: told.put((images, failed)))
            running.add_done_callback(lambda _: told.put(None))
            more = True
            while more:
                images, failed, more = _gathered(told, every)
                if images:
                    yield Note(images, failed)
            try:
                yield Note(report=running.result())
            except TriptychError as error:
                yield Note(trouble=str(error))


def worker_of(job: ExtractJob) -> Worker:
    """What an actor works with.

    Raises:
        TriptychError: the extractor cannot be built, or the store is not where the driver made it.
    """
    views = make_views(job.views)
    # The driver has made the stores. An actor that does not see them must not start some of its own elsewhere.
    for view, out in job.outs.items():
        check_head(open_place(out), views.specs[view])
    return make_worker(job, views, NodeLoader(job, views) if job.engine.decode_on == "nodes" else None)


def _gathered(told: queue.SimpleQueue[Counts | None], every: float) -> tuple[int, int, bool]:
    """What is told within `every` seconds of the first, summed up, and whether more can come."""
    images = failed = 0
    counts = told.get()
    until = time.monotonic() + every
    while counts is not None:
        images, failed = images + counts[0], failed + counts[1]
        try:
            counts = told.get(timeout=max(0.0, until - time.monotonic()))
        except queue.Empty:
            return images, failed, True
    return images, failed, False
