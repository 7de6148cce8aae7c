"""Epochs over a store: record by record, in batches out of buffers, resumed, read ahead, and where shards are bad."""

from __future__ import annotations

import json
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage import FeatureStore, PackedBatch, StoreError, StoreWriter, open_store, reading
from storage import order as order_module
from storage.batches import ADVICE_BYTES, advise
from storage.compact import compact, fold
from storage.order import Order, batches
from storage.reading import BatchLoader, record_bytes
from storage.spec import OPTIONAL
from tests.helpers import until
from tests.unit.storage.samples import (
    GRID,
    PATCHES,
    PIXELS,
    REGIONS,
    assert_same,
    make_store,
    record_of,
    region_record,
    with_layout,
    write_unit,
)

pytestmark = pytest.mark.timeout(60)  # a loader that waits for nothing must not hold everybody up

KEYS = [f"k{number:02}" for number in range(47)]
UNITS = [KEYS[:20], KEYS[20:35], KEYS[35:]]
KINDS = ["arrow", "hdf5", "arrow-zstd", "mixed", "grid", "uint8", "bfloat16", "remote", "remote archive"]
KINDS += ["patches", "pixels", "remote pixels"]
SPECS = {"grid": GRID, "uint8": with_layout(REGIONS, dtype="uint8"), "bfloat16": with_layout(REGIONS, dtype="bfloat16")}
SPECS |= {"patches": PATCHES, "pixels": PIXELS, "remote pixels": PIXELS}


def store_of(kind: str, folder: Path) -> FeatureStore:
    """47 records in three units."""
    spec = SPECS.get(kind, REGIONS)
    if kind == "mixed":
        for keys, format in zip(UNITS, ["arrow", "arrow-zstd", "hdf5"], strict=True):
            make_store(folder / "store", [keys], spec, format=format)
        return open_store(folder / "store")
    if kind.startswith("remote"):
        address = f"memory://{folder.name}-{time.monotonic_ns()}"
        writer = StoreWriter(address, spec, format="arrow-zstd" if "archive" in kind else "arrow")
        for keys in UNITS:
            write_unit(writer, keys)
        return open_store(address)
    format = kind if kind in ("hdf5", "arrow-zstd") else "arrow"
    return open_store(make_store(folder / "store", UNITS, spec, format=format))


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> FeatureStore:
    return store_of(request.param, tmp_path)


@pytest.fixture
def plain(tmp_path: Path) -> FeatureStore:
    return store_of("arrow", tmp_path)


@pytest.fixture(autouse=True)
def _no_thread_stays() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    left = [each for each in threading.enumerate() if each not in before and not each.name.startswith("fsspecIO")]
    assert left == []


@pytest.fixture(autouse=True)
def _small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """An epoch of 47 records has several windows then, each of several blocks."""
    monkeypatch.setattr(order_module, "BLOCK_BYTES", 1000)
    monkeypatch.setattr(order_module, "WINDOW_BYTES", 3000)
    monkeypatch.setattr(reading, "ADVISED", 12)


def through_json(state: dict[str, Any]) -> dict[str, Any]:
    back: dict[str, Any] = json.loads(json.dumps(state))
    return back


def content(batch: PackedBatch) -> tuple[Any, ...]:
    """A copy of everything in a batch, to compare and to keep."""
    named = {**vars(batch), **(batch.others or {})}
    arrays = {name: value for name, value in named.items() if isinstance(value, np.ndarray)}
    return batch.keys, {name: (value.dtype, value.shape, value.tobytes()) for name, value in arrays.items()}


def expected(store: FeatureStore, order: Order, size: int, start: int = 0, drop_last: bool = False) -> list[Any]:
    """What a loader must give, read by a store of its own."""
    other = open_store(store.place.name, store.dtype)
    return [content(other.batch(positions)) for positions in batches(order, size, start, drop_last)]


# Records one by one


@pytest.mark.parametrize("shuffle", [None, 3])
def test_records_of_an_epoch_are_those_of_the_store_each_once(store: FeatureStore, shuffle: int | None) -> None:
    other = open_store(store.place.name)
    found = list(store.iter(shuffle))
    assert Counter(record.key for record in found) == Counter(KEYS)
    assert ([record.key for record in found] == list(store)) == (shuffle is None)
    for record in found:
        assert_same(record, other[record.key])
    assert [record.key for record in store.iter(shuffle)] == [record.key for record in found]
    if shuffle is not None:
        assert [record.key for record in store.iter(shuffle, epoch=1)] != [record.key for record in found]


def test_shares_of_an_epoch_do_not_overlap(plain: FeatureStore) -> None:
    shares = [list(plain.iter(1, epoch=2, rank=rank, world=5)) for rank in range(5)]
    assert Counter(record.key for share in shares for record in share) == Counter(KEYS)
    assert {len(share) for share in shares} == {9, 10}


@pytest.mark.parametrize("shuffle", [None, 8])
def test_records_go_on_from_every_state_with_exactly_the_rest(plain: FeatureStore, shuffle: int | None) -> None:
    whole = plain.iter(shuffle, epoch=4, rank=1, world=2)
    states = [whole.state()]
    keys = []
    for record in whole:
        keys.append(record.key)
        states.append(whole.state())
        assert len(whole) == 24 - len(keys)
    assert len(keys) == 24
    for done, state in enumerate(states):
        rest = open_store(plain.path).iter(state=through_json(state))
        assert len(rest) == 24 - done
        assert [record.key for record in rest] == keys[done:]
        assert rest.state() == states[-1]


def test_settings_beside_a_state_are_the_states(plain: FeatureStore) -> None:
    begun = plain.iter(8, epoch=4, rank=1, world=2)
    next(begun)
    wanted = begun.state()
    assert plain.iter(1, 0, 0, 3, state=wanted).state() == wanted


def test_numpy_numbers_as_settings_still_make_a_plain_state(plain: FeatureStore) -> None:
    begun = plain.iter(np.int64(3), np.int32(1))  # type: ignore[arg-type]
    assert through_json(begun.state()) == plain.iter(3, 1).state()


def test_a_store_that_grew_refuses_older_states_in_one_line(plain: FeatureStore) -> None:
    begun, loader = plain.iter(1), BatchLoader(plain, 4, 1)
    next(begun)
    states = [begun.state(), loader.state()]
    write_unit(StoreWriter(plain.path, REGIONS), ["later"])
    grown = open_store(plain.path)
    for act in (lambda state: grown.iter(state=state), BatchLoader(grown, 4).load_state):
        for state in states:
            with pytest.raises(StoreError, match=r"has 48 records, the state .* of 47 .*; start .* anew") as caught:
                act(state)
            assert "\n" not in str(caught.value)


def test_a_store_whose_records_have_other_positions_refuses_states_too(tmp_path: Path) -> None:
    # Equally many records in an equally large first shard: only the units tell that positions mean other records now.
    store = open_store(make_store(tmp_path / "store", [["a"], ["b"], ["c"]], GRID, format="arrow"))
    state = store.iter(1).state()
    compact(store.path)
    moved = open_store(store.path)
    assert len(moved) == len(store)
    with pytest.raises(StoreError, match="or of other shards; start the epoch anew"):
        moved.iter(state=state)


def test_a_state_is_good_for_positions_as_they_were_and_not_for_the_same_units_in_another_order(tmp_path: Path) -> None:
    path = tmp_path / "store"
    make_store(path, [["a", "b"]])
    early = open_store(path)
    for key in "cdefgh":
        write_unit(StoreWriter(path, REGIONS), [key])
        early.refresh()  # new units follow the known ones; a store opened later has them in the order of their names
    late = open_store(path)
    assert list(early) != list(late) and set(early) == set(late)
    with pytest.raises(StoreError, match="start the epoch anew"):
        late.iter(state=early.iter().state())
    assert [record.key for record in late.iter(state=late.iter().state())] == list(late)


def test_folding_the_manifest_leaves_states_as_good_as_they_were(plain: FeatureStore) -> None:
    begun = plain.iter(1)
    keys = [next(begun).key for _ in range(20)]
    state = through_json(begun.state())
    assert fold(plain.path) == 3
    rest = [record.key for record in open_store(plain.path).iter(state=state)]
    assert Counter(keys + rest) == Counter(KEYS)


@pytest.mark.parametrize("shuffle", [None, 5])
def test_an_iteration_goes_on_while_others_commit_fold_and_compact(plain: FeatureStore, shuffle: int | None) -> None:
    found = []
    for number, record in enumerate(plain.iter(shuffle)):
        found.append(record.key)
        assert_same(record, record_of(record.key, REGIONS))
        if number in (2, 9):
            write_unit(StoreWriter(plain.path, REGIONS), [f"new{number}"])
        if number == 12:
            fold(plain.path)
        if number == 14:
            compact(plain.path)
    assert Counter(found) == Counter(KEYS)


def test_a_missing_shard_ends_the_records_where_it_begins(plain: FeatureStore) -> None:
    lost = plain.units[1].shard
    assert lost is not None
    before = plain.entries[0].keys
    path = plain.path / lost.file
    path.rename(path.with_suffix(".away"))
    found, coming = [], plain.iter()
    with pytest.raises(StoreError, match="is missing"):
        for record in coming:
            found += [record.key]
    assert found == before  # asking the disk for records ahead of time does not tell of it too early
    assert coming.state()["done"] == len(before)
    with pytest.raises(StoreError, match="is missing"):
        next(coming)
    path.with_suffix(".away").rename(path)
    assert found + [record.key for record in coming] == list(plain)  # nothing was skipped


def test_an_empty_store_gives_no_records_and_no_batches(tmp_path: Path) -> None:
    store = open_store(StoreWriter(tmp_path / "store", REGIONS).path)
    assert record_bytes(store) == 1
    for shuffle in (None, 1):
        assert list(store.iter(shuffle)) == []
        loader = BatchLoader(store, 4, shuffle)
        assert len(loader) == 0 and list(loader) == [] and list(loader) == []
        assert loader.state()["epoch"] == 2


# Batches


@pytest.mark.parametrize("shuffle", [None, 3])
def test_batches_are_those_of_the_store_in_every_epoch(store: FeatureStore, shuffle: int | None) -> None:
    loader = BatchLoader(store, 5, shuffle)
    epochs = []
    for epoch in range(3):
        found = [content(batch) for batch in loader]
        assert found == expected(store, replace(loader.order, epoch=epoch), 5)
        assert len(found) == len(loader) == 10
        assert Counter(key for keys, _ in found for key in keys) == Counter(KEYS)
        epochs.append([keys for keys, _ in found])
    assert (epochs[0] == epochs[1]) == (shuffle is None)


@pytest.mark.parametrize("format", ["arrow", "hdf5", "arrow-zstd"])
def test_batches_carry_the_fields_asked_for(tmp_path: Path, format: str) -> None:
    spec = with_layout(REGIONS, class_probs=3)
    store = open_store(make_store(tmp_path / "store", UNITS, spec, format=format))
    fields = ["class_ids", "class_probs", "whole_image"]
    for batch in BatchLoader(store, 6, 1, fields=fields):
        assert batch.others is not None and list(batch.others) == fields
        assert content(batch) == content(store.batch(batch.keys, fields))


def test_a_field_that_the_store_lacks_is_refused_in_the_loop(plain: FeatureStore) -> None:
    with pytest.raises(StoreError, match="does not have class_probs"):
        list(BatchLoader(plain, 4, fields=["class_probs"]))


@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["arrow", "arrow-zstd", "uint8", "bfloat16"])
def test_batches_come_in_the_dtype_asked_for(tmp_path: Path, kind: str, dtype: str) -> None:
    store = open_store(store_of(kind, tmp_path).path, dtype)
    loader = BatchLoader(store, 7, 2)
    wanted = expected(store, loader.order, 7)
    for batch, (keys, arrays) in zip(loader, wanted, strict=True):
        assert batch.values.dtype.name == dtype
        assert content(batch) == (keys, arrays)


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("size", [1, 6, 23, 24, 100])
def test_ranks_together_take_each_record_once_but_for_batches_left_out(
    plain: FeatureStore, size: int, drop_last: bool
) -> None:
    seen: list[str] = []
    for rank in range(2):
        loader = BatchLoader(plain, size, 1, rank, 2, drop_last=drop_last)
        found = [list(batch.keys) for batch in loader]
        share = 23 + rank
        assert len(found) == len(loader) == (share // size if drop_last else -(-share // size))
        assert [len(keys) for keys in found[:-1]] == [size] * (len(found) - 1)
        seen += [key for keys in found for key in keys]
    assert len(set(seen)) == len(seen)
    assert len(seen) == (23 // size + 24 // size) * size if drop_last else set(seen) == set(KEYS)


def test_records_without_a_box_make_batches_without_a_row(tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path / "store", REGIONS)
    with writer.unit(KEYS) as unit:
        for number, key in enumerate(KEYS):
            unit.append(region_record(key, 0 if number < 40 else 5))
        unit.commit()
    store = open_store(writer.path)
    loader = BatchLoader(store, 1)
    assert [content(batch) for batch in loader] == expected(store, loader.order, 1)


@pytest.mark.parametrize("threads", [1, 2, 7])
@pytest.mark.parametrize("kind", ["arrow", "arrow-zstd", "uint8", "remote"])
def test_a_batch_stays_as_it_is_until_two_more_were_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, threads: int
) -> None:
    monkeypatch.setattr(reading, "THREADS", threads)
    monkeypatch.setattr(reading, "REMOTE_THREADS", threads)
    store = store_of(kind, tmp_path)
    loader = BatchLoader(store, 2, 1)
    held: deque[tuple[PackedBatch, Any]] = deque(maxlen=3)
    for epoch in range(3):  # a batch is held over the end of an epoch, and over a loop that was left, as well
        for number, batch in enumerate(loader):
            held.append((batch, content(batch)))
            time.sleep(0.002)  # the threads fill what they may
            assert all(content(each) == copied for each, copied in held)
            if epoch == 1 and number == 9:
                break
    assert len({batch.values.ctypes.data for batch, _ in held}) == 3


def test_buffers_are_used_again_and_not_made_for_each_batch(
    plain: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    buffer = BatchLoader._buffer

    def counted(self: BatchLoader, rows: int) -> np.ndarray:
        made.append(rows)
        return buffer(self, rows)

    monkeypatch.setattr(BatchLoader, "_buffer", counted)
    loader = BatchLoader(plain, 4, 1)
    for _ in range(2):
        list(loader)
    before = len(made)
    for _ in range(10):
        assert len(list(loader)) == 12
    assert len(made) - before < 20  # now and then a larger one, out of 120 batches


def test_a_loop_that_was_left_starts_the_same_epoch_over(plain: FeatureStore) -> None:
    loader = BatchLoader(plain, 4, 1)
    wanted = expected(plain, loader.order, 4)
    for taken in (1, 5, 12):
        found = []
        for batch in loader:
            found.append(content(batch))
            if len(found) == taken:
                break
        assert found == wanted[:taken]
        assert loader.state()["done"] == min(4 * taken, 47)
    assert [content(batch) for batch in loader] == wanted


def test_an_iteration_begun_before_another_ends_has_buffers_of_its_own(plain: FeatureStore) -> None:
    loader = BatchLoader(plain, 2, 1)
    wanted = expected(plain, loader.order, 2)
    first = iter(loader)
    found = [(batch, content(batch)) for batch in (next(first), next(first))]
    second = [content(batch) for batch in loader]
    assert second == wanted
    assert [content(batch) for batch, _ in found] == [copied for _, copied in found] == wanted[:2]
    assert [content(batch) for batch in first] == wanted[2:]


def test_setting_an_epoch_starts_at_its_beginning(plain: FeatureStore) -> None:
    loader = BatchLoader(plain, 4, 1)
    next(iter(loader))
    loader.set_epoch(7)
    assert loader.state() == {**loader.state(), "epoch": 7, "done": 0}
    assert [content(batch) for batch in loader] == expected(plain, replace(loader.order, epoch=7), 4)
    assert loader.state() == {**loader.state(), "epoch": 8, "done": 0}
    loader.set_epoch(7)
    assert [content(batch) for batch in loader] == expected(plain, replace(loader.order, epoch=7), 4)


def test_an_epoch_that_is_set_in_the_loop_is_the_next_one(plain: FeatureStore) -> None:
    loader = BatchLoader(plain, 40, 1)
    for _ in loader:
        loader.set_epoch(5)
    assert loader.order.epoch == 5
    assert [content(batch) for batch in loader] == expected(plain, replace(loader.order, epoch=5), 40)


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("shuffle", [None, 6])
def test_batches_go_on_from_every_state_with_exactly_the_rest(
    plain: FeatureStore, shuffle: int | None, drop_last: bool
) -> None:
    loader = BatchLoader(plain, 5, shuffle, 1, 2, drop_last=drop_last)
    list(loader)
    wanted = [expected(plain, replace(loader.order, epoch=epoch), 5, 0, drop_last) for epoch in range(3)]
    states = [loader.state()]
    for batch in loader:
        states.append(loader.state())
        assert states[-1]["done"] == states[-2]["done"] + len(batch.keys)
    assert len(states) == len(wanted[1]) + 1
    for taken, state in enumerate(states):
        again = BatchLoader(open_store(plain.path), 5, drop_last=drop_last)
        again.load_state(through_json(state))
        assert again.state() == state
        assert [content(batch) for batch in again] == wanted[1][taken:]
        assert [content(batch) for batch in again] == wanted[2]  # and the epoch after it is whole


def test_a_state_counts_what_was_taken_and_not_what_is_read_ahead(
    plain: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled = []
    fill = BatchLoader._fill

    def counted(self: BatchLoader, *args: Any) -> PackedBatch:
        found = fill(self, *args)
        filled.append(found)
        return found

    monkeypatch.setattr(BatchLoader, "_fill", counted)
    loader = BatchLoader(plain, 3, 1)
    coming = iter(loader)
    assert loader.state()["done"] == 0
    for taken in range(1, 9):
        next(coming)
        until(lambda taken=taken: len(filled) >= taken + reading.THREADS)  # type: ignore[misc]  # the threads are ahead
        assert len(filled) == taken + reading.THREADS
        assert loader.state()["done"] == 3 * taken
    assert iter(loader) is not coming and loader.state()["done"] == 0


@pytest.mark.parametrize("damage", ["missing", "cut", "offsets"])
@pytest.mark.parametrize("format", ["arrow", "hdf5", "arrow-zstd"])
def test_a_damaged_shard_is_an_error_in_the_loop_and_the_batches_before_it_come(
    tmp_path: Path, format: str, damage: str
) -> None:
    store = open_store(make_store(tmp_path / "store", UNITS, REGIONS, format=format))
    first, shard = store.entries[0].keys, store.entries[1].shard
    assert shard is not None
    path = store.path / shard.file
    data = path.read_bytes()
    path.unlink()
    if damage != "missing":
        middle = len(data) // 2
        path.write_bytes(data[:-9] if damage == "cut" else b"\xff" * middle + data[middle:])
    found = []
    loader = BatchLoader(store, 3)
    with pytest.raises(StoreError, match="triptych verify"):
        for batch in loader:
            found += batch.keys
    assert found == first[: len(first) // 3 * 3]
    assert loader.state()["done"] == len(found)
    with pytest.raises(StoreError, match="triptych verify"):
        list(loader)  # and again


def test_two_loaders_and_lookups_on_one_store_at_once(store: FeatureStore) -> None:
    loaders = [BatchLoader(store, size, size) for size in (3, 4)]
    wanted = [expected(store, loader.order, loader.batch_size) for loader in loaders]
    other = open_store(store.place.name)

    def loaded(loader: BatchLoader) -> list[Any]:
        return [content(batch) for batch in loader]

    def looked_up(_: int) -> None:
        for record in store.iter(9):
            assert_same(record, other[record.key])

    with ThreadPoolExecutor(4) as pool:
        lookups = [pool.submit(looked_up, number) for number in range(2)]
        assert list(pool.map(loaded, loaders)) == wanted
        for each in lookups:
            each.result()


def test_no_thread_is_left_however_a_loop_ends(plain: FeatureStore) -> None:
    before = threading.active_count()
    loader = BatchLoader(plain, 2, 1)
    for _ in loader:
        assert threading.active_count() > before
    assert threading.active_count() == before
    for _ in loader:
        break
    assert threading.active_count() == before
    with pytest.raises(ZeroDivisionError):
        for _ in loader:
            1 / 0  # noqa: B018
    coming = iter(loader)
    next(coming)
    del coming
    assert threading.active_count() == before


def test_batch_sizes_and_ranks_that_make_no_sense_are_refused_at_once(plain: FeatureStore) -> None:
    for size in (0, -3):
        with pytest.raises(ValueError, match=f"batch size {size} must be at least 1"):
            BatchLoader(plain, size)
    with pytest.raises(ValueError, match="rank 2 is not one of 2 processes"):
        BatchLoader(plain, 4, rank=2, world=2)


# Positions of one's own


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(asked=st.lists(st.lists(st.integers(0, 46), min_size=1, max_size=60), max_size=12), plain_lists=st.booleans())
def test_any_positions_are_read_in_their_order(plain: FeatureStore, asked: list[list[int]], plain_lists: bool) -> None:
    loader = BatchLoader(plain, 4)
    coming = asked if plain_lists else (np.array(each) for each in asked)
    found = [content(batch) for batch in loader.read(coming)]
    assert found == [content(plain.batch(np.array(each))) for each in asked]


@pytest.mark.parametrize("kind", ["arrow", "arrow-zstd", "uint8"])
def test_buffers_grow_with_later_batches(tmp_path: Path, kind: str) -> None:
    store = store_of(kind, tmp_path)
    asked = [np.arange(size) % 47 for size in (1, 1, 1, 1, 1, 40, 3, 200, 1, 500, 2, 2, 2, 2, 2)]
    held: deque[tuple[PackedBatch, Any]] = deque(maxlen=3)
    for batch, positions in zip(BatchLoader(store, 1).read(iter(asked)), asked, strict=True):
        held.append((batch, content(batch)))
        assert held[-1][1] == content(store.batch(positions))
        time.sleep(0.002)
        assert all(content(each) == copied for each, copied in held)


def test_no_positions_make_no_batches_and_a_batch_of_none_is_refused(plain: FeatureStore) -> None:
    loader = BatchLoader(plain, 4)
    assert list(loader.read(iter([]))) == []
    with pytest.raises(ValueError, match="a batch needs at least one key"):
        list(loader.read(iter([np.empty(0, np.int64)])))


def test_an_error_of_ones_own_sampler_comes_out_of_the_loop(plain: FeatureStore) -> None:
    def sampler() -> Iterator[np.ndarray]:
        yield np.array([1])
        raise RuntimeError("the sampler is broken")

    with pytest.raises(RuntimeError, match="the sampler is broken"):
        list(BatchLoader(plain, 4).read(sampler()))


# Asking the disk ahead of time


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(asked=st.lists(st.integers(0, 46), max_size=80))
def test_advice_changes_no_result(store: FeatureStore, asked: list[int]) -> None:
    fresh, other = open_store(store.place.name), open_store(store.place.name)
    fresh.advise(asked)
    if asked:
        positions = np.array(asked)
        fresh.advise(positions)
        assert content(fresh.batch(positions)) == content(other.batch(positions))
    for position in asked[:5]:
        assert_same(fresh.at(position), other.at(position))


def test_advice_from_many_threads_is_harmless(store: FeatureStore) -> None:
    other = open_store(store.place.name)
    wanted = [content(other.batch(np.arange(at, at + 6))) for at in range(0, 42, 6)]
    done = threading.Event()

    def advising(seed: int) -> int:
        rng, turns = np.random.default_rng(seed), 0
        while not done.is_set():
            store.advise(rng.integers(0, 47, 9))
            turns += 1
        return turns

    with ThreadPoolExecutor(3) as pool:
        turns = [pool.submit(advising, seed) for seed in range(3)]
        try:
            for _ in range(5):
                assert [content(store.batch(np.arange(at, at + 6))) for at in range(0, 42, 6)] == wanted
        finally:
            done.set()
        assert all(each.result() for each in turns)


@pytest.mark.parametrize("kind", ["arrow", "hdf5", "mixed"])
def test_a_loader_does_not_need_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    store = store_of(kind, tmp_path)
    wanted = expected(store, BatchLoader(store, 4, 1).order, 4)
    calls = []

    def refused(self: FeatureStore, positions: Any, fields: Any) -> None:
        calls.append(len(positions))
        raise StoreError("no advice today")

    monkeypatch.setattr(FeatureStore, "advise", refused)
    assert [content(batch) for batch in BatchLoader(store, 4, 1)] == wanted
    assert sum(calls) == 47
    assert [record.key for record in store.iter(1)] == [key for keys, _ in wanted for key in keys]


def test_advice_names_exactly_the_bytes_of_the_features(tmp_path: Path) -> None:
    for format in ("arrow", "hdf5"):
        store = open_store(make_store(tmp_path / format, UNITS, format=format))
        for position in (0, 19, 20, 46, 5):
            record = store.at(position)
            [(path, place, size)] = store._reading([position]).ranges()
            assert path.read_bytes()[place : place + size] == record.features.tobytes()


def test_advice_covers_all_that_a_batch_touches(tmp_path: Path) -> None:
    """A page of a map that nobody asked for makes the system read up to megabytes around it: twice the bytes in all."""
    for format, dtype in (("arrow", "float16"), ("hdf5", "float16"), ("arrow", "uint8")):
        spec = with_layout(REGIONS, dtype=dtype)
        store = open_store(make_store(tmp_path / format / dtype, UNITS, spec, format=format))
        asked: dict[Path, set[int]] = {}
        for path, place, size in store._reading([3, 20, 46]).ranges_to_read(OPTIONAL):
            asked.setdefault(path, set()).update(range(place, place + size))
        for position in (3, 20, 46):
            number, image = store._located.table[position, :2].tolist()
            segment, path = store._located.segments[number - 1], store._located.paths[number - 1]
            start, stop = segment.rows(image)
            for name, array in segment.arrays.items():
                first, last = (image, image + 1) if name.startswith("whole_image") else (start, stop)
                place = segment.places[name][0]
                width = array.nbytes // len(array)
                assert set(range(place + first * width, place + last * width)) <= asked[path], name


def test_long_advice_is_given_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = []
    monkeypatch.setattr(os, "posix_fadvise", lambda handle, place, size, kind: given.append((place, size)))
    (tmp_path / "file").touch()
    advise([(tmp_path / "file", 5, 2 * ADVICE_BYTES + 7), (tmp_path / "file", 1, 0)])
    assert given == [(5, ADVICE_BYTES), (5 + ADVICE_BYTES, ADVICE_BYTES), (5 + 2 * ADVICE_BYTES, 7)]
