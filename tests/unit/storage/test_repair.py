"""Repairing drops what is damaged and nothing else, so that extracting again makes the store whole."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from storage import StoreWriter, open_store, verify_store
from storage.atomic import read_sealed, write_sealed
from storage.compact import compact, fold
from storage.manifest import Entry, entry_file
from storage.repair import Repair, repair_store
from storage.verify import Problem
from storage.writer import unit_id
from tests.unit.storage.samples import GRID, REGIONS, assert_same, contents, make_store, record_of, write_unit
from tests.unit.storage.test_index import by_hand, killed_everywhere

UNITS = [["a", "b", "c"], ["d", "e"], ["f"], ["g", "h"]]
FAILED = ["b", "f"]
ALL = [key for unit in UNITS for key in unit]


@pytest.fixture(params=["entries", "index", "both"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Four units, in the index, beside it, or half of them in each; `f` is alone in its unit and failed."""
    store = make_store(tmp_path / "store", UNITS[:2], failed=FAILED)
    if request.param == "both":
        fold(store)
    make_store(store, UNITS[2:], failed=FAILED)
    if request.param == "index":
        fold(store)
    StoreWriter(store, REGIONS).write_run({"planned": 8})
    return store


@pytest.fixture
def folded(tmp_path: Path) -> Path:
    """All but the last unit in the index."""
    path = make_store(tmp_path / "store", UNITS[:3], failed=FAILED)
    fold(path)
    return make_store(path, UNITS[3:], failed=FAILED)


def entry_of(path: Path, key: str) -> Entry:
    return next(entry for entry in open_store(path).entries if key in entry.all_keys())


def shard_of(path: Path, key: str) -> Path:
    shard = entry_of(path, key).shard
    assert shard is not None
    return path / shard.file


def flip(file: Path, share: float = 0.5) -> None:
    data = bytearray(file.read_bytes())
    data[int(share * (len(data) - 1))] ^= 1
    file.write_bytes(data)


def repaired(path: Path, lost: set[str], failed: list[str] = FAILED) -> Repair:
    """Repair, see that exactly the images of `lost` are asked for again, and write them: the store must be whole."""
    before = {} if not lost else contents(path / "shards")
    done = repair_store(path)
    assert verify_store(path).problems == []
    writer = StoreWriter(path, REGIONS)
    assert {key for key, known in zip(ALL, writer.done(ALL), strict=True) if not known} == lost
    for name, data in contents(path / "shards").items():
        assert before.get(name, data) == data
    for key in open_store(path):
        assert_same(open_store(path)[key], record_of(key, REGIONS))
    for keys in UNITS:
        if lost & set(keys):
            write_unit(writer, keys, failed)
    assert writer.done(ALL).all()
    found = verify_store(path)
    assert found.problems == []
    store = open_store(path)
    assert sorted(store) == sorted(set(ALL) - set(failed)) and len(store) == found.records
    assert sorted(row.key for row in store.errors()) == failed
    for key in store:
        assert_same(store[key], record_of(key, REGIONS))
    return done


def test_a_sound_store_is_left_as_it_is(path: Path) -> None:
    before = contents(path)
    assert repair_store(path) == Repair()
    assert contents(path) == before


def foreign(path: Path, shard: Path) -> None:
    shutil.copy(shard_of(path, "g"), shard)


def of_another_view(path: Path, shard: Path) -> None:
    other = make_store(path.with_name("other"), [["d", "e"]], GRID)
    shutil.copy(next((other / "shards").iterdir()), shard)


SHARD_DAMAGE: dict[str, Callable[[Path, Path], object]] = {
    "flipped bit": lambda path, shard: flip(shard),
    "missing": lambda path, shard: shard.unlink(),
    "truncated": lambda path, shard: shard.write_bytes(shard.read_bytes()[:-100]),
    "empty": lambda path, shard: shard.write_bytes(b""),
    "longer": lambda path, shard: shard.write_bytes(shard.read_bytes() + b"x"),
    "another unit's shard": foreign,
    "another view's shard": of_another_view,
}


@pytest.mark.parametrize("damage", SHARD_DAMAGE.values(), ids=SHARD_DAMAGE.keys())
def test_a_damaged_shard_costs_its_unit_and_no_other(path: Path, damage: Callable[[Path, Path], object]) -> None:
    unit = entry_of(path, "d").unit
    damage(path, shard_of(path, "d"))
    [problem] = verify_store(path).problems
    assert (problem.unit, problem.keys, problem.images) == (unit, ["d", "e"], 2)
    done = repaired(path, {"d", "e"})
    assert (done.units, sorted(done.keys)) == ([unit], ["d", "e"])


def test_the_failed_images_of_a_dropped_unit_are_asked_for_again(path: Path) -> None:
    flip(shard_of(path, "a"))
    assert sorted(repaired(path, {"a", "b", "c"}).keys) == ["a", "b", "c"]


def test_all_damaged_shards_go_at_once(path: Path) -> None:
    flip(shard_of(path, "a"))
    shard_of(path, "g").unlink()
    assert len(repaired(path, {"a", "b", "c", "g", "h"}).units) == 2


def test_a_missing_folder_of_shards_leaves_what_needs_none(path: Path) -> None:
    shutil.rmtree(path / "shards")
    repaired(path, set(ALL) - {"f"})


def test_a_damaged_note_of_the_last_job_is_removed(path: Path) -> None:
    flip(path / "run.json")
    done = repaired(path, set())
    assert done.notes == ["run.json removed; it only told how the last job went"] and not done.units
    assert open_store(path).run == {}


@pytest.fixture
def entries(tmp_path: Path) -> Path:
    return make_store(tmp_path / "store", UNITS, failed=FAILED)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_damaged_entry_costs_its_unit(entries: Path, share: float) -> None:
    unit = entry_of(entries, "d").unit
    flip(entries / entry_file(unit), share)
    assert repaired(entries, {"d", "e"}).units == [unit]
    assert verify_store(entries).notes == []


def rewritten(path: Path, key: str, change: Callable[[dict], object]) -> None:
    """Change an entry and seal it again, as a faulty program would."""
    file = path / entry_file(entry_of(path, key).unit)
    content = read_sealed(file)
    change(content)
    write_sealed(file, content)


ENTRY_DAMAGE: dict[str, Callable[[dict], object]] = {
    "other order": lambda content: content["keys"].reverse(),
    "fewer keys": lambda content: content["keys"].pop(),
    "other rows": lambda content: content["shard"].update(rows=999),
    "no facts": lambda content: content.pop("facts"),
}


@pytest.mark.parametrize("change", ENTRY_DAMAGE.values(), ids=ENTRY_DAMAGE.keys())
def test_an_entry_that_does_not_fit_its_shard_costs_its_unit(entries: Path, change: Callable[[dict], object]) -> None:
    rewritten(entries, "d", change)
    repaired(entries, {"d", "e"})


def test_an_entry_under_another_units_name_is_removed(entries: Path) -> None:
    unit = entry_of(entries, "d").unit
    (entries / entry_file(unit)).rename(entries / entry_file("other"))
    repaired(entries, {"d", "e"})


def test_a_copy_of_an_entry_under_another_name_costs_nothing(entries: Path) -> None:
    shutil.copy(entries / entry_file(entry_of(entries, "d").unit), entries / entry_file("other"))
    [problem] = verify_store(entries).problems
    assert problem.file == entry_file("other")
    repaired(entries, set())


def test_units_with_a_repeated_key_are_all_dropped(tmp_path: Path) -> None:
    path = make_store(tmp_path / "store", UNITS, failed=FAILED)
    by_hand(path, "1" * 32, ["x", "d"])
    assert {problem.keys[0] for problem in verify_store(path).problems} == {"d"}
    done = repaired(path, {"d", "e"})
    assert sorted(done.keys) == ["d", "d", "e", "x"]


def test_a_unit_that_holds_a_key_twice_is_dropped(entries: Path) -> None:
    by_hand(entries, "1" * 32, ["x", "x"])
    assert repaired(entries, set()).units == ["1" * 32]
    assert "x" not in open_store(entries)


def test_a_missing_manifest_is_made_again(entries: Path) -> None:
    shutil.rmtree(entries / "manifest")
    repaired(entries, set(ALL))


# A damaged index: the shards say what their keys are; which images failed is not known any more.

INDEX_DAMAGE: dict[str, Callable[[Path], object]] = {
    **{
        f"{table} {name}": lambda path, table=table, damage=damage: damage(next((path / "index").glob(f"{table}-*")))
        for table in ("keys", "lookup", "units", "errors")
        for name, damage in {
            "flipped": flip,
            "missing": Path.unlink,
            "truncated": lambda file: file.write_bytes(file.read_bytes()[:-9]),
        }.items()
    },
    "head flipped": lambda path: flip(path / "index.json"),
    "head truncated": lambda path: (path / "index.json").write_bytes(b""),
    "head of other fields": lambda path: write_sealed(path / "index.json", {"tables": {}}),
    "all tables missing": lambda path: shutil.rmtree(path / "index"),
}


@pytest.mark.parametrize("damage", INDEX_DAMAGE.values(), ids=INDEX_DAMAGE.keys())
def test_a_damaged_index_costs_the_failed_images_in_it_and_no_record(
    folded: Path, damage: Callable[[Path], object]
) -> None:
    damage(folded)
    assert [problem.unit for problem in verify_store(folded).problems] == [None]
    done = repaired(folded, {"b", "f"})
    assert done.units == [] and done.keys == []
    assert "made anew from 2 shards" in done.notes[0]


@pytest.mark.parametrize("format", ["arrow", "hdf5", "arrow-zstd"])
def test_an_index_is_made_anew_from_shards_of_every_format(tmp_path: Path, format: str) -> None:
    path = make_store(tmp_path / "store", UNITS, failed=FAILED, format=format)
    fold(path)
    before = {entry.unit: entry.shard for entry in open_store(path).entries if entry.shard}
    (path / "index.json").write_bytes(b"x")
    repair_store(path)
    assert {entry.unit: entry.shard for entry in open_store(path).entries} == before
    assert verify_store(path).problems == [] and verify_store(path).notes == []


def test_units_keep_their_ids_when_the_index_is_made_anew(folded: Path) -> None:
    (folded / "index.json").write_bytes(b"x")
    repair_store(folded)
    assert {unit.unit for unit in open_store(folded).units} >= {unit_id(REGIONS.id, keys) for keys in UNITS[:2]}


def test_an_index_and_a_shard_that_are_both_damaged_cost_that_shard(folded: Path) -> None:
    shard = shard_of(folded, "d")
    shard.write_bytes(shard.read_bytes()[:-100])
    flip(folded / "index.json")
    done = repaired(folded, {"b", "d", "e", "f"})
    assert any(f"shards/{shard.name} removed: it cannot be read" in note for note in done.notes)


def test_an_index_and_an_entry_beside_it_that_are_both_damaged_cost_that_unit(folded: Path) -> None:
    unit = entry_of(folded, "g").unit
    flip(folded / entry_file(unit))
    flip(folded / "index.json")
    assert repaired(folded, {"b", "f", "g", "h"}).units == [unit]


def test_shards_that_a_killed_compaction_left_are_not_taken_for_more_images(folded: Path) -> None:
    small = contents(folded / "shards")
    compact(folded)
    for name, data in small.items():  # as if it had died before it removed them
        (folded / "shards" / name).write_bytes(data)
    (folded / "index.json").write_bytes(b"x")
    done = repaired(folded, {"b", "f"})
    assert sum("removed: other shards hold its records, too" in note for note in done.notes) == 3


def test_a_key_of_two_shards_is_taken_from_one_when_the_index_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "store"
    by_hand(path, "1" * 32, ["a", "b"])
    by_hand(path, "2" * 32, ["b", "c", "d"])
    fold(path)
    by_hand(path, "3" * 32, ["d", "e"])
    (path / "index.json").write_bytes(b"x")
    repair_store(path)
    assert verify_store(path).problems == []
    store = open_store(path)
    assert sorted(store) == ["a", "b", "c", "d", "e"] and len(store) == 5
    for key in store:
        assert_same(store[key], record_of(key, REGIONS))


# Killed, and told what to do.


def test_a_repair_killed_before_any_of_its_steps_can_be_repeated(folded: Path, tmp_path: Path) -> None:
    flip(shard_of(folded, "d"))
    flip(shard_of(folded, "g"))
    for fresh in killed_everywhere(folded, tmp_path, repair_store):
        repair_store(fresh)
        assert verify_store(fresh).problems == []
        assert sorted(open_store(fresh)) == ["a", "c"]
        assert StoreWriter(fresh, REGIONS).done(["b", "f", "d", "g"]).tolist() == [True, True, False, False]


def test_a_rebuilding_killed_before_any_of_its_steps_can_be_repeated(folded: Path, tmp_path: Path) -> None:
    flip(folded / "index.json")
    for fresh in killed_everywhere(folded, tmp_path, repair_store):
        repair_store(fresh)
        assert verify_store(fresh).problems == []
        assert sorted(open_store(fresh)) == ["a", "c", "d", "e", "g", "h"]


def test_what_was_found_before_is_repaired_without_looking_again(entries: Path) -> None:
    shard_of(entries, "d").unlink()
    flip(shard_of(entries, "g"))
    found = verify_store(entries, quick=True)
    assert [problem.what for problem in found.problems] == ["missing"]
    assert repair_store(entries, found).keys == ["d", "e"]
    [left] = verify_store(entries).problems
    assert isinstance(left, Problem) and left.keys == ["g", "h"]


def test_readers_of_other_units_go_on_during_a_repair(path: Path) -> None:
    store = open_store(path)
    flip(shard_of(path, "d"))
    repair_store(path)
    for key in ("a", "c", "g", "h"):
        assert_same(store[key], record_of(key, REGIONS))
    store.refresh()
    assert_same(store["a"], record_of("a", REGIONS))
