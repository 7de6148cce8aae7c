"""Entries are what makes units exist; refreshing finds those of other writers."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from storage import ErrorRow, StoreError
from storage.manifest import FOLDER, Entry, Manifest, ShardFacts, entry_path, read_entry
from tests.unit.storage.samples import error_row


def entry(unit: str) -> Entry:
    shard = ShardFacts(f"shards/{unit}.arrow", "arrow", 4711, "ab" * 16, 12)
    return Entry(unit, [f"{unit}-1", f"{unit}-2"], [error_row(f"{unit}-3")], shard, {"committed_at": 1.5})


@pytest.fixture
def store(tmp_path: Path) -> Path:
    (tmp_path / FOLDER).mkdir()
    return tmp_path


def test_an_entry_comes_back_from_its_dictionary_and_from_its_file(store: Path) -> None:
    assert Entry.from_dict(asdict(entry("a"))) == entry("a")
    Manifest(store).add(entry("a"))
    assert read_entry(entry_path(store / FOLDER, "a")) == entry("a")


def test_an_entry_without_a_shard_comes_back(store: Path) -> None:
    failed = Entry("a", [], [error_row("x")])
    Manifest(store).add(failed)
    assert Manifest(store).entries == {"a": failed}


def test_an_entrys_keys_are_those_of_records_then_those_of_failed_images() -> None:
    assert list(entry("a").all_keys()) == ["a-1", "a-2", "a-3"]


def test_entries_stand_in_order_of_their_units_whoever_wrote_them_first(store: Path) -> None:
    writer = Manifest(store)
    for unit in ("c", "a", "b"):
        writer.add(entry(unit))
    assert list(Manifest(store).entries) == ["a", "b", "c"]


def test_refreshing_returns_only_what_is_new(store: Path) -> None:
    mine, other = Manifest(store), Manifest(store)
    other.add(entry("b"))
    mine.add(entry("c"))
    assert mine.refresh() == [entry("b")]
    assert list(mine.entries) == ["b", "c"]
    assert mine.refresh() == []


def test_half_written_entries_do_not_exist(store: Path) -> None:
    (store / FOLDER / ".a.json~host~1~0.partial").write_bytes(b"{")
    assert Manifest(store).entries == {}


def test_a_damaged_entry_stops_the_opening_and_is_named(store: Path) -> None:
    Manifest(store).add(entry("a"))
    path = entry_path(store / FOLDER, "a")
    path.write_bytes(path.read_bytes().replace(b"4711", b"4712"))
    with pytest.raises(StoreError, match=r"manifest/a\.json is damaged .*triptych verify"):
        Manifest(store)


def test_an_error_row_keeps_its_text_as_it_is(store: Path) -> None:
    row = ErrorRow("ké", "s3://b/ké.jpg", "read", "missing", 'line one\nline "two"')
    Manifest(store).add(Entry("a", [], [row]))
    assert Manifest(store).entries["a"].errors == [row]
