"""uniter-npz: float16 fractions, background in column 0, and no size of an image anywhere."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from storage import FeatureLayout, GridRecord, RegionRecord, StoreError
from storage.interop.base import Import, ImportOptions
from storage.interop.uniter_npz import UNITER_NPZ, arrays_from_record, record_from_arrays
from tests.unit.interop.samples_npz import (
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

CLASSES = 1601
LAYOUT = FeatureLayout(WIDTH, "float16", CLASSES, "float16", without("class_scores"), "fractions")
NAME = "coco_val2014_000000262148"


def made(features: np.ndarray, found: np.ndarray, height: float = 480.0, width: float = 640.0) -> dict[str, np.ndarray]:
    """What tools/generate_npz.py makes of an image's float32 features and pixel boxes, and of some probabilities."""
    probs = np.random.default_rng(len(found)).dirichlet(np.ones(CLASSES), len(found)).astype(np.float32)
    w, h = (found[:, 2] - found[:, 0]) / width, (found[:, 3] - found[:, 1]) / height
    x, y = found[:, 0] / width, found[:, 1] / height
    columns = [each[:, np.newaxis] for each in (x, y, x + w, y + h, w, h)]
    return {
        "norm_bb": np.concatenate(columns, axis=1).astype(np.float16),
        "features": features.astype(np.float16),
        "conf": probs[:, 1:].max(axis=1, keepdims=True, initial=0).astype(np.float16),
        "soft_labels": probs.astype(np.float16),
    }


def upstream(folder: Path, name: str, count: int, **changes: object) -> dict[str, np.ndarray]:
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {**made(numbers(count, WIDTH, seed=count), boxes(count)), **changes}
    kept = {key: array for key, array in arrays.items() if array is not None}
    np.savez_compressed(folder / f"{name}.npz", **kept)
    return kept


def read(folder: Path, sizes: dict[str, tuple[int, int]] | None = None) -> Import:
    return UNITER_NPZ.read(folder, ImportOptions(sizes or {}))


def test_reads_a_file_as_upstream_writes_it(tmp_path):
    arrays = upstream(tmp_path, NAME, 3)
    found = read(tmp_path)
    records, bad = rows_of(found)
    labels = arrays["soft_labels"]
    wanted = RegionRecord(
        NAME,
        (0, 0),
        arrays["norm_bb"][:, :4].astype(np.float32),
        arrays["features"],
        class_scores=arrays["conf"][:, 0].astype(np.float32),
        class_probs=np.concatenate([labels[:, 1:], labels[:, :1]], axis=1),  # background goes last
    )
    assert (found.view, found.layout, bad) == ("regions", LAYOUT, [])
    assert_same(records[NAME], wanted)
    assert any("fractions" in note for note in found.notes)


def test_given_sizes_turn_fractions_into_pixels(tmp_path):
    arrays = upstream(tmp_path, "a", 3)
    upstream(tmp_path, "b", 3)
    found = read(tmp_path, {"a": (480, 640)})
    records, bad = rows_of(found)
    assert found.layout == replace(LAYOUT, box_units="pixels")
    assert records["a"].image_size == (480, 640)
    fractions = arrays["norm_bb"][:, :4].astype(np.float32)
    assert np.array_equal(records["a"].boxes, fractions * np.float32([640, 480, 640, 480]))
    assert np.abs(records["a"].boxes - boxes(3)).max() < 0.5  # float16 keeps a third of a pixel at this size
    assert [row.message for row in bad] == ["no size was given for 'b'; give the sizes of all images, or of none."]


@pytest.mark.parametrize("sizes", [{}, {f"image{count}": (481, 639) for count in (0, 1, 30)}])
def test_files_come_back_equal_but_for_the_rounding_of_sides(tmp_path, sizes):
    for count in (0, 1, 30):
        upstream(tmp_path / "in", f"image{count}", count)
    UNITER_NPZ.write(store_from(tmp_path / "store", read(tmp_path / "in", sizes)), tmp_path / "out")
    for name, wanted in arrays_of(tmp_path / "in").items():
        found = arrays_of(tmp_path / "out")[name]
        sides, norm_bb = wanted["norm_bb"][:, 4:], wanted["norm_bb"]
        off = np.abs(found["norm_bb"][:, 4:].astype(np.float32) - sides)
        assert off.max(initial=0) <= 2**-10  # upstream rounded them from sharper corners than the file holds
        assert_same_arrays({**found, "norm_bb": np.concatenate([found["norm_bb"][:, :4], sides], axis=1)}, wanted)
        assert found["norm_bb"].dtype == norm_bb.dtype


def test_what_was_written_once_comes_back_bit_for_bit(tmp_path):
    upstream(tmp_path / "in", "a", 30)
    for before, after in [("in", "once"), ("once", "twice")]:
        UNITER_NPZ.write(store_from(tmp_path / f"store-{after}", read(tmp_path / before)), tmp_path / after)
    assert_same_arrays(arrays_of(tmp_path / "twice")["a.npz"], arrays_of(tmp_path / "once")["a.npz"])


@pytest.mark.parametrize("classes", [CLASSES, 0])
def test_a_store_comes_back_to_the_last_bit(tmp_path, classes):
    layout = replace(LAYOUT, class_probs=classes)
    records = [_halved(region_record(f"vcr/{n}", n, layout)) for n in (0, 1, 6)]
    report = UNITER_NPZ.write(store_of(tmp_path / "store", records, layout), tmp_path / "out")
    found = read(tmp_path / "out")
    again, bad = rows_of(found)
    assert (report.records, bad, found.layout) == (3, [], layout)
    for record in records:
        assert_same(again[record.key], record)
    assert any("soft_labels are left out" in note for note in report.notes) == (not classes)


def _halved(record: RegionRecord) -> RegionRecord:
    """A record of fractions that float16 holds."""
    fractions, scores = record.boxes / 1024, record.class_scores
    assert scores is not None
    halves = {"boxes": fractions.astype(np.float16), "class_scores": scores.astype(np.float16)}
    return replace(record, image_size=(0, 0), **{name: half.astype(np.float32) for name, half in halves.items()})  # type: ignore[arg-type]


def test_pixels_are_written_as_upstream_would_from_real_boxes(tmp_path, shared):
    layout = FeatureLayout(WIDTH, "float32", CLASSES, "float32", without("class_scores"))
    for row in real_rows(shared):
        size = int(row["img_h"]), int(row["img_w"])
        wanted = made(row["features"], row["boxes"], float(size[0]), float(size[1]))
        probs = np.roll(wanted["soft_labels"].astype(np.float32), -1, axis=1)
        conf = wanted["conf"][:, 0].astype(np.float32)
        record = RegionRecord("a", size, row["boxes"], row["features"], class_scores=conf, class_probs=probs)
        assert_same_arrays(arrays_from_record(record, layout), wanted)


def test_stray_arrays_flat_scores_and_absent_labels_are_read(tmp_path):
    arrays = made(numbers(2, WIDTH), boxes(2))
    plain = record_from_arrays("a", arrays, ImportOptions())
    stray = {**arrays, "allow_pickle": np.array(True), "conf": arrays["conf"][:, 0]}
    assert_same(record_from_arrays("a", stray, ImportOptions()), plain)
    del stray["soft_labels"]
    assert_same(record_from_arrays("a", stray, ImportOptions()), replace(plain, class_probs=None))


def test_a_stray_array_of_objects_does_no_harm(tmp_path):
    upstream(tmp_path, "a", 1, allow_pickle=np.array([None]))
    assert rows_of(read(tmp_path))[0].keys() == {"a"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm_bb": numbers(3, 4)}, "norm_bb is (3, 4); wanted (N, 6)."),
        ({"norm_bb": None}, "it has no norm_bb"),
        ({"conf": numbers(2, 1)}, "b: class_scores is float32 (2,)"),
        ({"soft_labels": None}, "it differs from the first file (class_probs: 0, not 1601)."),
        ({"soft_labels": numbers(3)}, "soft_labels is (3,); wanted (N, classes)."),
        ({"soft_labels": numbers(2, CLASSES)}, "b: class_probs is float32 (2, 1601)"),
        ({"features": numbers(3, WIDTH)}, "it differs from the first file (dtype: 'float32', not 'float16')."),
        ({"features": np.arange(6).reshape(3, 2)}, "features is int64; wanted float32 or float16."),
        ({"features": np.array([None, 1])}, "it is torn or no .npz file (Object arrays cannot be loaded"),
    ],
)
def test_a_bad_file_is_listed_and_the_others_are_read(tmp_path, changes, message):
    for name in "abcd":
        upstream(tmp_path, name, 3)
    upstream(tmp_path, "b", 3, **changes)
    tear(tmp_path / "d.npz")
    records, bad = rows_of(read(tmp_path))
    assert records.keys() == {"a", "c"} and [row.key for row in bad] == ["b", "d"]
    assert bad[0].message.startswith(message)
    assert bad[1].message.startswith("it is torn")


def test_another_folder_is_refused_in_a_line(tmp_path):
    np.savez(tmp_path / "a.npz", x=numbers(3, WIDTH))
    with pytest.raises(
        StoreError, match="a.npz is not uniter-npz: it has no norm_bb, features, conf; it has nothing known"
    ):
        read(tmp_path)


def test_stores_that_do_not_fit_are_refused(tmp_path):
    scoreless, pixels = replace(LAYOUT, without=without()), replace(LAYOUT, box_units="pixels")
    store = store_of(tmp_path / "scoreless", [region_record("a", 1, scoreless)], scoreless)
    with pytest.raises(StoreError, match="uniter-npz needs class_scores, which this store does not have"):
        UNITER_NPZ.write(store, tmp_path / "out")
    unsized = replace(region_record("a", 1, pixels), image_size=(0, 0))
    with pytest.raises(StoreError, match="'a' does not tell its image's size"):
        UNITER_NPZ.write(store_of(tmp_path / "unsized", [unsized], pixels), tmp_path / "out")
    grid = store_of(tmp_path / "grid", [GridRecord("a", (9, 9), numbers(2, 2, 8))], FeatureLayout(8, "float32"))
    with pytest.raises(StoreError, match="uniter-npz holds regions, this store holds grid"):
        UNITER_NPZ.write(grid, tmp_path / "out")
    large = replace(
        region_record("a", 1, single := replace(LAYOUT, dtype="float32")), features=np.full((1, WIDTH), 7e4, "f4")
    )
    with pytest.raises(StoreError, match="a feature of 70000 does not fit float16"):
        UNITER_NPZ.write(store_of(tmp_path / "large", [large], single), tmp_path / "out")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".*"))
