"""The TSV of LXMERT: a real file goes through a store and comes out byte for byte; torn rows and traps are told."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from storage import StoreError
from storage.interop.base import BadRow, ImportOptions
from storage.interop.lxmert_tsv import LXMERT_TSV
from tests.unit.interop.samples_text import DIM, b64, into_store, regions, store_of
from tests.unit.storage.samples import REGIONS, assert_same, region_record, with_layout

COLUMNS = ["img_id", "img_h", "img_w", "objects_id", "objects_conf", "attrs_id", "attrs_conf"]
COLUMNS += ["num_boxes", "boxes", "features"]


def upstream_row(img_id: str, seed: int, boxes: int, attributes: bool = True) -> dict[str, object]:
    found = regions(seed, boxes)
    return {
        "img_id": img_id,
        "img_h": 480,
        "img_w": 640,
        "objects_id": b64(found["ids"]),  # int64
        "objects_conf": b64(found["scores"]),
        "attrs_id": b64(found["ids"] % 400 * attributes),
        "attrs_conf": b64(found["scores"] * np.float32(attributes)),
        "num_boxes": boxes,
        "boxes": b64(found["boxes"]),
        "features": b64(found["features"]),
    }


def write_as_upstream(path: Path, rows: list[dict[str, object]]) -> Path:
    with path.open("w", newline="") as file:
        csv.DictWriter(file, delimiter="\t", fieldnames=COLUMNS).writerows(rows)
    return path


def test_a_real_file_comes_out_byte_for_byte(tmp_path, shared):
    path = shared / "data" / "features" / "butd_lxmert_tsv" / "train2014_obj36.tsv"
    found = LXMERT_TSV.read(path, ImportOptions())
    assert (found.layout.dim, found.layout.dtype, found.layout.without) == (2048, "float32", ("whole_image",))
    store, bad = into_store(found, tmp_path / "store")
    record = store["COCO_train2014_000000132417"]
    assert not bad and len(store) == 6 and record.image_size == (333, 500)
    assert record.class_ids.max() == 601 and record.attribute_ids.max() == 310
    assert float(record.features.max()) == pytest.approx(33.474, abs=1e-3)
    assert (record.boxes[:, 2] <= 500).all() and (record.boxes[:, 3] <= 333).all()
    assert LXMERT_TSV.write(store, tmp_path / "b.tsv").records == 6
    assert (tmp_path / "b.tsv").read_bytes() == path.read_bytes()


def test_reads_what_the_scripts_write(tmp_path):
    path = write_as_upstream(tmp_path / "a.tsv", [upstream_row("n/a-1", 1, 3), upstream_row("2", 2, 0)])
    row, empty = LXMERT_TSV.read(path, ImportOptions()).rows
    wanted = regions(1, 3)
    assert (row.key, row.image_size) == ("n/a-1", (480, 640))  # the file has the height first
    assert row.class_ids.dtype == np.int32 and row.class_ids.tolist() == wanted["ids"].tolist()
    for field, name in [("boxes", "boxes"), ("features", "features"), ("class_scores", "scores")]:
        assert getattr(row, field).tobytes() == wanted[name].tobytes()
    assert empty.features.shape == (0, DIM) and empty.attribute_ids.shape == (0,)


def test_comes_out_byte_for_byte(tmp_path):
    path = write_as_upstream(tmp_path / "a.tsv", [upstream_row("1", 1, 3), upstream_row("2", 2, 0)])
    store, _ = into_store(LXMERT_TSV.read(path, ImportOptions()), tmp_path / "store")
    LXMERT_TSV.write(store, tmp_path / "b.tsv")
    assert (tmp_path / "b.tsv").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_store_comes_back_to_the_last_bit(tmp_path, dtype):
    spec = with_layout(REGIONS, dtype=dtype, without=("whole_image",))
    made = [region_record(key, spec=with_layout(REGIONS, dtype=dtype)) for key in "abcde"]
    records = [replace(record, whole_image=None, attribute_ids=record.attribute_ids - 1) for record in made]  # -1: none
    LXMERT_TSV.write(store_of(records, spec, tmp_path / "store"), tmp_path / "b.tsv")
    for row, record in zip(LXMERT_TSV.read(tmp_path / "b.tsv", ImportOptions()).rows, records, strict=True):
        assert_same(replace(row, features=row.features.astype(dtype)), record)


def test_attributes_that_are_all_zero_are_kept_and_told(tmp_path):
    path = write_as_upstream(tmp_path / "a.tsv", [upstream_row("1", 1, 3, attributes=False)])
    found = LXMERT_TSV.read(path, ImportOptions())
    assert any("all zero" in note for note in found.notes)
    assert next(found.rows).attribute_ids.tolist() == [0, 0, 0]


def test_missing_attributes_are_zeros_as_upstream_writes_them(tmp_path):
    spec = with_layout(REGIONS, without=("attribute_ids", "attribute_scores"))
    record = replace(region_record("x", 2), attribute_ids=None, attribute_scores=None)
    report = LXMERT_TSV.write(store_of([record], spec, tmp_path / "store"), tmp_path / "b.tsv")
    assert any(note.startswith("zeros for attribute_ids and attribute_scores") for note in report.notes)
    row = next(LXMERT_TSV.read(tmp_path / "b.tsv", ImportOptions()).rows)
    assert row.attribute_ids.tolist() == [0, 0] and row.attribute_scores.tolist() == [0, 0]


def test_missing_classes_are_refused_by_name(tmp_path):
    spec = with_layout(REGIONS, without=("class_ids", "class_scores"))
    record = replace(region_record("x", 2), class_ids=None, class_scores=None)
    with pytest.raises(StoreError, match="lxmert-tsv needs class_ids, class_scores"):
        LXMERT_TSV.write(store_of([record], spec, tmp_path / "store"), tmp_path / "b.tsv")


def test_everything_twice_is_once(tmp_path):
    """The detectron2 extractor's resume appends all rows again."""
    rows = [upstream_row("1", 1, 3), upstream_row("2", 2, 1)]
    found = LXMERT_TSV.read(write_as_upstream(tmp_path / "a.tsv", rows + rows), ImportOptions())
    assert [row.key for row in found.rows] == ["1", "2"]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("objects_id", b64(np.zeros(2, np.int32)), "objects_id holds 8 bytes, (2,) int64 take 16"),
        ("attrs_id", b64(np.array([1, 1 << 40])), "attrs_id holds 1099511627776"),
        ("objects_conf", "", "objects_conf holds 0 bytes"),
        ("features", b64(np.zeros(2 * DIM, np.float32))[:-9], "features is not whole base64"),
    ],
)
def test_a_row_that_cannot_be_read_is_told(tmp_path, field, value, message):
    rows = [upstream_row("1", 1, 2), {**upstream_row("2", 2, 2), field: value}, upstream_row("3", 3, 2)]
    first, bad, last = LXMERT_TSV.read(write_as_upstream(tmp_path / "a.tsv", rows), ImportOptions()).rows
    assert (first.key, last.key) == ("1", "3")
    assert isinstance(bad, BadRow) and bad.key == "2" and message in bad.message


def test_pictures_are_refused(shared):
    with pytest.raises(StoreError, match="2 tab-separated columns, wanted 10"):
        LXMERT_TSV.read(shared / "data" / "features" / "vinvl_mini_tsv" / "train.tsv", ImportOptions())
