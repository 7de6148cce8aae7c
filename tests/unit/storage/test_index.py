"""Folding the manifest changes where it lies, and nothing of what a store says."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import storage.index
from storage import ErrorRow, StoreError, StoreWriter, open_store, verify_store
from storage.catalog import Catalog
from storage.compact import FOLD_FROM, fold
from storage.index import HEAD, open_index
from storage.manifest import Entry, ShardFacts, write_entry
from storage.places import open_place
from storage.store import FeatureStore
from storage.writer import unit_id
from tests.helpers import by_others
from tests.unit.storage import workers
from tests.unit.storage.samples import (
    REGIONS,
    assert_same,
    contents,
    error_row,
    make_store,
    partials,
    region_record,
    write_unit,
)

UNITS = [["b", "a", "d"], ["c", "e"], ["f"], ["é/图像", "", "x" * 1000, "line\nbreak", "😀", "e\u0301"]]
FAILED = ["a", "f"]
FORK = multiprocessing.get_context("fork")
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return make_store(tmp_path / "store", UNITS, failed=FAILED)


def said(path: Path) -> dict[str, Any]:
    """What a store says of itself, besides its records."""
    store = open_store(path)
    asked = [key for unit in UNITS for key in unit] + ["absent", "B", "é", "x" * 999]
    return {
        "keys": list(store),
        "length": len(store),
        "found": [key in store for key in asked],
        "positions": store.catalog.find(asked).tolist(),
        "done": store.catalog.done(asked).tolist(),
        "errors": store.errors(),
        "entries": store.entries,
        "units": store.units,
    }


def assert_records(path: Path, keys: set[str]) -> None:
    store = open_store(path)
    assert sorted(store) == sorted(keys)
    for key in keys:
        assert_same(store[key], region_record(key))
    assert verify_store(path).problems == []


def test_a_folded_store_says_the_same_as_before(path: Path) -> None:
    before = said(path)
    shards = contents(path / "shards")
    assert fold(path) == len(UNITS)
    assert said(path) == before
    assert len(before["keys"]) == 10 and before["found"].count(False) == 6
    assert contents(path / "shards") == shards
    assert list((path / "manifest").iterdir()) == []
    assert_records(path, set(before["keys"]))
    assert verify_store(path).notes == []


def test_the_entries_added_after_a_fold_lie_behind_the_index_and_fold_into_it(path: Path) -> None:
    fold(path)
    keys = list(open_store(path))
    writer = StoreWriter(path, REGIONS)
    write_unit(writer, ["late", "broken"], failed=["broken"])
    before = said(path)
    assert before["keys"] == [*keys, "late"]
    assert writer.done(["late", "broken", "b", "a", "x"]).tolist() == [True, True, True, True, False]
    assert fold(path) == 1
    assert said(path) == before
    assert_records(path, {*keys, "late"})


def test_folding_twice_leaves_the_files_of_the_first_time(path: Path) -> None:
    fold(path)
    before = contents(path)
    assert fold(path) == 0
    assert contents(path) == before


def test_few_entries_are_left_where_they_are_when_asked_for(path: Path) -> None:
    before = contents(path)
    assert fold(path, at_least=FOLD_FROM) == 0
    assert contents(path) == before


def test_a_store_without_units_folds_to_nothing(tmp_path: Path) -> None:
    StoreWriter(tmp_path / "store", REGIONS)
    assert fold(tmp_path / "store") == 0
    assert len(open_store(tmp_path / "store")) == 0


def test_an_index_of_failed_images_only_finds_no_key(tmp_path: Path) -> None:
    path = make_store(tmp_path / "store", [["a", "b"]], failed=["a", "b"])
    fold(path)
    store = open_store(path)
    assert len(store) == 0 and list(store) == [] and "a" not in store
    assert [row.key for row in store.errors()] == ["a", "b"]
    assert StoreWriter(path, REGIONS).done(["a", "x"]).tolist() == [True, False]
    write_unit(StoreWriter(path, REGIONS), ["c"])
    fold(path)
    assert_records(path, {"c"})


def test_keys_that_cannot_be_written_as_utf_8_are_absent_and_no_error(path: Path) -> None:
    for _ in range(2):
        assert "caf\udce9.jpg" not in open_store(path)
        assert StoreWriter(path, REGIONS).done(["caf\udce9.jpg", "b"]).tolist() == [False, True]
        fold(path)


def test_a_unit_that_is_written_again_after_a_fold_changes_nothing(path: Path) -> None:
    fold(path)
    before = contents(path)
    write_unit(StoreWriter(path, REGIONS), UNITS[0], FAILED)
    assert contents(path) == before


def test_a_unit_cut_differently_after_a_fold_commits_only_what_is_missing(path: Path) -> None:
    fold(path)
    write_unit(StoreWriter(path, REGIONS), ["b", "new", "a"])
    assert_records(path, {*open_store(path)})
    assert open_store(path).entries[-1].keys == ["new"]


def index_by_hand(path: Path, units: list[list[str]], failed: int = 0) -> Path:
    """A folded store with these keys but without shards, which opening and looking up do not touch."""
    place = open_place(StoreWriter(path, REGIONS).path)
    for number, keys in enumerate(units):
        shard = ShardFacts(f"shards/{number}.arrow", "arrow", 1, "0" * 32, 1)
        rows = [ErrorRow(f"failed {index}", "", "read", "missing", "") for index in range(failed)]
        write_entry(place, Entry(f"{number:04}", keys, rows, shard))
    fold(path)
    return path


@pytest.mark.parametrize("spread", [1, 3, 1000], ids=["all keys collide", "three hashes", "a few collide"])
def test_keys_whose_hashes_collide_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spread: int) -> None:
    monkeypatch.setattr(storage.index.xxhash, "xxh3_64_intdigest", lambda data: sum(data) % spread)
    keys = [f"{number:03}" for number in range(120)]
    path = index_by_hand(tmp_path / "store", [keys[:50], keys[50:51], keys[51:]])
    catalog = open_store(path).catalog
    assert list(catalog.keys()) == keys
    assert catalog.find(keys[::-1]).tolist() == list(range(120))[::-1]
    assert catalog.find(["120", "0", "", "0000", "12"]).tolist() == [-1] * 5  # the first has the sum of "003"


def test_thousands_of_keys_are_found_at_their_places(tmp_path: Path) -> None:
    units = [[f"train/{(7919 * (400 * unit + row)) % 20_000:012}" for row in range(400)] for unit in range(50)]
    catalog = open_store(index_by_hand(tmp_path / "store", units, failed=3)).catalog
    keys = [key for unit in units for key in unit]
    assert len(catalog) == 20_000 and list(catalog.keys()) == keys
    assert catalog.find(keys).tolist() == list(range(20_000))
    for position in (0, 399, 400, 12_345, 19_999):
        assert catalog.key(position) == keys[position] and catalog.position(keys[position]) == position
        assert catalog.place_of(position) == divmod(position, 400)
        first, rows = catalog.places_near(position)
        assert first == position // 400 * 400 and rows.tolist() == list(range(400))
    assert catalog.find([f"train/{number:012}" for number in range(20_000, 20_050)]).tolist() == [-1] * 50
    assert len({row.key for row in catalog.errors()}) == len(list(catalog.errors())) > 0


@pytest.mark.skipif(sys.platform != "linux", reason="asks the system what was read of a mapped file")
def test_opening_reads_a_small_part_of_the_keys(tmp_path: Path) -> None:
    keys = [f"{number:0100}" for number in range(60_000)]
    path = index_by_hand(tmp_path / "store", [keys])
    store = open_store(path)
    [table] = (path / "index").glob("keys-*.arrow")
    size = table.stat().st_size
    assert size > 6_000_000
    few = resident(table)
    assert few < size // 20  # the system maps some pages around each one that is touched
    assert keys[31_234] in store
    assert resident(table) < size // 20
    assert list(store) == keys
    assert resident(table) > size // 2  # so the measure would have shown it


def resident(file: Path) -> int:
    """Bytes of a mapped file that this process has touched."""
    found, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            inside = line.endswith(str(file))
        elif inside and line.startswith("Rss:"):
            found += 1024 * int(line.split()[1])
    return found


# A key that two writers committed: only without a lock between them.


def doubled(path: Path, folded_between: bool = False) -> list[str]:
    """Two units that both hold `b` and `c`; returns the keys in the order that the store must have them."""
    by_hand(path, "1" * 32, ["a", "b", "c"])
    if folded_between:
        fold(path)
    by_hand(path, "2" * 32, ["b", "d", "c", "e"])
    return ["a", "b", "c", "d", "e"]


def by_hand(path: Path, unit: str, keys: list[str]) -> None:
    """Commit a unit without looking what others have committed."""
    writer = StoreWriter(path, REGIONS)
    made = writer.unit(keys)
    made.unit = unit
    with made:
        for key in keys:
            made.append(region_record(key))
        write_entry(writer.place, made.publish_shard())


def test_a_key_committed_twice_is_kept_once_by_the_first_unit(tmp_path: Path) -> None:
    path = tmp_path / "store"
    keys = doubled(path)
    positions = open_store(path).catalog.find(keys)
    for _ in range(2):
        store = open_store(path)
        assert list(store) == keys and len(store) == 5
        assert store.catalog.find(keys).tolist() == positions.tolist() == [0, 1, 2, 3, 4]
        assert [store.catalog.place_of(at) for at in range(5)] == [(0, 0), (0, 1), (0, 2), (1, 1), (1, 3)]
        for key in keys:
            assert_same(store[key], region_record(key))
        assert store.batch(keys[::-1]).keys == keys[::-1]
        fold(path)
    assert [entry.keys for entry in open_store(path).entries] == [["a", "b", "c"], ["d", "e"]]
    assert_records(path, set(keys))


def test_of_a_key_that_stands_three_times_the_first_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "store"
    for number in range(3):
        by_hand(path, str(number) * 32, ["same", f"own {number}"])
    fold(path)
    assert [entry.keys for entry in open_store(path).entries] == [["same", "own 0"], ["own 1"], ["own 2"]]
    assert_records(path, {"same", "own 0", "own 1", "own 2"})


def test_on_an_object_store_a_key_of_the_index_and_of_a_later_unit_counts_once() -> None:
    url = f"memory://index-test-{os.getpid()}/store"
    StoreWriter(url, REGIONS)
    keys = doubled(url, folded_between=True)  # type: ignore[arg-type]
    for _ in range(2):
        store = open_store(url)
        assert list(store) == keys and store.catalog.find(keys).tolist() == [0, 1, 2, 3, 4]
        for key in keys:
            assert_same(store[key], region_record(key))
        found = verify_store(url)
        assert found.problems == []
        fold(url)
    assert open_store(url).catalog.tail == []


# Readers and writers while the manifest is folded.


def test_a_reader_from_before_a_fold_goes_on_and_refreshing_shows_it_later_units(path: Path) -> None:
    early = open_store(path)
    keys = list(early)
    mapped = early["b"]
    fold(path)
    write_unit(StoreWriter(path, REGIONS), ["late"])
    fold(path)
    assert list(early) == keys and "late" not in early
    for key in keys:
        assert_same(early[key], region_record(key))
    early.refresh()
    assert list(early) == [*keys, "late"]
    for key in early:
        assert_same(early[key], region_record(key))
    assert_same(mapped, region_record("b"))


def test_refreshing_an_index_that_was_replaced_shows_the_new_one(path: Path) -> None:
    fold(path)
    early = open_store(path)
    for name in ("g", "h"):
        write_unit(StoreWriter(path, REGIONS), [name])
        fold(path)
    assert "g" not in early and early["b"].key == "b"  # its tables are deleted, and still mapped
    early.refresh()
    assert {"g", "h"} <= set(early)
    assert_same(early["g"], region_record("g"))


def test_a_writer_from_before_a_fold_commits_behind_it(path: Path) -> None:
    writer = StoreWriter(path, REGIONS)
    keys = set(open_store(path))
    fold(path)
    write_unit(writer, ["late", "b"])
    assert_records(path, {*keys, "late"})
    assert writer.done(["late", "b", "a", "x"]).tolist() == [True, True, True, False]


def fold_without_end(path: Path, units: int, begun: Any) -> None:
    writer = StoreWriter(path, REGIONS)
    for number in range(units):
        write_unit(writer, [f"{number:04}-{row}" for row in range(3)])
        begun.set()
        if number % 3 == 0:
            fold(path)


def test_a_catalog_read_while_others_write_and_fold_never_loses_or_doubles_a_key(tmp_path: Path) -> None:
    path = make_store(tmp_path / "store", [["first"]])
    begun = FORK.Event()
    process = FORK.Process(target=fold_without_end, args=(path, 60, begun))
    process.start()
    assert begun.wait(60)
    kept, sizes = open_store(path), []
    while process.is_alive():
        for store in (open_store(path), kept):
            keys = list(store)
            assert len(keys) == len(set(keys)) == len(store)
            wanted = {f"{number:04}-{row}" for number in range(len(keys) // 3) for row in range(3)}
            assert set(keys) == {"first", *wanted}
            assert store.catalog.find(keys).tolist() == list(range(len(keys)))
        sizes.append(len(keys))
        kept.refresh()
        assert verify_store(path).problems == []
    process.join()
    assert process.exitcode == 0
    assert len(set(sizes)) > 3, "nothing happened meanwhile"
    assert len(open_store(path)) == 181


def die_at(steps: int, work: Callable[..., object], *args: Any) -> None:
    """Do it, but die by SIGKILL just before the sync, rename or unlink of that number."""
    left = [steps]
    for owner, name in workers.STEPS[1:]:
        setattr(owner, name, workers._dying(getattr(owner, name), left))
    work(*args)


def killed_everywhere(path: Path, folder: Path, work: Callable[[Path], object]) -> Iterator[Path]:
    """Copies of a store, on each of which `work` was killed before another of its steps; on the last one it ended."""
    for steps in range(500):
        fresh = shutil.copytree(path, folder / f"killed before step {steps}")
        process = FORK.Process(target=die_at, args=(steps, work, fresh))
        process.start()
        process.join(60)
        yield fresh
        shutil.rmtree(fresh)
        if process.exitcode == 0:
            assert steps > 10
            return
        assert process.exitcode == -signal.SIGKILL


def test_a_fold_killed_before_any_of_its_steps_leaves_the_store_as_it_was(path: Path, tmp_path: Path) -> None:
    fold(path)
    write_unit(StoreWriter(path, REGIONS), ["late", "broken"], failed=["broken"])
    write_unit(StoreWriter(path, REGIONS), ["later"])
    before = said(path)
    for fresh in killed_everywhere(path, tmp_path, fold):
        assert said(fresh) == before
        assert verify_store(fresh).problems == []
        fold(fresh)
        write_unit(StoreWriter(fresh, REGIONS), ["next"])
        fold(fresh)
        assert list(open_store(fresh)) == [*before["keys"], "next"]
        assert list((fresh / "manifest").iterdir()) == [] and partials(fresh) == []
        assert len(list((fresh / "index").iterdir())) == len(storage.index.TABLES)
        assert verify_store(fresh).problems == []


# Damage.


@pytest.mark.parametrize("table", storage.index.TABLES)
@pytest.mark.parametrize("change", ["missing", "empty", "shorter", "garbage"])
def test_a_damaged_table_stops_the_opening_in_one_line(path: Path, table: str, change: str) -> None:
    fold(path)
    [file] = (path / "index").glob(f"{table}-*.arrow")
    data = file.read_bytes()
    if change == "missing":
        file.unlink()
    else:
        file.write_bytes({"empty": b"", "shorter": data[:-1], "garbage": b"x" * len(data)}[change])
    with pytest.raises(StoreError, match="run `triptych repair`") as caught:
        open_store(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_a_damaged_head_of_the_index_stops_the_opening(path: Path) -> None:
    fold(path)
    (path / HEAD).write_bytes((path / HEAD).read_bytes().replace(b"lookup", b"lokoup"))
    with pytest.raises(StoreError, match=r"index\.json is damaged"):
        open_store(path)


def test_an_entry_under_another_units_name_stops_the_opening(path: Path) -> None:
    unit = unit_id(REGIONS.id, UNITS[2])
    (path / "manifest" / f"{unit}.json").rename(path / "manifest" / "other.json")
    with pytest.raises(StoreError, match=r"manifest/other\.json is of another unit; run `triptych repair`"):
        open_store(path)


def test_an_index_stays_when_the_new_one_cannot_be_written(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fold(path)
    write_unit(StoreWriter(path, REGIONS), ["late"])
    before = contents(path)

    def no_space(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    for owner, name in ((os, "fsync"), (Path, "replace"), (storage.index.HashedFile, "write")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, no_space)
            with pytest.raises(StoreError, match="cannot write .*: No space left on device.*make room"):
                fold(path)
        assert contents(path) == before
    fold(path)
    assert "late" in open_store(path)


def test_a_head_that_took_its_place_is_kept_when_only_the_folder_cannot_be_synced(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = said(path)
    renamed: list[str] = []
    replace, sync = Path.replace, os.fsync

    def rename(source: Path, target: Path) -> Path:
        renamed.append(target.name)
        return replace(source, target)

    def refuse(handle: int) -> None:
        if HEAD in renamed:
            raise OSError(5, "Input/output error")
        sync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", rename)
        patch.setattr(os, "fsync", refuse)
        with pytest.raises(StoreError, match="Input/output error"):
            fold(path)
    assert said(path) == before
    assert verify_store(path).problems == []


def test_the_catalog_and_the_index_agree_on_a_place_without_either(tmp_path: Path) -> None:
    place = open_place(tmp_path)
    assert open_index(place) is None
    catalog = Catalog(place)
    assert len(catalog) == catalog.units == 0
    assert catalog.find(["a"]).tolist() == [-1] and catalog.done([]).tolist() == []


def test_records_of_a_folded_store_come_in_batches_and_in_other_processes(path: Path) -> None:
    fold(path)
    store = open_store(path)
    keys = ["e", "b", "", "é/图像"]
    assert store.batch(keys).keys == keys
    [found] = by_others(FORK, workers.checksums, [store])
    assert found == workers.checksums(FeatureStore(path)) and set(found) == set(store)
    assert sorted(store.errors(), key=lambda row: row.key) == [error_row("a"), error_row("f")]
