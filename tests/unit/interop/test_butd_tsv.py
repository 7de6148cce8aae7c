"""The TSV of bottom-up attention: what its script writes comes in, comes out byte for byte, and torn rows are told."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from storage import StoreError
from storage.interop.base import BadRow, ImportOptions
from storage.interop.butd_tsv import BUTD_TSV
from storage.spec import OPTIONAL
from tests.unit.interop.samples_text import DIM, b64, into_store, regions, store_of
from tests.unit.storage.samples import REGIONS, assert_same, region_record, with_layout

COLUMNS = ["image_id", "image_w", "image_h", "num_boxes", "boxes", "features"]


def write_as_upstream(path: Path, images: Sequence[tuple[int, int]]) -> Path:
    """Rows of (image id, boxes) of 640 x 480 images, as generate_tsv.py writes them."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, delimiter="\t", fieldnames=COLUMNS)
        for image_id, boxes in images:
            found = regions(image_id, boxes)
            row = {"image_id": image_id, "image_w": 640, "image_h": 480, "num_boxes": boxes}
            writer.writerow({**row, "boxes": b64(found["boxes"]), "features": b64(found["features"])})
    return path


def test_reads_what_the_script_writes(tmp_path):
    found = BUTD_TSV.read(write_as_upstream(tmp_path / "a.tsv", [(9, 3), (100, 0), (7, 2)]), ImportOptions())
    assert (found.view, found.layout.dim, found.layout.dtype) == ("regions", DIM, "float32")
    assert set(found.layout.without) == set(OPTIONAL) and found.layout.box_units == "pixels"
    rows = list(found.rows)
    assert [row.key for row in rows] == ["9", "100", "7"]
    assert rows[0].image_size == (480, 640)  # the file has the width first
    assert rows[0].features.tobytes() == regions(9, 3)["features"].tobytes()
    assert rows[0].boxes.tobytes() == regions(9, 3)["boxes"].tobytes()
    assert rows[1].features.shape == (0, DIM)
    assert rows[0].class_ids is None and rows[0].whole_image is None


def test_rows_come_one_by_one(tmp_path):
    path = write_as_upstream(tmp_path / "a.tsv", [(9, 3)] * 1 + [(i, 1) for i in range(20, 60)])
    rows = BUTD_TSV.read(path, ImportOptions()).rows
    assert iter(rows) is rows and next(rows).key == "9"


def test_comes_out_byte_for_byte(tmp_path):
    path = write_as_upstream(tmp_path / "a.tsv", [(9, 3), (100, 0), (7, 2)])
    store, bad = into_store(BUTD_TSV.read(path, ImportOptions()), tmp_path / "store")
    report = BUTD_TSV.write(store, tmp_path / "new" / "b.tsv")
    assert not bad and (report.records, report.files) == (3, 1) and "pixels" in report.notes[0]
    assert (tmp_path / "new" / "b.tsv").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16"])
def test_a_store_comes_back_to_the_last_bit(tmp_path, dtype):
    spec = with_layout(REGIONS, dtype=dtype, without=OPTIONAL)
    none = dict.fromkeys(OPTIONAL)
    records = [replace(region_record(key, spec=with_layout(REGIONS, dtype=dtype)), **none) for key in "abcde"]
    BUTD_TSV.write(store_of(records, spec, tmp_path / "store"), tmp_path / "b.tsv")
    found = BUTD_TSV.read(tmp_path / "b.tsv", ImportOptions())
    for row, record in zip(found.rows, records, strict=True):
        assert_same(replace(row, features=row.features.astype(dtype)), record)


def test_parts_of_several_gpus_are_one_file(tmp_path):
    write_as_upstream(tmp_path / "x.tsv.0", [(1, 2), (2, 3)])
    write_as_upstream(tmp_path / "x.tsv.1", [(3, 2), (1, 2)])  # key 1 again, the same
    (tmp_path / "readme.txt").write_text("not a part")
    rows = list(BUTD_TSV.read(tmp_path, ImportOptions()).rows)
    assert [row.key for row in rows] == ["1", "2", "3"]
    assert not any(isinstance(row, BadRow) for row in rows)


def test_a_key_with_two_values_keeps_the_first_and_tells(tmp_path):
    write_as_upstream(tmp_path / "x.tsv.0", [(1, 2)])
    write_as_upstream(tmp_path / "x.tsv.1", [(1, 3)])
    first, second = BUTD_TSV.read(tmp_path, ImportOptions()).rows
    assert len(first.boxes) == 2
    assert second == BadRow("1", "x.tsv.1, line 1", "the key came before with other values; the first is kept")


def test_the_torn_rows_of_coco_test2014_are_told(tmp_path):
    """A killed extractor leaves half a row; the resumed one writes on in the same line, and does the image again."""
    whole = write_as_upstream(tmp_path / "x", [(1, 2), (300104, 3), (147295, 2), (5, 2)]).read_bytes()
    one, torn, two, three = whole.splitlines(keepends=True)
    path = tmp_path / "test2014.tsv"
    path.write_bytes(one + torn[:-60] + two + torn + three + two[:-30])
    good = [row.key for row in BUTD_TSV.read(path, ImportOptions()).rows if not isinstance(row, BadRow)]
    bad = [row for row in BUTD_TSV.read(path, ImportOptions()).rows if isinstance(row, BadRow)]
    assert good == ["1", "300104", "5"]
    assert [(row.key, row.where) for row in bad] == [
        ("300104", "test2014.tsv, line 2"),
        ("147295", "test2014.tsv, line 5"),
    ]
    assert "11 tab-separated columns, wanted 6" in bad[0].message
    assert "features" in bad[1].message


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("image_id", "", "the key '' is empty"),
        ("image_w", "0", "image_w is '0', not a whole number from 1"),
        ("image_h", "480.0", "image_h is '480.0', not a whole number from 1"),
        ("num_boxes", "4", "boxes holds 48 bytes, (4, 4) float32 take 64"),
        ("num_boxes", "-3", "num_boxes is '-3', not a whole number from 0"),
        ("boxes", "%%%%", "boxes is not whole base64"),
        ("features", b64(np.zeros((3, 7), np.float32)), "features holds 84 bytes, (3, 12) float32 take 144"),
    ],
)
def test_a_row_that_cannot_be_read_is_told(tmp_path, field, value, message):
    row = write_as_upstream(tmp_path / "x", [(9, 3)]).read_text().rstrip().split("\t")
    row[COLUMNS.index(field)] = value
    path = write_as_upstream(tmp_path / "a.tsv", [(1, 2), (2, 2)])
    path.write_bytes(path.read_bytes() + ("\t".join(row) + "\r\n").encode())
    *_, bad = BUTD_TSV.read(path, ImportOptions()).rows
    assert isinstance(bad, BadRow) and message in bad.message
    assert (bad.key, bad.where) == ("" if field == "image_id" else "9", "a.tsv, line 3")


def test_other_files_are_refused_in_one_line(tmp_path, shared):
    lxmert = shared / "data" / "features" / "butd_lxmert_tsv" / "train2014_obj36.tsv"
    empty, noise = tmp_path / "empty.tsv", tmp_path / "noise.tsv"
    empty.touch()
    noise.write_bytes(np.random.default_rng(0).bytes(100_000))
    (tmp_path / "folder").mkdir()
    for path, message in [
        (lxmert, "10 tab-separated columns, wanted 6 (image_id, image_w"),
        (empty, "it has no rows"),
        (noise, "cannot be read in this format"),
        (tmp_path / "folder", r"holds no \*.tsv\* file"),
        (tmp_path / "absent.tsv", "there is no file"),
    ]:
        with pytest.raises(StoreError, match=message.replace("(", r"\(")) as error:
            BUTD_TSV.read(path, ImportOptions())
        assert "\n" not in str(error.value) and len(str(error.value)) < 400


@pytest.mark.parametrize("key", ["a\tb", "a\nb", 'a"b', " a", ""])
def test_a_key_that_csv_would_change_is_refused(tmp_path, key):
    record = replace(region_record("x", 2), key=key)
    with pytest.raises(StoreError, match="cannot stand in a line"):
        BUTD_TSV.write(store_of([record], REGIONS, tmp_path / "store"), tmp_path / "b.tsv")
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_sizes_must_be_known(tmp_path):
    record = replace(region_record("x", 2), image_size=(0, 0))
    with pytest.raises(StoreError, match="'x'.*size"):
        BUTD_TSV.write(store_of([record], REGIONS, tmp_path / "store"), tmp_path / "b.tsv")


def test_fractions_become_pixels_where_sizes_are_known(tmp_path):
    record = replace(region_record("x", 2), image_size=(100, 300))
    store = store_of([record], with_layout(REGIONS, box_units="fractions"), tmp_path / "store")
    BUTD_TSV.write(store, tmp_path / "b.tsv")
    row = next(BUTD_TSV.read(tmp_path / "b.tsv", ImportOptions()).rows)
    np.testing.assert_allclose(row.boxes, record.boxes * [300, 100, 300, 100], rtol=1e-6)


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "b.tsv").write_text("mine")
    with pytest.raises(StoreError, match="b.tsv exists"):
        BUTD_TSV.write(store_of([region_record("x", 2)], REGIONS, tmp_path / "store"), tmp_path / "b.tsv")
    assert (tmp_path / "b.tsv").read_text() == "mine"


def test_what_is_left_out_is_told(tmp_path):
    store = store_of([region_record("x", 2)], REGIONS, tmp_path / "store")
    notes = BUTD_TSV.write(store, tmp_path / "b.tsv").notes
    assert any("attribute_ids" in note and "whole_image" in note for note in notes)
