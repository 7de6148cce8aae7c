"""mmf-npy and mmf-lmdb: pickled dicts of four scripts, with and without the background, and ViLBERT's own."""

from __future__ import annotations

import base64
import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
import torch

from storage import FeatureLayout, RegionRecord, StoreError
from storage.interop.base import Foreign, Import, ImportOptions
from storage.interop.mmf import MMF_LMDB, MMF_NPY
from tests.unit.interop.samples_npz import (
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

DIM, CLASSES = 8, 6  # classes with the background
LAYOUT = FeatureLayout(DIM, "float32", CLASSES, "float32", without("class_ids", "class_scores"))
PLAIN = without("class_ids", "class_scores")
FORMATS: dict[str, Foreign] = {"npy": MMF_NPY, "lmdb": MMF_LMDB}
Item = dict[str, Any]


def vmb(count: int, background: bool = False, classes: int = CLASSES, seed: int = 0) -> Item:
    """What extract_features_vmb.py keeps of an image: the softmax of `classes` scores, from `start_index` on."""
    scores = np.random.default_rng(seed).dirichlet(np.ones(classes), count).astype(np.float32)
    start = 0 if background else 1
    return {
        "features": numbers(count, DIM, seed=seed),
        "bbox": boxes(count, seed),
        "num_boxes": max(0, count - 2),  # those above the threshold only
        "objects": np.argmax(scores[:, start:], axis=1) if count else np.zeros(0, np.int64),
        "cls_prob": np.ascontiguousarray(scores[:, start:]),
        "image_width": 640,
        "image_height": 480,
    }


def frcnn(count: int) -> Item:
    """extract_features_frcnn.py: one probability a box, and num_boxes whatever was asked for."""
    best = np.random.default_rng(count).random(count, np.float32)
    return {**vmb(count), "num_boxes": 100, "cls_prob": best}


def vinvl(count: int) -> Item:
    """extract_features_vinvl.py: no objects, boxes as fractions in the features and beside them."""
    found = boxes(count, 3) / np.float32([640, 480, 640, 480])
    fractions = np.concatenate([found, found[:, 2:] - found[:, :2]], axis=1)
    rng = np.random.default_rng(count)
    return {
        "features": np.concatenate([numbers(count, 2048), fractions], axis=1),
        "labels": rng.integers(1, 1595, count),
        "scores": rng.random(count, np.float32),
        "box_features": numbers(count, 2048),
        "bbox": fractions,
        "image_width": 640,
        "image_height": 480,
    }


def save_npy(folder: Path, key: str, item: Item) -> None:
    """_save_feature of MMF's scripts."""
    path = folder / f"{key}.npy"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, item["features"])
    np.save(folder / f"{key}_info.npy", {name: value for name, value in item.items() if name != "features"})  # type: ignore[arg-type]


def save_lmdb(path: Path, items: dict[str, Item], subdir: bool = True, keys: list[bytes] | None = None) -> None:
    """lmdb_conversion.py: one transaction, values pickled, the list of keys last."""
    path.parent.mkdir(parents=True, exist_ok=True)
    names = ("image_height", "image_width", "num_boxes", "objects", "cls_prob", "bbox")
    with lmdb.open(str(path), map_size=1 << 26, subdir=subdir) as env, env.begin(write=True) as txn:
        for key, item in items.items():
            rest = {name: item.get(name) for name in names} if "bbox" in item else {}
            txn.put(key.encode(), pickle.dumps({"feature_path": key, "features": item["features"], **rest}))
        txn.put(b"keys", pickle.dumps([key.encode() for key in items] if keys is None else keys))


def save(kind: str, path: Path, items: dict[str, Item]) -> None:
    if kind == "lmdb":
        save_lmdb(path, items)
    else:
        for key, item in items.items():
            save_npy(path, key, item)


def load_npy(folder: Path) -> dict[str, Item]:
    """What MMF's PaddedFasterRCNNFeatureReader reads."""
    found = {}
    for path in folder.rglob("*.npy"):
        if not path.name.endswith("_info.npy"):
            info = np.load(str(path).split(".npy")[0] + "_info.npy", allow_pickle=True).item()
            key = path.relative_to(folder).as_posix().removesuffix(".npy")
            found[key] = {"features": np.load(path, allow_pickle=True), **info}
    return found


def load_lmdb(path: Path) -> dict[str, Item]:
    """What MMF's LMDBFeatureReader reads."""
    with lmdb.open(str(path), subdir=path.is_dir(), readonly=True, lock=False) as env, env.begin(buffers=True) as txn:
        return {key.decode(): pickle.loads(txn.get(key)) for key in pickle.loads(txn.get(b"keys"))}


LOAD: dict[str, Callable[[Path], dict[str, Item]]] = {"npy": load_npy, "lmdb": load_lmdb}
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # numpy.core, as old numpy names it


@pytest.fixture(params=["npy", "lmdb"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def read(kind: str, path: Path, sizes: dict[str, tuple[int, int]] | None = None) -> Import:
    return FORMATS[kind].read(path, ImportOptions(sizes or {}))


def same(found: Item, wanted: Item) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        if isinstance(value, np.ndarray):
            assert (found[name].dtype, found[name].shape) == (value.dtype, value.shape), name
            assert found[name].tobytes() == value.tobytes(), name
        else:
            assert found[name] == value and type(found[name]) is type(value), name


def test_reads_what_mmfs_script_writes(tmp_path, kind):
    items = {f"sub/COCO_{n:012d}": vmb(n, seed=n) for n in (100, 3, 36)}
    save(kind, tmp_path / "in.lmdb", items)
    found = read(kind, tmp_path / "in.lmdb")
    records, bad = rows_of(found)
    assert (found.view, found.layout, bad) == ("regions", LAYOUT, [])
    assert sorted(records) == sorted(items)
    for key, item in items.items():
        ids = item["objects"].astype(np.int32)
        rest = 1 - item["cls_prob"].astype(np.float64).sum(axis=1, keepdims=True)
        wanted = RegionRecord(
            key,
            (480, 640),
            item["bbox"],
            item["features"],
            class_ids=ids,
            class_scores=item["cls_prob"][np.arange(len(ids)), ids],
            class_probs=np.hstack([item["cls_prob"], rest.astype(np.float32)]),
        )
        assert_same(records[key], wanted)
        assert np.allclose(wanted.class_probs.sum(axis=1), 1)


def test_what_mmfs_script_writes_comes_back_equal_but_for_num_boxes(tmp_path, kind):
    items = {f"sub/{n}": vmb(n, seed=n) for n in (100, 3, 36)}
    save(kind, tmp_path / "in.lmdb", items)
    report = FORMATS[kind].write(
        store_from(tmp_path / "store", read(kind, tmp_path / "in.lmdb")), tmp_path / "out.lmdb"
    )
    before, after = LOAD[kind](tmp_path / "in.lmdb"), LOAD[kind](tmp_path / "out.lmdb")
    assert after.keys() == before.keys()
    for key, item in before.items():
        same(after[key], {**item, "num_boxes": len(item["bbox"])})
    assert (report.records, report.files) == (3, {"npy": 6, "lmdb": 1}[kind]) and "pixels" in report.notes[0]


@pytest.mark.parametrize("classes", [CLASSES, 0])
def test_a_store_comes_back_to_the_last_bit(tmp_path, kind, classes):
    layout = LAYOUT if classes else FeatureLayout(DIM, "float32", without=PLAIN)
    records = [whole(region_record(key, count, layout)) for key, count in [("b", 3), ("a.x/c", 40), ("9", 1)]]
    FORMATS[kind].write(store_of(tmp_path / "store", records, layout), tmp_path / "out.lmdb")
    found = read(kind, tmp_path / "out.lmdb")
    again, bad = rows_of(found)
    assert (bad, found.layout) == ([], layout)
    for record in records:
        assert_same(again[record.key], record)


def whole(record: RegionRecord) -> RegionRecord:
    """The record with class probabilities that add up to 1, and the ids and scores that are theirs."""
    if record.class_probs is None:
        return record
    rng, count = np.random.default_rng(0), len(record.boxes)
    some = rng.dirichlet(np.ones(CLASSES), count).astype(np.float32)[:, :-1]
    probs = np.hstack([some, (1 - some.sum(axis=1, keepdims=True, dtype=np.float64)).astype(np.float32)])
    ids = some.argmax(axis=1).astype(np.int32)
    return replace(record, class_ids=ids, class_scores=some.max(axis=1), class_probs=probs)


def test_real_features_come_back_equal(tmp_path, kind, shared):
    items = {
        str(row["img_id"]): {
            "features": row["features"],
            "bbox": row["boxes"],
            "num_boxes": 36,
            "objects": row["objects_id"],
            "cls_prob": row["objects_conf"],
            "image_width": int(row["img_w"]),
            "image_height": int(row["img_h"]),
        }
        for row in real_rows(shared)
    }
    save(kind, tmp_path / "in.lmdb", items)
    FORMATS[kind].write(store_from(tmp_path / "store", read(kind, tmp_path / "in.lmdb")), tmp_path / "out.lmdb")
    before, after = LOAD[kind](tmp_path / "in.lmdb"), LOAD[kind](tmp_path / "out.lmdb")
    assert len(after) == 6
    for key, item in before.items():
        same(after[key], item)


# The background, and what else differs from script to script


@pytest.mark.parametrize("classes", [CLASSES, 1601])
def test_files_of_the_background_flag_are_not_shifted(tmp_path, kind, classes):
    """objects may be 0 there, the background, and a class is one higher; ours are the best of the other columns."""
    item = vmb(50, background=True, classes=classes)
    item["cls_prob"][0] = np.eye(classes, dtype=np.float32)[0] * 0.9 + np.float32(0.1 / classes)
    item["objects"] = item["cls_prob"].argmax(axis=1)
    save(kind, tmp_path / "in.lmdb", {"a": item})
    found = read(kind, tmp_path / "in.lmdb")
    record = rows_of(found)[0]["a"]
    assert found.layout.class_probs == classes
    assert np.array_equal(record.class_probs[:, -1], item["cls_prob"][:, 0])
    assert np.array_equal(record.class_probs[:, :-1], item["cls_prob"][:, 1:])
    seen = item["objects"] > 0
    assert seen.any() and not seen.all()
    assert np.array_equal(record.class_ids[seen], item["objects"][seen] - 1)
    assert np.array_equal(record.class_scores, item["cls_prob"][:, 1:].max(axis=1))


def test_1600_columns_are_visual_genomes_without_background_even_where_they_add_up_to_one(tmp_path, kind):
    item = vmb(4, classes=1601)
    item["cls_prob"] = np.random.default_rng(0).dirichlet(np.ones(1600), 4).astype(np.float32)
    item["objects"] = item["cls_prob"].argmax(axis=1)
    save(kind, tmp_path / "in.lmdb", {"a": item})
    record = rows_of(read(kind, tmp_path / "in.lmdb"))[0]["a"]
    assert record.class_probs.shape == (4, 1601) and np.array_equal(record.class_ids, item["objects"])
    assert np.abs(record.class_probs[:, -1]).max() < 1e-5


def test_frcnn_features_have_one_score_a_box(tmp_path, kind):
    save(kind, tmp_path / "in.lmdb", {"a": frcnn(12)})
    found = read(kind, tmp_path / "in.lmdb")
    record = rows_of(found)[0]["a"]
    assert found.layout == FeatureLayout(DIM, "float32", without=PLAIN)
    assert np.array_equal(record.class_scores, frcnn(12)["cls_prob"])
    assert np.array_equal(record.class_ids, frcnn(12)["objects"])


def test_vinvl_features_keep_all_their_columns_and_boxes_become_pixels(tmp_path, kind):
    save(kind, tmp_path / "in.lmdb", {"a": vinvl(12)})
    found = read(kind, tmp_path / "in.lmdb")
    record = rows_of(found)[0]["a"]
    assert found.layout.dim == 2054 and np.array_equal(record.features, vinvl(12)["features"])
    assert np.allclose(record.boxes, boxes(12, 3), rtol=1e-6)
    if kind == "npy":  # MMF's LMDB does not keep labels
        assert np.array_equal(record.class_ids, vinvl(12)["labels"] - 1)
        assert np.array_equal(record.class_scores, vinvl(12)["scores"])
    FORMATS[kind].write(store_from(tmp_path / "s", read(kind, tmp_path / "in.lmdb")), tmp_path / "out.lmdb")
    again = LOAD[kind](tmp_path / "out.lmdb")["a"]
    assert np.array_equal(again["features"], vinvl(12)["features"]) and again["bbox"].shape == (12, 4)


def vilbert(count: int) -> Item:
    """extract_features.py of vilbert-multi-task: all columns, and objects one short (it cuts rows for columns)."""
    item = vmb(count, background=True, classes=1601)
    return {**item, "objects": item["cls_prob"][1:].argmax(axis=1), "image_id": "a"}


def test_vilberts_npy_is_one_dict(tmp_path):
    np.save(tmp_path / "a.npy", vilbert(12))  # type: ignore[arg-type]
    record = rows_of(read("npy", tmp_path))[0]["a"]
    assert np.array_equal(record.features, vilbert(12)["features"]) and np.array_equal(record.boxes, boxes(12, 0))
    assert np.array_equal(record.class_ids, vilbert(12)["cls_prob"][:, 1:].argmax(axis=1))


@pytest.mark.parametrize("encoded", [False, True])
def test_vilberts_lmdb_has_other_names_and_sometimes_base64(tmp_path, encoded):
    def value(array: np.ndarray) -> object:
        return base64.b64encode(array) if encoded else array

    item = vmb(12)
    kept = {"image_id": 9, "image_h": 480, "image_w": 640, "num_boxes": 12}
    kept |= {"boxes": value(item["bbox"]), "features": value(item["features"])}
    with lmdb.open(str(tmp_path / "x.lmdb"), map_size=1 << 24) as env, env.begin(write=True) as txn:
        txn.put(b"9", pickle.dumps(kept, 2))
        txn.put(b"keys", pickle.dumps([b"9"], 2))
    found = read("lmdb", tmp_path / "x.lmdb")
    assert found.layout == FeatureLayout(DIM, "float32", without=without())
    assert_same(rows_of(found)[0]["9"], RegionRecord("9", (480, 640), item["bbox"], item["features"]))


def test_objects_alone_are_taken_as_they_stand(tmp_path, kind):
    item = {**vmb(12), "cls_prob": None}
    save(kind, tmp_path / "in.lmdb", {"a": item})
    found = read(kind, tmp_path / "in.lmdb")
    record = rows_of(found)[0]["a"]
    assert found.layout == FeatureLayout(DIM, "float32", without=without("class_ids"))
    assert np.array_equal(record.class_ids, item["objects"])
    assert any("--background" in note for note in found.notes)


def test_a_size_that_is_not_told_is_taken_from_the_given_ones(tmp_path, kind):
    items = {key: {**vmb(3), "image_width": None, "image_height": None} for key in "ab"}
    save(kind, tmp_path / "in.lmdb", items)
    records, bad = rows_of(read(kind, tmp_path / "in.lmdb", {"a": (480, 640)}))
    assert not bad
    assert (records["a"].image_size, records["b"].image_size) == ((480, 640), (0, 0))
    store = store_of(tmp_path / "store", list(records.values()), LAYOUT)
    with pytest.raises(StoreError, match="'b' does not tell its image's size"):
        FORMATS[kind].write(store, tmp_path / "out.lmdb")
    assert not (tmp_path / "out.lmdb").exists() and not list(tmp_path.glob(".*"))


def test_a_single_file_lmdb_is_read(tmp_path):
    save_lmdb(tmp_path / "x.lmdb", {"a": vmb(3)}, subdir=False)
    assert (tmp_path / "x.lmdb").is_file()
    assert list(rows_of(read("lmdb", tmp_path / "x.lmdb"))[0]) == ["a"]


def test_stores_without_classes_and_of_float16_are_written(tmp_path, kind):
    layout = FeatureLayout(DIM, "float16", without=without())
    record = region_record("a", 3, layout)
    report = FORMATS[kind].write(store_of(tmp_path / "store", [record], layout), tmp_path / "out")
    item = LOAD[kind](tmp_path / "out")["a"]
    assert item["features"].dtype == np.float32 and np.array_equal(item["features"], record.features)
    assert item.get("objects") is None and item.get("cls_prob") is None
    assert any(".lmdb" in note for note in report.notes) == (kind == "lmdb")


def test_files_name_nothing_that_old_numpy_does_not_know(tmp_path, kind):
    records = [region_record("a", 3, LAYOUT)]
    FORMATS[kind].write(store_of(tmp_path / "store", records, LAYOUT), tmp_path / "out")
    data = b"".join(path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert b"numpy.core.multiarray" in data and b"numpy._core" not in data


# Torn and hostile rows


def test_torn_files_are_listed_and_the_others_read(tmp_path):
    for key in ("a", "b", "c", "d", "z"):
        save_npy(tmp_path, key, vmb(12))
    tear(tmp_path / "b.npy")
    tear(tmp_path / "c_info.npy")
    (tmp_path / "d_info.npy").unlink()
    np.save(tmp_path / "e_info.npy", {})  # type: ignore[arg-type]
    records, bad = rows_of(read("npy", tmp_path))
    assert list(records) == ["a", "z"]
    assert [each.key for each in bad] == ["b", "c", "d", "e_info"]
    assert bad[0].where == str(tmp_path / "b.npy") and all("\n" not in each.message for each in bad)
    assert "there is no d_info.npy beside it" in bad[2].message and "there is no e.npy" in bad[3].message


def test_torn_entries_are_listed_and_the_others_read(tmp_path):
    save_lmdb(
        tmp_path / "x", {"a": vmb(12), "b": vmb(12), "z": vmb(12)}, keys=[b"a", b"b", b"c", b"d", b"\xff", b"z", b"a"]
    )
    with lmdb.open(str(tmp_path / "x"), map_size=1 << 26) as env, env.begin(write=True) as txn:
        txn.put(b"b", txn.get(b"b")[:200])
        txn.put(b"d", pickle.dumps([1]))
        txn.put(b"\xff", txn.get(b"a"))
    records, bad = rows_of(read("lmdb", tmp_path / "x"))
    assert list(records) == ["a", "z"]
    assert [each.key for each in bad] == ["b", "c", "d", "\ufffd"]
    assert "has no entry" in bad[1].message and bad[0].where == f"{tmp_path / 'x'}: b"


WRONG: dict[str, tuple[Item, str]] = {
    "no boxes": ({"bbox": None}, "it has no bbox"),
    "fewer boxes": ({"bbox": boxes(3)}, "boxes is float32"),
    "fewer classes": ({"objects": np.zeros(3, np.int64)}, "do not go with cls_prob"),
    "a class too high": ({"objects": np.full(12, CLASSES - 1)}, "do not go with cls_prob"),
    "a class below": ({"objects": np.full(12, -1)}, "which is no class"),
    "no probabilities": ({"cls_prob": np.full((12, 5), 0.5, np.float32)}, "adds up to 2.5"),
    "other numbers": ({"features": np.zeros((12, DIM))}, "features is float64"),
    "text for classes": ({"cls_prob": "abc"}, "its dict is not one of MMF"),
    "half a pixel": ({"image_width": 0.5}, "wanted pixels"),
    "a size of text": ({"image_width": [1, 2]}, "its dict is not one of MMF"),
    "fractions of nothing": (
        {"bbox": np.zeros((12, 6), np.float32), "image_width": None},
        "does not tell the image's size",
    ),
    "another width": ({"features": numbers(12, DIM + 1)}, "dim: 9, not 8"),
    "no classes": ({"objects": None, "cls_prob": None}, "it differs from the first"),
    "a tensor": ({"objects": torch.zeros(12)}, "it asks for torch"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_dict_is_a_bad_row_and_says_why(tmp_path, kind, name):
    changes, why = WRONG[name]
    save(kind, tmp_path / "in", {"a": vmb(12), "b": {**vmb(12), **changes}, "c": vmb(12)})
    records, bad = rows_of(read(kind, tmp_path / "in"))
    assert (list(records), [each.key for each in bad]) == (["a", "c"], ["b"])
    assert why in bad[0].message and "\n" not in bad[0].message


def test_programs_are_not_run(tmp_path, kind):
    class Attack:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/ran",)

    save(kind, tmp_path / "in", {"a": vmb(3), "b": {**vmb(3), "objects": Attack()}})
    records, bad = rows_of(read(kind, tmp_path / "in"))
    assert list(records) == ["a"] and "it asks for posix.system" in bad[0].message
    if kind == "lmdb":
        with lmdb.open(str(tmp_path / "in"), map_size=1 << 26) as env, env.begin(write=True) as txn:
            txn.put(b"keys", pickle.dumps(Attack()))
        with pytest.raises(StoreError, match="it asks for posix.system"):
            read(kind, tmp_path / "in")
    assert not (tmp_path / "ran").exists()


# Refused


def test_other_folders_are_refused_in_one_line(tmp_path, kind):
    np.savez(tmp_path / "x.npz", a=np.ones(1))
    why = {"npy": "holds no .*npy file", "lmdb": "data.mdb is not there"}[kind]
    with pytest.raises(StoreError, match=why):
        read(kind, tmp_path)
    save(kind, tmp_path / "grid", {"a": {**vmb(3), "features": np.zeros((7, 7, 4), np.float32)}})
    with pytest.raises(StoreError, match="grids of MMF are not read"):
        read(kind, tmp_path / "grid")
    save_lmdb(tmp_path / "nothing", {}, keys=[])
    with pytest.raises(StoreError):
        read(kind, tmp_path / "nothing")


def test_an_lmdb_of_torch_save_is_refused_with_the_reason(shared):
    for name in ("features", "coordinates"):
        path = shared / "data/features/allennlp_tensorcache" / name
        with pytest.raises(StoreError) as caught:
            read("lmdb", path)
        assert str(caught.value) == (
            f"{path} has no entry 'keys', the list of its keys, and is no mmf-lmdb; its first entry is not a pickle of "
            "plain arrays, numbers and text (it is a file of torch.save); nothing else is unpickled."
        )


@pytest.mark.parametrize("key", ["a_info", "x.npy/b", "a.npy.1", "../a", "/a", "a//b"])
def test_keys_that_mmf_would_misread_are_refused(tmp_path, kind, key):
    store = store_of(tmp_path / "store", [region_record(key, 1, LAYOUT)], LAYOUT)
    with pytest.raises(StoreError, match="takes for its own endings|give the image another key"):
        FORMATS[kind].write(store, tmp_path / "out")
    assert [each.name for each in tmp_path.iterdir()] == ["store"]


def test_the_name_of_the_list_of_keys_is_no_key(tmp_path):
    store = store_of(tmp_path / "store", [region_record("keys", 1, LAYOUT)], LAYOUT)
    with pytest.raises(StoreError, match="the key 'keys' is the one under which this format keeps its list of keys"):
        MMF_LMDB.write(store, tmp_path / "out")
    MMF_NPY.write(store, tmp_path / "out")


def test_fractions_are_refused(tmp_path, kind):
    layout = replace(LAYOUT, box_units="fractions")
    store = store_of(tmp_path / "store", [region_record("a", 1, layout)], layout)
    with pytest.raises(StoreError, match="import its source again with the images' sizes"):
        FORMATS[kind].write(store, tmp_path / "out")
