"""Entries are what makes units exist; refreshing finds those of other writers."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from storage import ErrorRow, StoreError
from storage.catalog import Catalog
from storage.manifest import FOLDER, Entry, ShardFacts, entry_file, read_entry, write_entry
from storage.places import Folder
from tests.unit.storage.samples import error_row


def entry(unit: str) -> Entry:
    shard = ShardFacts(f"shards/{unit}.arrow", "arrow", 4711, "ab" * 16, 12)
    return Entry(unit, [f"{unit}-1", f"{unit}-2"], [error_row(f"{unit}-3")], shard, {"committed_at": 1.5})


@pytest.fixture
def place(tmp_path: Path) -> Folder:
    (tmp_path / FOLDER).mkdir()
    return Folder(tmp_path)


def units(catalog: Catalog) -> list[str]:
    return [each.unit for each in catalog.all_units()]


def test_an_entry_comes_back_from_its_dictionary_and_from_its_file(place: Folder) -> None:
    assert Entry.from_dict(asdict(entry("a"))) == entry("a")
    write_entry(place, entry("a"))
    assert read_entry(place, "a") == entry("a")


def test_an_entry_without_a_shard_comes_back(place: Folder) -> None:
    failed = Entry("a", [], [error_row("x")])
    write_entry(place, failed)
    assert list(Catalog(place).entries()) == [failed]


def test_an_entrys_keys_are_those_of_records_then_those_of_failed_images() -> None:
    assert list(entry("a").all_keys()) == ["a-1", "a-2", "a-3"]


def test_entries_stand_in_order_of_their_units_whoever_wrote_them_first(place: Folder) -> None:
    for unit in ("c", "a", "b"):
        write_entry(place, entry(unit))
    assert units(Catalog(place)) == ["a", "b", "c"]


def test_refreshing_adds_what_is_new_behind_what_is_known(place: Folder) -> None:
    mine = Catalog(place)
    write_entry(place, entry("c"))
    mine.refresh()
    write_entry(place, entry("b"))
    assert mine.position("b-1") == -1
    mine.refresh()
    mine.refresh()
    assert units(mine) == ["c", "b"]
    assert list(mine.keys()) == ["c-1", "c-2", "b-1", "b-2"]
    assert mine.find(["b-1", "c-2", "c-3"]).tolist() == [2, 1, -1]
    assert mine.done(["b-1", "c-3", "x"]).tolist() == [True, True, False]


def test_half_written_entries_do_not_exist(place: Folder) -> None:
    (place.root / FOLDER / ".a.json~host~1~0.partial").write_bytes(b"{")
    assert units(Catalog(place)) == []


def test_a_damaged_entry_stops_the_opening_and_is_named(place: Folder) -> None:
    write_entry(place, entry("a"))
    path = place.root / entry_file("a")
    path.write_bytes(path.read_bytes().replace(b"4711", b"4712"))
    with pytest.raises(StoreError, match=r"manifest/a\.json is damaged .*triptych verify"):
        Catalog(place)


def test_an_error_row_keeps_its_text_as_it_is(place: Folder) -> None:
    row = ErrorRow("ké", "s3://b/ké.jpg", "read", "missing", 'line one\nline "two"')
    write_entry(place, Entry("a", [], [row]))
    assert list(Catalog(place).errors()) == [row]
