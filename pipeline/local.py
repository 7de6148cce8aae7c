"""The local engine: all units in this process, some committing while the next ones run and those behind are loaded.
The default, and the yardstick for the other."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from extractors.views import make_views
from pipeline.config import ExtractJob
from pipeline.decoding import WORTH_IT, ProcessLoader
from pipeline.plan import Plan
from pipeline.sources import open_source
from pipeline.unit import OnImages, UnitReport, make_worker, units_at_once


class LocalEngine:
    """Runs a plan here.

    views                the networks it holds
    specs, vocabularies  of these
    device               where the networks run
    slots                units that run at once

    Raises:
        TriptychError: an extractor cannot be built.
    """

    def __init__(self, job: ExtractJob) -> None:
        self._job = job
        self.views = make_views(job.views)
        self.specs, self.vocabularies = self.views.specs, self.views.vocabularies
        self.device, self.slots = str(self.views.device), 1

    def run(self, plan: Plan, on_images: OnImages) -> Iterator[UnitReport]:
        """Yield a report a unit, in the plan's order; each is committed by then."""
        loader, counting = self._loader(plan), threading.Lock()
        worker = make_worker(self._job, self.views, loader)
        at_once = units_at_once(self.views.device.type == "cuda")
        threads = ThreadPoolExecutor(at_once, thread_name_prefix="unit")
        running: deque[Future[UnitReport]] = deque()

        def count(images: int, failed: int) -> None:
            with counting:
                on_images(images, failed)

        try:
            for unit in plan.units:
                running.append(threads.submit(worker.run, unit, count))
                if len(running) == at_once:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            worker.close()  # units that are not at their commit yet end here
            threads.shutdown(cancel_futures=True)
            if loader is not None:
                loader.close()

    def _loader(self, plan: Plan) -> ProcessLoader | None:
        """Processes that decode, beside a GPU; a CPU's cores all compute, and a small job is done before they start."""
        if self.views.device.type != "cuda" or len(plan.refs) < WORTH_IT:
            return None
        return ProcessLoader(open_source(self._job.source), self.views, self._job.engine)

    def close(self) -> None:
        """Nothing outlives the process."""
