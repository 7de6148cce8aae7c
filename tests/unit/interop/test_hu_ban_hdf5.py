"""hu-hdf5 and ban-hdf5: sizes only as quotients, a map that Python 2 pickled, rows that no image owns."""

from __future__ import annotations

import os
import pickle
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from storage import FeatureLayout, RegionRecord, StoreError
from storage.interop.ban_hdf5 import BAN_HDF5
from storage.interop.base import Foreign, Import, ImportOptions
from storage.interop.hu_hdf5 import HU_HDF5
from storage.spec import OPTIONAL
from tests.unit.interop.samples_npz import (
    EVERYTHING,
    boxes,
    numbers,
    real_rows,
    region_record,
    rows_of,
    store_from,
    store_of,
)
from tests.unit.storage.samples import assert_same

DIM, FIXED = 6, 36
LAYOUT = FeatureLayout(DIM, "float32", without=OPTIONAL)
FORMATS = {"hu": HU_HDF5, "ban": BAN_HDF5}
Image = tuple[int, float, float, np.ndarray, np.ndarray]  # id, width, height, boxes, features


def image(number: int, count: int = FIXED, width: float = 640, height: float = 480) -> Image:
    return number, width, height, boxes(count, seed=number), numbers(count, DIM, seed=number)


def spatial(found: np.ndarray, width: float, height: float) -> np.ndarray:
    """The converters' arithmetic, step by step in float32."""
    w, h = (found[:, 2] - found[:, 0]) / width, (found[:, 3] - found[:, 1]) / height
    x, y = found[:, 0] / width, found[:, 1] / height
    return np.stack([x, y, x + w, y + h, w, h], axis=1)


def python_2_map(path: Path, rows: dict[int, int]) -> None:
    """cPickle.dump(rows, file) of Python 2."""
    lines = "".join(f"I{key}\nI{row}\ns" for key, row in rows.items())
    path.write_bytes(f"(dp1\n{lines}.".encode())


def hu(path: Path, images: list[Image], room: int | None = None) -> None:
    """What detection_features_converter.py writes; `room` counts the images that it expected."""
    total = room or len(images)
    with h5py.File(path, "w") as file:
        features = file.create_dataset("image_features", (total, FIXED, DIM), "f")
        found = file.create_dataset("image_bb", (total, FIXED, 4), "f")
        fractions = file.create_dataset("spatial_features", (total, FIXED, 6), "f")
        for row, (_, width, height, pixels, values) in enumerate(images):
            features[row], found[row], fractions[row] = values, pixels, spatial(pixels, width, height)
    python_2_map(path.with_name(f"{path.stem}_imgid2idx.pkl"), {each[0]: row for row, each in enumerate(images)})


def ban(path: Path, images: list[Image], room: int | None = None) -> None:
    """What adaptive_detection_features_converter.py writes, in Python 3."""
    counts = [len(each[3]) for each in images]
    total = sum(counts) + 50 * ((room or len(images)) - len(images))
    with h5py.File(path, "w") as file:
        features = file.create_dataset("image_features", (total, DIM), "f")
        found = file.create_dataset("image_bb", (total, 4), "f")
        fractions = file.create_dataset("spatial_features", (total, 6), "f")
        places = file.create_dataset("pos_boxes", (room or len(images), 2), dtype="int32")
        start = 0
        for row, (_, width, height, pixels, values) in enumerate(images):
            end = start + counts[row]
            places[row] = np.array([start, end])
            features[start:end], found[start:end] = values, pixels
            fractions[start:end] = spatial(pixels, width, height)
            start = end
    rows = {each[0]: row for row, each in enumerate(images)}
    path.with_name(f"{path.stem}_imgid2idx.pkl").write_bytes(pickle.dumps(rows))


UPSTREAM = {"hu": hu, "ban": ban}


@pytest.fixture(params=["hu", "ban"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def read(kind: str, path: Path, options: ImportOptions | None = None) -> Import:
    return FORMATS[kind].read(path, options or ImportOptions())


def wanted(each: Image) -> RegionRecord:
    number, width, height, pixels, values = each
    return RegionRecord(str(number), (int(height), int(width)), pixels, values)


def datasets(path: Path) -> dict[str, np.ndarray]:
    with h5py.File(path) as file:
        return {name: data[()] for name, data in file.items()}


def edit(path: Path, name: str, at: int, value: object) -> None:
    with h5py.File(path, "r+") as file:
        file[name][at] = value


def test_reads_a_file_as_upstream_writes_it_sizes_included(tmp_path, kind):
    images = [image(9), image(581929, width=333, height=500), image(25, width=5000, height=3)]
    UPSTREAM[kind](tmp_path / "train36.hdf5", images)
    found = read(kind, tmp_path / "train36.hdf5")
    records, bad = rows_of(found)
    assert (found.view, found.layout, bad, list(records)) == ("regions", LAYOUT, [], ["9", "581929", "25"])
    for each in images:
        assert_same(records[str(each[0])], wanted(each))


def test_any_number_of_boxes_an_image(tmp_path):
    images = [image(1, 10), image(2, 100), image(3, 1), image(4, 0)]
    ban(tmp_path / "train.hdf5", images)
    records, bad = rows_of(read("ban", tmp_path / "train.hdf5"))
    assert not bad
    for each in images[:3]:
        assert_same(records[str(each[0])], wanted(each))
    assert records["4"].features.shape == (0, DIM) and records["4"].image_size == (0, 0)


def test_sizes_are_found_to_the_pixel(tmp_path):
    rng = np.random.default_rng(5)
    images = []
    for number in range(200):
        width, height = rng.integers(20, 8000, 2)
        low, high = np.sort(rng.random((2, FIXED, 2), np.float32), axis=0) * np.float32([width, height]) * rng.random()
        images.append((number, float(width), float(height), np.hstack([low, high]), numbers(FIXED, DIM)))
    hu(tmp_path / "train36.hdf5", images)
    records, bad = rows_of(read("hu", tmp_path / "train36.hdf5"))
    assert not bad
    assert [records[str(number)].image_size for number in range(200)] == [(int(h), int(w)) for _, w, h, _, _ in images]


def test_real_boxes_give_their_images_sizes(tmp_path, shared):
    real = real_rows(shared)
    images = [
        (number, float(row["img_w"]), float(row["img_h"]), row["boxes"], row["features"][:, :DIM])
        for number, row in enumerate(real)
    ]
    hu(tmp_path / "train36.hdf5", images)
    records, bad = rows_of(read("hu", tmp_path / "train36.hdf5"))
    assert not bad and len(records) == 6
    for each in images:
        assert_same(records[str(each[0])], wanted(each))
    store = store_from(tmp_path / "store", read("hu", tmp_path / "train36.hdf5"))
    HU_HDF5.write(store, tmp_path / "again36.hdf5")
    same(tmp_path / "again36.hdf5", tmp_path / "train36.hdf5")


def same(found: Path, wanted: Path) -> None:
    here, there = datasets(found), datasets(wanted)
    assert here.keys() == there.keys()
    for name, array in there.items():
        assert (here[name].dtype, here[name].shape) == (array.dtype, array.shape), name
        assert here[name].tobytes() == array.tobytes(), name
    maps = [pickle.loads(path.with_name(f"{path.stem}_imgid2idx.pkl").read_bytes()) for path in (found, wanted)]
    assert maps[0] == maps[1] and all(type(key) is int for key in maps[0])


def test_files_come_back_equal(tmp_path, kind):
    UPSTREAM[kind](tmp_path / "train36.hdf5", [image(9), image(3, width=333), image(25, height=721)])
    found = read(kind, tmp_path / "train36.hdf5")
    report = FORMATS[kind].write(store_from(tmp_path / "store", found), tmp_path / "deep/er/val36.hdf5")
    same(tmp_path / "deep/er/val36.hdf5", tmp_path / "train36.hdf5")
    assert (report.records, report.files) == (3, 2) and "pixels" in report.notes[0]
    assert sorted(each.name for each in (tmp_path / "deep/er").iterdir()) == ["val36.hdf5", "val36_imgid2idx.pkl"]


@pytest.mark.parametrize("counts", [(36, 36), (10, 100, 1, 300)])
def test_a_store_comes_back_to_the_last_bit(tmp_path, kind, counts):
    if kind == "hu" and counts != (36, 36):
        return
    records = [replace(region_record(str(9 - row), count, LAYOUT)) for row, count in enumerate(counts)]
    FORMATS[kind].write(store_of(tmp_path / "store", records, LAYOUT), tmp_path / "x.h5")
    found = read(kind, tmp_path / "x.h5")
    again, bad = rows_of(found)
    assert (bad, found.layout, list(again)) == ([], LAYOUT, [record.key for record in records])
    for record in records:
        assert_same(again[record.key], record)


def test_float16_features_are_widened_and_other_fields_named_as_left_out(tmp_path, kind):
    layout = replace(EVERYTHING, dim=DIM, dtype="float16")
    record = region_record("7", FIXED, layout)
    report = FORMATS[kind].write(store_of(tmp_path / "store", [record], layout), tmp_path / "x.h5")
    again = rows_of(read(kind, tmp_path / "x.h5"))[0]["7"]
    assert again.features.dtype == np.float32 and np.array_equal(again.features, record.features)
    assert any("class_ids" in note and "class_probs" in note for note in report.notes)


def test_the_map_is_one_that_python_2_reads(tmp_path, kind):
    FORMATS[kind].write(store_of(tmp_path / "s", [region_record("7", FIXED, LAYOUT)], LAYOUT), tmp_path / "x.h5")
    assert (tmp_path / "x_imgid2idx.pkl").read_bytes()[:2] == b"\x80\x02"


# Traps


def test_rows_that_the_map_does_not_name_are_not_images(tmp_path, kind):
    UPSTREAM[kind](tmp_path / "train36.hdf5", [image(9), image(3)], room=5)
    records, bad = rows_of(read(kind, tmp_path / "train36.hdf5"))
    assert (list(records), bad) == (["9", "3"], [])


def test_images_whose_boxes_do_not_tell_a_size_take_the_given_one(tmp_path, kind):
    blank = (9, 640.0, 480.0, np.zeros((FIXED, 4), np.float32), numbers(FIXED, DIM))
    UPSTREAM[kind](tmp_path / "train36.hdf5", [blank, image(3)])
    path = tmp_path / "train36.hdf5"
    records, _ = rows_of(read(kind, path, ImportOptions({"9": (480, 640), "3": (1, 1)})))
    assert (records["9"].image_size, records["3"].image_size) == ((480, 640), (480, 640))
    unknown = store_from(tmp_path / "store", read(kind, path))
    assert unknown["9"].image_size == (0, 0)
    with pytest.raises(StoreError, match="'9' does not tell its image's size"):
        FORMATS[kind].write(unknown, tmp_path / "x.h5")
    assert not list(tmp_path.glob("x*")) and not list(tmp_path.glob(".*"))


def test_boxes_and_fractions_that_contradict_each_other_are_a_bad_row(tmp_path, kind):
    path = tmp_path / "train36.hdf5"
    UPSTREAM[kind](path, [image(9), image(3), image(4)])
    row = FIXED if kind == "ban" else 1
    edit(path, "spatial_features", row, datasets(path)["spatial_features"][row] * 0.9)
    records, bad = rows_of(read(kind, path))
    assert list(records) == ["9", "4"]
    assert (bad[0].key, bad[0].where) == ("3", f"{path}: row 1")
    assert "spatial_features are not image_bb over an image's size" in bad[0].message


@pytest.mark.parametrize("row", [-1, 2, 10**30])
def test_a_row_that_is_not_there_is_a_bad_row(tmp_path, kind, row):
    path = tmp_path / "train36.hdf5"
    UPSTREAM[kind](path, [image(9), image(3)])
    (tmp_path / "train36_imgid2idx.pkl").write_bytes(pickle.dumps({9: 0, 3: row}))
    records, bad = rows_of(read(kind, path))
    assert (list(records), [each.key for each in bad]) == (["9"], ["3"])


@pytest.mark.parametrize("place", [(5, 2), (-3, 4), (0, 10**6)])
def test_places_outside_the_file_are_a_bad_row(tmp_path, place):
    ban(tmp_path / "train.hdf5", [image(9, 3), image(3, 4)])
    edit(tmp_path / "train.hdf5", "pos_boxes", 1, place)
    records, bad = rows_of(read("ban", tmp_path / "train.hdf5"))
    assert list(records) == ["9"]
    assert bad[0].message == f"its boxes are rows {place[0]} to {place[1]} of 7."


# Refused


def test_a_missing_map_is_named(tmp_path, kind):
    UPSTREAM[kind](tmp_path / "val36.hdf5", [image(9)])
    (tmp_path / "val36_imgid2idx.pkl").unlink()
    with pytest.raises(StoreError, match=r"val36.hdf5 needs val36_imgid2idx.pkl beside it"):
        read(kind, tmp_path / "val36.hdf5")


def test_a_map_that_is_none_is_refused_and_runs_nothing(tmp_path, kind):
    class Attack:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/ran",)

    UPSTREAM[kind](tmp_path / "val36.hdf5", [image(9)])
    for content, why in [
        ({9: Attack()}, "it asks for posix.system"),
        ([9], "is not a map from image ids to rows"),
        ({9: "0"}, "is not a map from image ids to rows"),
        ({9: 0, "9": 0}, "is not a map from image ids to rows"),
        ({9: torch.ones(1)}, "it asks for torch"),
    ]:
        (tmp_path / "val36_imgid2idx.pkl").write_bytes(pickle.dumps(content))
        with pytest.raises(StoreError, match=why):
            read(kind, tmp_path / "val36.hdf5")
    assert not (tmp_path / "ran").exists()


def test_other_files_are_refused_in_one_line(tmp_path, kind):
    other = {"hu": "ban", "ban": "hu"}[kind]
    UPSTREAM[other](tmp_path / "other.h5", [image(9)])
    with pytest.raises(StoreError, match=f"as {other}-hdf5 has; import it under that name"):
        read(kind, tmp_path / "other.h5")
    UPSTREAM[kind](tmp_path / "lacking.h5", [image(9)])
    with h5py.File(tmp_path / "lacking.h5", "r+") as file:
        del file["image_bb"]
    with pytest.raises(StoreError, match="has no data set image_bb; it is no"):
        read(kind, tmp_path / "lacking.h5")
    (tmp_path / "text.h5").write_text("hello")
    UPSTREAM[kind](tmp_path / "torn.h5", [image(9)])
    (tmp_path / "torn.h5").write_bytes((tmp_path / "torn.h5").read_bytes()[:-500])
    for name in ("text.h5", "torn.h5", "absent.h5", "."):
        with pytest.raises(StoreError, match="cannot be opened as HDF5") as caught:
            read(kind, tmp_path / name)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "dtype"), [("image_features", "f8"), ("image_bb", "i4"), ("spatial_features", "f2")])
def test_other_number_types_are_refused(tmp_path, kind, name, dtype):
    UPSTREAM[kind](tmp_path / "x.h5", [image(9)])
    with h5py.File(tmp_path / "x.h5", "r+") as file:
        values = file[name][()]
        del file[name]
        file[name] = values.astype(dtype)
    with pytest.raises(StoreError, match="wanted float32"):
        read(kind, tmp_path / "x.h5")


def test_images_of_other_than_36_boxes_are_named_before_anything_is_written(tmp_path):
    records = [region_record("1", 36, LAYOUT), region_record("2", 35, LAYOUT)]
    with pytest.raises(StoreError, match="hu-hdf5 holds 36 boxes an image, '2' has 35; choose ban-hdf5"):
        HU_HDF5.write(store_of(tmp_path / "store", records, LAYOUT), tmp_path / "x.h5")
    assert [each.name for each in tmp_path.iterdir()] == ["store"]


@pytest.mark.parametrize("key", ["000009", "COCO_val2014_000000000009", "-1", "a/9", "\u0663"])
def test_keys_that_are_no_whole_numbers_are_refused(tmp_path, kind, key):
    store = store_of(tmp_path / "store", [region_record(key, FIXED, LAYOUT)], LAYOUT)
    with pytest.raises(StoreError, match="names images by whole numbers"):
        FORMATS[kind].write(store, tmp_path / "x.h5")


def test_fractions_are_refused(tmp_path, kind):
    layout = replace(LAYOUT, box_units="fractions")
    store = store_of(tmp_path / "store", [region_record("1", FIXED, layout)], layout)
    with pytest.raises(StoreError, match="import its source again with the images' sizes"):
        FORMATS[kind].write(store, tmp_path / "x.h5")


def test_no_file_is_overwritten(tmp_path, kind):
    format: Foreign = FORMATS[kind]
    store = store_of(tmp_path / "store", [region_record("1", FIXED, LAYOUT)], LAYOUT)
    format.write(store, tmp_path / "x.h5")
    with pytest.raises(StoreError, match="x.h5 exists already"):
        format.write(store, tmp_path / "x.h5")
    format.write(store, tmp_path / "x.hdf5")  # the same map serves both
    other = store_of(tmp_path / "other", [region_record("2", FIXED, LAYOUT)], LAYOUT)
    with pytest.raises(StoreError, match="x_imgid2idx.pkl is there already and belongs to other features"):
        format.write(other, tmp_path / "x.hdf")
    assert not list(tmp_path.glob("x.hdf")) and not list(tmp_path.glob(".*"))
