"""Stores that version 1 of the format wrote are read, verified and converted as they are, and can be written on."""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from storage import Record, RegionRecord, Spec, SpecMismatchError, StoreWriter, open_store, verify_store
from storage.atomic import read_sealed
from storage.compact import compact, fold
from storage.convert import convert
from storage.repair import repair_store
from tests.unit.storage.samples import (
    GRID,
    REGIONS,
    assert_same,
    contents,
    error_row,
    grid_record,
    record_of,
    with_layout,
    write_unit,
)

FIXTURES = Path(__file__).parents[2] / "fixtures" / "store_v1"
SPECS = {
    "regions": replace(with_layout(REGIONS, class_probs=3), model={"name": "fixture"}),
    "grid": replace(with_layout(GRID, dtype="float32"), model={"name": "fixture"}),
}
RECORDS, FAILED = {"b", "d", "c", "e/é"}, {"a", "broken"}


def recorded(key: str, spec: Spec) -> Record:
    """The record of this key as the fixtures' writer made it; its image size was drawn before its arrays."""
    if spec.view == "grid":
        return grid_record(key, spec=spec)
    rng = np.random.default_rng(zlib.crc32(key.encode()))
    count = int(rng.integers(0, 7))
    return RegionRecord(
        key,
        image_size=(int(rng.integers(1, 5000)), int(rng.integers(1, 5000))),
        boxes=rng.random((count, 4), np.float32),
        features=rng.random((count, 8)).astype(np.float16),
        whole_image=rng.random(8).astype(np.float16),
        class_ids=rng.integers(0, 1600, count).astype(np.int32),
        class_scores=rng.random(count, np.float32),
        attribute_ids=rng.integers(-1, 400, count).astype(np.int32),
        attribute_scores=rng.random(count, np.float32),
        class_probs=rng.random((count, 3)).astype(np.float16),
    )


@pytest.fixture(params=SPECS)
def view(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def copy(view: str, tmp_path: Path) -> Path:
    return shutil.copytree(FIXTURES / view, tmp_path / "store")


@pytest.fixture(autouse=True, scope="module")
def _fixtures_stay_as_they_are() -> Iterator[None]:
    before = contents(FIXTURES)
    assert len(before) == 16
    yield
    assert contents(FIXTURES) == before


def assert_holds(path: Path, spec: Spec, new: frozenset[str] = frozenset()) -> None:
    store = open_store(path)
    assert store.spec.id == spec.id
    assert set(store) == RECORDS | new
    for key in RECORDS:
        assert_same(store[key], recorded(key, spec))
    for key in new:
        assert_same(store[key], record_of(key, spec))
    assert store.batch(sorted(RECORDS)).keys == sorted(RECORDS)
    assert sorted(store.errors(), key=lambda row: row.key) == [error_row(key) for key in sorted(FAILED)]
    found = verify_store(path)
    assert (found.problems, found.records) == ([], len(store))


def version(path: Path) -> int:
    return int(read_sealed(path / "store.json")["format_version"])


def test_a_store_of_version_1_is_read_and_verified_where_it_lies(view: str) -> None:
    assert version(FIXTURES / view) == 1
    assert_holds(FIXTURES / view, SPECS[view])
    store = open_store(FIXTURES / view)
    assert all(unit.shard is None or unit.shard.layouts is None for unit in store.units)
    assert store.run


def test_reading_and_verifying_leave_its_version(copy: Path, view: str) -> None:
    before = contents(copy)
    assert_holds(copy, SPECS[view])
    repair_store(copy)
    assert contents(copy) == before and version(copy) == 1


def test_writing_into_it_makes_it_version_2_and_keeps_everything(copy: Path, view: str) -> None:
    before = contents(copy)
    writer = StoreWriter(copy, SPECS[view])
    assert version(copy) == 2
    head = [read_sealed(path / "store.json") for path in (FIXTURES / view, copy)]
    assert head[1] == {**head[0], "format_version": 2}
    assert writer.done([*sorted(RECORDS | FAILED), "x"]).tolist() == [True] * 6 + [False]
    write_unit(writer, ["b", "new"])
    assert_holds(copy, SPECS[view], frozenset({"new"}))
    after = contents(copy)
    assert {name: after[name] for name in before if name != "store.json"} == {
        name: data for name, data in before.items() if name != "store.json"
    }


def test_a_writer_of_another_spec_leaves_its_version(copy: Path, view: str) -> None:
    before = contents(copy)
    with pytest.raises(SpecMismatchError):
        StoreWriter(copy, with_layout(SPECS[view], dtype="bfloat16"))
    assert contents(copy) == before


@pytest.mark.parametrize("format", ["arrow", "hdf5", "arrow-zstd"])
def test_it_is_converted_into_every_format(copy: Path, view: str, format: str, tmp_path: Path) -> None:
    before = contents(copy)
    assert convert(copy, tmp_path / "out", format).difference.same
    assert_holds(tmp_path / "out", SPECS[view])
    assert version(tmp_path / "out") == 2 and contents(copy) == before


def test_a_shard_written_again_has_the_bytes_that_version_1_wrote(copy: Path, view: str, tmp_path: Path) -> None:
    convert(copy, tmp_path / "out", "arrow")
    found, wanted = (sorted(contents(path / "shards").values()) for path in (tmp_path / "out", copy))
    assert found == wanted


def test_folding_and_compacting_keep_its_records(copy: Path, view: str) -> None:
    early = open_store(copy)
    assert fold(copy) == 3
    assert_holds(copy, SPECS[view])
    assert version(copy) == 2
    compact(copy)
    assert_holds(copy, SPECS[view])
    assert len(open_store(copy).units) == 1
    for key in early:
        assert_same(early[key], recorded(key, SPECS[view]))


def test_a_damaged_index_over_its_shards_is_made_anew(copy: Path, view: str) -> None:
    fold(copy)
    write_unit(StoreWriter(copy, SPECS[view]), ["new"])
    (copy / "index.json").write_bytes(b"x")
    repair_store(copy)
    store = open_store(copy)
    assert set(store) == {*RECORDS, "new"} and verify_store(copy).problems == []
    for key in RECORDS:
        assert_same(store[key], recorded(key, SPECS[view]))
    assert_same(store["new"], record_of("new", SPECS[view]))
