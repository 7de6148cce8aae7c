"""Two stores are told apart field by field, and the same store is never told apart from itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from storage import GridRecord, Record, RegionRecord, Spec, StoreError, StoreWriter
from storage.codecs import cast
from storage.diff import REGION_FIELDS, Difference, diff_record, diff_stores, match_boxes, open_both
from tests.unit.storage.samples import (
    GRID,
    PATCHES,
    PIXELS,
    REGIONS,
    grid_record,
    make_store,
    pixel_record,
    region_record,
    with_layout,
)

KEYS = ["a", "b", "c"]
BOXES = np.array([[0, 0, 100, 100], [200, 0, 300, 80], [50, 50, 250, 250], [400, 10, 410, 30]], np.float32)


def record_with(key: str, **changes: Any) -> RegionRecord:
    """Four boxes that a pixel or two do not move onto each other."""
    return replace(region_record(key, 4), **({"boxes": BOXES} | changes))


def store_of(path: Path, records: Sequence[Record], spec: Spec = REGIONS) -> Path:
    writer = StoreWriter(path, spec)
    with writer.unit([record.key for record in records]) as unit:
        for record in records:
            unit.append(record)
        unit.commit()
    return path


@pytest.fixture
def compare(tmp_path: Path) -> Callable[..., Difference]:
    """Difference of two lists of records."""

    def run(one: Sequence[Record], other: Sequence[Record], spec: Spec = REGIONS, second: Spec | None = None) -> Any:
        store_of(tmp_path / "one", one, spec)
        store_of(tmp_path / "other", other, second or spec)
        return diff_stores(*open_both(tmp_path / "one", tmp_path / "other"))

    return run


def changed(array: np.ndarray, at: Any, value: float) -> np.ndarray:
    array = array.copy()
    array[at] = value
    return array


@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16", "uint8"])
@pytest.mark.parametrize("view", [REGIONS, GRID, PATCHES], ids=["regions", "grid", "patches"])
def test_equal_stores_are_the_same_however_they_are_cut(tmp_path: Path, view: Spec, dtype: str) -> None:
    spec = with_layout(view, dtype=dtype)
    make_store(tmp_path / "one", [["a", "b"], ["c"]], spec)
    make_store(tmp_path / "other", [["c", "b", "a"]], spec, format="hdf5")
    found = diff_stores(*open_both(tmp_path / "one", tmp_path / "other"))
    assert found.same and (found.records, found.identical) == (3, 3)
    assert not (found.spec or found.resized or found.reshaped or found.only_in_first or found.only_in_second)
    fields = {"regions": set(REGION_FIELDS) - {"class_probs"}, "grid": {"features"}}
    assert set(found.fields) == fields.get(view.view, {"features", "whole_image"})
    for distance in found.fields.values():
        assert (distance.records, distance.equal, distance.largest, distance.mean) == (3, 3, 0, 0)
    assert found.fields["features"].mean_cosine == pytest.approx(1)


def test_pixels_are_compared_by_value_and_by_shape(compare: Any) -> None:
    one = [pixel_record(key, (3, 4)) for key in KEYS]
    other = [one[0], replace(one[1], pixels=one[1].pixels ^ 4), pixel_record(KEYS[2], (4, 3))]
    found = compare(one, other, PIXELS)
    assert (found.records, found.identical, found.reshaped) == (3, 1, [KEYS[2]])
    distance = found.fields["pixels"]
    assert (distance.records, distance.equal, distance.largest) == (2, 1, 4)


@pytest.mark.parametrize("name", [name for name in REGION_FIELDS if name not in ("boxes", "class_probs")])
def test_a_value_changed_in_one_field_is_found_there_and_only_there(compare: Any, name: str) -> None:
    one = [record_with(key) for key in KEYS]
    values = getattr(one[1], name)
    at = (0,) * values.ndim
    other = [one[0], replace(one[1], **{name: changed(values, at, float(values[at]) + 2)}), one[2]]
    found = compare(one, other)
    assert not found.same and (found.records, found.identical) == (3, 2)
    for each, distance in found.fields.items():
        assert (distance.equal, distance.largest > 0) == ((2, True) if each == name else (3, False))
    distance = found.fields[name]
    assert distance.largest == (1 if name.endswith("_ids") else pytest.approx(2, rel=1e-3))
    assert distance.mean == pytest.approx(distance.largest / (3 * values.size))
    assert (distance.lowest_cosine < 0.99) == (name in ("features", "whole_image"))


def test_one_bit_of_one_value_makes_a_record_another(compare: Any) -> None:
    one = [record_with(key) for key in KEYS]
    features = one[0].features.copy()
    features.view(np.uint16)[3, 7] ^= 1
    found = compare(one, [replace(one[0], features=features), *one[1:]])
    assert not found.same and found.identical == 2 and 0 < found.fields["features"].largest < 0.001


def test_zeros_of_either_sign_are_apart_by_nothing_but_not_identical(compare: Any) -> None:
    one = record_with("a", class_scores=np.zeros(4, np.float32))
    found = compare([one], [replace(one, class_scores=-one.class_scores)])
    assert found.fields["class_scores"].largest == 0 and not found.same


def test_keys_of_one_store_only_are_named_in_order(compare: Any) -> None:
    one, other = ([record_with(key) for key in keys] for keys in (["d", "a", "c"], ["c", "b", "e", "a"]))
    found = compare(one, other)
    assert (found.only_in_first, found.only_in_second) == (["d"], ["b", "e"])
    assert found.records == found.identical == 2 and not found.same


def test_another_image_size_is_told(compare: Any) -> None:
    one = [record_with(key) for key in KEYS]
    found = compare(one, [replace(one[0], image_size=(1, 2)), *one[1:]])
    assert found.resized == ["a"] and found.identical == 2


def reordered(record: RegionRecord, order: Sequence[int]) -> RegionRecord:
    names = [name for name in REGION_FIELDS if name not in ("whole_image", "class_probs")]
    return replace(record, **{name: getattr(record, name)[list(order)] for name in names})


def test_boxes_in_another_order_are_matched_and_their_fields_compared(compare: Any) -> None:
    one = [record_with(key) for key in KEYS]
    found = compare(one, [one[0], reordered(one[1], [2, 0, 3, 1]), one[2]])
    assert found.boxes == (12, 12, 12) and found.reshaped == ["b"]
    assert all(distance.largest == 0 and distance.equal == 3 for distance in found.fields.values())
    assert found.identical == 2 and not found.same  # all values are there, but "the first 36" are others


def test_boxes_that_moved_by_less_than_a_pixel_stay_in_their_order(compare: Any) -> None:
    one = record_with("a")
    found = compare([one], [replace(one, boxes=one.boxes + 0.5)])
    assert found.reshaped == [] and found.fields["boxes"].largest == 0.5 and found.fields["features"].equal == 1


def test_other_boxes_are_matched_where_they_overlap_by_half_and_more(compare: Any) -> None:
    one = record_with("a")
    boxes = BOXES.copy()
    boxes[0] += [20, 0, 20, 0]  # IoU 80 / 120
    boxes[1] += [60, 0, 60, 0]  # IoU 40 / 160
    found = compare([one], [replace(reordered(one, [0, 1, 2]), boxes=boxes[:3])])
    assert found.boxes == (2, 4, 3) and found.reshaped == ["a"] and not found.same
    assert found.fields["boxes"].largest == 20 and found.fields["features"].largest == 0


def test_records_without_any_box_in_common_are_not_identical(compare: Any) -> None:
    one = record_with("a")
    found = compare([one], [replace(one, boxes=BOXES + 1000)])
    assert found.boxes == (0, 4, 4) and found.identical == 0 and not found.same


def test_records_without_boxes_are_compared(compare: Any) -> None:
    empty = region_record("a", 0)
    assert compare([empty], [empty]).same


def test_a_record_that_lost_its_boxes_is_another(compare: Any) -> None:
    one = record_with("a")
    empty = replace(region_record("a", 0), image_size=one.image_size, whole_image=one.whole_image)
    found = compare([one], [empty])
    assert found.boxes == (0, 4, 0) and not found.same


def test_boxes_in_fractions_are_not_taken_for_the_same_because_they_are_small(compare: Any) -> None:
    spec = with_layout(REGIONS, box_units="fractions")
    one = record_with("a", boxes=BOXES / 500)
    found = compare([one], [reordered(one, [2, 0, 3, 1])], spec)
    assert found.reshaped == ["a"] and found.boxes == (4, 4, 4)
    assert found.fields["features"].largest == 0


def test_another_dtype_is_compared_value_by_value(compare: Any) -> None:
    second = with_layout(REGIONS, dtype="float32")
    one = [record_with(key) for key in KEYS]
    other = [
        replace(each, features=cast(each.features, "float32"), whole_image=cast(each.whole_image, "float32"))
        for each in one
    ]
    found = compare(one, other, REGIONS, second)
    assert found.spec == ["layout.dtype: 'float16' in first, 'float32' in second"]
    assert found.fields["features"].largest == 0 and found.fields["features"].equal == 0
    assert found.fields["boxes"].equal == 3 and found.identical == 0


def test_fields_that_one_store_lacks_are_left_out(compare: Any) -> None:
    second = with_layout(REGIONS, without=("whole_image", "class_ids"))
    one = [record_with(key) for key in KEYS]
    other = [replace(each, whole_image=None, class_ids=None) for each in one]
    found = compare(one, other, REGIONS, second)
    assert found.identical == 3 and not {"whole_image", "class_ids"} & set(found.fields)
    assert found.spec == ["layout.without: None in first, ['class_ids', 'whole_image'] in second"]


def test_class_probabilities_are_compared_where_both_have_as_many(tmp_path: Path) -> None:
    for name, count in {"one": 3, "two": 3, "other": 4}.items():
        make_store(tmp_path / name, [KEYS], with_layout(REGIONS, class_probs=count))
    found = diff_stores(*open_both(tmp_path / "one", tmp_path / "two"))
    assert found.same and found.fields["class_probs"].equal == 3
    assert "class_probs" not in diff_stores(*open_both(tmp_path / "one", tmp_path / "other")).fields


def test_grids_of_another_shape_are_told_and_not_compared(compare: Any) -> None:
    one = [grid_record("a", (2, 3)), grid_record("b", (2, 2))]
    other = [GridRecord("a", one[0].image_size, one[0].features.transpose(1, 0, 2)), one[1]]
    found = compare(one, other, GRID)
    assert found.reshaped == ["a"] and found.fields["features"].records == 1
    assert (found.records, found.identical) == (2, 1) and not found.same


def test_nans_and_infinities_equal_themselves_and_are_far_from_numbers(compare: Any) -> None:
    odd = record_with("a", class_scores=np.array([np.nan, np.inf, -np.inf, 1], np.float32))
    odd = replace(odd, features=changed(changed(odd.features, (0, 0), np.nan), (1, 1), np.inf))
    found = compare([odd], [odd])
    assert found.same and all(each.largest == each.mean == 0 for each in found.fields.values())
    assert found.fields["features"].mean_cosine == pytest.approx(1)


@pytest.mark.parametrize(("left", "right"), [(np.nan, 1), (1, np.nan), (np.inf, 1), (np.inf, -np.inf)])
def test_a_number_that_became_none_is_endlessly_far(compare: Any, left: float, right: float) -> None:
    one = [record_with("a", class_scores=np.full(4, value, np.float32)) for value in (left, right)]
    found = compare(one[:1], one[1:])
    assert found.fields["class_scores"].largest == np.inf and not found.same


def test_boxes_that_are_not_numbers_equal_themselves_and_match_no_other(compare: Any) -> None:
    odd = record_with("a", boxes=changed(BOXES, (0, 0), np.nan))
    assert compare([odd], [odd]).same
    assert [each.tolist() for each in match_boxes(odd.boxes, BOXES)] == [[1, 2, 3], [1, 2, 3]]


def test_each_box_is_matched_once_the_best_first() -> None:
    one = np.array([[0, 0, 10, 10], [0, 0, 10, 8]], np.float32)
    other = np.array([[0, 0, 10, 9], [0, 0, 10, 10]], np.float32)
    left, right = match_boxes(one, other)
    assert list(zip(left.tolist(), right.tolist(), strict=True)) == [(0, 1), (1, 0)]
    for empty in (match_boxes(one[:0], other), match_boxes(one, other[:0]), match_boxes(one, other + 50)):
        assert [len(each) for each in empty] == [0, 0]


def test_another_view_or_width_is_refused(tmp_path: Path) -> None:
    make_store(tmp_path / "regions", [KEYS])
    make_store(tmp_path / "grid", [KEYS], GRID)
    make_store(tmp_path / "wide", [KEYS], with_layout(REGIONS, dim=9))
    for other, words in {"grid": "grid of width 8", "wide": "regions of width 9"}.items():
        with pytest.raises(StoreError, match=rf"regions holds regions of width 8, .* {words}: nothing to compare"):
            diff_stores(*open_both(tmp_path / "regions", tmp_path / other))


def test_distances_come_as_plain_values(compare: Any) -> None:
    one = [record_with("a")]
    found = compare(one, one).fields["features"].to_dict()
    assert found == {"records": 1, "equal": 1, "largest": 0, "mean": 0, "lowest_cosine": pytest.approx(1),
                     "mean_cosine": pytest.approx(1)}  # fmt: skip


def test_one_record_is_told_apart_like_all_of_them(tmp_path: Path) -> None:
    moved = record_with("b", boxes=BOXES + 60)
    store_of(tmp_path / "one", [record_with("a"), record_with("b")])
    store_of(tmp_path / "other", [record_with("a"), moved])
    both, done = open_both(tmp_path / "one", tmp_path / "other"), list[int]()
    assert diff_stores(*both, done.append).identical == 1 and done == [0, 1]
    assert diff_record(*both, "a").same
    found = diff_record(*both, "b")
    assert (found.records, found.identical, found.reshaped) == (1, 0, ["b"])
    with pytest.raises(KeyError, match="'c' is not among"):
        diff_record(*both, "c")
