"""VL-BERT's JSON files: zips and folders come in and go out as VL-BERT's own readers address and decode them."""

from __future__ import annotations

import base64
import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from storage import StoreError
from storage.interop.base import BadRow, ImportOptions
from storage.interop.vlbert import VLBERT_ZIP
from storage.spec import OPTIONAL
from tests.unit.interop.samples_text import CLASSES, DIM, b64, into_store, regions, store_of
from tests.unit.storage.samples import REGIONS, assert_same, contents, region_record, with_layout


def vqa(image_id: int, boxes: int, **more: Any) -> dict[str, Any]:
    """A file for question answering."""
    found = regions(image_id, boxes)
    head = {"image_id": image_id, "image_h": 480, "image_w": 640, "num_boxes": boxes}
    return {**head, "boxes": b64(found["boxes"]), "features": b64(found["features"]), **more}


def captions(image_id: int, boxes: int) -> dict[str, Any]:
    """A file for pretraining on Conceptual Captions; attributes have four columns here, 401 there."""
    probs = regions(image_id, boxes)["probs"]
    return vqa(image_id, boxes, classes=b64(probs), attrs=b64(probs[:, :4]))


def zipped(path: Path, files: dict[str, dict[str, Any]], folder: str = "", kind: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", kind) as file:
        for key, content in files.items():
            file.writestr(f"{folder}{key}.json", json.dumps(content))
    return path


def as_vlbert_reads(path: Path, inner: str) -> dict[str, Any]:
    """A file of a zip, decoded as vqa.py does."""
    found = json.loads(zipfile.ZipFile(path).read(inner).decode())
    shape = (found["num_boxes"], -1)
    arrays = {
        name: np.frombuffer(base64.decodebytes(found[name].encode()), np.float32).reshape(shape)
        for name in ("boxes", "features", "classes")
        if name in found
    }
    return {**found, **arrays}


@pytest.mark.parametrize("kind", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_reads_a_zip_for_question_answering(tmp_path, kind):
    path = zipped(tmp_path / "X.zip", {"9": vqa(9, 3), "100": vqa(100, 0)}, "X/", kind)
    found = VLBERT_ZIP.read(path, ImportOptions())
    assert (found.layout.dim, found.layout.dtype, found.layout.class_probs) == (DIM, "float32", 0)
    assert set(found.layout.without) == set(OPTIONAL)
    row, empty = found.rows
    assert (row.key, row.image_size) == ("9", (480, 640))
    assert row.boxes.tobytes() == regions(9, 3)["boxes"].tobytes()
    assert row.features.tobytes() == regions(9, 3)["features"].tobytes()
    assert (empty.key, empty.features.shape) == ("100", (0, DIM))


def test_reads_a_folder(tmp_path):
    folder = tmp_path / "X"
    folder.mkdir()
    for key in (20, 3):
        (folder / f"{key}.json").write_text(json.dumps(vqa(key, 2)))
    (folder / "._3.json").write_bytes(b"what macOS leaves")
    (folder / "notes.txt").touch()
    assert [row.key for row in VLBERT_ZIP.read(folder, ImportOptions()).rows] == ["20", "3"]


def test_reads_classes_with_the_background_moved_to_the_end(tmp_path):
    path = zipped(tmp_path / "train_frcnn.zip", {"00000007": captions(7, 4), "00000008": captions(8, 0)})
    found = VLBERT_ZIP.read(path, ImportOptions())
    assert (found.layout.class_probs, found.layout.probs_dtype) == (CLASSES, "float32")
    assert found.layout.without == ("whole_image",)
    row, empty = found.rows
    probs = regions(7, 4)["probs"]
    assert row.key == "00000007"
    assert row.class_probs.tobytes() == np.hstack([probs[:, 1:], probs[:, :1]]).tobytes()
    assert row.class_ids.tolist() == probs[:, 1:].argmax(axis=1).tolist()  # background not counted
    assert row.class_scores.tobytes() == probs[:, 1:].max(axis=1).tobytes()
    assert row.attribute_ids.tolist() == probs[:, 1:4].argmax(axis=1).tolist()
    assert row.attribute_scores.tobytes() == probs[:, 1:4].max(axis=1).tobytes()
    assert empty.class_probs.shape == (0, CLASSES)


def test_a_zip_comes_out_as_vlbert_reads_it(tmp_path):
    whole = regions(9, 3)["whole_image"]
    files = {"9": vqa(9, 3, image_box_feature=b64(whole)), "12": vqa(12, 0, image_box_feature=b64(whole))}
    store, bad = into_store(
        VLBERT_ZIP.read(zipped(tmp_path / "X.zip", files, "X/"), ImportOptions()), tmp_path / "store"
    )
    out = tmp_path / "new" / "trainval_36.zip"
    report = VLBERT_ZIP.write(store, out)
    assert not bad and (report.records, report.files) == (2, 1)
    assert any("trainval_36.zip@/trainval_36/{id}.json" in note for note in report.notes)
    assert {entry.compress_type for entry in zipfile.ZipFile(out).infolist()} == {zipfile.ZIP_STORED}
    for key, wanted in files.items():
        found = json.loads(zipfile.ZipFile(out).read(f"trainval_36/{key}.json"))
        assert found == wanted  # base64 and image_id, too


def test_classes_come_out_with_the_background_in_front(tmp_path):
    path = zipped(tmp_path / "a.zip", {"00000007": captions(7, 4)})
    store, _ = into_store(VLBERT_ZIP.read(path, ImportOptions()), tmp_path / "store")
    out = tmp_path / "val_frcnn.zip"
    VLBERT_ZIP.write(store, out)
    found = as_vlbert_reads(out, "00000007.json")  # no folder in this one: val_frcnn.zip@/00000007.json
    assert found["classes"].tobytes() == regions(7, 4)["probs"].tobytes()
    assert found["features"].tobytes() == regions(7, 4)["features"].tobytes()
    assert "attrs" not in found


@pytest.mark.parametrize("out", ["X.zip", "folder"])
def test_a_store_comes_back_to_the_last_bit(tmp_path, out):
    spec = with_layout(REGIONS, dtype="float16", class_probs=4, without=("attribute_ids", "attribute_scores"))
    records = [_consistent(region_record(key, spec=spec)) for key in ["1", "b/2", "b/c/3"]]
    VLBERT_ZIP.write(store_of(records, spec, tmp_path / "store"), tmp_path / out)
    rows = {row.key: row for row in VLBERT_ZIP.read(tmp_path / out, ImportOptions()).rows}
    assert len(rows) == 3
    for record in records:
        row = rows[record.key]
        halves = {name: getattr(row, name).astype(np.float16) for name in ("features", "whole_image", "class_probs")}
        assert_same(replace(row, **halves), record)


def _consistent(record):
    """Classes and scores that follow from the probabilities, as a detector's do."""
    best = record.class_probs[:, :-1]
    ids, scores = best.argmax(axis=1).astype(np.int32), best.max(axis=1).astype(np.float32)
    return replace(record, class_ids=ids, class_scores=scores, attribute_ids=None, attribute_scores=None)


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    records = [region_record("fine", 2), replace(region_record("bad", 2), image_size=(0, 0))]
    with pytest.raises(StoreError, match="'bad'.*size"):
        VLBERT_ZIP.write(store_of(records, REGIONS, tmp_path / "store"), tmp_path / "folder")
    with pytest.raises(StoreError, match="'bad'.*size"):
        VLBERT_ZIP.write(store_of(records, REGIONS, tmp_path / "other"), tmp_path / "X.zip")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "store"]


@pytest.mark.parametrize("key", ["../a", "/a", "a//b", "a/..", "."])
def test_a_key_that_leaves_the_folder_is_refused(tmp_path, key):
    record = replace(region_record("x", 2), key=key)
    with pytest.raises(StoreError, match=f"'{key}'"):
        VLBERT_ZIP.write(store_of([record], REGIONS, tmp_path / "store"), tmp_path / "X.zip")


def test_what_is_missing_is_told(tmp_path):
    spec = with_layout(REGIONS, without=("whole_image",))
    record = replace(region_record("x", 2), whole_image=None)
    notes = VLBERT_ZIP.write(store_of([record], spec, tmp_path / "store"), tmp_path / "X.zip").notes
    assert any("no classes" in note for note in notes) and any("mean of the boxes" in note for note in notes)
    assert any("left out" in note and "attribute_ids" in note and "class_ids" in note for note in notes)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"image_id": 5, "image', "Unterminated string"),
        ("[1, 2]", "holds a list"),
        ("[" * 100_000, "recursion"),
        (json.dumps({**vqa(5, 2), "features": None}), "features is None"),
        (json.dumps({**vqa(5, 2), "num_boxes": 2.0}), "num_boxes is 2.0"),
        (json.dumps({**vqa(5, 2), "image_w": 0}), "image_w is 0"),
        (json.dumps({**vqa(5, 2), "image_h": 1 << 31}), "image_h is 2147483648"),
        (json.dumps({**vqa(5, 2), "boxes": b64(np.zeros(7, np.float32))}), "boxes holds 28 bytes"),
        (json.dumps(captions(5, 2)), "unlike the first files"),
        (json.dumps(vqa(5, 2, image_box_feature=b64(np.zeros(3, np.float32)))), "image_box_feature holds 12 bytes"),
    ],
)
def test_a_file_that_cannot_be_read_is_told(tmp_path, content, message):
    path = zipped(tmp_path / "X.zip", {str(key): vqa(key, 2) for key in (1, 2, 3)}, "X/")
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("X/5.json", content)
    *good, bad = VLBERT_ZIP.read(path, ImportOptions()).rows
    assert [row.key for row in good] == ["1", "2", "3"]
    assert isinstance(bad, BadRow) and (bad.key, bad.where) == ("5", "X.zip@/X/5.json")
    assert message in bad.message


def test_flipped_bits_and_hidden_files_are_told(tmp_path):
    path = zipped(tmp_path / "X.zip", {"1": vqa(1, 2), "2": vqa(2, 2)}, "X/")
    with zipfile.ZipFile(path, "a") as file, pytest.warns(UserWarning, match="Duplicate name"):
        file.writestr("X/1.json", json.dumps(vqa(8, 2)))
    data = bytearray(path.read_bytes())
    data[data.index(b'"image_id": 2')] ^= 1
    path.write_bytes(data)
    hidden, flipped, good = VLBERT_ZIP.read(path, ImportOptions()).rows
    assert hidden.key == "1" and "a later file of this name hides it" in hidden.message
    assert flipped.key == "2" and "CRC" in flipped.message
    assert good.key == "1" and good.features.tobytes() == regions(8, 2)["features"].tobytes()


def test_names_that_lead_elsewhere_are_told(tmp_path):
    path = zipped(tmp_path / "X.zip", {"fine": vqa(1, 2), "../../evil": vqa(2, 2)})
    good, bad = VLBERT_ZIP.read(path, ImportOptions()).rows
    assert good.key == "fine" and isinstance(bad, BadRow) and bad.key == "../../evil"


def test_other_files_are_refused_in_one_line(tmp_path, shared):
    torn = zipped(tmp_path / "torn.zip", {"1": vqa(1, 2)})
    torn.write_bytes(torn.read_bytes()[:-30])
    (tmp_path / "folder").mkdir()
    for path, message in [
        (shared / "data" / "features" / "vinvl_mini_tsv" / "train.tsv", "no zip"),
        (torn, "no zip"),
        (tmp_path / "absent.zip", "not there"),
        (tmp_path / "folder", "it has no rows with boxes"),
        (zipped(tmp_path / "other.zip", {"a": {"x": 1}}), "num_boxes is None"),
    ]:
        with pytest.raises(StoreError, match=message) as error:
            VLBERT_ZIP.read(path, ImportOptions())
        assert "\n" not in str(error.value)


def test_writing_twice_gives_the_same_bytes(tmp_path):
    store = store_of([region_record("a", 2)], REGIONS, tmp_path / "store")
    for folder in ("one", "two"):
        VLBERT_ZIP.write(store, tmp_path / folder / "X.zip")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
