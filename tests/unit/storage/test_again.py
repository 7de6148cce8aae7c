"""Images that failed may be tried again: the new outcome takes the error row's place, and until then the row stays."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import storage.writer
from storage import StoreWriter, open_store, verify_store
from storage.compact import compact, fold
from storage.convert import convert
from storage.manifest import Entry, committed_at
from tests.unit.storage.samples import REGIONS, assert_same, error_row, region_record, write_unit


def try_again(path: Path, good: list[str], bad: list[str], message: str = "found half an image") -> None:
    writer = StoreWriter(path, REGIONS)
    with writer.unit([*good, *bad], again=True) as unit:
        for key in good:
            unit.append(region_record(key))
        for key in bad:
            unit.fail(replace(error_row(key), message=message))
        unit.commit()


@pytest.fixture(params=["in the manifest", "folded"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    write_unit(StoreWriter(tmp_path / "store", REGIONS), ["a", "b", "c"], failed=["b", "c"])
    write_unit(StoreWriter(tmp_path / "store", REGIONS), ["d"], failed=["d"])
    if request.param == "folded":
        fold(tmp_path / "store")
    return tmp_path / "store"


def test_a_second_outcome_takes_the_place_of_the_error(path: Path) -> None:
    try_again(path, ["b"], ["c"], "still half an image")
    for _ in range(2):
        store = open_store(path)
        assert_same(store["b"], region_record("b"))
        assert sorted(store) == ["a", "b"]
        assert {row.key: row.message for row in store.errors()} == {
            "c": "still half an image",
            "d": "found half an image",
        }
        assert verify_store(path).problems == []
        fold(path)


def test_a_unit_of_just_the_failed_images_may_be_tried_any_number_of_times(path: Path) -> None:
    for message in ("second", "third"):
        try_again(path, [], ["d"], message)
        assert [row.message for row in open_store(path).errors() if row.key == "d"] == [message]
    try_again(path, ["d"], [])
    assert "d" in open_store(path)
    assert [row.key for row in open_store(path).errors()] == ["b", "c"]
    assert verify_store(path).problems == []


def test_two_that_try_again_at_once_make_one_record(path: Path) -> None:
    first, second = StoreWriter(path, REGIONS), StoreWriter(path, REGIONS)
    with first.unit(["b", "c"], again=True) as one, second.unit(["b", "d"], again=True) as other:
        for unit, keys in ((one, ["b", "c"]), (other, ["b", "d"])):
            for key in keys:
                unit.append(region_record(key))
        one.commit()
        other.commit()
    store = open_store(path)
    assert sorted(store) == ["a", "b", "c", "d"] and len(store) == 4
    assert store.errors() == []
    assert verify_store(path).problems == []


def test_conversion_and_compaction_take_what_counts(path: Path, tmp_path: Path) -> None:
    try_again(path, ["b"], ["c"], "still half an image")
    convert(path, tmp_path / "converted", "hdf5")
    compact(path)
    for each in (path, tmp_path / "converted"):
        store = open_store(each)
        assert sorted(store) == ["a", "b"]
        assert {row.key: row.message[:5] for row in store.errors()} == {"c": "still", "d": "found"}
        assert verify_store(each).problems == []


def test_a_record_in_two_units_is_still_damage(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage.writer.Catalog, "find", lambda self, keys: np.full(len(keys), -1))
    try_again(path, ["a"], [])
    monkeypatch.undo()
    assert any("elsewhere" in problem.what for problem in verify_store(path).problems)


def test_without_asking_failed_images_stay_failed(path: Path) -> None:
    write_unit(StoreWriter(path, REGIONS), ["b", "e"])
    assert sorted(open_store(path)) == ["a", "e"]


def test_a_senseless_time_of_a_commit_is_none() -> None:
    for facts in ({}, {"committed_at": "noon"}, {"committed_at": None}, {"committed_at": [1]}):
        assert committed_at(Entry("u", [], [], None, facts)) == 0.0
    assert committed_at(Entry("u", [], [], None, {"committed_at": 5})) == 5.0
