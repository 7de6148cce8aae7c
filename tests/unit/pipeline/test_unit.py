"""One unit: every image accounted for, whatever it does."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from extractors import GridConfig, ImageError, Prepared, load_extractor, make_extractor
from extractors.trunk import Stacked, TrunkExtractor
from extractors.views import Views
from pipeline.config import EngineConfig
from pipeline.feeding import Flow, Loaded
from pipeline.plan import Unit
from pipeline.sources import ImageRef
from pipeline.unit import UnitReport, Worker
from storage import FeatureLayout, GridRecord, PatchRecord, Spec, StoreError, StoreWriter, open_store
from tests.helpers import differences

SPEC = Spec("grid", FeatureLayout(4), model={"dtype": "float32"})
PNG = Path(__file__).parents[3] / "workflows" / "photos" / "chelsea.jpg"


class FakeSource:
    """Serves one photograph under any name; names that start with "gone" are missing."""

    def __init__(self) -> None:
        self.reading = self.most = 0
        self._lock = threading.Lock()

    def list(self) -> Any:
        raise AssertionError("a unit never lists")

    def read(self, uri: str) -> bytes:
        with self._lock:
            self.reading += 1
        if uri.startswith("gone"):
            raise ImageError("missing", "no such file", "read")
        return b"not an image" if uri.startswith("text") else PNG.read_bytes()


class FakeExtractor:
    """Gives the image's number of letters as its feature; remembers its batches."""

    spec, vocabulary, device = SPEC, {}, torch.device("cpu")

    def __init__(self, room: int = 100) -> None:
        self.room, self.batches = room, []

    def prepare(self, key: str, image: np.ndarray) -> Prepared:
        return Prepared(key, image.shape[:2], torch.zeros(3, 2, 2), 1.0)

    def extract(self, batch: list[Prepared]) -> list[Any]:
        if len(batch) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory.\nmore text")
        self.batches.append([image.key for image in batch])
        return [
            ImageError("not_representable", "too large", "model")
            if image.key.startswith("huge")
            else GridRecord(image.key, image.image_size, np.full((1, 1, 4), len(image.key), np.float16))
            for image in batch
        ]


def worker_of(extractor: Any, store: StoreWriter, source: Any = None, **settings: Any) -> Worker:
    """A worker of one view."""
    views = Views({extractor.spec.view: extractor})
    return Worker(source or FakeSource(), views, {extractor.spec.view: store}, EngineConfig("", **settings))


def run(tmp_path: Path, keys: list[str], extractor: FakeExtractor, batch_size: int = 1, source: Any = None) -> Any:
    worker = worker_of(extractor, StoreWriter(tmp_path / "s", extractor.spec), source, batch_size=batch_size)
    told: list[tuple[int, int]] = []
    report = worker.run(
        Unit(tuple(ImageRef(key, key) for key in keys)), lambda images, failed: told.append((images, failed))
    )
    worker.close()
    return report, told


def test_each_image_becomes_a_record_or_an_error_row(tmp_path: Path) -> None:
    report, told = run(tmp_path, ["a", "gone1", "bb", "text1", "huge", "ccc"], FakeExtractor())
    store = open_store(tmp_path / "s")
    assert {key: int(store[key].features[0, 0, 0]) for key in store} == {"a": 1, "bb": 2, "ccc": 3}
    rows = {row.key: (row.stage, row.reason) for row in store.errors()}
    assert rows == {
        "gone1": ("read", "missing"),
        "text1": ("decode", "not_an_image"),
        "huge": ("model", "not_representable"),
    }
    assert (report.images, report.records, dict(report.reasons)) == (
        6, 3, {"missing": 1, "not_an_image": 1, "not_representable": 1}
    )  # fmt: skip
    assert (sum(i for i, _ in told), sum(f for _, f in told)) == (6, 3)


def test_order_in_the_shard_is_the_units_whatever_thread_was_first(tmp_path: Path) -> None:
    keys = [f"k{index}" for index in range(40)]
    run(tmp_path, keys, FakeExtractor(), batch_size=3)
    assert list(open_store(tmp_path / "s").keys()) == keys


def test_the_network_gets_full_batches_and_a_rest(tmp_path: Path) -> None:
    extractor = FakeExtractor()
    run(tmp_path, ["a", "b", "gone", "c", "d", "e"], extractor, batch_size=4)
    assert sorted(extractor.batches) == [["a", "b", "c"], ["d", "e"]]


class SizedExtractor(FakeExtractor):
    """Images whose names begin with "w" are wide."""

    def prepare(self, key: str, image: np.ndarray) -> Prepared:
        return Prepared(key, image.shape[:2], torch.zeros(3, 2, 9 if key.startswith("w") else 2), 1.0)


def test_like_sizes_share_a_batch_and_the_shard_keeps_the_units_order(tmp_path: Path) -> None:
    keys = ["a", "w1", "b", "w2", "gone", "c", "w3", "d", "w4"]
    extractor = SizedExtractor()
    run(tmp_path, keys, extractor, batch_size=4)
    assert sorted(extractor.batches) == [["a", "b", "c"], ["d"], ["w1", "w2", "w3", "w4"]]
    assert list(open_store(tmp_path / "s").keys()) == [key for key in keys if key != "gone"]


class TwoUnits:
    """Two units of one worker: the second one wants its turn before the first one's last image is loaded."""

    def __init__(self, tmp_path: Path, second: list[str]) -> None:
        self.extractor = SizedExtractor()
        self.store = StoreWriter(tmp_path / "s", self.extractor.spec)
        self.worker = worker_of(self.extractor, self.store, batch_size=4)
        self.worker.load = self.load
        self.added = [threading.Event(), threading.Event()]
        add, events = self.worker._feeder.add, iter(self.added)

        def told(refs: Sequence[ImageRef]) -> Flow:
            flow = add(refs)
            next(events).set()
            return flow

        self.worker._feeder.add = told  # type: ignore[method-assign]
        self.first, self.second = (
            Unit(tuple(ImageRef(key, key) for key in keys)) for keys in (["a", "b", "w1", "c", "d", "last"], second)
        )

    def load(self, ref: ImageRef) -> Loaded:
        if ref.key == "last":
            assert self.added[1].wait(30)
        if ref.key == "boom":
            raise ValueError("no image has this name")
        return Loaded(ref, {"grid": self.extractor.prepare(ref.key, np.zeros((2, 2, 3), np.uint8))}, {})

    def run(self) -> list[Future[UnitReport]]:
        with ThreadPoolExecutor(2) as threads:
            first = threads.submit(self.worker.run, self.first)
            assert self.added[0].wait(30)
            found = [first, threads.submit(self.worker.run, self.second)]
        self.worker.close()
        return found


def test_what_a_unit_leaves_over_finds_its_like_in_the_next_one(tmp_path: Path) -> None:
    two = TwoUnits(tmp_path, ["e", "w2", "f", "g"])
    assert [each.result().records for each in two.run()] == [6, 4]
    assert sorted(two.extractor.batches) == [["a", "b", "c", "d"], ["last", "e", "f", "g"], ["w1", "w2"]]
    store = open_store(tmp_path / "s")
    assert sorted(store) == ["a", "b", "c", "d", "e", "f", "g", "last", "w1", "w2"]
    assert all(int(store[key].features[0, 0, 0]) == len(key) for key in store)


def test_a_unit_that_fails_leaves_the_one_before_whole(tmp_path: Path) -> None:
    two = TwoUnits(tmp_path, ["e", "boom"])
    first, second = two.run()
    assert first.result().records == 6 and isinstance(second.exception(), ValueError)
    assert sorted(open_store(tmp_path / "s")) == ["a", "b", "c", "d", "last", "w1"]
    assert sorted(two.extractor.batches) == [["a", "b", "c", "d"], ["last"], ["w1"]]


def test_a_unit_that_waits_for_another_ends_with_its_worker(tmp_path: Path) -> None:
    two = TwoUnits(tmp_path, ["e", "stop", "f"])
    load = two.load

    def stopping(ref: ImageRef) -> Loaded:
        if ref.key == "stop":
            two.worker._models.shutdown(wait=False, cancel_futures=True)
        return load(ref)

    two.worker.load = stopping
    assert all(isinstance(each.exception(), RuntimeError) for each in two.run())


def test_a_batch_that_does_not_fit_is_halved_until_it_does(tmp_path: Path) -> None:
    extractor = FakeExtractor(room=1)
    report, _ = run(tmp_path, ["a", "b", "c"], extractor, batch_size=3)
    assert sorted(extractor.batches) == [["a"], ["b"], ["c"]]
    assert report.records == 3


def test_an_image_that_does_not_fit_alone_is_an_error_row(tmp_path: Path) -> None:
    run(tmp_path, ["a", "b"], FakeExtractor(room=0), batch_size=2)
    rows = open_store(tmp_path / "s").errors()
    assert {(row.key, row.stage, row.reason) for row in rows} == {
        ("a", "model", "out_of_memory"),
        ("b", "model", "out_of_memory"),
    }
    assert all("\n" not in row.message for row in rows)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("there is no memory for an output of 20 MiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] data. DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
        RuntimeError("std::bad_alloc"),
    ],
)
def test_memory_that_runs_out_in_any_way_costs_one_image(tmp_path: Path, error: Exception) -> None:
    class Full(FakeExtractor):
        def extract(self, batch: list[Prepared]) -> list[Any]:
            if any(image.key == "large" for image in batch):
                raise error
            return super().extract(batch)

    report, _ = run(tmp_path, ["a", "large", "b"], Full(), batch_size=3)
    [row] = open_store(tmp_path / "s").errors()
    assert (row.key, row.reason, report.records) == ("large", "out_of_memory", 2)


def test_an_image_is_tried_again_while_nothing_else_runs(tmp_path: Path) -> None:
    """What runs beside it may hold all the memory."""
    together, lock = threading.Barrier(2), threading.Lock()
    running: set[str] = set()

    class Crowded(FakeExtractor):
        def extract(self, batch: list[Prepared]) -> list[Any]:
            key = batch[0].key
            with lock:
                running.add(key)
                first = key not in tried
                tried.add(key)
            if first:
                together.wait(10)
            time.sleep(0.02)
            with lock:
                crowded = len(running) > 1
            if first:
                together.wait(10)
            with lock:
                running.discard(key)
            if crowded and key == "a":
                raise torch.OutOfMemoryError("no room")
            return super().extract(batch)

    tried: set[str] = set()
    worker = worker_of(Crowded(), StoreWriter(tmp_path / "s", SPEC))
    assert worker._networks >= 2, "images run side by side"
    report = worker.run(Unit(tuple(ImageRef(key, key) for key in "ab")))
    worker.close()
    assert (report.records, report.reasons.total()) == (2, 0)


def test_any_other_mistake_still_ends_the_job(tmp_path: Path) -> None:
    class Wrong(FakeExtractor):
        def extract(self, batch: list[Prepared]) -> list[Any]:
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        run(tmp_path, ["a"], Wrong())


def test_what_did_not_fit_is_gone_while_its_halves_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a thread of its own runs batches, as on a GPU, its error held their activations: images were lost."""
    extractor = make_extractor(GridConfig(model="r50", weights="random:0", width_divisor=32, shorter=40, longer=80))
    extractor.batched = True  # type: ignore[attr-defined]
    room, held = 5, weakref.WeakSet[torch.Tensor]()
    original = TrunkExtractor.res4

    def crowded(self: TrunkExtractor, stacked: Stacked) -> Any:
        activations = []  # as in the frames of a network
        for _ in stacked.sizes:
            if len(held) >= room:
                raise torch.OutOfMemoryError("no room")
            activations.append(torch.empty(1))
            held.add(activations[-1])
        return original(self, stacked)

    monkeypatch.setattr(TrunkExtractor, "res4", crowded)
    with ThreadPoolExecutor(1) as thread:
        monkeypatch.setattr("extractors.trunk.started", lambda work, device: thread.submit(work))
        report, _ = run(tmp_path, list("abcdefgh"), extractor, batch_size=8)  # type: ignore[arg-type]
    assert (report.records, report.reasons.total()) == (8, 0)


def test_reading_runs_ahead_by_a_window_only(tmp_path: Path) -> None:
    source, seen = FakeSource(), []

    class Watching(FakeExtractor):
        def extract(self, batch: list[Prepared]) -> list[Any]:
            seen.append(source.reading)
            return super().extract(batch)

    run(tmp_path, [f"k{index}" for index in range(30)], Watching(), source=source)
    ahead = 3 + torch.get_num_threads() + 1  # 2 threads and a batch of 1; batches in and before the network
    assert all(read <= index + 1 + ahead for index, read in enumerate(seen))


def test_features_are_the_same_to_the_last_bit_on_one_core_and_on_two(tmp_path: Path) -> None:
    photos = PNG.parent
    extractor = load_extractor("regions", weights="random:0", width_divisor=4, shorter=160, longer=240, device="cpu")
    cores = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            worker = worker_of(extractor, StoreWriter(tmp_path / str(count), extractor.spec))
            worker.run(Unit(tuple(ImageRef(path.stem, path.stem) for path in sorted(photos.glob("*.jpg")))))
            worker.close()
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(cores)
    assert differences(tmp_path / "1", tmp_path / "2") == []


def test_a_store_that_cannot_be_written_stops_the_unit_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = StoreWriter(tmp_path / "s", SPEC)
    worker = worker_of(FakeExtractor(), store)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("storage.atomic.os.fsync", full)
    with pytest.raises(StoreError, match="No space left on device"):
        worker.run(Unit((ImageRef("a", "a"),)))
    monkeypatch.undo()
    assert len(open_store(tmp_path / "s")) == 0
    assert list((tmp_path / "s" / "shards").iterdir()) == []


class Hanging(FakeSource):
    """Does not answer for keys that start with "slow"."""

    def read(self, uri: str) -> bytes:
        if uri.startswith("slow"):
            threading.Event().wait(5)
        return super().read(uri)


def test_an_image_whose_reading_hangs_is_an_error_row(tmp_path: Path) -> None:
    worker = worker_of(FakeExtractor(), StoreWriter(tmp_path / "s", SPEC), Hanging(), read_timeout=0.5)
    report = worker.run(Unit(tuple(ImageRef(key, key) for key in ("a", "slow", "b"))))
    worker.close()
    assert sorted(open_store(tmp_path / "s")) == ["a", "b"]
    assert report.reasons == {"timeout": 1}


def test_an_image_of_too_many_pixels_is_refused_by_its_header(tmp_path: Path) -> None:
    worker = worker_of(FakeExtractor(), StoreWriter(tmp_path / "s", SPEC), max_pixels=1000)
    assert worker.run(Unit((ImageRef("a", "a"),))).reasons == {"too_large": 1}
    worker.close()


class PixelsLike(FakeExtractor):
    """Another view, which cannot take in keys that start with "odd"."""

    spec = Spec("patches", FeatureLayout(4, without=("whole_image",)), model={"dtype": "float32"})

    def prepare(self, key: str, image: np.ndarray) -> Prepared:
        if key.startswith("odd"):
            raise ImageError("too_thin", "one pixel", "prepare")
        return super().prepare(key, image)

    def extract(self, batch: list[Prepared]) -> list[Any]:
        return [PatchRecord(each.key, each.image_size, np.ones((1, 1, 4), np.float16)) for each in batch]


def test_views_share_a_decode_and_fail_apart(tmp_path: Path) -> None:
    views = Views({"grid": FakeExtractor(), "patches": PixelsLike()})  # type: ignore[dict-item]
    stores = {view: StoreWriter(tmp_path / view, spec) for view, spec in views.specs.items()}
    source, told = FakeSource(), []
    worker = Worker(source, views, stores, EngineConfig(""))
    keys = ["a", "odd", "huge", "gone", "b"]
    report = worker.run(Unit(tuple(ImageRef(key, key) for key in keys)), lambda *counts: told.append(counts))
    worker.close()
    assert source.reading == len(keys)
    grid, patches = open_store(tmp_path / "grid"), open_store(tmp_path / "patches")
    assert (sorted(grid), sorted(patches)) == (["a", "b", "odd"], ["a", "b", "huge"])
    assert {row.key: row.reason for row in grid.errors()} == {"huge": "not_representable", "gone": "missing"}
    assert {row.key: row.reason for row in patches.errors()} == {"odd": "too_thin", "gone": "missing"}
    assert (report.images, report.records) == (5, 6)
    assert sum(failed for _, failed in told) == sum(report.reasons.values()) == 3


def test_images_that_failed_are_run_again_when_asked(tmp_path: Path) -> None:
    run(tmp_path, ["a", "gone1"], FakeExtractor())
    worker = worker_of(FakeExtractor(), StoreWriter(tmp_path / "s", SPEC), Back())
    worker.run(Unit((ImageRef("gone1", "gone1"),)))
    assert sorted(open_store(tmp_path / "s")) == ["a"]
    worker.run(Unit((ImageRef("gone1", "gone1"),), again=True))
    worker.close()
    assert sorted(open_store(tmp_path / "s")) == ["a", "gone1"]
    assert open_store(tmp_path / "s").errors() == []


class Back(FakeSource):
    """What was missing is there again."""

    def read(self, uri: str) -> bytes:
        return super().read(uri.removeprefix("gone"))
