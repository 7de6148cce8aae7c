"""`triptych demo`: the whole way on bundled photographs, from images to two verified stores and a page of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from extractors import ExtractorConfig, GridConfig, RegionConfig
from pipeline.config import EngineConfig, ExtractJob
from pipeline.sources import SourceConfig
from storage import verify_store
from workflows.output import Command, emit
from workflows.progress import told
from workflows.text import size

PHOTOS = Path(__file__).parent / "photos"
NARROW = 4  # widths divided by this: a minute on a laptop; the weights are random anyway


@dataclass(frozen=True)
class Demo(Command):
    """Extract regions and grids from four bundled photographs, and write a page that shows them.

    triptych demo

    triptych demo --out trial
    """

    out: str = "demo-output"
    """Folder for the two stores and the page; a second demo finds its images done."""

    def run(self) -> int:
        """Run both jobs and write the page; returns the exit status, 1 where a store does not verify."""
        from pipeline.job import run_job
        from workflows.viewing.opened import Opened
        from workflows.viewing.pictures import ImageFlags, Pictures
        from workflows.viewing.report import report

        jobs: list[tuple[str, ExtractorConfig]] = [
            ("regions", RegionConfig(weights="random:0", width_divisor=NARROW)),
            ("grid", GridConfig(model="r50", weights="random:0", width_divisor=NARROW)),
        ]
        sound = True
        for view, extractor in jobs:
            print(f"--- triptych extract {view}", flush=True)
            out = str(Path(self.out) / view)
            job = ExtractJob(SourceConfig(str(PHOTOS)), extractor, EngineConfig(out))
            result = told(partial(run_job, job), self.json)
            if result.status:
                return result.status
            found = verify_store(out)
            sound &= not found.problems
            state = "sound" if not found.problems else f"{len(found.problems)} problems"
            print(f"  verify      {state}: {found.records} records, {size(found.bytes)}\n")
        page = Path(self.out) / "index.html"
        stores = [Opened(Path(self.out) / view) for view, _ in jobs]
        made = report(stores, Pictures(ImageFlags(str(PHOTOS))), len(stores[0].store))
        page.write_text(made.html, encoding="utf-8")
        emit({"event": "page", "page": str(page), "sound": sound})
        print(f"open {page} in a browser: the photographs with their boxes, and the grid features as maps")
        return 0 if sound else 1
