"""One unit in, one shard a view and one report out: the function that every engine runs.

Reading, decoding and resizing run ahead in threads, at most a window's worth; the network runs in threads of its own,
and the calling thread writes. One bad image becomes an error row and the others go on. Several threads may call at
once: the images of the second one's unit are loaded, and run, while the first one writes and commits.

On a CPU every image gets one thread, and as many images run at once as there are cores: a network's sums then come out
the same to the last bit on any number of cores, and no core waits for another in the middle of a layer. A GPU has four
threads: while one of them waits for results and one makes records, the others' batches are laid out, and given to it.
Where a batch's shape is new, that takes longer than the batch before it runs: two have to be ahead.
"""

from __future__ import annotations

import os
import resource
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import cv2
import torch

from extractors import ImageError, decode
from extractors.launching import take_stream
from extractors.views import Ready, Results, Views
from pipeline.batching import BatchSize, Turns, device_memory, in_order
from pipeline.config import EngineConfig, ExtractJob
from pipeline.feeding import Batch, Done, Feeder, Flow, Image, Loaded, Outcomes
from pipeline.plan import Unit
from pipeline.sources import ImageRef, Source, open_source
from pipeline.timed import read_within
from storage import ErrorRow, Spec, StoreWriter
from storage.secrets import shown
from storage.writer import UnitWriter

BATCHES_ON_GPU = 4  # under way at once, a thread each: what one waits for, the others' work fills
NO_ROOM = (  # as torch on a CPU, C++, cuBLAS, cuDNN and CUDA itself say it
    "DefaultCPUAllocator", "bad_alloc", "ALLOC_FAILED", "ALLOCATION_FAILED", "out of memory",
)  # fmt: skip
UNITS_AT_ONCE = 3  # of a worker: one is written and committed, one's images are run, one's are loaded
UNITS_AT_ONCE_ON_GPU = 8  # some have few images that still wait for their like
OnImages = Callable[[int, int], None]  # told of newly finished images, and how many of them failed


@dataclass
class UnitReport:
    """What became of one unit; small, so that it can travel.

    records   of all views together, as are rows and bytes
    reasons   why images failed, counted once an image
    seconds   by stage, summed over threads; "idle" is the network's threads with nothing to do, roughly: the images of
              several units may be in them
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
    """What runs units: one process's source, networks and ways into the stores, by view.

    Its settings change how fast it goes, never what comes out. `load` makes an image ready elsewhere; by default the
    decode threads do it here. `run` may be called by `units_at_once` threads.
    """

    source: Source
    views: Views
    stores: Mapping[str, StoreWriter]
    settings: EngineConfig
    load: Callable[[ImageRef], Loaded] | None = None

    def __post_init__(self) -> None:
        cv2.setNumThreads(1)  # the decode threads are the parallelism; more would only contend
        on_gpu = self.views.device.type == "cuda"
        self._decoders = self.settings.decode_threads(on_gpu)
        self._loaders = ThreadPoolExecutor(self._decoders, thread_name_prefix="decode")
        self._cores = torch.get_num_threads()
        self._networks = batches_at_once(on_gpu, min(self._cores, images_in_memory()))
        torch.set_num_threads(1)
        self._size = BatchSize(self.settings.batch_size, device_memory(self.views.device))
        self._turns = Turns()
        self._models = ThreadPoolExecutor(
            self._networks, thread_name_prefix="network", initializer=_begin_thread, initargs=(self.views.device,)
        )
        self._committing = threading.Lock()  # a writer's knowledge of its store is for one thread at a time
        self._idle_since = 0.0
        self._feeder = Feeder(
            lambda ref: self._loaders.submit(self._load, ref),
            lambda batch: self._models.submit(self._extract, batch),
            self._size,
            self._decoders,
            self._networks,
        )

    def run(self, unit: Unit, on_images: OnImages = lambda images, failed: None) -> UnitReport:
        """Extract a unit and commit it, view by view.

        Raises:
            StoreError: a store cannot be written.
        """
        report = UnitReport(images=len(unit.refs))
        with ExitStack() as stack:
            shards = {
                view: stack.enter_context(store.unit(unit.keys, unit.again)) for view, store in self.stores.items()
            }
            flow = self._feeder.add(unit.refs)
            stack.callback(self._feeder.leave, flow)
            for outcomes in in_order(self._results(flow, report)):
                with report.timing("write"):
                    failed = _put(outcomes, shards)
                report.reasons.update(failed[:1])
                on_images(1, min(len(failed), 1))
            with report.timing("write"), self._committing:
                entries = [shard.commit({"seconds": report.seconds}) for shard in shards.values()]
        for entry in entries:
            if entry:  # None, or fewer keys: another job committed them meanwhile
                report.records += len(entry.keys)
            if entry and entry.shard:
                report.rows, report.bytes = report.rows + entry.shard.rows, report.bytes + entry.shard.bytes
        report.peak_rss = peak_rss()
        return report

    def close(self) -> None:
        """Let the threads go without finishing what is queued."""
        self._feeder.close()
        for pool in (self._loaders, self._models):
            pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(self._cores)

    def _results(self, flow: Flow, report: UnitReport) -> Iterator[list[tuple[int, Outcomes]]]:
        """What became of a unit's images, with their numbers, a batch at a time."""
        began = time.perf_counter()
        for batch in flow:
            mine = [image for image in batch.images if image.unit is flow]
            for image in mine:
                report.seconds = _summed(report.seconds, image.seconds)
            if batch.images[0].unit is flow:
                report.seconds = _summed(report.seconds, {"model": batch.seconds})
            yield [(image.number, image.outcomes) for image in mine]
        report.seconds["idle"] = self._idle(began, report.seconds.get("model", 0.0))

    def _idle(self, began: float, busy: float) -> float:
        """Seconds that the network's threads had nothing to do since the unit before was through them."""
        began, self._idle_since = max(began, self._idle_since), time.perf_counter()
        return max(0.0, self._networks * (self._idle_since - began) - busy)

    def _load(self, ref: ImageRef) -> Loaded:
        """Runs in a decode thread."""
        if self.load:
            return self.load(ref)
        return load_image(self.source, self.views, ref, self.settings)

    def _extract(self, batch: list[Image]) -> Batch:
        """Runs in a network thread: a record or an error row a view and image, and the seconds it took."""
        start = time.perf_counter()
        good = [each.loaded.ready for each in batch if not isinstance(each.loaded.ready, ImageError)]
        with self._turns.beside():
            results = iter(self._forward(good) if good else [])

        def result(ready: Ready | ImageError) -> Results:
            return self._same(ready) if isinstance(ready, ImageError) else next(results)

        done = [
            Done(number, _outcomes(loaded.ref, result(loaded.ready)), loaded.seconds, unit)
            for number, loaded, unit in batch
        ]
        return Batch(done, time.perf_counter() - start)

    def _same(self, error: ImageError) -> Results:
        return dict.fromkeys(self.stores, error)

    def _forward(self, batch: list[Ready]) -> list[Results]:
        """Run the networks; a batch that does not fit in the device's memory is halved until it does.

        An image that does not fit alone is tried once more while nothing else runs. If it then has no room either, the
        batches that it was in say nothing of others.
        """
        before = self._size.now
        results, alone = self._halved(batch)
        if alone:
            self._size.one_alone(before)
        return results

    def _halved(self, batch: list[Ready]) -> tuple[list[Results], bool]:
        """Results, and whether an image had no room alone."""
        error = self._tried(batch)
        if not isinstance(error, Exception):
            return error, False
        if len(batch) == 1:
            with self._turns.alone():
                error = self._tried(batch)
            if not isinstance(error, Exception):
                return error, False
            message = f"there is no memory for it: {error}".splitlines()[0]
            return [self._same(ImageError("out_of_memory", message, "model"))], True
        self._size.overflowed(len(batch))
        middle = len(batch) // 2
        (first, one), (second, other) = self._halved(batch[:middle]), self._halved(batch[middle:])
        return first + second, one or other

    def _tried(self, batch: list[Ready]) -> list[Results] | Exception:
        """What the networks make of a batch, or why there is no memory for it."""
        try:
            results = self.views.extract(batch)
        except (RuntimeError, MemoryError) as error:
            if not has_no_room(error):
                raise
            traceback.clear_frames(error.__traceback__)  # what it did has room only once nobody holds it
            return error.with_traceback(None)
        self._size.fitted(len(batch))
        return results


def has_no_room(error: BaseException) -> bool:
    """Whether something failed for want of memory, of a GPU or not: torch has a type for the first way alone."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(each in str(error) for each in NO_ROOM)


def make_worker(job: ExtractJob, views: Views, load: Callable[[ImageRef], Loaded] | None = None) -> Worker:
    """The worker of a process that runs units of this job.

    Raises:
        TriptychError: the source or a store is not what it should be.
    """
    return Worker(open_source(job.source), views, open_writers(job, views), job.engine, load)


class Described(Protocol):
    """Whatever knows the specs and vocabularies of its views."""

    specs: dict[str, Spec]
    vocabularies: dict[str, dict[str, list[str]]]


def open_writers(job: ExtractJob, views: Described) -> dict[str, StoreWriter]:
    """A way into each view's store, which is made where it does not exist."""
    return {
        view: StoreWriter(out, views.specs[view], views.vocabularies[view], job.engine.format)
        for view, out in job.outs.items()
    }


def load_image(source: Source, views: Views, ref: ImageRef, settings: EngineConfig) -> Loaded:
    """Bytes to an image resized for each view, or to the error that stands for it."""
    timed = UnitReport()
    try:
        with timed.timing("read"):
            data = read_within(source.read, ref.uri, settings.read_timeout)
        with timed.timing("decode"):
            ready: Ready | ImageError = views.prepare(ref.key, decode(data, settings.max_pixels))
    except ImageError as error:
        ready = error
    except MemoryError as error:
        ready = ImageError("out_of_memory", f"there is no memory to resize it: {error}", "prepare")
    return Loaded(ref, ready, timed.seconds)


def _summed(first: dict[str, float], second: dict[str, float]) -> dict[str, float]:
    return {name: first.get(name, 0.0) + second.get(name, 0.0) for name in sorted(first.keys() | second.keys())}


def batches_at_once(on_gpu: bool, on_cpu: int) -> int:
    """How many batches the networks have at once."""
    return BATCHES_ON_GPU if on_gpu else on_cpu


def units_at_once(on_gpu: bool) -> int:
    """How many units a worker should have at once."""
    return UNITS_AT_ONCE_ON_GPU if on_gpu else UNITS_AT_ONCE


def _begin_thread(device: torch.device) -> None:
    """A network's thread: one core of its own, or one queue of the GPU."""
    torch.set_num_threads(1)
    if device.type == "cuda":
        take_stream(device)


def images_in_memory() -> int:
    """How many images a CPU may run at once: one for each 2 GiB of the machine, about twice what a large one needs."""
    return max(1, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 31)


def peak_rss() -> int:
    """Largest resident memory of this process so far, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _put(outcomes: Outcomes, shards: Mapping[str, UnitWriter]) -> list[str]:
    """Hand an image's outcomes to the shards; returns the reasons of what failed."""
    reasons = []
    for view, outcome in outcomes.items():
        if isinstance(outcome, ErrorRow):
            shards[view].fail(outcome)
            reasons.append(outcome.reason)
        else:
            shards[view].append(outcome)
    return reasons


def _outcomes(ref: ImageRef, results: Results) -> Outcomes:
    return {
        view: _error_row(ref, result) if isinstance(result, ImageError) else result for view, result in results.items()
    }


def _error_row(ref: ImageRef, error: ImageError) -> ErrorRow:
    return ErrorRow(ref.key, shown(ref.uri), error.stage, error.reason, shown(str(error)))
