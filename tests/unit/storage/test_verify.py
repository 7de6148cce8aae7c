"""Damage is found wherever it is, named by its file, and nothing is found where there is none."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import storage.verify
from storage import Spec, StoreError, StoreWriter, open_store, verify_store
from storage.atomic import read_sealed, write_sealed
from storage.compact import compact, fold
from storage.index import TABLES
from storage.manifest import Entry
from storage.places import Place
from storage.verify import Problem
from tests.unit.storage.samples import (
    GRID,
    REGIONS,
    VIEWS,
    make_store,
    region_record,
    write_unit,
)

UNITS = [["a", "b", "c"], ["d", "e"], ["f"]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Three units, of which f failed and so has no shard; b failed, too."""
    store = make_store(tmp_path / "store", UNITS, failed=["b", "f"])
    StoreWriter(store, REGIONS).write_run({"planned": 6})
    return store


def entry_of(path: Path, key: str) -> Entry:
    return next(entry for entry in open_store(path).entries if key in entry.all_keys())


def shard_of(path: Path, key: str) -> Path:
    return path / entry_of(path, key).shard.file


def flip(file: Path, place: int, bit: int = 0) -> None:
    data = bytearray(file.read_bytes())
    data[place] ^= 1 << bit
    file.write_bytes(data)


def problem(path: Path) -> Problem:
    """The only problem of a store."""
    [found] = verify_store(path).problems
    return found


@pytest.mark.parametrize("spec", VIEWS.values(), ids=VIEWS.keys())
def test_a_sound_store_has_no_problems_and_is_counted(tmp_path: Path, spec: Spec) -> None:
    store = make_store(tmp_path / "store", UNITS, spec, failed=["f"])
    found = verify_store(str(store))
    assert found.problems == [] and found.notes == []
    assert (found.shards, found.records) == (2, 5)
    assert found.bytes == sum(file.stat().st_size for file in (store / "shards").iterdir())


def test_a_store_without_units_is_sound(tmp_path: Path) -> None:
    StoreWriter(tmp_path / "store", REGIONS)
    assert verify_store(tmp_path / "store").problems == []


@pytest.mark.parametrize("share", [0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
@pytest.mark.parametrize("bit", [0, 7])
def test_a_flipped_bit_in_a_shard_is_found(path: Path, share: float, bit: int) -> None:
    shard = shard_of(path, "a")
    flip(shard, int(share * (shard.stat().st_size - 1)), bit)
    name = shard.relative_to(path).as_posix()
    assert problem(path) == Problem(name, "checksum differs: bytes were changed after the commit", 2)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 1.0])
def test_a_flipped_bit_in_a_manifest_entry_is_found(path: Path, share: float) -> None:
    entry = path / "manifest" / f"{entry_of(path, 'd').unit}.json"
    flip(entry, int(share * (entry.stat().st_size - 1)))
    assert problem(path) == Problem(f"manifest/{entry.name}", "manifest entry damaged")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 1.0])
def test_a_flipped_bit_in_the_head_is_refused(path: Path, share: float) -> None:
    flip(path / "store.json", int(share * ((path / "store.json").stat().st_size - 1)))
    with pytest.raises(StoreError, match=r"store\.json is damaged"):
        verify_store(path)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_flipped_bit_in_the_run_is_found(path: Path, share: float) -> None:
    flip(path / "run.json", int(share * ((path / "run.json").stat().st_size - 1)))
    assert problem(path) == Problem("run.json", "damaged; it only tells how the last job went", 0)


def test_a_missing_shard_is_found(path: Path) -> None:
    shard = shard_of(path, "a")
    shard.unlink()
    assert problem(path) == Problem(f"shards/{shard.name}", "missing", 2)


def test_a_missing_folder_of_shards_is_found(path: Path) -> None:
    shutil.rmtree(path / "shards")
    assert [each.what for each in verify_store(path).problems] == ["missing", "missing"]


def test_a_missing_manifest_is_found(path: Path) -> None:
    shutil.rmtree(path / "manifest")
    assert problem(path) == Problem("manifest", "missing: without it no shard is found")


CHANGED_LENGTHS: dict[str, Callable[[bytes], bytes]] = {
    "one byte less": lambda data: data[:-1],
    "a hundred bytes less": lambda data: data[:-100],
    "one byte more": lambda data: data + b"\0",
    "empty": lambda data: b"",
}


@pytest.mark.parametrize("change", CHANGED_LENGTHS.values(), ids=CHANGED_LENGTHS.keys())
def test_a_shard_of_another_length_is_found(path: Path, change: Callable[[bytes], bytes]) -> None:
    shard = shard_of(path, "a")
    data = shard.read_bytes()
    changed = change(data)
    shard.write_bytes(changed)
    assert problem(path) == Problem(f"shards/{shard.name}", f"{len(changed):,} bytes instead of {len(data):,}", 2)


def test_every_damaged_file_is_listed(path: Path) -> None:
    shard_of(path, "a").unlink()
    flip(shard_of(path, "d"), 99)
    flip(path / "run.json", 5)
    assert len(verify_store(path).problems) == 3


def test_a_shard_that_was_never_committed_is_a_note(path: Path) -> None:
    (path / "shards" / "orphan.arrow").write_bytes(b"x")
    found = verify_store(path)
    assert found.problems == []
    assert found.notes == ["1 shards that were never committed (a job was killed); nothing reads them"]


def test_half_written_files_are_a_note(path: Path) -> None:
    for folder in ("", "shards", "manifest"):
        (path / folder / ".x~host~1~0.partial").touch()
    found = verify_store(path)
    assert found.problems == []
    assert found.notes == ["3 half-written files of a running or killed job; the next job removes what is dead"]


def test_a_lost_manifest_entry_makes_its_shard_a_note(path: Path) -> None:
    """Nothing tells such a shard from one whose job was killed before its commit: the images are extracted again."""
    (path / "manifest" / f"{entry_of(path, 'a').unit}.json").unlink()
    found = verify_store(path)
    assert (found.problems, found.records) == ([], 2)
    assert len(found.notes) == 1


def rewritten(path: Path, key: str, change: Callable[[dict], None]) -> str:
    """Change a manifest entry and seal it again, as a faulty program would; returns the unit."""
    unit = entry_of(path, key).unit
    file = path / "manifest" / f"{unit}.json"
    content = read_sealed(file)
    change(content)
    write_sealed(file, content)
    return unit


def test_a_repeated_key_is_found_in_both_places(path: Path) -> None:
    with StoreWriter(path, REGIONS).unit(["x", "x"]) as unit:
        unit.append(region_record("x"))
        unit.append(region_record("x"))
        unit.commit()
    first = problem(path)
    assert first == Problem(f"manifest/{entry_of(path, 'x').unit}.json", "keys that stand elsewhere too: x", 1)


def test_a_key_that_two_units_hold_is_found(path: Path) -> None:
    def claim(content: dict) -> None:
        content["errors"][0]["key"] = "d"

    unit = rewritten(path, "f", claim)
    found = {each.file: each.what for each in verify_store(path).problems}
    assert found == {
        f"manifest/{unit}.json": "keys that stand elsewhere too: d",
        f"manifest/{entry_of(path, 'e').unit}.json": "keys that stand elsewhere too: d",
    }


def test_an_entry_that_names_other_keys_than_its_shard_holds_is_found(path: Path) -> None:
    rewritten(path, "d", lambda content: content["keys"].reverse())
    assert problem(path).what == "its keys are not those of its manifest entry"


def test_an_entry_with_fewer_keys_than_its_shard_holds_is_found(path: Path) -> None:
    rewritten(path, "d", lambda content: content["keys"].pop())
    assert "holds 2 records, its manifest entry 1" in problem(path).what


def test_an_entry_with_another_number_of_rows_is_found(path: Path) -> None:
    rows = entry_of(path, "d").shard.rows
    rewritten(path, "d", lambda content: content["shard"].update(rows=rows + 1))
    assert problem(path).what == f"{rows} rows instead of {rows + 1}"


def test_an_entry_under_another_units_name_is_found(path: Path) -> None:
    unit = entry_of(path, "f").unit
    (path / "manifest" / f"{unit}.json").rename(path / "manifest" / "other.json")
    assert problem(path) == Problem("manifest/other.json", f"entry of another unit ({unit})")


@pytest.mark.parametrize("field", ["unit", "keys", "errors", "shard", "facts"])
def test_an_entry_without_one_of_its_fields_is_found(path: Path, field: str) -> None:
    unit = rewritten(path, "a", lambda content: content.pop(field))
    assert problem(path) == Problem(f"manifest/{unit}.json", "manifest entry damaged")


def test_a_shard_of_another_spec_is_found_even_with_a_fitting_checksum(path: Path, tmp_path: Path) -> None:
    other = make_store(tmp_path / "other", [["d", "e"]], GRID)
    facts = read_sealed(next((other / "manifest").iterdir()))["shard"]
    unit = rewritten(path, "d", lambda content: content.update(shard={**facts, "file": content["shard"]["file"]}))
    shutil.copy(other / facts["file"], path / "shards" / f"{unit}.arrow")
    assert "has another schema than its store" in problem(path).what


def test_what_is_no_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there is no store at"):
        verify_store(tmp_path)


def test_a_verified_store_can_be_written_on(path: Path) -> None:
    verify_store(path)
    write_unit(StoreWriter(path, REGIONS), ["g"])
    assert verify_store(path).problems == []


# The folded manifest, and what can be told without reading the shards.


@pytest.fixture
def folded(path: Path) -> Path:
    fold(path)
    write_unit(StoreWriter(path, REGIONS), ["g"])
    return path


def test_a_folded_store_is_sound_and_counted_with_what_came_later(folded: Path) -> None:
    found = verify_store(folded)
    assert (found.problems, found.notes) == ([], [])
    assert (found.shards, found.records) == (3, 5)


@pytest.mark.parametrize("table", TABLES)
def test_a_flipped_bit_anywhere_in_a_table_of_the_index_is_found(folded: Path, table: str) -> None:
    [file] = (folded / "index").glob(f"{table}-*.arrow")
    size = file.stat().st_size
    for place in range(0, size, max(1, size // 60)):
        flip(file, place, place % 8)
        found = verify_store(folded, quick=True)
        assert [each.file for each in found.problems] == [f"index/{file.name}"], f"byte {place}"
        assert found.records == 1  # what lies beside the index is still looked at
        flip(file, place, place % 8)
    assert verify_store(folded).problems == []


def test_a_flipped_bit_anywhere_in_the_head_of_the_index_is_found(folded: Path) -> None:
    for place in range(0, (folded / "index.json").stat().st_size, 9):
        flip(folded / "index.json", place, place % 8)
        assert [each.file for each in verify_store(folded, quick=True).problems] == ["index.json"], f"byte {place}"
        flip(folded / "index.json", place, place % 8)


def test_a_missing_table_of_the_index_is_found(folded: Path) -> None:
    next((folded / "index").glob("keys-*")).unlink()
    assert "names a table that is missing" in problem(folded).what


def test_damage_to_a_shard_of_a_folded_unit_names_its_unit_and_images(folded: Path) -> None:
    entry = entry_of(folded, "a")
    flip(shard_of(folded, "a"), 200)
    found = problem(folded)
    assert found == Problem(entry.shard.file, "checksum differs: bytes were changed after the commit", 2)
    assert (found.keys, found.unit) == (["a", "c"], entry.unit)


def test_a_quick_look_finds_what_is_missing_or_cut_and_not_what_was_changed(path: Path) -> None:
    sound = verify_store(path, quick=True)
    assert (sound.problems, sound.shards, sound.records) == ([], 2, 4)
    flip(shard_of(path, "a"), 200)
    assert verify_store(path, quick=True).problems == []
    assert problem(path).keys == ["a", "c"]
    shard_of(path, "a").unlink()
    cut = shard_of(path, "d")
    size = cut.stat().st_size
    cut.write_bytes(cut.read_bytes()[:-1])
    found = {each.what: each.keys for each in verify_store(path, quick=True).problems}
    assert found == {"missing": ["a", "c"], f"{size - 1:,} bytes instead of {size:,}": ["d", "e"]}


def test_the_images_of_every_kind_of_problem_are_named(path: Path) -> None:
    rewritten(path, "d", lambda content: content["keys"].reverse())
    assert problem(path).keys == ["e", "d"]
    rewritten(path, "d", lambda content: content["keys"].reverse())
    rewritten(path, "f", lambda content: content["errors"][0].update(key="d"))
    assert [(each.keys, each.unit) for each in verify_store(path).problems] == [
        (["d"], entry.unit) for entry in open_store(path).entries if "d" in entry.all_keys()
    ]


def test_an_entry_that_a_killed_fold_left_beside_the_index_is_no_problem(path: Path) -> None:
    unit = entry_of(path, "d").unit
    data = (path / "manifest" / f"{unit}.json").read_bytes()
    fold(path)
    (path / "manifest" / f"{unit}.json").write_bytes(data)
    assert verify_store(path).problems == []
    assert list(open_store(path)).count("d") == 1


@pytest.mark.parametrize("work", [fold, compact])
def test_units_that_move_while_they_are_verified_are_no_problem(
    path: Path, work: Callable[[Path], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = storage.verify.entry_names
    moved: list[object] = []

    def names(place: Place) -> list[str]:
        found = original(place)
        if not moved:
            moved.append(work(path))
        return found

    monkeypatch.setattr(storage.verify, "entry_names", names)
    found = verify_store(path)
    assert moved and found.problems == [] and found.records == 4


def test_the_progress_is_told_in_bytes_up_to_all(folded: Path) -> None:
    told: list[tuple[int, int]] = []
    found = verify_store(folded, on_bytes=lambda done, total: told.append((done, total)))
    assert sorted(told) == told and told[-1] == (found.bytes, found.bytes)
