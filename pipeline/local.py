"""The local engine: every unit in this process, one after the other. The default, and the yardstick for the other."""

from __future__ import annotations

from collections.abc import Iterator

from extractors import make_extractor
from pipeline.config import ExtractJob
from pipeline.plan import Plan
from pipeline.sources import open_source
from pipeline.unit import OnImages, UnitReport, Worker
from storage import StoreWriter


class LocalEngine:
    """Runs a plan here.

    spec, vocabulary  of the extractor it holds
    device            where the network runs
    slots             units that run at once

    Raises:
        TriptychError: the extractor cannot be built.
    """

    def __init__(self, job: ExtractJob) -> None:
        self._job = job
        self._extractor = make_extractor(job.extractor)
        self.spec, self.vocabulary = self._extractor.spec, self._extractor.vocabulary
        self.device, self.slots = str(self._extractor.device), 1

    def run(self, plan: Plan, on_images: OnImages) -> Iterator[UnitReport]:
        """Yield a report a unit; each is committed by then."""
        config = self._job.engine
        store = StoreWriter(config.out, self.spec, self.vocabulary, config.format)
        source = open_source(self._job.source)
        worker = Worker(source, self._extractor, store, config.batch_size, config.decode_workers)
        try:
            for unit in plan.units:
                yield worker.run(unit, on_images)
        finally:
            worker.close()

    def close(self) -> None:
        """Nothing outlives the process."""
