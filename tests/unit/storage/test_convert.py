"""A converted store holds what its source holds, in another format or number type; the source stays as it is."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from storage import GridRecord, Spec, SpecMismatchError, StoreError, StoreWriter, open_store, verify_store
from storage.codecs import cast, exact_dtype, record_dtype
from storage.compact import compact, fold
from storage.convert import convert, in_dtype, shard_bytes
from storage.store import FeatureStore
from tests.unit.storage.samples import (
    GRID,
    PATCHES,
    PIXELS,
    REGIONS,
    assert_same,
    contents,
    grid_record,
    make_store,
    partials,
    region_record,
    with_layout,
)
from tests.unit.storage.test_index import killed_everywhere

UNITS = [["b", "a", "d"], ["c", "é/图像"], ["f"]]
FAILED = ["a", "f"]
FORK = multiprocessing.get_context("fork")
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

SPECS = {
    **{f"regions {dtype}": with_layout(REGIONS, dtype=dtype) for dtype in ("float16", "float32", "bfloat16", "uint8")},
    **{f"grid {dtype}": with_layout(GRID, dtype=dtype) for dtype in ("float16", "float32", "bfloat16", "uint8")},
    **{f"patches {dtype}": with_layout(PATCHES, dtype=dtype) for dtype in ("float16", "uint8")},
    "patches without a class token": with_layout(PATCHES, without=("whole_image",)),
    "pixels": PIXELS,
    "class probabilities": with_layout(REGIONS, class_probs=5),
    "class probabilities in float32": with_layout(REGIONS, class_probs=5, probs_dtype="float32"),
    "fields left out": with_layout(REGIONS, without=("whole_image", "class_ids", "attribute_scores")),
    "boxes in fractions": with_layout(REGIONS, box_units="fractions"),
}


def exact(path: Path) -> FeatureStore:
    """A store at the precision of what it stores."""
    stored = open_store(path).spec.layout.dtype
    return open_store(path, exact_dtype(stored))


def assert_equal_stores(one: Path, other: Path) -> None:
    """Equal in all but format: keys, records, errors, what is noted of the units, spec and vocabulary."""
    left, right = exact(one), exact(other)
    assert left.spec.id == right.spec.id and left.vocabulary == right.vocabulary
    assert sorted(left) == sorted(right)
    for key in left:
        assert_same(right[key], left[key])
    assert {row.key: row for row in left.errors()} == {row.key: row for row in right.errors()}
    noted = [sorted(unit.facts["committed_at"] for unit in store.units) for store in (left, right)]
    assert noted[0] == noted[1]
    assert verify_store(other).problems == [] == verify_store(other).notes


def shard_contents(path: Path) -> list[bytes]:
    return sorted(contents(path / "shards").values())


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
def test_from_arrow_to_hdf5_to_an_archive_and_back_nothing_changes(tmp_path: Path, spec: Spec) -> None:
    StoreWriter(tmp_path / "0", spec, {"classes": ["cat"]})
    make_store(tmp_path / "0", UNITS, spec, FAILED)
    before = contents(tmp_path / "0")
    for number, format in enumerate(["hdf5", "arrow-zstd", "arrow"]):
        found = convert(tmp_path / str(number), tmp_path / str(number + 1), format)
        assert found.difference.same and found.difference.records == 4
        assert_equal_stores(tmp_path / "0", tmp_path / str(number + 1))
        units = open_store(tmp_path / str(number + 1)).units
        assert {unit.shard.format for unit in units if unit.shard} == {format}
    assert contents(tmp_path / "0") == before
    assert shard_contents(tmp_path / "3") == shard_contents(tmp_path / "0")


def test_pixels_become_no_features(tmp_path: Path) -> None:
    make_store(tmp_path / "one", UNITS, PIXELS)
    with pytest.raises(StoreError, match="pixels cannot be stored as float16: pixels are bytes, features never"):
        convert(tmp_path / "one", tmp_path / "other", "arrow", "float16")
    make_store(tmp_path / "patches", UNITS, PATCHES)
    with pytest.raises(StoreError, match="patches cannot be stored as bytes"):
        convert(tmp_path / "patches", tmp_path / "other", "arrow", "bytes")


def test_odd_values_keep_their_bits(tmp_path: Path) -> None:
    features = np.array([np.nan, -0.0, np.inf, -np.inf, 65504, 6e-8, 1, 0], np.float16)
    features.view(np.uint16)[0] |= 5  # a NaN with a payload of its own
    writer = StoreWriter(tmp_path / "0", GRID)
    with writer.unit(["odd"]) as unit:
        unit.append(GridRecord("odd", (1, 1), features.reshape(1, 1, 8)))
        unit.commit()
    for number, format in enumerate(["hdf5", "arrow-zstd", "arrow"]):
        assert convert(tmp_path / str(number), tmp_path / str(number + 1), format).difference.same
        assert open_store(tmp_path / str(number + 1))["odd"].features.tobytes() == features.tobytes()


def test_an_archive_is_smaller_and_gives_the_same_batches(tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path / "plain", GRID)
    with writer.unit(["x"]) as unit:
        for number in range(40):
            unit.append(GridRecord(str(number), (1, 1), np.full((9, 9, 8), number, np.float16)))
        unit.commit()
    found = convert(tmp_path / "plain", tmp_path / "archive", "arrow-zstd")
    assert found.bytes_after < found.bytes_before / 2
    assert found.bytes_before == shard_bytes(open_store(tmp_path / "plain"))
    assert found.bytes_after == sum(each.stat().st_size for each in (tmp_path / "archive" / "shards").iterdir())
    keys = ["39", "0", "17", "16", "0"]
    one, other = (open_store(tmp_path / name).batch(keys) for name in ("plain", "archive"))
    np.testing.assert_array_equal(one.values, other.values)


@pytest.mark.parametrize("spec", [REGIONS, GRID], ids=["regions", "grid"])
@pytest.mark.parametrize("to", ["float16", "float32", "bfloat16", "uint8"])
@pytest.mark.parametrize("stored", ["float16", "float32", "bfloat16", "uint8"])
def test_another_number_type_makes_another_spec_with_the_values_cast(
    tmp_path: Path, stored: str, to: str, spec: Spec
) -> None:
    make_store(tmp_path / "one", UNITS, with_layout(spec, dtype=stored), FAILED)
    found = convert(tmp_path / "one", tmp_path / "other", "arrow", to)
    one, other = exact(tmp_path / "one"), exact(tmp_path / "other")
    assert other.spec == with_layout(one.spec, dtype=to) and found.difference.same == (
        stored == to or (stored, to) == ("uint8", "float32")
    )
    assert found.difference.records == 4 and set(one) == set(other)
    for key in one:
        wanted = cast(one[key].features, record_dtype(to).name)
        if to == "uint8" != stored:  # 0 to 1, in steps of 1 / 255 at most
            np.testing.assert_allclose(other[key].features, wanted.astype(np.float32), atol=1 / 255)
        else:
            np.testing.assert_array_equal(other[key].features, wanted)
    assert found.difference.fields["features"].lowest_cosine > 0.999
    assert verify_store(tmp_path / "other").problems == []
    assert sorted(row.key for row in other.errors()) == FAILED


def test_a_value_that_does_not_fit_stops_the_conversion_in_one_line(tmp_path: Path) -> None:
    spec = with_layout(GRID, dtype="float32")
    writer = StoreWriter(tmp_path / "one", spec)
    with writer.unit(["a"]) as unit:
        unit.append(GridRecord("a", (1, 1), np.full((1, 1, 8), 1e6, np.float32)))
        unit.commit()
    with pytest.raises(StoreError, match=r"a feature of 1e\+06 does not fit float16; choose --dtype float32"):
        convert(tmp_path / "one", tmp_path / "other", "arrow", "float16")
    assert len(open_store(tmp_path / "other")) == 0 and partials(tmp_path) == []


def test_the_progress_and_the_last_job_are_told(tmp_path: Path) -> None:
    make_store(tmp_path / "one", UNITS, failed=FAILED)
    StoreWriter(tmp_path / "one", REGIONS).write_run({"planned": 6})
    told: list[tuple[int, int]] = []
    convert(tmp_path / "one", tmp_path / "other", "hdf5", on_records=lambda done, total: told.append((done, total)))
    assert sorted(told) == told and told[-1] == (4, 4) and len(told) == 3
    assert open_store(tmp_path / "other").run == {"planned": 6, "converted_from": str(tmp_path / "one")}


@pytest.mark.parametrize("prepare", [fold, compact], ids=["folded", "compacted"])
def test_stores_with_an_index_are_converted(tmp_path: Path, prepare: Callable[[Path], object]) -> None:
    path = make_store(tmp_path / "one", UNITS, failed=FAILED)
    prepare(path)
    convert(path, tmp_path / "other", "hdf5")
    assert_equal_stores(path, tmp_path / "other")


def test_the_same_call_again_changes_nothing(tmp_path: Path) -> None:
    make_store(tmp_path / "one", UNITS, failed=FAILED)
    convert(tmp_path / "one", tmp_path / "other", "hdf5")
    before = contents(tmp_path / "other")
    convert(tmp_path / "one", tmp_path / "other", "hdf5")
    assert contents(tmp_path / "other") == before


def test_what_was_committed_since_is_converted_by_the_same_call(tmp_path: Path) -> None:
    path = make_store(tmp_path / "one", UNITS, failed=FAILED)
    convert(path, tmp_path / "other", "hdf5")
    make_store(path, [["late", "broken"]], failed=["broken"])
    convert(path, tmp_path / "other", "hdf5")
    assert_equal_stores(path, tmp_path / "other")


def convert_until_killed(source: Path, out: Path, after: int) -> None:
    """Die by SIGKILL when so many records have been converted."""

    def told(done: int, _: int) -> None:
        if done >= after:
            os.kill(os.getpid(), signal.SIGKILL)

    convert(source, out, "hdf5", on_records=told)


def test_a_killed_conversion_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_store(tmp_path / "one", [[f"{unit}{row}" for row in range(3)] for unit in range(5)])
    process = FORK.Process(target=convert_until_killed, args=(path, tmp_path / "other", 7))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert len(open_store(tmp_path / "other")) == 9
    kept = contents(tmp_path / "other" / "shards")
    written: list[str] = []
    original = StoreWriter.unit

    def unit(self: StoreWriter, keys: Any) -> Any:
        written.append("unit")
        return original(self, keys)

    monkeypatch.setattr(StoreWriter, "unit", unit)
    convert(path, tmp_path / "other", "hdf5")
    assert len(written) == 2
    assert kept.items() <= contents(tmp_path / "other" / "shards").items()
    assert_equal_stores(path, tmp_path / "other")


def convert_beside(source: Path, fresh: Path) -> None:
    convert(source, fresh, "hdf5")


def test_a_conversion_killed_before_any_of_its_steps_can_be_repeated(tmp_path: Path) -> None:
    path = make_store(tmp_path / "one", UNITS[:2], failed=FAILED)
    before = contents(path)
    (tmp_path / "empty").mkdir()
    for fresh in killed_everywhere(tmp_path / "empty", tmp_path, partial(convert_beside, path)):
        convert(path, fresh, "hdf5")
        assert_equal_stores(path, fresh)
        assert partials(fresh) == []
    assert contents(path) == before


def test_a_store_is_not_converted_into_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_store(tmp_path / "one", UNITS)
    before = contents(path)
    monkeypatch.chdir(tmp_path)
    for out in (path, "one", f"file://{path}", tmp_path / "x" / ".." / "one"):
        with pytest.raises(StoreError, match="is the store to be converted; choose another --out folder"):
            convert(path, out, "hdf5")
    assert contents(path) == before


def test_a_store_of_another_spec_is_not_converted_into(tmp_path: Path) -> None:
    path = make_store(tmp_path / "one", UNITS)
    make_store(tmp_path / "other", [["x"]], GRID)
    with pytest.raises(SpecMismatchError, match="view: 'grid' in the store, 'regions' in this job"):
        convert(path, tmp_path / "other", "hdf5")


def test_a_copy_with_other_records_under_the_same_keys_is_noticed(tmp_path: Path) -> None:
    path = make_store(tmp_path / "one", [["a", "b"]])
    writer = StoreWriter(tmp_path / "other", REGIONS)
    with writer.unit(["a"]) as unit:
        unit.append(region_record("a", 3))
        unit.commit()
    assert len(region_record("a").boxes) != 3
    with pytest.raises(StoreError, match="other does not hold what .*one holds; delete it and convert again"):
        convert(path, tmp_path / "other", "hdf5")


@pytest.mark.parametrize("format", ["arrow", "hdf5", "arrow-zstd"])
def test_damage_is_not_copied_under_a_new_checksum(tmp_path: Path, format: str) -> None:
    path = make_store(tmp_path / "one", UNITS, GRID, FAILED, format)
    entry = next(entry for entry in open_store(path).entries if "c" in entry.keys)
    assert entry.shard is not None
    file = path / entry.shard.file
    data = bytearray(file.read_bytes())
    at = data.find(grid_record("c").features.tobytes()[:8]) if format != "arrow-zstd" else len(data) // 2
    data[at] ^= 1
    file.write_bytes(data)
    with pytest.raises(StoreError, match=f"{entry.shard.file}: checksum differs.*run `triptych repair` on it first"):
        convert(path, tmp_path / "other", "hdf5")
    assert "c" not in open_store(tmp_path / "other")


def test_an_unknown_format_or_dtype_is_refused(tmp_path: Path) -> None:
    path = make_store(tmp_path / "one", UNITS)
    with pytest.raises(StoreError, match="shard format 'zip' is not known; choose one of arrow, hdf5, arrow-zstd"):
        convert(path, tmp_path / "other", "zip")
    with pytest.raises(StoreError, match="stored dtype 'int4' is not known"):
        convert(path, tmp_path / "other", "arrow", "int4")
    assert not (tmp_path / "other").exists()


def test_a_record_without_its_whole_image_stays_without() -> None:
    record = region_record("a", 2, with_layout(REGIONS, without=("whole_image",)))
    found = in_dtype(record, "float32")
    assert found.whole_image is None and found.features.dtype == np.float32
    assert_same(in_dtype(found, "float16"), record)
