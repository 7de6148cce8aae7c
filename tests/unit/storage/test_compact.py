"""Compacting makes few large shards of many small ones, under readers and writers, and changes no record."""

from __future__ import annotations

import multiprocessing
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

import storage.compact
from storage import Spec, StoreError, StoreWriter, open_store, verify_store
from storage.compact import Compaction, compact, fold
from storage.store import FeatureStore
from storage.verify import check_bytes
from storage.writer import unit_id
from tests.unit.storage.samples import (
    GRID,
    PATCHES,
    PIXELS,
    REGIONS,
    assert_same,
    contents,
    make_store,
    partials,
    record_of,
    with_layout,
    write_unit,
)
from tests.unit.storage.test_index import by_hand, killed_everywhere

UNITS = [[f"{unit}{row}" for row in "abc"] for unit in range(8)] + [["broken", "torn"]]
FAILED = ["0b", "5c", "broken", "torn"]
KEYS = {key for unit in UNITS for key in unit} - set(FAILED)
FORK = multiprocessing.get_context("fork")
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


@pytest.fixture(params=["arrow", "hdf5", "arrow-zstd"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return make_store(tmp_path / "store", UNITS, REGIONS, FAILED, request.param)


@pytest.fixture
def arrow(tmp_path: Path) -> Path:
    return make_store(tmp_path / "store", UNITS, REGIONS, FAILED)


def assert_holds(path: Path, keys: set[str], failed: set[str], spec: Spec = REGIONS) -> FeatureStore:
    """Each key once, with its record; each failed image once; and no damage."""
    assert verify_store(path).problems == []
    store = open_store(path, "float32" if spec.layout.dtype == "uint8" else None)
    counts = Counter(key for entry in store.entries for key in entry.all_keys())
    assert counts == Counter([*keys, *failed])
    assert {row.key for row in store.errors()} == failed
    for key in keys:
        assert_same(store[key], record_of(key, spec))
    return store


def test_small_shards_become_one_and_records_and_errors_stay(path: Path) -> None:
    before = open_store(path)
    found = compact(path)
    assert (found.units_before, found.units_after) == (9, 1)
    store = assert_holds(path, KEYS, set(FAILED))
    assert list(store) == list(before) and set(store.errors()) == set(before.errors())
    [shard] = (path / "shards").iterdir()
    assert shard.stat().st_size == found.bytes_written
    assert verify_store(path).notes == []
    assert store.batch(sorted(KEYS)).keys == sorted(KEYS)
    assert StoreWriter(path, REGIONS).done([*sorted(KEYS), *FAILED, "x"]).tolist() == [True] * 26 + [False]


LAYOUTS = [
    *(with_layout(REGIONS, dtype=dtype) for dtype in ("float32", "bfloat16")),
    with_layout(REGIONS, class_probs=3, without=("whole_image", "attribute_ids")),
    GRID,
    PATCHES,
    PIXELS,
]


@pytest.mark.parametrize("spec", LAYOUTS, ids=["float32", "bfloat16", "other fields", "grid", "patches", "pixels"])
@pytest.mark.parametrize("format", ["arrow", "hdf5"])
def test_every_kind_of_record_is_merged_bit_for_bit(tmp_path: Path, spec: Spec, format: str) -> None:
    path = make_store(tmp_path / "store", UNITS, spec, FAILED, format)
    assert compact(path).units_after == 1
    assert_holds(path, KEYS, set(FAILED), spec)


@pytest.mark.parametrize("format", ["arrow", "hdf5"])
def test_codes_of_8_bits_are_merged_bit_for_bit(tmp_path: Path, format: str) -> None:
    path = make_store(tmp_path / "store", UNITS, with_layout(REGIONS, dtype="uint8"), FAILED, format)
    before = {record.key: record for record in open_store(path, "float32").values()}
    compact(path)
    store = open_store(path, "float32")
    assert set(store) == KEYS == set(before)
    for key in KEYS:
        assert_same(store[key], before[key])
    assert verify_store(path).problems == []


def test_shards_are_merged_with_their_own_kind_only(tmp_path: Path) -> None:
    path = tmp_path / "store"
    for number, keys in enumerate(UNITS):
        make_store(path, [keys], REGIONS, FAILED, ["arrow", "hdf5", "arrow-zstd"][number % 3])
    assert compact(path).units_after == 3
    store = assert_holds(path, KEYS, set(FAILED))
    formats = {unit.shard.format for unit in store.units if unit.shard}
    assert formats == {"arrow", "hdf5", "arrow-zstd"}
    assert sorted(each.suffix for each in (path / "shards").iterdir()) == [".arrow", ".arrow", ".h5"]


def test_large_shards_are_left_alone_and_groups_make_about_one_shard(tmp_path: Path) -> None:
    path = make_store(tmp_path / "store", [[f"{unit}{row}" for row in range(2)] for unit in range(6)], GRID)
    write_unit(StoreWriter(path, GRID), [f"large {row}" for row in range(60)])
    large = max((path / "shards").iterdir(), key=lambda each: each.stat().st_size)
    small = [each.stat().st_size for each in (path / "shards").iterdir() if each != large]
    data, time_of_change = large.read_bytes(), large.stat().st_mtime_ns
    assert large.stat().st_size > 2 * max(small)
    found = compact(path, shard_bytes=2 * max(small) + 2)
    assert large.read_bytes() == data and large.stat().st_mtime_ns == time_of_change
    assert found.units_before == 7 and 3 <= found.units_after <= 4
    assert_holds(path, {f"{unit}{row}" for unit in range(6) for row in range(2)} | {f"large {n}" for n in range(60)},
                 set(), GRID)  # fmt: skip


def test_compacting_again_changes_nothing(path: Path) -> None:
    compact(path)
    before = contents(path)
    assert compact(path) == Compaction(1, 1, 0)
    assert contents(path) == before


def test_an_empty_store_and_one_of_failed_images_compact_to_themselves(tmp_path: Path) -> None:
    StoreWriter(tmp_path / "empty", REGIONS)
    assert compact(tmp_path / "empty") == Compaction(0, 0, 0)
    path = make_store(tmp_path / "failed", [["a"], ["b"]], failed=["a", "b"])
    assert compact(path) == Compaction(2, 1, 0)
    assert_holds(path, set(), {"a", "b"})


def test_a_unit_beside_empty_ones_keeps_its_shard(tmp_path: Path) -> None:
    """Merged with units without images, it would have the id that it has."""
    path = make_store(tmp_path / "store", [["a", "b"]])
    writer = StoreWriter(path, REGIONS)
    with writer.unit([]) as empty:
        empty.commit()
    compact(path)
    assert_holds(path, {"a", "b"}, set())


def test_a_key_that_two_units_hold_is_merged_once(tmp_path: Path) -> None:
    path = tmp_path / "store"
    by_hand(path, "1" * 32, ["a", "b"])
    by_hand(path, "2" * 32, ["b", "c"])
    compact(path)
    assert list(assert_holds(path, {"a", "b", "c"}, set())) == ["a", "b", "c"]


def test_damage_is_not_copied_under_a_new_checksum(path: Path) -> None:
    entry = next(entry for entry in open_store(path).entries if "3b" in entry.keys)
    assert entry.shard is not None
    file = path / entry.shard.file
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(StoreError, match=rf"{entry.shard.file}: checksum differs.*run `triptych repair`"):
        compact(path)
    assert [problem.file for problem in verify_store(path).problems] == [entry.shard.file]
    file.write_bytes(bytes(each ^ (at == len(data) // 2) for at, each in enumerate(data)))
    compact(path)
    assert_holds(path, KEYS, set(FAILED))


# Readers from before.


@pytest.mark.parametrize("folded", [False, True], ids=["entries", "index"])
@pytest.mark.parametrize("mapped", [False, True], ids=["not yet mapped", "mapped"])
@pytest.mark.parametrize("how", ["key", "batch", "position", "advise", "iteration"])
def test_a_reader_from_before_goes_on(path: Path, how: str, mapped: bool, folded: bool) -> None:
    if folded:
        fold(path)
    store = open_store(path)
    keys = list(store)
    if mapped:
        assert len(store.batch(keys).keys) == len(keys)
    compact(path)
    assert list(store) == keys
    if how == "key":
        for key in keys[::-1]:
            assert_same(store[key], record_of(key, REGIONS))
        assert store.get("x") is None and "0b" not in store
    elif how == "batch":
        found = store.batch(keys[::-1], ["class_ids"])
        assert found.keys == keys[::-1]
        assert found.values.tobytes() == b"".join(record_of(key, REGIONS).features.tobytes() for key in keys[::-1])
    elif how == "position":
        assert store.positions(keys).tolist() == list(range(len(keys)))
        assert [store.at(at).key for at in range(len(keys))] == keys
    elif how == "advise":
        store.advise(store.positions(keys))
    else:
        assert [record.key for record in store.values()] == keys
    store.refresh()
    assert list(store) == keys and store["7c"].key == "7c"


def test_a_reader_with_some_shards_mapped_reads_batches_over_all(path: Path) -> None:
    store = open_store(path)
    first = store["0a"]
    compact(path)
    for keys in (["0a", "4b"], ["6a", "0c"], ["0c"]):
        assert store.batch(keys).keys == keys
    assert_same(first, record_of("0a", REGIONS))


def test_a_reader_in_the_middle_of_the_store_comes_to_its_end_through_two_compactions(path: Path) -> None:
    store = open_store(path)
    seen = []
    for number, record in enumerate(store.values()):
        if number == 4:
            compact(path)
        if number == 9:
            write_unit(StoreWriter(path, REGIONS), ["late"])
            compact(path)
        assert_same(record, record_of(record.key, REGIONS))
        seen.append(record.key)
    assert sorted(seen) == sorted(KEYS)


def test_a_shard_that_is_missing_and_was_not_compacted_is_still_an_error(arrow: Path) -> None:
    store = open_store(arrow)
    compact(arrow)
    [shard] = (arrow / "shards").iterdir()
    shard.unlink()
    with pytest.raises(StoreError, match=f"{shard.name} is missing"):
        store["0a"]


# Writers, and other compactions, meanwhile.


def write_on(path: Path, units: int) -> None:
    writer = StoreWriter(path, REGIONS)
    for number in range(units):
        write_unit(writer, [f"new {number}", f"new broken {number}"], failed=[f"new broken {number}"])
        time.sleep(0.002)


def test_a_writer_that_commits_during_compactions_loses_nothing(arrow: Path) -> None:
    process = FORK.Process(target=write_on, args=(arrow, 40))
    process.start()
    turns = 0
    while process.is_alive():
        compact(arrow)
        turns += 1
        assert verify_store(arrow).problems == []
    process.join()
    assert process.exitcode == 0 and turns > 2
    compact(arrow)
    new = {f"new {number}" for number in range(40)}
    assert_holds(arrow, KEYS | new, {*FAILED, *(f"new broken {number}" for number in range(40))})
    assert len(list((arrow / "shards").iterdir())) == 1


def compact_at(path: Path, start: Any, results: Any) -> None:
    start.wait()
    try:
        compact(path)
        results.put("done")
    except StoreError as error:
        results.put(str(error))


@pytest.mark.parametrize("format", ["arrow", "hdf5"])
def test_of_two_compactions_at_once_each_ends_well_or_in_one_clear_line(tmp_path: Path, format: str) -> None:
    for turn in range(4):
        path = make_store(tmp_path / str(turn), UNITS, REGIONS, FAILED, format)
        start, results = FORK.Barrier(2), FORK.Queue()
        processes = [FORK.Process(target=compact_at, args=(path, start, results)) for _ in range(2)]
        for process in processes:
            process.start()
        found = [results.get(timeout=60) for _ in processes]
        for process in processes:
            process.join(60)
            assert process.exitcode == 0
        assert "done" in found
        assert all(each == "done" or "is being compacted by another process; try again" in each for each in found)
        assert_holds(path, KEYS, set(FAILED))
        assert partials(path) == []


def test_a_shard_that_goes_while_it_is_checked_is_missing(arrow: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(arrow)
    shard = next(entry.shard for entry in store.entries if entry.shard)
    (arrow / shard.file).unlink()
    monkeypatch.setattr(type(store.place), "size", lambda *_: shard.bytes)
    assert check_bytes(store.place, shard) == "missing"


def test_the_slower_of_two_compactions_leaves_the_shard_of_the_faster_one(
    arrow: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both merge the same units, so both shards have the same name."""
    faster: list[Any] = []
    original = storage.compact._check_source

    def after_another(*args: Any) -> None:
        if not faster:
            faster.append(True)
            faster.append(compact(arrow))
        original(*args)

    monkeypatch.setattr(storage.compact, "_check_source", after_another)
    with pytest.raises(StoreError, match="is being compacted by another process"):
        compact(arrow)
    assert faster[1].units_after == 1
    assert_holds(arrow, KEYS, set(FAILED))
    assert partials(arrow) == []


def test_a_fold_during_a_compaction_does_not_stop_it(arrow: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[bool] = []

    def meanwhile(*_: Any) -> None:
        if not done:
            done.append(True)
            write_unit(StoreWriter(arrow, REGIONS), ["late"])
            fold(arrow)

    monkeypatch.setattr(storage.compact, "_check_source", meanwhile)
    assert compact(arrow).units_after == 2
    assert_holds(arrow, KEYS | {"late"}, set(FAILED))


# Killed.


def test_a_compaction_killed_before_any_of_its_steps_loses_and_doubles_nothing(tmp_path: Path) -> None:
    path = make_store(tmp_path / "store", [UNITS[0], UNITS[-1]], REGIONS, FAILED)
    fold(path)
    write_unit(StoreWriter(path, REGIONS), ["late"])  # so that units of the index and beside it are merged
    keys, failed = {"0a", "0c", "late"}, {"0b", "broken", "torn"}
    early = open_store(path)
    for fresh in killed_everywhere(path, tmp_path, compact):
        assert_holds(fresh, keys, failed)
        compact(fresh)
        store = assert_holds(fresh, keys, failed)
        assert len(store.units) == 1 and partials(fresh) == [] and list((fresh / "manifest").iterdir()) == []
    assert set(early) == keys


def test_an_entry_left_beside_the_index_by_a_killed_fold_does_not_come_back(arrow: Path) -> None:
    kept = {name: (arrow / "manifest" / name).read_bytes() for name in contents(arrow / "manifest")}
    fold(arrow)
    for name, data in kept.items():  # as if the fold had died before it removed them
        (arrow / "manifest" / name).write_bytes(data)
    assert_holds(arrow, KEYS, set(FAILED))
    compact(arrow)
    assert list((arrow / "manifest").iterdir()) == []
    assert_holds(arrow, KEYS, set(FAILED))


# A disk that refuses.


def test_a_refused_index_leaves_the_store_as_it_was_without_the_merged_shard(
    arrow: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fold(arrow)
    before = contents(arrow)

    def no_space(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("storage.index.HashedFile", no_space)
        with pytest.raises(StoreError, match="cannot write .*No space left on device.*make room") as caught:
            compact(arrow)
    assert "\n" not in str(caught.value)
    assert contents(arrow) == before
    compact(arrow)
    assert_holds(arrow, KEYS, set(FAILED))


def test_the_name_of_a_merged_unit_comes_from_its_keys(arrow: Path) -> None:
    compact(arrow)
    store = open_store(arrow)
    [unit] = store.units
    keys = [*(key for entry in store.entries for key in entry.keys)]
    assert unit.unit != unit_id(REGIONS.id, keys)  # failed images are in it, too
    assert unit.facts["merged_units"] == 9
    assert asdict(unit)["shard"]["file"] == f"shards/{unit.unit}.arrow"


def test_a_store_of_version_2_is_compacted_under_a_writer_from_before(arrow: Path) -> None:
    writer = StoreWriter(arrow, REGIONS)
    compact(arrow)
    write_unit(writer, ["0a", "late"])
    assert_holds(arrow, KEYS | {"late"}, set(FAILED))


def test_compacting_what_is_no_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there is no store at"):
        compact(tmp_path)
