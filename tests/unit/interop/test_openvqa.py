"""openvqa-npz: GQA's regions and grids, CLEVR's grids; no axis is transposed and no grid's shape is guessed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from storage import FeatureLayout, GridRecord, RegionRecord, StoreError
from storage.interop.base import Import, ImportOptions
from storage.interop.openvqa import OPENVQA_NPZ
from tests.unit.interop.samples_npz import (
    WIDTH,
    arrays_of,
    assert_same_arrays,
    boxes,
    numbers,
    region_record,
    rows_of,
    store_from,
    store_of,
    tear,
    without,
)
from tests.unit.storage.samples import assert_same

PLAIN = FeatureLayout(WIDTH, "float32", without=without())


def objects(folder: Path, name: str, count: int, **changes: object) -> None:
    """A file as data/gqa/gqa_feat_preproc.py makes it of one row of an HDF5 file."""
    folder.mkdir(parents=True, exist_ok=True)
    features, found = numbers(100, WIDTH, seed=count), boxes(100)
    members = {"x": features[:count], "bbox": found[:count], "width": 640, "height": 480, **changes}
    np.savez(folder / f"{name}.npz", **{key: each for key, each in members.items() if each is not None})  # type: ignore[arg-type]


def spatial(folder: Path, name: str, width: int, side: int) -> np.ndarray:
    """A grid as gqa_feat_preproc.py and clevr_extract_feat.py make it of (width, side, side), which is returned."""
    folder.mkdir(parents=True, exist_ok=True)
    feature = numbers(width, side, side, seed=side)
    np.savez(folder / f"{name}.npz", x=feature.reshape(width, side * side).transpose(1, 0))
    return feature


def read(folder: Path, **sizes: tuple[int, int]) -> Import:
    return OPENVQA_NPZ.read(folder, ImportOptions(sizes))


def test_reads_regions_as_upstream_writes_them(tmp_path):
    objects(tmp_path, "n161313", 3)
    found = read(tmp_path)
    records, bad = rows_of(found)
    assert (found.view, found.layout, bad) == ("regions", PLAIN, [])
    wanted = RegionRecord("n161313", (480, 640), boxes(100)[:3], numbers(100, WIDTH, seed=3)[:3])
    assert_same(records["n161313"], wanted)


@pytest.mark.parametrize(("width", "side"), [(2048, 7), (1024, 14)])
def test_reads_grids_as_upstream_writes_them(tmp_path, width, side):
    feature = spatial(tmp_path, "17", width, side)
    found = read(tmp_path)
    record = rows_of(found)[0]["17"]
    assert (found.view, found.layout) == ("grid", FeatureLayout(width, "float32"))
    assert_same(record, GridRecord("17", (0, 0), np.ascontiguousarray(feature.transpose(1, 2, 0))))
    sized = {"17": (320, 480)}
    assert rows_of(read(tmp_path, **sized))[0]["17"].image_size == (320, 480)


def test_files_come_back_equal(tmp_path):
    for count in (0, 1, 40):
        objects(tmp_path / "frcn", f"image{count}", count)
    spatial(tmp_path / "gqa", "2370799", 2048, 7)
    spatial(tmp_path / "clevr", "0", 1024, 14)
    for name in ("frcn", "gqa", "clevr"):
        OPENVQA_NPZ.write(store_from(tmp_path / f"store-{name}", read(tmp_path / name)), tmp_path / f"out-{name}")
        found, wanted = arrays_of(tmp_path / f"out-{name}"), arrays_of(tmp_path / name)
        assert list(found) == list(wanted)
        for file in wanted:
            assert_same_arrays(found[file], wanted[file])


def test_stores_come_back_to_the_last_bit(tmp_path):
    regions = [region_record(f"r{n}", n, PLAIN) for n in (0, 2)]
    grids = [GridRecord(f"train/{side}", (0, 0), numbers(side, side, WIDTH)) for side in (1, 7)]
    for name, records, layout in [("r", regions, PLAIN), ("g", grids, FeatureLayout(WIDTH, "float32"))]:
        OPENVQA_NPZ.write(store_of(tmp_path / f"store{name}", records, layout), tmp_path / name)
        again, bad = rows_of(read(tmp_path / name))
        assert not bad
        for record in records:
            assert_same(again[record.key], record)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"x": numbers(WIDTH, 3)}, "x is (2048, 3), as in mcan-npz; import it under that name."),
        ({"x": np.zeros((WIDTH, WIDTH), "f4")}, "x is (2048, 2048); which axis counts boxes cannot be told."),
        (
            {"width": None, "height": None, "image_h": 1},
            "it has no height, width; it has x, bbox, image_h, as milvlg-npz",
        ),
        ({"x": None}, "it has no x; it has bbox, width, height, as openvqa-npz."),
        ({"x": numbers(1024, 196), "bbox": None}, "x is (1024, 196) and there is no bbox; wanted a grid"),
        ({"x": numbers(WIDTH, 49), "bbox": None}, "x is (2048, 49) and there is no bbox; wanted a grid"),
        ({"x": numbers(50, WIDTH), "bbox": None}, "x is (50, 2048); 50 cells are no square grid"),
    ],
)
def test_other_layouts_are_refused_in_a_line(tmp_path, members, message):
    objects(tmp_path, "a", 3, **members)
    with pytest.raises(StoreError) as caught:
        read(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'a.npz'} is not openvqa-npz: {message}")


def test_torn_files_and_grids_among_regions_are_listed(tmp_path):
    for name in "abc":
        objects(tmp_path, name, 3)
    tear(tmp_path / "b.npz")
    spatial(tmp_path, "d", 2048, 7)
    records, bad = rows_of(read(tmp_path))
    assert records.keys() == {"a", "c"} and [row.key for row in bad] == ["b", "d"]
    assert bad[0].message.startswith("it is torn") and "view: 'grid', not 'regions'" in bad[1].message


def test_stores_that_do_not_fit_are_refused(tmp_path):
    fractions, layout = replace(PLAIN, box_units="fractions"), FeatureLayout(WIDTH, "float32")
    oblong = store_of(tmp_path / "oblong", [GridRecord("cat", (9, 9), numbers(7, 8, WIDTH))], layout)
    with pytest.raises(StoreError, match="'cat' has 7 x 8 cells; openvqa-npz holds square grids only"):
        OPENVQA_NPZ.write(oblong, tmp_path / "out")
    narrow = store_of(tmp_path / "narrow", [GridRecord("a", (9, 9), numbers(2, 2, 8))], FeatureLayout(8, "float32"))
    with pytest.raises(StoreError, match="this store's are 8 wide"):
        OPENVQA_NPZ.write(narrow, tmp_path / "out")
    with pytest.raises(StoreError, match="fractions of sizes that it does not know"):
        OPENVQA_NPZ.write(store_of(tmp_path / "f", [region_record("a", 1, fractions)], fractions), tmp_path / "out")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".*"))
