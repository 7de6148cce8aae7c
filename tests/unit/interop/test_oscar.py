"""Oscar's and VinVL's TSV files: three kinds come in, two go out, and Oscar's own ways of looking up find every row."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from storage import StoreError
from storage.interop.base import BadRow, ImportOptions
from storage.interop.oscar import OSCAR_TSV
from storage.spec import OPTIONAL
from tests.unit.interop.samples_text import DIM, b64, into_store, regions, store_of
from tests.unit.storage.samples import REGIONS, assert_same, region_record, with_layout

PLAIN = with_layout(REGIONS, dtype="float32", without=OPTIONAL)


def with_geometry(seed: int, boxes: int) -> np.ndarray:
    """(N, DIM + 6) float32, as VinVL puts geometry behind features."""
    found = regions(seed, boxes)
    x1, y1, x2, y2 = (found["boxes"] / np.array([640, 480, 640, 480], np.float32)).T
    return np.concatenate([found["features"], np.stack([x1, y1, x2, y2, x2 - x1, y2 - y1], axis=1)], axis=1)


def retrieval(key: str, features: np.ndarray) -> tuple[str, ...]:
    return key, str(len(features)), b64(features)


def captioning(key: str, features: np.ndarray) -> tuple[str, ...]:
    return key, json.dumps({"num_boxes": len(features), "features": b64(features)})


def predictions(key: str, seed: int, boxes: int, **more: Any) -> tuple[str, ...]:
    """A row of VinVL's predictions.tsv, as inference.py writes it."""
    found = regions(seed, boxes)
    objects = [
        {"rect": found["boxes"][i].tolist(), "bbox_id": i, "class": "dog", "conf": found["scores"].tolist()[i]}
        | {"feature": b64(found["features"][i])}
        for i in range(boxes)
    ]
    return key, json.dumps({"objects": objects, "relations": None, **more})


def write_rows(path: Path, rows: Sequence[tuple[str, ...]]) -> Path:
    path.write_text("".join("\t".join(row) + "\n" for row in rows))
    return path


def seek(path: Path, place: int) -> list[str]:
    """A row at a place of the file, as TSVFile and run_vqa.py read it."""
    with path.open() as file:
        file.seek(place)
        return [column.strip() for column in file.readline().split("\t")]


def matrix(text: str, rows: int) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), np.float32).reshape(rows, -1)


@pytest.mark.parametrize("kind", [retrieval, captioning])
def test_reads_features_and_takes_boxes_from_their_geometry(tmp_path, kind: Callable[..., tuple[str, ...]]):
    rows = [kind("9", with_geometry(9, 3)), kind("10", with_geometry(1, 0))]
    found = OSCAR_TSV.read(write_rows(tmp_path / "features.tsv", rows), ImportOptions())
    assert (found.layout.dim, found.layout.dtype, found.layout.box_units) == (DIM + 6, "float32", "fractions")
    assert set(found.layout.without) == set(OPTIONAL)
    row, empty = found.rows
    assert (row.key, row.image_size) == ("9", (0, 0))
    assert row.features.tobytes() == with_geometry(9, 3).tobytes()
    assert row.boxes.tobytes() == with_geometry(9, 3)[:, DIM : DIM + 4].tobytes()
    assert (empty.key, empty.features.shape, empty.boxes.shape) == ("10", (0, DIM + 6), (0, 4))


def test_sizes_turn_fractions_into_pixels(tmp_path):
    rows = [retrieval("9", with_geometry(9, 3)), retrieval("10", with_geometry(1, 2))]
    path = write_rows(tmp_path / "features.tsv", rows)
    found = OSCAR_TSV.read(path, ImportOptions(sizes={"9": (480, 640)}))
    row, bad = found.rows
    assert (found.layout.box_units, row.image_size) == ("pixels", (480, 640))
    np.testing.assert_allclose(row.boxes, regions(9, 3)["boxes"], rtol=1e-6)
    assert isinstance(bad, BadRow) and bad.key == "10" and "sizes" in bad.message


def test_reads_vinvl_predictions(tmp_path):
    rows = [predictions("a", 1, 3), predictions("b", 2, 0), predictions("c", 3, 2, image_h=480, image_w=640)]
    found = OSCAR_TSV.read(write_rows(tmp_path / "predictions.tsv", rows), ImportOptions(sizes={"a": (100, 200)}))
    assert (found.layout.dim, found.layout.box_units) == (DIM, "pixels")
    assert set(found.layout.without) == set(OPTIONAL) - {"class_scores"}
    first, empty, last = found.rows
    wanted = regions(1, 3)
    assert [row.image_size for row in (first, empty, last)] == [(100, 200), (0, 0), (480, 640)]
    for field, name in [("boxes", "boxes"), ("features", "features"), ("class_scores", "scores")]:
        assert getattr(first, field).tobytes() == wanted[name].tobytes()
    assert empty.features.shape == (0, DIM) and empty.class_scores.shape == (0,)


def test_what_retrieval_pretraining_and_vqa_look_up(tmp_path):
    rows = [
        retrieval("9", with_geometry(9, 3)),
        retrieval("10", with_geometry(1, 0)),
        retrieval("ü", with_geometry(2, 2)),
    ]
    path = write_rows(tmp_path / "features.tsv", rows)
    store, bad = into_store(OSCAR_TSV.read(path, ImportOptions()), tmp_path / "store")
    report = OSCAR_TSV.write(store, tmp_path / "out")
    out = tmp_path / "out" / "features.tsv"
    assert not bad and (report.records, report.files) == (3, 4) and "fractions" in report.notes[0]
    assert out.read_bytes() == path.read_bytes()
    places = [int(line) for line in out.with_suffix(".lineidx").read_text().splitlines()]
    numbers = json.loads((tmp_path / "out" / "imageid2idx.json").read_text())
    offsets = json.loads((tmp_path / "out" / "features_offset_map.json").read_text())
    assert len(places) == 3 and numbers == {"9": 0, "10": 1, "ü": 2}
    for key, seed, boxes in [("9", 9, 3), ("ü", 2, 2)]:
        for place in (places[numbers[key]], offsets[key]):
            name, count, text = seek(out, place)
            assert name == key and matrix(text, int(count)).tobytes() == with_geometry(seed, boxes).tobytes()


def test_a_file_and_its_companions(tmp_path):
    path = write_rows(tmp_path / "features.tsv", [retrieval("9", with_geometry(9, 3))])
    store, _ = into_store(OSCAR_TSV.read(path, ImportOptions()), tmp_path / "store")
    OSCAR_TSV.write(store, tmp_path / "out" / "val_img_frcnn_feats.tsv")
    names = ["imageid2idx.json", "val_img_frcnn_feats.lineidx", "val_img_frcnn_feats.tsv"]
    assert sorted(each.name for each in (tmp_path / "out").iterdir()) == [
        *names[:2],
        names[2],
        "val_img_frcnn_feats_offset_map.json",
    ]


def test_what_captioning_looks_up(tmp_path):
    path = write_rows(tmp_path / "a.tsv", [captioning("9", with_geometry(9, 3)), captioning("10", with_geometry(1, 0))])
    store, _ = into_store(OSCAR_TSV.read(path, ImportOptions()), tmp_path / "store")
    out = tmp_path / "out" / "train.feature.tsv"
    assert OSCAR_TSV.write(store, out).files == 2
    assert out.read_bytes() == path.read_bytes()
    places = [int(line) for line in (tmp_path / "out" / "train.feature.lineidx").read_text().splitlines()]
    key, text = seek(out, places[0])
    found = json.loads(text)
    assert key == "9" and matrix(found["features"], found["num_boxes"]).tobytes() == with_geometry(9, 3).tobytes()


def test_geometry_is_put_behind_features_that_have_none(tmp_path):
    records = [replace(region_record(key, 3, PLAIN), **dict.fromkeys(OPTIONAL)) for key in "ab"]
    boxes = np.array([[0, 0, 320, 240], [64, 48, 640, 480], [0, 240, 64, 480]], np.float32)
    records = [replace(record, image_size=(480, 640), boxes=boxes) for record in records]
    report = OSCAR_TSV.write(store_of(records, PLAIN, tmp_path / "store"), tmp_path / "out")
    assert "computed from the store's boxes" in report.notes[0]
    _, count, text = seek(tmp_path / "out" / "features.tsv", 0)
    found = matrix(text, int(count))
    assert found[:, :8].tobytes() == records[0].features.tobytes()
    wanted = [[0, 0, 0.5, 0.5, 0.5, 0.5], [0.1, 0.1, 1, 1, 0.9, 0.9], [0, 0.5, 0.1, 1, 0.1, 0.5]]
    np.testing.assert_allclose(found[:, 8:], wanted, atol=1e-7)


def test_fraction_boxes_need_no_size(tmp_path):
    spec = with_layout(PLAIN, box_units="fractions")
    record = replace(region_record("a", 1, spec), image_size=(0, 0), **dict.fromkeys(OPTIONAL))
    record = replace(record, boxes=np.array([[0.25, 0.5, 0.75, 1]], np.float32))
    OSCAR_TSV.write(store_of([record], spec, tmp_path / "store"), tmp_path / "out")
    found = matrix(seek(tmp_path / "out" / "features.tsv", 0)[2], 1)
    assert found[0, 8:].tolist() == [0.25, 0.5, 0.75, 1, 0.5, 0.5]


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("sizes", [{}, {"9": (480, 640), "10": (480, 640)}])
def test_a_store_comes_back_to_the_last_bit(tmp_path, dtype, sizes):
    rows = [retrieval("9", with_geometry(9, 3)), retrieval("10", with_geometry(1, 2))]
    path = write_rows(tmp_path / "features.tsv", rows)
    found = OSCAR_TSV.read(path, ImportOptions(sizes))
    records = [replace(row, features=row.features.astype(dtype)) for row in found.rows]
    spec = with_layout(PLAIN, dim=DIM + 6, dtype=dtype, box_units=found.layout.box_units)
    OSCAR_TSV.write(store_of(records, spec, tmp_path / "store"), tmp_path / "out")
    again = OSCAR_TSV.read(tmp_path / "out", ImportOptions(sizes))
    for row, record in zip(again.rows, records, strict=True):
        if dtype == "float16":  # boxes out of rounded geometry are rounded, too
            np.testing.assert_allclose(row.boxes, record.boxes, atol=0.5)
            row = replace(row, boxes=record.boxes)
        assert_same(replace(row, features=row.features.astype(dtype)), record)


def test_predictions_go_out_as_features(tmp_path):
    path = write_rows(tmp_path / "predictions.tsv", [predictions("a", 9, 3, image_h=480, image_w=640)])
    store, _ = into_store(OSCAR_TSV.read(path, ImportOptions()), tmp_path / "store")
    notes = OSCAR_TSV.write(store, tmp_path / "out").notes
    assert any("left out" in note and "class_scores" in note for note in notes)
    found = matrix(seek(tmp_path / "out" / "features.tsv", 0)[2], 3)
    np.testing.assert_allclose(found, with_geometry(9, 3), atol=1e-7)


def test_without_sizes_pixels_cannot_become_fractions(tmp_path):
    path = write_rows(tmp_path / "predictions.tsv", [predictions("a", 9, 3)])
    store, _ = into_store(OSCAR_TSV.read(path, ImportOptions()), tmp_path / "store")
    with pytest.raises(StoreError, match="'a'.*size"):
        OSCAR_TSV.write(store, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_record_without_the_geometry_of_the_others_stops_the_export(tmp_path):
    path = write_rows(tmp_path / "features.tsv", [retrieval(str(i), with_geometry(i, 2)) for i in range(10)])
    records = list(OSCAR_TSV.read(path, ImportOptions()).rows)
    records[9] = replace(records[9], boxes=records[9].boxes + np.float32(0.2))
    spec = with_layout(PLAIN, dim=DIM + 6, box_units="fractions")
    with pytest.raises(StoreError, match="'9': its features do not end in the geometry"):
        OSCAR_TSV.write(store_of(records, spec, tmp_path / "store"), tmp_path / "out")


def test_companions_of_another_file_are_not_overwritten(tmp_path):
    path = write_rows(tmp_path / "features.tsv", [retrieval("9", with_geometry(9, 3))])
    (tmp_path / "imageid2idx.json").write_text("{}")
    store, _ = into_store(OSCAR_TSV.read(path, ImportOptions()), tmp_path / "store")
    with pytest.raises(StoreError, match="imageid2idx.json exists"):
        OSCAR_TSV.write(store, tmp_path / "new.tsv")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["features.tsv", "imageid2idx.json", "store"]


def shifted(column: int, by: float) -> np.ndarray:
    features = with_geometry(9, 3)
    features[1, DIM + column] += np.float32(by)
    return features


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("5", "3"), "the second column begins with '3'"),
        (("5", "3", "AAAA", "x"), "4 tab-separated columns, wanted 3"),
        (("5", "3", b64(with_geometry(9, 3))[:-8]), "features holds"),
        (("5", "4", b64(with_geometry(9, 3))), "features holds 216 bytes, (4, 18) float32 take 288"),
        (retrieval("5", shifted(0, -0.9)), "are not x1 y1 x2 y2 w h"),
        (retrieval("5", shifted(2, 0.9)), "are not x1 y1 x2 y2 w h"),
        (retrieval("5", shifted(4, 0.01)), "are not x1 y1 x2 y2 w h"),
        (retrieval("5", shifted(1, np.nan)), "are not x1 y1 x2 y2 w h"),
    ],
)
def test_a_row_that_cannot_be_read_is_told(tmp_path, row, message):
    good = [retrieval(str(i), with_geometry(i, 2)) for i in (1, 2)]
    first, bad, last = OSCAR_TSV.read(write_rows(tmp_path / "f.tsv", [good[0], row, good[1]]), ImportOptions()).rows
    assert (first.key, last.key) == ("1", "2")
    assert isinstance(bad, BadRow) and (bad.key, bad.where) == ("5", "f.tsv, line 2")
    assert message in bad.message or "tab-separated columns, wanted 3" in bad.message


@pytest.mark.parametrize(
    ("objects", "message"),
    [
        ([{"rect": [1, 2, 3, 4], "class": "dog"}], "these are labels"),
        ([{"rect": [1, 2, 3], "conf": 1, "feature": b64(np.zeros(DIM, np.float32))}], "rect is not 4 numbers"),
        ([{"rect": [1, 2, 3, 4], "feature": b64(np.zeros(DIM, np.float32))}], "without conf"),
        ([{"rect": [1, 2, 3, 4], "conf": None, "feature": b64(np.zeros(DIM, np.float32))}], "conf is not a number"),
        ([{"rect": [1, 2, 3, 4], "conf": 1, "feature": b64(np.zeros(7, np.float32))}], "feature holds 28 bytes"),
        ([{"rect": [1, 2, 3, 10**400], "conf": 1, "feature": b64(np.zeros(DIM, np.float32))}], "rect is not 4 numbers"),
        ([{"rect": [1, 2, 3, 4], "conf": np.nan, "feature": b64(np.zeros(DIM, np.float32))}], "conf is not a number"),
        ([3], "neither features nor objects"),
        (None, "neither features nor objects"),
    ],
)
def test_a_prediction_that_cannot_be_read_is_told(tmp_path, objects, message):
    rows = [predictions("1", 1, 2), ("5", json.dumps({"objects": objects})), predictions("2", 2, 2)]
    first, bad, last = OSCAR_TSV.read(write_rows(tmp_path / "p.tsv", rows), ImportOptions()).rows
    assert (first.key, last.key) == ("1", "2")
    assert isinstance(bad, BadRow) and bad.key == "5" and message in bad.message


def test_other_files_are_refused_in_one_line(tmp_path, shared):
    mini = shared / "data" / "features" / "vinvl_mini_tsv"
    rng = np.random.default_rng(0)
    narrow = write_rows(tmp_path / "narrow.tsv", [retrieval("1", rng.random((3, 1027), np.float32))])
    bare = write_rows(tmp_path / "bare.tsv", [retrieval("1", rng.random((3, 2048), np.float32))])
    deep = write_rows(tmp_path / "deep.tsv", [("1", "[" * 100_000)])
    for path, message in [
        (mini / "train.tsv", "begins with '/9j/4AAQSkZJ' (a picture?)"),
        (mini / "train.label.tsv", "rect, class but no feature in base64: these are labels"),
        (mini / "train.hw.tsv", "height, width but no feature"),
        (mini / "train.lineidx", "1 tab-separated columns"),
        (mini, "there is no file"),
        (narrow, "a feature has 1027 numbers, of which the last six are not x1 y1 x2 y2 w h"),
        (bare, "a feature has 2048 numbers"),
        (deep, "nested too deep"),
        (shared / "data" / "features" / "butd_lxmert_tsv" / "train2014_obj36.tsv", "10 tab-separated columns"),
    ]:
        with pytest.raises(StoreError) as error:
            OSCAR_TSV.read(path, ImportOptions())
        assert message in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 400
