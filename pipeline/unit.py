"""One unit in, one shard and one report out: the function that every engine runs.

Reading, decoding and resizing run ahead in threads, at most a window's worth; the network runs in threads of its own,
and the calling thread writes. One bad image becomes an error row and the others go on.

On a CPU every image gets one thread, and as many images run at once as there are cores: a network's sums then come out
the same to the last bit on any number of cores, and no core waits for another in the middle of a layer.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice

import cv2
import torch

from extractors import Extractor, ImageError, Prepared, decode
from pipeline.plan import Unit
from pipeline.sources import ImageRef, Source
from storage import ErrorRow, Record, StoreWriter

STAGES = ("read", "decode", "model", "write")
OnImages = Callable[[int, int], None]  # told of newly finished images, and how many of them failed


@dataclass
class UnitReport:
    """What became of one unit; small, so that it can travel.

    seconds   by stage, summed over threads; "idle" is the network's threads with nothing to do
    peak_rss  the process's largest resident memory so far, in bytes
    """

    images: int = 0
    records: int = 0
    rows: int = 0
    bytes: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, float] = field(default_factory=dict)
    peak_rss: int = 0

    def __add__(self, other: UnitReport) -> UnitReport:
        return UnitReport(
            images=self.images + other.images,
            records=self.records + other.records,
            rows=self.rows + other.rows,
            bytes=self.bytes + other.bytes,
            reasons=self.reasons + other.reasons,
            seconds=_summed(self.seconds, other.seconds),
            peak_rss=max(self.peak_rss, other.peak_rss),
        )

    @contextmanager
    def timing(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds = _summed(self.seconds, {stage: time.perf_counter() - start})


@dataclass
class Worker:
    """What runs units: one process's source, network and way into the store.

    Its settings change how fast it goes, never what comes out.
    """

    source: Source
    extractor: Extractor
    store: StoreWriter
    batch_size: int = 1
    decode_threads: int = 2

    def __post_init__(self) -> None:
        cv2.setNumThreads(1)  # the decode threads are the parallelism; more would only contend
        self._loaders = ThreadPoolExecutor(self.decode_threads, thread_name_prefix="decode")
        self._cores = torch.get_num_threads()
        self._networks = 1 if self.extractor.device.type == "cuda" else min(self._cores, images_in_memory())
        torch.set_num_threads(1)
        self._models = ThreadPoolExecutor(
            self._networks, thread_name_prefix="network", initializer=torch.set_num_threads, initargs=(1,)
        )

    def run(self, unit: Unit, on_images: OnImages = lambda images, failed: None) -> UnitReport:
        """Extract a unit and commit it.

        Raises:
            StoreError: the store cannot be written.
        """
        report, began = UnitReport(images=len(unit.refs)), time.perf_counter()
        with self.store.unit(unit.keys) as shard:
            for results in self._results(unit, report):
                for result in results:
                    with report.timing("write"):
                        if isinstance(result, ErrorRow):
                            shard.fail(result)
                            report.reasons[result.reason] += 1
                        else:
                            shard.append(result)
                    on_images(1, int(isinstance(result, ErrorRow)))
            with report.timing("write"):
                entry = shard.commit({"seconds": report.seconds})
        if entry:  # None, or fewer keys: another job committed them meanwhile
            report.records = len(entry.keys)
        if entry and entry.shard:
            report.rows, report.bytes = entry.shard.rows, entry.shard.bytes
        report.peak_rss = peak_rss()
        capacity = self._networks * (time.perf_counter() - began)
        report.seconds["idle"] = max(0.0, capacity - report.seconds.get("model", 0.0))
        return report

    def close(self) -> None:
        """Let the threads go without finishing what is queued."""
        for pool in (self._loaders, self._models):
            pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(self._cores)

    def _results(self, unit: Unit, report: UnitReport) -> Iterator[list[Record | ErrorRow]]:
        """Finished batches in the unit's order; one more than the network's threads can take is kept waiting for it."""
        running: deque[Future[tuple[list[Record | ErrorRow], float]]] = deque()
        try:
            for batch in self._batches(unit, report):
                running.append(self._models.submit(self._extract, batch))
                if len(running) > self._networks:
                    yield self._finished(running.popleft(), report)
            while running:
                yield self._finished(running.popleft(), report)
        finally:
            for future in running:
                future.cancel()

    @staticmethod
    def _finished(future: Future[tuple[list[Record | ErrorRow], float]], report: UnitReport) -> list[Record | ErrorRow]:
        results, seconds = future.result()
        report.seconds = _summed(report.seconds, {"model": seconds})
        return results

    def _batches(self, unit: Unit, report: UnitReport) -> Iterator[list[_Loaded]]:
        """Loaded images in the unit's order, `batch_size` at a time, while later ones are being loaded."""
        coming = iter(unit.refs)
        window: deque[Future[_Loaded]] = deque()
        batch: list[_Loaded] = []
        try:
            while True:
                ahead = self.decode_threads + self.batch_size
                window.extend(self._loaders.submit(self._load, ref) for ref in islice(coming, ahead - len(window)))
                if not window:
                    break
                loaded = window.popleft().result()
                report.seconds = _summed(report.seconds, loaded.seconds)
                batch.append(loaded)
                if len(batch) == self.batch_size:
                    yield batch
                    batch = []
            if batch:
                yield batch
        finally:
            for future in window:
                future.cancel()

    def _load(self, ref: ImageRef) -> _Loaded:
        """Runs in a decode thread: bytes to a resized image, or to the error row that stands for it."""
        timed = UnitReport()
        try:
            with timed.timing("read"):
                data = self.source.read(ref.uri)
            with timed.timing("decode"):
                ready: Prepared | ImageError = self.extractor.prepare(ref.key, decode(data))
        except ImageError as error:
            ready = error
        return _Loaded(ref, ready, timed.seconds)

    def _extract(self, batch: list[_Loaded]) -> tuple[list[Record | ErrorRow], float]:
        """Runs in a network thread: a record or an error row an image, and the seconds it took."""
        start = time.perf_counter()
        good = [loaded.ready for loaded in batch if isinstance(loaded.ready, Prepared)]
        results = iter(self._forward(good) if good else [])
        outcomes = [next(results) if isinstance(each.ready, Prepared) else each.ready for each in batch]
        rows = [
            _error_row(loaded.ref, outcome) if isinstance(outcome, ImageError) else outcome
            for loaded, outcome in zip(batch, outcomes, strict=True)
        ]
        return rows, time.perf_counter() - start

    def _forward(self, batch: list[Prepared]) -> list[Record | ImageError]:
        """Run the network; a batch that does not fit in the device's memory is halved until it does."""
        try:
            return self.extractor.extract(batch)
        except torch.OutOfMemoryError as error:
            if len(batch) == 1:
                return [ImageError("out_of_memory", f"the device has no room for it: {error}".splitlines()[0], "model")]
        middle = len(batch) // 2
        return self._forward(batch[:middle]) + self._forward(batch[middle:])


@dataclass(frozen=True)
class _Loaded:
    ref: ImageRef
    ready: Prepared | ImageError
    seconds: dict[str, float]


def _summed(first: dict[str, float], second: dict[str, float]) -> dict[str, float]:
    return {name: first.get(name, 0.0) + second.get(name, 0.0) for name in sorted(first.keys() | second.keys())}


def images_in_memory() -> int:
    """How many images a CPU may run at once: one for each 2 GiB of the machine, about twice what a large one needs."""
    return max(1, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 31)


def peak_rss() -> int:
    """Largest resident memory of this process so far, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _error_row(ref: ImageRef, error: ImageError) -> ErrorRow:
    return ErrorRow(ref.key, ref.uri, error.stage, error.reason, str(error))
