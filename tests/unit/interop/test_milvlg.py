"""milvlg-npz: boxes first, ids without background, and an info that is never unpickled by numpy."""

from __future__ import annotations

import pickle
import pickletools
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from storage import FeatureLayout, RegionRecord, StoreError
from storage.interop.base import Import, ImportOptions
from storage.interop.mcan import MCAN_NPZ
from storage.interop.milvlg import MILVLG_NPZ
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
from tests.unit.storage.samples import assert_same

CLASSES, ATTRIBUTES = ("class_ids", "class_scores"), ("attribute_ids", "attribute_scores")
FULL = FeatureLayout(WIDTH, "float32", without=without(*CLASSES, *ATTRIBUTES))
FEW = FeatureLayout(WIDTH, "float32", without=without(*CLASSES))


def upstream(folder: Path, name: str, count: int, attributes: bool = True, **changes: object) -> Path:
    """A file as utils/extract_utils.py writes it: x and bbox are tensors there, the rest is numpy's and Python's."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(count)
    scores, attribute_scores = rng.random((count, 1601), np.float32), rng.random((count, 401), np.float32)
    info = {
        "image_id": name,
        "image_h": 480,
        "image_w": 640,
        "num_boxes": count,
        "objects_id": np.argmax(scores[:, 1:], axis=1),
        "objects_conf": np.max(scores[:, 1:], axis=1),
    }
    if attributes:
        info["attrs_id"] = np.argmax(attribute_scores[:, 1:], axis=1)
        info["attrs_conf"] = np.max(attribute_scores[:, 1:], axis=1)
    tensors = {"x": torch.from_numpy(numbers(count, WIDTH)), "bbox": torch.from_numpy(boxes(count))}
    scalars = {"num_bbox": count, "image_h": 480, "image_w": 640}
    members = {**tensors, **scalars, "info": info, **changes}
    np.savez_compressed(folder / f"{name}.npz", **{key: each for key, each in members.items() if each is not None})  # type: ignore[arg-type]
    return folder / f"{name}.npz"


def detectron2(folder: Path, name: str, count: int, tensors: bool, **changes: object) -> Path:
    """A file as utils/extract_d2features.py writes it; there, attributes are tensors of torch."""
    info = {"objects": np.arange(count) * 7, "cls_prob": numbers(count, 1600, seed=5)}
    if tensors:
        info |= {"attrs_id": torch.rand(count, 400), "attrs_scores": torch.rand(count + 9, 400)}
    return upstream(folder, name, count, info={**info, **changes}, image_h_inner=600, image_w_inner=800)


def info_of(path: Path) -> dict[str, object]:
    with np.load(path, allow_pickle=True) as archive:
        info: dict[str, object] = archive["info"].item()
    return info


def read(folder: Path) -> Import:
    return MILVLG_NPZ.read(folder, ImportOptions())


def test_reads_a_file_as_upstream_writes_it(tmp_path):
    info = info_of(upstream(tmp_path, "beach", 3))
    found = read(tmp_path)
    records, bad = rows_of(found)
    wanted = RegionRecord(
        "beach",
        (480, 640),
        boxes(3),
        numbers(3, WIDTH),
        class_ids=info["objects_id"].astype(np.int32),
        class_scores=info["objects_conf"],
        attribute_ids=info["attrs_id"].astype(np.int32),
        attribute_scores=info["attrs_conf"],
    )
    assert (found.view, found.layout, bad) == ("regions", FULL, [])
    assert_same(records["beach"], wanted)
    assert any("counted background as class 0" in note for note in found.notes)


def test_models_without_attributes_leave_them_out(tmp_path):
    upstream(tmp_path, "a", 2, attributes=False)
    found = read(tmp_path)
    assert found.layout == FEW
    assert rows_of(found)[0]["a"].attribute_ids is None


@pytest.mark.parametrize("attributes", [True, False])
def test_files_come_back_equal(tmp_path, attributes):
    for count in (0, 1, 4):
        upstream(tmp_path / "in", f"image{count}", count, attributes)
    MILVLG_NPZ.write(store_from(tmp_path / "store", read(tmp_path / "in")), tmp_path / "out")
    for name, arrays in arrays_of(tmp_path / "in").items():
        assert_same_arrays(arrays_of(tmp_path / "out")[name], arrays)
        found, wanted = info_of(tmp_path / "out" / name), info_of(tmp_path / "in" / name)
        assert list(found) == list(wanted)
        assert pickle.dumps(found) == pickle.dumps(wanted)


def test_a_store_comes_back_to_the_last_bit(tmp_path):
    records = [region_record(f"s/{n}", n, FULL) for n in (0, 1, 5)]
    report = MILVLG_NPZ.write(store_of(tmp_path / "store", records, FULL), tmp_path / "out")
    again, bad = rows_of(read(tmp_path / "out"))
    assert (report.records, bad) == (3, [])
    for record in records:
        assert_same(again[record.key], record)


def test_real_features_pass_unchanged(tmp_path, shared):
    for row in real_rows(shared):
        size = {"image_h": int(row["img_h"]), "image_w": int(row["img_w"])}
        info = {"image_id": str(row["img_id"]), **size, "num_boxes": 36}
        info |= {name: row[name] for name in ("objects_id", "objects_conf", "attrs_id", "attrs_conf")}
        upstream(tmp_path / "in", str(row["img_id"]), 36, x=row["features"], bbox=row["boxes"], info=info, **size)
    MILVLG_NPZ.write(store_from(tmp_path / "store", read(tmp_path / "in")), tmp_path / "out")
    for name, arrays in arrays_of(tmp_path / "in").items():
        assert_same_arrays(arrays_of(tmp_path / "out")[name], arrays)
        assert pickle.dumps(info_of(tmp_path / "out" / name)) == pickle.dumps(info_of(tmp_path / "in" / name))


def test_info_is_a_pickle_that_old_numpy_reads(tmp_path):
    store = store_of(tmp_path / "store", [region_record("numpy._core.multiarray", 2)])
    MILVLG_NPZ.write(store, tmp_path / "out")
    with zipfile.ZipFile(tmp_path / "out/numpy._core.multiarray.npz") as archive:
        data = archive.read("info.npy")
    data = data[data.index(b"\x80\x03") :]
    named = {name for code, name, _ in pickletools.genops(data) if code.name == "GLOBAL"}
    assert named == {"numpy.core.multiarray _reconstruct", "numpy ndarray", "numpy dtype"}
    assert pickle.loads(data).item()["image_id"] == "numpy._core.multiarray"


def test_detectron2_files_keep_classes_where_info_is_plain(tmp_path):
    path = detectron2(tmp_path, "a", 3, tensors=False)
    found = read(tmp_path)
    record = rows_of(found)[0]["a"]
    assert found.layout == FEW and record.image_size == (480, 640)
    assert record.class_ids.tolist() == [0, 7, 14]
    assert np.array_equal(record.class_scores, info_of(path)["cls_prob"][range(3), [0, 7, 14]])
    assert any("no background column" in note for note in found.notes)


def test_detectron2_files_with_tensors_of_torch_lose_their_classes_and_it_is_said(tmp_path):
    detectron2(tmp_path, "a", 3, tensors=True)
    found = read(tmp_path)
    records, bad = rows_of(found)
    assert not bad and found.layout == FeatureLayout(WIDTH, "float32", without=without())
    assert np.array_equal(records["a"].features, numbers(3, WIDTH))
    assert any("tensors of torch, which are not unpickled" in note for note in found.notes)


def test_folders_that_mix_both_list_what_differs_from_the_first(tmp_path):
    detectron2(tmp_path, "a", 3, tensors=False)
    detectron2(tmp_path, "b", 3, tensors=True)
    upstream(tmp_path, "c", 3)
    records, bad = rows_of(read(tmp_path))
    assert records.keys() == {"a"} and [row.key for row in bad] == ["b", "c"]
    assert all(row.message.startswith("it differs from the first file (without: (") for row in bad)


class Runs:
    def __reduce__(self):
        return (exec, ("raise SystemExit('a pickle ran code')",))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: tear(path), "it is torn or no .npz file"),
        (lambda path: upstream(path.parent, "b", 3, num_bbox=4), "num_bbox is 4, x has 3 boxes."),
        (lambda path: upstream(path.parent, "b", 3, info={"evil": Runs()}), "its info is not a pickle of plain arrays"),
        (lambda path: upstream(path.parent, "b", 3, info=Runs()), "its info is not a pickle of plain arrays"),
        (lambda path: upstream(path.parent, "b", 3, info=None), "it has no info."),
        (lambda path: upstream(path.parent, "b", 3, info=[1]), "its info is int64 (1,); wanted one dict."),
        (lambda path: upstream(path.parent, "b", 3, info=np.array(None)), "its info is NoneType; wanted one dict."),
        (lambda path: upstream(path.parent, "b", 3, info={}), "its info has no objects_id of one value a box."),
        (lambda path: upstream(path.parent, "b", 3, x=numbers(WIDTH, 3)), "x is (2048, 3), as in mcan-npz; import it"),
        (
            lambda path: detectron2(path.parent, "b", 3, False, objects=np.array([0, 1, 1600])),
            "objects of info go from 0",
        ),
        (lambda path: detectron2(path.parent, "b", 3, False, cls_prob=None), "cls_prob of info does not go with its"),
        (lambda path: detectron2(path.parent, "b", 3, False, more=Runs()), "its info is not a pickle of plain arrays"),
    ],
)
def test_a_bad_file_is_listed_and_the_others_are_read(tmp_path, change, message):
    for name in "abc":
        upstream(tmp_path, name, 3)
    change(tmp_path / "b.npz")
    records, bad = rows_of(read(tmp_path))
    assert records.keys() == {"a", "c"}
    assert [row.key for row in bad] == ["b"]
    assert bad[0].message.startswith(message) and "\n" not in bad[0].message


def test_other_formats_are_refused_by_name(tmp_path):
    for name, members, message in [
        ("boxes", {"x": None, "info": None}, "it holds boxes without features; extract again with --extract-mode roi_"),
        ("mcan", {"x": numbers(WIDTH, 3), "info": None}, "x is (2048, 3), as in mcan-npz; import it under that name"),
        ("square", {"x": np.zeros((WIDTH, WIDTH), "f4")}, "x is (2048, 2048); which axis counts boxes cannot be told"),
        (
            "gqa",
            {"image_h": None, "image_w": None, "width": 640},
            "it has no image_h, image_w; it has x, bbox, num_bbox",
        ),
    ]:
        upstream(tmp_path / name, "a", 3, **members)
        with pytest.raises(StoreError) as caught:
            read(tmp_path / name)
        assert str(caught.value).startswith(f"{tmp_path / name / 'a.npz'} is not milvlg-npz: {message}")
    assert "as openvqa-npz" in str(caught.value)


def test_a_store_without_classes_is_refused_by_their_names(tmp_path):
    bare = replace(FULL, without=without())
    store = store_of(tmp_path / "store", [region_record("a", 1, bare)], bare)
    with pytest.raises(StoreError, match="milvlg-npz needs class_ids, class_scores, which this store does not have"):
        MILVLG_NPZ.write(store, tmp_path / "out")
    MCAN_NPZ.write(store, tmp_path / "out")  # which needs none


def test_what_is_lost_and_what_ids_mean_is_said(tmp_path):
    store = store_of(tmp_path / "store", [region_record("a", 1)], EVERYTHING)
    notes = " ".join(MILVLG_NPZ.write(store, tmp_path / "out").notes)
    assert "whole_image, class_probs" in notes and "0-based without background" in notes and "pixels" in notes


def test_every_cut_of_a_file_is_a_bad_row(tmp_path):
    upstream(tmp_path, "a", 1)
    whole = upstream(tmp_path, "b", 1).read_bytes()
    for length in range(0, len(whole), 997):
        (tmp_path / "b.npz").write_bytes(whole[:length])
        assert [row.key for row in rows_of(read(tmp_path))[1]] == ["b"]
