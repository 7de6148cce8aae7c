"""mcan-npz: x is transposed, names keep .jpg, and nothing about the layout is guessed."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from storage import FeatureLayout, GridRecord, RegionRecord, StoreError
from storage.codecs import cast
from storage.interop.base import Import, ImportOptions
from storage.interop.mcan import MCAN_NPZ
from tests.unit.interop.samples_npz import (
    EVERYTHING,
    WIDTH,
    arrays_of,
    assert_same_arrays,
    boxes,
    numbers,
    real_rows,
    region_record,
    rows_of,
    store_from,
    store_of,
    tear,
    without,
)
from tests.unit.storage.samples import assert_same, contents

PLAIN = FeatureLayout(WIDTH, "float32", without=without())
NAME = "COCO_val2014_000000262148"


def upstream(folder: Path, name: str, features: np.ndarray, **changes: object) -> Path:
    """A file as bottom-up-attention's tools/extract_feat.py writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    path, count = folder / f"{name}.jpg.npz", len(features)
    sized = {"bbox": boxes(count), "num_bbox": count, "image_h": 480, "image_w": 640}
    np.savez_compressed(path, **{"x": np.transpose(features), **sized, **changes})  # type: ignore[arg-type]
    return path


def read(folder: Path) -> Import:
    return MCAN_NPZ.read(folder, ImportOptions())


def test_reads_a_file_as_upstream_writes_it(tmp_path):
    features = numbers(3, WIDTH)
    upstream(tmp_path, NAME, features)
    found = read(tmp_path)
    records, bad = rows_of(found)
    assert (found.view, found.layout, bad) == ("regions", PLAIN, [])
    assert_same(records[NAME], RegionRecord(NAME, (480, 640), boxes(3), features))
    assert any("pixels" in note for note in found.notes)


def test_other_members_are_not_looked_at_and_num_bbox_may_be_absent(tmp_path):
    probs = {"cls_prob": numbers(1, 1601), "attr_prob": numbers(1, 401)}  # a fork of upstream adds them
    upstream(tmp_path, "a", numbers(1, WIDTH), **probs)
    upstream(tmp_path, "b", numbers(0, WIDTH))
    np.savez(tmp_path / "c.jpg.npz", x=numbers(WIDTH, 2), bbox=boxes(2), image_h=9, image_w=8)
    records, bad = rows_of(read(tmp_path))
    assert [(key, len(record.features)) for key, record in records.items()] == [("a", 1), ("b", 0), ("c", 2)]
    assert not bad and records["c"].image_size == (9, 8)


def test_a_folder_has_one_dtype_that_of_its_first_file(tmp_path):
    upstream(tmp_path, "a", numbers(2, WIDTH).astype("f2"))
    upstream(tmp_path, "b", numbers(2, WIDTH))
    found = read(tmp_path)
    records, bad = rows_of(found)
    assert found.layout.dtype == "float16" and records.keys() == {"a"}
    assert bad[0].message == "it differs from the first file (dtype: 'float32', not 'float16')."


def test_a_store_comes_back_to_the_last_bit(tmp_path):
    records = [region_record(f"train2014/COCO_{n}", n, PLAIN) for n in (0, 1, 2, 7)]
    report = MCAN_NPZ.write(store_of(tmp_path / "store", records, PLAIN), tmp_path / "out")
    again, bad = rows_of(read(tmp_path / "out"))
    assert (report.records, report.files, bad) == (4, 4, [])
    for record in records:
        assert_same(again[record.key], record)


def test_files_come_back_equal_under_their_names(tmp_path):
    for number, split in enumerate(("train2014", "val2014")):
        upstream(tmp_path / "in" / split, f"COCO_{split}_{number:012d}", numbers(number + 2, WIDTH, seed=number))
    MCAN_NPZ.write(store_from(tmp_path / "store", read(tmp_path / "in")), tmp_path / "out")
    found, wanted = arrays_of(tmp_path / "out"), arrays_of(tmp_path / "in")
    assert list(found) == list(wanted)
    for name in wanted:
        assert_same_arrays(found[name], wanted[name])
        assert found[name]["x"].flags.f_contiguous and wanted[name]["x"].flags.f_contiguous


def test_real_features_pass_unchanged(tmp_path, shared):
    rows = real_rows(shared)
    for row in rows:
        sizes = {"image_h": row["img_h"], "image_w": row["img_w"]}
        upstream(tmp_path / "in", str(row["img_id"]), row["features"], bbox=row["boxes"], **sizes)
    MCAN_NPZ.write(store_from(tmp_path / "store", read(tmp_path / "in")), tmp_path / "out")
    for name, arrays in arrays_of(tmp_path / "in").items():
        assert_same_arrays(arrays_of(tmp_path / "out")[name], arrays)


def test_half_and_bfloat_features_are_widened_and_said_to_be(tmp_path):
    for dtype in ("float16", "bfloat16"):
        layout = replace(PLAIN, dtype=dtype)
        single = region_record("COCO_1", 2, PLAIN)
        record = replace(single, features=cast(single.features, dtype))
        report = MCAN_NPZ.write(store_of(tmp_path / f"s-{dtype}", [record], layout), tmp_path / dtype)
        x = arrays_of(tmp_path / dtype)["COCO_1.jpg.npz"]["x"]
        assert x.dtype == np.float32
        assert np.array_equal(x.T, record.features.astype(np.float32))
        assert any("widened" in note for note in report.notes)


def test_what_the_format_cannot_hold_is_named(tmp_path):
    store = store_of(tmp_path / "store", [region_record("cat", 2)])
    notes = " ".join(MCAN_NPZ.write(store, tmp_path / "out").notes)
    assert "whole_image" in notes and "class_probs" in notes and "attribute_scores" in notes
    assert "1 keys have none, such as 'cat'" in notes  # MCAN's loader stops at such a name


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: tear(path),
        lambda path: tear(path, 0.99),
        lambda path: tear(path, 0),
        lambda path: path.write_bytes(b"<html>404</html>"),
        lambda path: path.write_bytes(
            bytes([*(data := bytearray(path.read_bytes()))[:900], data[900] ^ 1, *data[901:]])
        ),
        lambda path: upstream(path.parent, "b", numbers(3, WIDTH), num_bbox=4),
        lambda path: upstream(path.parent, "b", numbers(3, WIDTH), bbox=boxes(2)),
        lambda path: upstream(path.parent, "b", numbers(3, WIDTH), image_h=0),
        lambda path: upstream(path.parent, "b", numbers(3, WIDTH), image_h=480.5),
        lambda path: upstream(path.parent, "b", numbers(3, WIDTH).astype("f8")),
        lambda path: upstream(path.parent, "b", numbers(3, WIDTH), bbox=boxes(3).astype("f8") + 1e-9),
        lambda path: upstream(path.parent, "b", numbers(WIDTH, 3)),
        lambda path: upstream(path.parent, "b", numbers(3, WIDTH), bbox=np.array([None, None])),
    ],
)
def test_a_bad_file_is_listed_and_the_others_are_read(tmp_path, damage):
    for name in "abc":
        upstream(tmp_path, name, numbers(3, WIDTH))
    damage(tmp_path / "b.jpg.npz")
    records, bad = rows_of(read(tmp_path))
    assert records.keys() == {"a", "c"}
    assert [(row.key, row.where) for row in bad] == [("b", str(tmp_path / "b.jpg.npz"))]
    assert "\n" not in bad[0].message


def test_a_bad_first_file_does_not_stop_the_others(tmp_path):
    for name in "abc":
        upstream(tmp_path, name, numbers(3, WIDTH))
    tear(tmp_path / "a.jpg.npz")
    records, bad = rows_of(read(tmp_path))
    assert records.keys() == {"b", "c"} and [row.key for row in bad] == ["a"]


def test_names_of_another_form_and_linked_folders_are_listed(tmp_path):
    upstream(tmp_path / "in", "a", numbers(1, WIDTH))
    upstream(tmp_path / "elsewhere", "b", numbers(1, WIDTH))
    upstream(tmp_path / "in/.out~host~1~0.partial", "d", numbers(1, WIDTH))  # an export that was killed
    np.savez(tmp_path / "in/c.npz", x=numbers(WIDTH, 1))
    (tmp_path / "in/link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in/notes.txt").write_text("not a feature file")
    records, bad = rows_of(read(tmp_path / "in"))
    assert records.keys() == {"a"}
    assert {Path(row.where).name: row.message for row in bad}.keys() == {"c.npz", "link"}


def test_a_name_that_is_not_utf8_is_listed(tmp_path):
    upstream(tmp_path, "a", numbers(1, WIDTH))
    (tmp_path / os.fsdecode(b"b\xff.jpg.npz")).write_bytes((tmp_path / "a.jpg.npz").read_bytes())
    records, bad = rows_of(read(tmp_path))
    assert records.keys() == {"a"}
    assert [row.key.encode() for row in bad] == ["b\ufffd".encode()]


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (numbers(WIDTH, 36), "x is (36, 2048), as in milvlg-npz and openvqa-npz; import it under that name."),
        (np.zeros((WIDTH, WIDTH), "f4"), "x is (2048, 2048); which axis counts boxes cannot be told."),
        (numbers(36, 1024), "x is (1024, 36); no axis of 2048 tells which one counts boxes."),
    ],
)
def test_another_layout_is_refused_in_a_line(tmp_path, features, message):
    upstream(tmp_path, "a", features)
    with pytest.raises(StoreError) as caught:
        read(tmp_path)
    assert str(caught.value) == f"{tmp_path / 'a.jpg.npz'} is not mcan-npz: {message}"


def test_a_folder_that_is_none_or_empty_or_torn_throughout_is_refused(tmp_path):
    with pytest.raises(StoreError, match="absent is not a folder; mcan-npz is a folder of .*jpg.npz files"):
        read(tmp_path / "absent")
    with pytest.raises(StoreError, match="holds no .*jpg.npz file"):
        read(tmp_path)
    tear(upstream(tmp_path, "a", numbers(1, WIDTH)))
    with pytest.raises(
        StoreError, match="none of its 1 files can be read as mcan-npz; the first is a.jpg.npz: it is torn"
    ):
        read(tmp_path)


def test_stores_that_do_not_fit_are_refused(tmp_path):
    def store(name, record, layout):
        return store_of(tmp_path / name, [record], layout)

    narrow, fractions = replace(PLAIN, dim=8), replace(PLAIN, box_units="fractions")
    grid = store("grid", GridRecord("a", (9, 9), numbers(2, 2, WIDTH)), FeatureLayout(WIDTH, "float32"))
    with pytest.raises(StoreError, match="mcan-npz holds regions, this store holds grid"):
        MCAN_NPZ.write(grid, tmp_path / "out")
    with pytest.raises(StoreError, match="mcan-npz holds features of width 2048, this store's are 8 wide"):
        MCAN_NPZ.write(store("narrow", region_record("a", 1, narrow), narrow), tmp_path / "out")
    with pytest.raises(StoreError, match="this store's are fractions of sizes that it does not know"):
        MCAN_NPZ.write(store("fractions", region_record("a", 1, fractions), fractions), tmp_path / "out")
    unsized = replace(region_record("a", 1, PLAIN), image_size=(0, 0))
    with pytest.raises(StoreError, match="'a' does not tell its image's size"):
        MCAN_NPZ.write(store("unsized", unsized, PLAIN), tmp_path / "out")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("key", ["../up", "/etc/x", "a//b", "a/./b", ".."])
def test_a_key_that_would_leave_the_folder_is_refused(tmp_path, key):
    store = store_of(tmp_path / "store", [region_record("fine", 1), region_record(key, 1)], EVERYTHING)
    before = contents(tmp_path)
    with pytest.raises(StoreError, match="cannot name a file below the folder"):
        MCAN_NPZ.write(store, tmp_path / "out")
    assert contents(tmp_path) == before and not (tmp_path / "out").exists()


def test_nothing_is_written_over(tmp_path):
    store = store_of(tmp_path / "store", [region_record("a", 1)])
    (tmp_path / "out").mkdir()
    MCAN_NPZ.write(store, tmp_path / "out")  # an empty folder is as good as none
    before = contents(tmp_path / "out")
    with pytest.raises(StoreError, match="out exists and is not an empty folder; choose a new one"):
        MCAN_NPZ.write(store, tmp_path / "out")
    assert contents(tmp_path / "out") == before
    MCAN_NPZ.write(store, tmp_path / "deep/er/out")
    assert contents(tmp_path / "deep/er/out") == before  # equal stores give equal bytes
