"""Detections as COCO has them: pycocotools reads both files, boxes and ids are the store's, and nothing is made up."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from storage import FeatureStore, StoreError, StoreWriter, open_store
from storage.interop.coco import image_ids, write_detections
from tests.unit.storage.samples import GRID, REGIONS, make_store, region_record, with_layout, write_unit

COCO_KEYS = ["val2014/COCO_val2014_000000000042", "val2014/COCO_val2014_000000000009"]


def store_of(path: Path, keys: list[str], names: list[str] | None = None) -> FeatureStore:
    write_unit(StoreWriter(path, REGIONS, {"classes": names} if names else {}), keys)
    return open_store(path)


def written(store: FeatureStore, out: Path, **more: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    write_detections(store, out, **more)
    return json.loads((out / "instances.json").read_text()), json.loads((out / "detections.json").read_text())


def test_pycocotools_reads_both_files(tmp_path: Path) -> None:
    tools = pytest.importorskip("pycocotools.coco")
    store = store_of(tmp_path / "store", COCO_KEYS, [f"thing {number}" for number in range(1600)])
    write_detections(store, tmp_path / "out")
    truth = tools.COCO(str(tmp_path / "out" / "instances.json"))
    found = truth.loadRes(str(tmp_path / "out" / "detections.json"))
    assert sorted(truth.getImgIds()) == [9, 42]
    for key, number in zip(COCO_KEYS, (42, 9), strict=True):
        record, image = store[key], truth.loadImgs(number)[0]
        assert (image["height"], image["width"]) == record.image_size
        rows = found.loadAnns(found.getAnnIds(number))
        assert len(rows) == len(record.boxes) > 0
        boxes = np.array([row["bbox"] for row in rows])
        np.testing.assert_allclose(boxes[:, :2], record.boxes[:, :2], atol=6e-4)
        np.testing.assert_allclose(boxes[:, :2] + boxes[:, 2:], record.boxes[:, 2:], atol=1.1e-3)
        np.testing.assert_allclose([row["score"] for row in rows], record.class_scores, atol=6e-7)
        names = [truth.loadCats(row["category_id"])[0]["name"] for row in rows]
        assert names == [f"thing {kind}" for kind in record.class_ids]


def test_an_empty_store_is_not_exported(tmp_path: Path) -> None:
    StoreWriter(tmp_path / "store", REGIONS)
    with pytest.raises(StoreError, match="has no record yet"):
        write_detections(open_store(tmp_path / "store"), tmp_path / "out")


def test_a_score_that_is_no_number_is_refused(tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path / "store", REGIONS)
    record = region_record("a")
    assert record.class_scores is not None
    with writer.unit(["a"]) as unit:
        unit.append(replace(record, class_scores=np.full_like(record.class_scores, np.nan)))
        unit.commit()
    with pytest.raises(StoreError, match="'a' has a score that is no number"):
        write_detections(open_store(tmp_path / "store"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_two_files_hold_the_same_boxes(tmp_path: Path) -> None:
    instances, results = written(store_of(tmp_path / "store", ["a", "b"]), tmp_path / "out")
    rows = [{name: row[name] for name in results[0]} for row in instances["annotations"]]
    assert rows == results
    assert [row["id"] for row in instances["annotations"]] == list(range(1, len(results) + 1))
    used = {row["category_id"] for row in results}
    assert used <= {row["id"] for row in instances["categories"]} and max(used) == len(instances["categories"])


@pytest.mark.parametrize(
    ("keys", "ids"),
    [
        (COCO_KEYS, [42, 9]),
        (["000000000042", "7"], [42, 7]),
        (["b/cat", "a/dog"], [2, 1]),
        (["train/7", "val/7"], [1, 2]),  # the number alone would not tell them apart
        (["7", "cat"], [1, 2]),
        (["9" * 20, "7"], [2, 1]),
        (["#a", "#b"], [1, 2]),
    ],
)
def test_image_ids_are_the_keys_numbers_or_count_them(keys: list[str], ids: list[int], tmp_path: Path) -> None:
    found, told = image_ids(store_of(tmp_path / "store", keys))
    assert found == dict(zip(keys, ids, strict=True))
    assert told == (ids[0] == 42)


def test_file_names_are_the_real_ones_where_they_are_told(tmp_path: Path) -> None:
    store = store_of(tmp_path / "store", ["a", "b"])
    made_up, _ = written(store, tmp_path / "one")
    told, _ = written(store, tmp_path / "two", files={"a": "a.png", "b": "sub/b.jpeg", "c": "c.jpg"})
    assert [row["file_name"] for row in made_up["images"]] == ["a.jpg", "b.jpg"]
    assert [row["file_name"] for row in told["images"]] == ["a.png", "sub/b.jpeg"]
    with pytest.raises(StoreError, match="'b' is not among the images"):
        write_detections(store, tmp_path / "three", {"a": "a.png"})
    assert not (tmp_path / "three").exists()


def test_fractions_become_pixels(tmp_path: Path) -> None:
    spec = with_layout(REGIONS, box_units="fractions")
    writer = StoreWriter(tmp_path / "store", spec)
    record = replace(region_record("a", boxes=1), image_size=(100, 200), boxes=np.array([[0.1, 0.2, 0.5, 1]], "f4"))
    with writer.unit(["a"]) as unit:
        unit.append(record)
        unit.commit()
    _, [row] = written(open_store(tmp_path / "store"), tmp_path / "out")
    assert row["bbox"] == pytest.approx([20, 20, 80, 80])


def test_what_cannot_be_said_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(StoreError, match="holds regions, this store holds grid"):
        write_detections(open_store(make_store(tmp_path / "grid", [["a"]], GRID)), out)
    bare = with_layout(REGIONS, without=("class_ids", "class_scores"))
    with pytest.raises(StoreError, match="needs class_ids, class_scores"):
        write_detections(open_store(make_store(tmp_path / "bare", [["a"]], bare)), out)
    with pytest.raises(StoreError, match="and the store names 2"):
        write_detections(store_of(tmp_path / "short", ["a", "b"], ["cat", "dog"]), out)
    assert not out.exists()
    write_detections(store_of(tmp_path / "store", ["a"]), out)
    with pytest.raises(StoreError, match="exists and is not an empty folder"):
        write_detections(open_store(tmp_path / "store"), out)
