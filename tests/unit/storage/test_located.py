"""Where images are, once their shards are open: several threads, formats and dtypes at once, and stores that grow."""

from __future__ import annotations

import pickle
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from storage import FeatureStore, PackedBatch, Spec, StoreError, StoreWriter, open_store
from storage import store as store_module
from storage.arrow import IMAGES_PER_BATCH
from storage.batches import SEGMENT, Located, Reading, advise
from storage.codecs import NUMPY, cast
from storage.formats import open_shard_file
from storage.places import open_place
from storage.records import pack
from tests.unit.storage.samples import (
    GRID,
    REGIONS,
    assert_same,
    make_store,
    record_of,
    region_record,
    with_layout,
    write_unit,
)

pytestmark = pytest.mark.timeout(60)

KEYS = [f"k{number:02}" for number in range(24)]
UNITS = [KEYS[:4], KEYS[4:12], KEYS[12:13], KEYS[13:]]
FORMATS = ["arrow", "hdf5", "arrow-zstd"]


def mixed_store(path: Path, spec: Spec = REGIONS) -> Path:
    """Four units, in turn as Arrow, HDF5 and archive."""
    for number, keys in enumerate(UNITS):
        make_store(path, [keys], spec, format=FORMATS[number % 3])
    return path


def assert_batch_is(found: PackedBatch, keys: list[str], store: FeatureStore) -> None:
    """What packing the records one by one gives."""
    wanted = pack([store[key] for key in keys])
    assert found.keys == keys
    for name in ("values", "offsets", "image_sizes", "boxes", "grid_shapes"):
        left, right = getattr(found, name), getattr(wanted, name)
        if right is None:
            assert left is None, name
        else:
            assert (left.dtype, left.shape, left.tobytes()) == (right.dtype, right.shape, right.tobytes()), name


# Several threads


@pytest.mark.parametrize("format", [*FORMATS, "mixed"])
def test_threads_that_start_on_a_fresh_store_all_find_the_right_records(tmp_path: Path, format: str) -> None:
    path = tmp_path / "store"
    path = mixed_store(path) if format == "mixed" else make_store(path, UNITS, format=format)
    wanted = {key: region_record(key) for key in KEYS}

    def read(store: FeatureStore, start: threading.Barrier, seed: int) -> None:
        asked = np.random.default_rng(seed).permutation(24)
        start.wait()
        batch = store.batch(asked)
        assert batch.keys == [store.catalog.key(position) for position in asked.tolist()]
        assert batch.values.tobytes() == np.concatenate([wanted[key].features for key in batch.keys]).tobytes()

    with ThreadPoolExecutor(4) as pool:
        for turn in range(15):
            store, start = open_store(path), threading.Barrier(4)
            for each in [pool.submit(read, store, start, 4 * turn + number) for number in range(4)]:
                each.result()


def test_threads_that_find_no_table_yet_all_take_the_same_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Slow enough that both threads find none, and that one is half through its shards when the other has made its own.
    waits = iter([0.02, 0.06])

    class SlowlyMade(Located):
        def __init__(self, positions: int) -> None:
            super().__init__(positions)
            if positions:
                time.sleep(next(waits, 0))

    opened = store_module.open_shard

    def slowly(place: Any, facts: Any, spec: Spec) -> Any:
        time.sleep(0.03)
        return opened(place, facts, spec)

    store = open_store(make_store(tmp_path / "store", UNITS))
    monkeypatch.setattr(store_module, "Located", SlowlyMade)
    monkeypatch.setattr(store_module, "open_shard", slowly)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(store.batch, [np.arange(24), np.arange(24)]))
    for each in found:
        assert_batch_is(each, list(store), open_store(store.path))


def test_a_shard_is_opened_once_however_many_threads_want_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, open_shard = Counter[str](), store_module.open_shard

    def counted(place: Any, facts: Any, spec: Spec) -> Any:
        opened[facts.file] += 1
        time.sleep(0.01)
        return open_shard(place, facts, spec)

    monkeypatch.setattr(store_module, "open_shard", counted)
    store = open_store(mixed_store(tmp_path / "store"))
    store.rows(np.empty(0, np.int64))
    with ThreadPoolExecutor(6) as pool:
        sums = list(pool.map(store.rows, [np.arange(24)] * 6))
    assert set(sums) == {sum(len(region_record(key).boxes) for key in KEYS)}
    assert len(opened) == 4 and set(opened.values()) == {1}


@pytest.mark.parametrize("format", FORMATS)
def test_a_position_is_known_only_when_all_is_known_of_it(tmp_path: Path, format: str) -> None:
    store = open_store(make_store(tmp_path / "store", [KEYS], format=format))
    facts = store.units[0].shard
    assert facts is not None
    located, seen = Located(24), list[int]()
    rows = np.arange(24)[::-1].copy()
    located.table = np.zeros((24, 8), np.int32).view(_Watching)
    located.table.seen = seen  # type: ignore[attr-defined]
    located.add(0, rows, open_shard_file(store.path / facts.file, REGIONS, format))
    assert seen[-1] == SEGMENT and seen.count(SEGMENT) == 1


class _Watching(np.ndarray):
    """A table that notes which column is written when."""

    seen: list[int]

    def __array_finalize__(self, source: Any) -> None:
        self.seen = getattr(source, "seen", [])

    def __setitem__(self, at: Any, values: Any) -> None:
        column = at[1]
        self.seen += range(8)[column] if isinstance(column, slice) else [column]
        super().__setitem__(at, values)


@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_threads_that_meet_a_bad_shard_all_hear_of_it_and_the_others_stay_readable(tmp_path: Path, damage: str) -> None:
    store = open_store(mixed_store(tmp_path / "store"))
    [bad] = [entry for entry in store.entries if "k04" in entry.keys]
    assert bad.shard is not None
    path = store.path / bad.shard.file
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1])
    with ThreadPoolExecutor(4) as pool:
        for each in [pool.submit(store.batch, np.arange(24)) for _ in range(4)]:
            with pytest.raises(StoreError, match="triptych verify"):
                each.result()
    for key in set(KEYS) - set(bad.keys):
        assert_same(store[key], region_record(key))


# Several formats, segments and dtypes


def test_a_batch_may_span_formats_in_any_order(tmp_path: Path) -> None:
    spec = with_layout(REGIONS, class_probs=3)
    store = open_store(mixed_store(tmp_path / "store", spec))
    rng = np.random.default_rng(1)
    for size in (1, 2, 5, 24, 60):
        keys = [KEYS[at] for at in rng.integers(0, 24, size)]
        fields = ["class_scores", "class_probs", "whole_image"]
        found = store.batch(keys, fields)
        assert_batch_is(found, keys, store)
        assert found.others is not None and list(found.others) == fields
        for name in fields:
            join = np.stack if name == "whole_image" else np.concatenate
            wanted = join([getattr(region_record(key, spec=spec), name) for key in keys])
            np.testing.assert_array_equal(found.others[name], wanted)
        assert store.rows(store.positions(keys)) == len(found.values)


def test_a_shard_of_several_segments_is_read_across_their_borders(tmp_path: Path) -> None:
    keys = [f"g{number:03}" for number in range(2 * IMAGES_PER_BATCH["grid"] + 5)]
    store = open_store(make_store(tmp_path / "store", [keys], GRID))
    asked = ["g031", "g032", "g000", "g036", "g015", "g016", "g015"]
    assert_batch_is(store.batch(asked), asked, store)
    assert len(store._located.segments) == 3
    for key in keys:
        assert_same(store[key], record_of(key, GRID))


def test_only_some_rows_of_a_shard_may_be_records_of_the_store(tmp_path: Path) -> None:
    # Where two writers without a lock between them both had an image, the second's row of it belongs to nobody.
    for format in FORMATS:
        store = open_store(make_store(tmp_path / format, [KEYS], format=format))
        facts = store.units[0].shard
        assert facts is not None
        shard = open_shard_file(store.path / facts.file, REGIONS, format)
        located = Located(6)
        assert located.unknown(np.array([0, 2, 2, 5])) == [0, 2, 2, 5]
        located.add(1, np.array([0, 3, 4, 23]), shard)
        assert located.unknown(np.arange(6)) == [0, 5]
        place = open_place(store.path)
        for position, row in zip(range(1, 5), [0, 3, 4, 23], strict=True):
            reading = Reading(located, np.array([position]), place, REGIONS, "float16")
            assert_same(reading.record(), region_record(KEYS[row]))
        batch = Reading(located, np.array([4, 1, 3]), place, REGIONS, "float16").batch((), None)
        assert_batch_is(batch, [KEYS[23], KEYS[0], KEYS[4]], store)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("stored", ["float16", "float32", "bfloat16", "uint8"])
@pytest.mark.parametrize("asked", ["float16", "float32", "bfloat16"])
def test_a_buffer_is_filled_as_far_as_the_batch_goes_in_every_dtype(
    tmp_path: Path, stored: str, asked: str, format: str
) -> None:
    path = make_store(tmp_path / "store", UNITS, with_layout(REGIONS, dtype=stored), format=format)
    store, exact = open_store(path, asked), open_store(path, "float32" if stored == "uint8" else None)
    keys = ["k20", "k03", "k20", "k12"]
    wanted = cast(np.concatenate([exact[key].features for key in keys]), asked)
    rows = len(wanted)
    out = np.full((rows + 2, 8), 7, NUMPY[asked])
    found = store.batch(keys, ["whole_image"], out)
    assert np.shares_memory(found.values, out) and found.values.dtype.name == asked
    assert found.values.tobytes() == wanted.tobytes()
    assert (out[rows:] == 7).all()
    assert found.others is not None and not np.shares_memory(found.others["whole_image"], out)
    assert (
        found.others["whole_image"].tobytes() == np.stack([vars(store[key])["whole_image"] for key in keys]).tobytes()
    )
    exactly = np.empty((rows, 8), NUMPY[asked])
    assert store.batch(keys, out=exactly).values.tobytes() == wanted.tobytes()
    others = {"float16": np.float32, "float32": np.float16, "bfloat16": np.uint16}
    for refused in (out[: rows - 1], out[:, :7], out.reshape(-1), out.astype(others[asked])):
        with pytest.raises(ValueError, match=f"but the batch needs {asked}"):
            store.batch(keys, out=refused)


@pytest.mark.parametrize("format", FORMATS)
def test_records_without_boxes_make_batches_without_rows(tmp_path: Path, format: str) -> None:
    writer = StoreWriter(tmp_path / "store", REGIONS, format=format)
    with writer.unit(["none", "some"]) as unit:
        unit.append(region_record("none", 0))
        unit.append(region_record("some", 3))
        unit.commit()
    store = open_store(writer.path)
    batch = store.batch(["none", "none"], ["class_ids"], np.empty((0, 8), np.float16))
    assert batch.values.shape == (0, 8) and batch.offsets.tolist() == [0, 0, 0]
    assert batch.others is not None and batch.others["class_ids"].shape == (0,)
    assert_batch_is(store.batch(["none", "some", "none"]), ["none", "some", "none"], store)
    store.advise([0, 1])
    assert store.rows(np.empty(0, np.int64)) == 0


@pytest.mark.parametrize("format", ["arrow", "arrow-zstd"])
def test_shards_on_an_object_store_give_the_same_batches(tmp_path: Path, format: str) -> None:
    spec = with_layout(REGIONS, dtype="uint8")
    writer = StoreWriter(f"memory://{tmp_path.name}-{time.monotonic_ns()}", spec, format=format)
    for keys in UNITS:
        write_unit(writer, keys)
    store = open_store(writer.place.name)
    local = open_store(make_store(tmp_path / "store", UNITS, spec))
    asked = ["k20", "k03", "k20", "k12", "k00"]
    out = np.empty((60, 8), np.float16)
    found = store.batch(asked, ["whole_image"], out)
    assert_batch_is(found, asked, local)
    assert np.shares_memory(found.values, out)
    for key in KEYS:
        assert_same(store[key], local[key])
    assert store._reading(np.arange(24)).ranges() == []  # nothing of it lies on a disk here


# Stores that grow, and that travel


def test_refreshing_finds_new_commits_beside_what_is_open(tmp_path: Path) -> None:
    store = open_store(make_store(tmp_path / "store", UNITS[:2]))
    before = store.batch(KEYS[:12])
    held = store._reading(store.positions(["k05"]))
    for number, keys in enumerate(UNITS[2:]):
        write_unit(StoreWriter(store.path, REGIONS, format=FORMATS[1 + number]), keys)
    with pytest.raises(KeyError, match="'k20' is not among the 12 keys"):
        store.batch(["k20"])
    with pytest.raises(IndexError):
        store.batch(np.array([12]))
    store.refresh()
    assert len(store) == 24
    asked = ["k20", "k03", "k12", "k05"]
    assert_batch_is(store.batch(asked), asked, open_store(store.path))
    assert_same(held.record(), region_record("k05"))  # what was opened before stays readable
    assert store.batch(KEYS[:12]).values.tobytes() == before.values.tobytes()


def test_refreshing_while_threads_read_disturbs_none_of_them(tmp_path: Path) -> None:
    store = open_store(mixed_store(tmp_path / "store"))
    wanted = [region_record(key).features.tobytes() for key in store]
    done = threading.Event()

    def reading(seed: int) -> int:
        rng, turns = np.random.default_rng(seed), 0
        while not done.is_set():
            asked = rng.integers(0, 24, 5)
            assert store.batch(asked).values.tobytes() == b"".join(wanted[at] for at in asked.tolist())
            turns += 1
        return turns

    with ThreadPoolExecutor(3) as pool:
        readers = [pool.submit(reading, seed) for seed in range(3)]
        try:
            for number in range(6):
                write_unit(StoreWriter(store.path, REGIONS), [f"new{number}"])
                store.refresh()
                time.sleep(0.01)
        finally:
            done.set()
        assert all(each.result() for each in readers)
    assert len(store) == 30


def test_a_store_can_be_sent_elsewhere_while_threads_open_its_shards(tmp_path: Path) -> None:
    store = open_store(mixed_store(tmp_path / "store"))
    closed = len(pickle.dumps(store))
    with ThreadPoolExecutor(3) as pool:
        read = [pool.submit(store.batch, np.array([position])) for position in range(24)]
        sent = [pickle.dumps(store) for _ in range(10)]
        for each in read:
            each.result()
    assert {len(each) for each in [*sent, pickle.dumps(store)]} == {closed}
    for copy in sent:
        back = pickle.loads(copy)
        assert back._located.segments == [] and back._located.packed == []
        assert_batch_is(back.batch(KEYS), KEYS, store)


# Asking the disk


@pytest.mark.parametrize("stored", ["float16", "bfloat16", "uint8", "float32"])
@pytest.mark.parametrize("format", ["arrow", "hdf5"])
def test_the_bytes_to_bring_from_the_disk_are_those_of_the_features(tmp_path: Path, stored: str, format: str) -> None:
    spec = with_layout(GRID, dtype=stored)
    keys = [f"g{number:03}" for number in range(20)]  # two segments of Arrow
    store = open_store(make_store(tmp_path / "store", [keys[:18], keys[18:]], spec, format=format), "float32")
    positions = store.positions(["g017", "g000", "g019"])
    for position, (path, place, size) in zip(positions, store._reading(positions).ranges(), strict=True):
        cells = int(np.prod(store.at(position).features.shape[:2]))
        assert size == cells * 8 * NUMPY[stored].itemsize
        data = np.frombuffer(path.read_bytes()[place : place + size], NUMPY[stored])
        if stored != "uint8":
            assert data.astype(np.float32).tobytes() == store.at(position).features.tobytes()


def test_a_file_that_is_gone_is_no_reason_to_stop(tmp_path: Path) -> None:
    store = open_store(make_store(tmp_path / "store", [KEYS]))
    store.batch(KEYS)
    [shard] = (store.path / "shards").iterdir()
    shard.unlink()
    store.advise(np.arange(24))
    advise([(tmp_path / "absent", 0, 100)])
    assert_batch_is(store.batch(KEYS), KEYS, store)  # mapped before
