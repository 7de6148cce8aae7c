"""A record that disagrees with itself cannot be built; packing keeps every row in its place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from storage import GridRecord, PatchRecord, PixelRecord, Record
from storage.records import PER_BOX, pack, pad
from tests.unit.storage.samples import REGIONS, grid_record, patch_record, region_record, with_layout

WRONG = {
    "too few boxes": ({"boxes": np.zeros((2, 4), np.float32)}, r"boxes is float32 \(2, 4\).*float32 \(3, 4\)"),
    "boxes of five numbers": ({"boxes": np.zeros((3, 5), np.float32)}, r"boxes is float32 \(3, 5\)"),
    "boxes in float64": ({"boxes": np.zeros((3, 4))}, r"boxes is float64"),
    "features of one box": ({"features": np.zeros(8, np.float16)}, r"region features must be \(N, D\), found \(8,\)"),
    "grid features": ({"features": np.zeros((3, 1, 8), np.float16)}, r"region features must be \(N, D\)"),
    "narrower whole image": ({"whole_image": np.zeros(7, np.float16)}, r"whole_image is float16 \(7,\).*\(8,\)"),
    "whole image of another dtype": ({"whole_image": np.zeros(8, np.float32)}, r"whole_image is float32"),
    "whole image as a row": ({"whole_image": np.zeros((1, 8), np.float16)}, r"whole_image is float16 \(1, 8\)"),
    "class_probs in float64": ({"class_probs": np.zeros((3, 5))}, r"class_probs is float64"),
    "too many class_probs": ({"class_probs": np.zeros((4, 5), np.float16)}, r"class_probs is float16 \(4, 5\)"),
    "flat class_probs": ({"class_probs": np.zeros(3, np.float16)}, r"class_probs is float16 \(3,\)"),
}


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG.keys())
def test_a_region_record_that_disagrees_with_itself_is_refused(change: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(ValueError, match=f"^image: {message}"):
        replace(region_record("image", 3), **change)


@pytest.mark.parametrize("name", PER_BOX)
def test_ids_and_scores_must_be_one_a_box_and_of_their_dtype(name: str) -> None:
    record = region_record("image", 3)
    array = getattr(record, name)
    for wrong in (array[:2], array[:, None], array.astype(np.float64), array.astype(np.int64)):
        with pytest.raises(ValueError, match=f"image: {name} is {wrong.dtype}"):
            replace(record, **{name: wrong})


@pytest.mark.parametrize("shape", [(8,), (2, 8), (1, 2, 2, 8)])
def test_grid_features_must_have_three_axes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"image: grid features must be \(H, W, D\)"):
        GridRecord("image", (10, 10), np.zeros(shape, np.float16))


@pytest.mark.parametrize("shape", [(8,), (2, 8), (1, 2, 2, 8)])
def test_patch_features_must_have_three_axes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"image: patch features must be \(H, W, D\)"):
        PatchRecord("image", (10, 10), np.zeros(shape, np.float16))


def test_a_class_token_must_be_as_the_patches_are() -> None:
    for token in (np.zeros(7, np.float16), np.zeros(8, np.float32), np.zeros((1, 8), np.float16)):
        with pytest.raises(ValueError, match="image: whole_image is"):
            replace(patch_record("image"), whole_image=token)


def test_pixels_must_be_bytes_of_three_colours() -> None:
    for pixels in (np.zeros((4, 5), np.uint8), np.zeros((4, 5, 4), np.uint8), np.zeros((4, 5, 3), np.float32)):
        with pytest.raises(ValueError, match=r"image: pixels must be uint8 \(H, W, 3\)"):
            PixelRecord("image", (10, 10), pixels)


def test_a_record_without_boxes_is_a_record() -> None:
    assert region_record("image", 0, with_layout(REGIONS, class_probs=5)).features.shape == (0, 8)


def test_packing_puts_regions_end_to_end() -> None:
    records = [region_record("a", 2), region_record("b", 0), region_record("c", 3)]
    batch = pack(records)
    assert batch.keys == ["a", "b", "c"]
    assert batch.offsets.tolist() == [0, 2, 2, 5] and batch.offsets.dtype == np.int64
    assert batch.image_sizes.tolist() == [list(record.image_size) for record in records]
    assert batch.boxes is not None and batch.grid_shapes is None
    for index, record in enumerate(records):
        mine = slice(*batch.offsets[index : index + 2])
        np.testing.assert_array_equal(batch.values[mine], record.features)
        np.testing.assert_array_equal(batch.boxes[mine], record.boxes)
    assert batch.values.dtype == np.float16


def test_packing_puts_grid_cells_row_by_row() -> None:
    records = [grid_record("a", (2, 3)), grid_record("b", (4, 1))]
    batch = pack(records)
    assert batch.grid_shapes is not None and batch.grid_shapes.tolist() == [[2, 3], [4, 1]]
    assert batch.boxes is None and batch.offsets.tolist() == [0, 6, 10]
    np.testing.assert_array_equal(batch.values[4], records[0].features[1, 1])
    np.testing.assert_array_equal(batch.values[7], records[1].features[1, 0])


def test_a_packed_batch_is_a_copy() -> None:
    record = region_record("a", 2)
    pack([record]).values[:] = 0
    assert record.features.any()


def test_an_empty_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one key"):
        pack([])


@pytest.mark.parametrize("make", [region_record, grid_record])
def test_padding_copies_only_where_there_is_something_to_pad(make: Callable[[str], Record]) -> None:
    batch = pack([make("a"), replace(make("a"), key="b")])
    rows = int(batch.offsets[1])
    whole, longer, cut = pad(batch, rows), pad(batch, rows + 1), pad(batch, rows - 1)
    assert np.shares_memory(whole.values, batch.values)
    assert whole.mask.all() and whole.values.shape == (2, rows, batch.values.shape[1])
    for other in (longer, cut):
        assert not np.shares_memory(other.values, batch.values)
        kept = min(rows, other.values.shape[1])
        np.testing.assert_array_equal(other.values[:, :kept], whole.values[:, :kept])
        if batch.boxes is not None:
            assert other.boxes is not None and whole.boxes is not None
            np.testing.assert_array_equal(other.boxes[:, :kept], whole.boxes[:, :kept])
    assert not longer.mask[:, rows].any() and not longer.values[:, rows].any()
