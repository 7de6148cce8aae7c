"""The local engine: every unit in this process, one after the other. The default, and the yardstick for the other."""

from __future__ import annotations

from collections.abc import Iterator

from extractors.views import make_views
from pipeline.config import ExtractJob
from pipeline.plan import Plan
from pipeline.unit import OnImages, UnitReport, make_worker


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
        """Yield a report a unit; each is committed by then."""
        worker = make_worker(self._job, self.views)
        try:
            for unit in plan.units:
                yield worker.run(unit, on_images)
        finally:
            worker.close()

    def close(self) -> None:
        """Nothing outlives the process."""
