"""Parquet exports: `datasets` gets the right types, shapes and values; files are whole, and nothing stands twice."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from storage import StoreError, StoreWriter, open_store
from storage.interop import parquet
from storage.interop.parquet import exported, write_parquet
from storage.store import FeatureStore
from tests.unit.storage.samples import PIXELS, REGIONS, VIEWS, make_store, partials, with_layout, write_unit

os.environ.setdefault("HF_DATASETS_OFFLINE", "1")  # read when datasets is imported
datasets = pytest.importorskip("datasets")
UNITS = [["empty", "a/b"], ["0042", "c", "d"]]
KINDS = [
    ("regions", {"class_probs": 3}, "float16"),
    ("regions", {"dtype": "float32", "without": ("whole_image", "attribute_ids", "attribute_scores")}, "float32"),
    ("regions", {"dtype": "bfloat16", "class_probs": 2, "probs_dtype": "float32"}, "float32"),
    ("grid", {"dtype": "uint8"}, "float16"),
    ("grid", {}, "float16"),
    ("patches", {"dtype": "float32"}, "float32"),
]


def load(out: Path, cache: Path) -> Any:
    datasets.disable_progress_bars()
    return datasets.load_dataset(str(out), split="train", cache_dir=str(cache))


@pytest.fixture
def several_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two images to a file, one to a row group."""
    monkeypatch.setattr(parquet._Plan, "of", classmethod(lambda cls, store: cls(store, 2, 1)))


@pytest.mark.parametrize(("view", "changes", "dtype"), KINDS)
@pytest.mark.usefixtures("several_files")
def test_datasets_gets_every_field_with_its_type_shape_and_values(
    view: str, changes: dict[str, Any], dtype: str, tmp_path: Path
) -> None:
    spec = with_layout(VIEWS[view], **changes)
    store = open_store(make_store(tmp_path / "store", UNITS, spec))
    write_parquet(store, tmp_path / "out")
    assert view != "regions" or not len(store["empty"].features)
    found = load(tmp_path / "out", tmp_path / "cache")
    assert len(list((tmp_path / "out" / "data").iterdir())) > 1
    for column, kind in wanted_kinds(store, dtype).items():
        assert str(found.features[column]) == kind
    assert found["key"] == list(store)
    for row, record in zip(found.with_format("numpy"), store.values(), strict=True):
        assert (row["height"], row["width"]) == record.image_size
        for name in found.features.keys() - {"key", "height", "width"}:
            values = np.asarray(getattr(record, name), np.float64)
            shape = (0,) if not values.size else values.shape  # of an image without boxes `datasets` keeps no width
            assert row[name].shape == shape, name
            np.testing.assert_array_equal(row[name].reshape(values.shape), values, name)


def wanted_kinds(store: FeatureStore, dtype: str) -> dict[str, str]:
    layout, row = store.spec.layout, f"List(Value('{dtype}'), length=8)"
    found = {"key": "Value('string')", "height": "Value('int32')", "features": f"List(List({row}))"}
    if store.spec.view == "regions":
        boxes = "List(List(Value('float32'), length=4))"
        found |= {"features": f"List({row})", "boxes": boxes, "class_ids": "List(Value('int32'))"}
    if layout.class_probs:
        found["class_probs"] = f"List(List(Value('{layout.probs_dtype}'), length={layout.class_probs}))"
    if "whole_image" in store.spec.carried:
        found["whole_image"] = row
    return found


def test_pixels_are_images_of_the_same_pixels(tmp_path: Path) -> None:
    store = open_store(make_store(tmp_path / "store", UNITS, PIXELS))
    write_parquet(store, tmp_path / "out")
    found = load(tmp_path / "out", tmp_path / "cache")
    assert isinstance(found.features["image"], datasets.Image)
    for row, record in zip(found, store.values(), strict=True):
        np.testing.assert_array_equal(np.asarray(row["image"]), record.features)


def named_store(path: Path, classes: int, more: Sequence[str] = ()) -> FeatureStore:
    names = {"classes": [*(f"thing {number}" for number in range(classes)), *more]}
    write_unit(StoreWriter(path, REGIONS, names), ["a", "b"])
    return open_store(path)


def test_classes_come_with_their_names(tmp_path: Path) -> None:
    store = named_store(tmp_path / "store", 1600)
    write_parquet(store, tmp_path / "out")
    found = load(tmp_path / "out", tmp_path / "cache")
    labels = found.features["class_ids"].feature
    ids = store["a"].class_ids.tolist()
    assert ids and found[0]["class_ids"] == ids
    assert labels.int2str(found[0]["class_ids"]) == [f"thing {number}" for number in ids]


def test_names_that_are_not_unique_are_left_to_the_store(tmp_path: Path) -> None:
    store = named_store(tmp_path / "store", 1600, ["thing 7"])
    write_parquet(store, tmp_path / "out")
    found = load(tmp_path / "out", tmp_path / "cache")
    assert str(found.features["class_ids"]) == "List(Value('int32'))"
    assert found[0]["class_ids"] == store["a"].class_ids.tolist()


def test_a_vocabulary_that_is_too_short_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="names 2; it belongs to another detector"):
        write_parquet(named_store(tmp_path / "store", 2), tmp_path / "out")
    assert [each.name for each in (tmp_path / "out").iterdir()] == [".unfinished"]
    assert not list((tmp_path / "out" / ".unfinished").iterdir())


@pytest.mark.usefixtures("several_files")
def test_a_second_export_writes_what_is_missing_and_nothing_else(tmp_path: Path) -> None:
    store = open_store(make_store(tmp_path / "store", UNITS))
    report = write_parquet(store, tmp_path / "out")
    first, second, *rest = sorted((tmp_path / "out" / "data").iterdir())
    assert report.files == 2 + len(rest)
    before, time = second.read_bytes(), first.stat().st_mtime_ns
    second.unlink()
    write_parquet(store, tmp_path / "out")
    assert second.read_bytes() == before
    assert first.stat().st_mtime_ns == time
    assert pq.ParquetFile(first).num_row_groups == 2


def test_the_size_of_an_image_decides_how_many_go_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(make_store(tmp_path / "store", UNITS))
    plan = parquet._Plan.of(store)
    assert plan.per_file > plan.per_group > len(store)
    monkeypatch.setattr(parquet, "FILE_BYTES", 1)
    assert [list(parquet._Plan.of(store).positions(number)) for number in (0, 4)] == [[0], [4]]
    assert len(parquet._Plan.of(store).paths(tmp_path)) == 5


@pytest.mark.usefixtures("several_files")
def test_an_export_that_stops_leaves_whole_files_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(make_store(tmp_path / "store", UNITS))
    table, calls = parquet._table, iter(range(3))
    monkeypatch.setattr(parquet, "_table", lambda *given: table(*given) if next(calls, None) is not None else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_parquet(store, tmp_path / "out")
    assert [each.name for each in (tmp_path / "out").iterdir()] == [".unfinished"]  # a part is not loaded as the whole
    files = list((tmp_path / "out" / ".unfinished").iterdir())
    assert len(files) == 1 and not partials(tmp_path)
    assert pq.read_table(files[0]).num_rows
    assert not exported(store, tmp_path / "out")
    monkeypatch.setattr(parquet, "_table", table)
    assert write_parquet(store, tmp_path / "out").records == len(load(tmp_path / "out", tmp_path / "cache"))
    assert [each.name for each in (tmp_path / "out").iterdir()] == ["data"] and exported(store, tmp_path / "out")


def test_another_export_is_not_mixed_in(tmp_path: Path) -> None:
    store = open_store(make_store(tmp_path / "store", UNITS))
    write_parquet(store, tmp_path / "out")
    other = open_store(make_store(tmp_path / "other", [["z"]]))
    with pytest.raises(StoreError, match="holds images of another store, or other ones"):
        write_parquet(other, tmp_path / "out")
    (tmp_path / "out" / "data" / "train-00000-of-00001.parquet").rename(tmp_path / "out" / "data" / "more.parquet")
    with pytest.raises(StoreError, match="more.parquet is of another export"):
        write_parquet(store, tmp_path / "out")
    (tmp_path / "bad" / "data").mkdir(parents=True)
    (tmp_path / "bad" / "data" / "train-00000-of-00001.parquet").write_bytes(b"PAR1")
    with pytest.raises(StoreError, match="cannot be read"):
        write_parquet(store, tmp_path / "bad")


def test_an_empty_store_is_not_exported(tmp_path: Path) -> None:
    StoreWriter(tmp_path / "store", REGIONS)
    with pytest.raises(StoreError, match="has no record yet"):
        write_parquet(open_store(tmp_path / "store"), tmp_path / "out")


def test_a_file_says_what_made_its_features(tmp_path: Path) -> None:
    store = open_store(make_store(tmp_path / "store", UNITS))
    write_parquet(store, tmp_path / "out")
    [path] = (tmp_path / "out" / "data").iterdir()
    assert json.loads(pq.read_schema(path).metadata[b"triptych.spec"]) == store.spec.to_dict()
