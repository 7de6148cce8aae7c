"""Pillow's bilinear weights: what a GPU multiplies by gives Pillow's bytes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from extractors import GridConfig
from extractors.base import prepare_later, prepare_pil
from extractors.images import resize_shortest_edge
from extractors.resize import BITS, taps
from storage.frames import resized_shape
from tests.unit.extractors.pictures import noisy_photo


def by_taps(image: np.ndarray, axis: int, after: int) -> np.ndarray:
    """One step of the resize, along an axis of uint8 (H, W, 3)."""
    first, weights = taps(image.shape[axis], after)
    lines = np.moveaxis(image, axis, 0).astype(np.int64)
    total = np.full((after, *lines.shape[1:]), 1 << (BITS - 1), np.int64)
    for tap, weight in enumerate(weights):
        at = np.minimum(first + tap, len(lines) - 1)
        total += lines[at] * weight[:, None, None]
    assert total.max() < 1 << 31  # a kernel adds up in int32
    return np.moveaxis(np.minimum(total >> BITS, 255).astype(np.uint8), 0, axis)


SIZES = [(1, 1), (2, 3), (3, 600), (33, 47), (150, 97), (480, 640), (600, 800), (1000, 375), (1080, 1440)]


@pytest.mark.parametrize("before", SIZES)
@pytest.mark.parametrize("limits", [(24, 60), (448, 448), (600, 1000), (800, 1333)])
def test_taps_give_the_bytes_of_the_official_resize(before: tuple[int, int], limits: tuple[int, int]) -> None:
    image = noisy_photo(*before)
    height, width = resized_shape(*before, *limits)
    found = by_taps(by_taps(image, 1, width), 0, height)  # a picture twice as high as wide: rows first there, too
    np.testing.assert_array_equal(found, resize_shortest_edge(image, *limits))


def test_a_large_image_is_resized_where_it_was_decoded() -> None:
    config, image = GridConfig(shorter=24, longer=60), noisy_photo(1600, 1800)
    late, wanted = prepare_later("k", image, config), prepare_pil("k", image, config)
    assert late.resized is None and torch.equal(late.pixels, wanted.pixels)


def test_a_small_image_is_left_to_the_device_as_it_is_now() -> None:
    image = noisy_photo(30, 40)
    late = prepare_later("k", image, GridConfig(shorter=24, longer=60))
    before = image.copy()
    image[:] = 0  # whoever gave it may use its memory again
    assert late.resized == (24, 32) and np.array_equal(late.pixels.numpy(), before)


def test_taps_of_what_keeps_its_size_change_nothing() -> None:
    first, weights = taps(7, 7)
    assert first.tolist() == [*range(7)] and weights[0].tolist() == [1 << BITS] * 7 and not weights[1:].any()


def test_no_weight_reaches_beyond_the_row() -> None:
    for before, after in [(7, 20), (20, 7), (640, 800), (801, 600)]:
        first, weights = taps(before, after)
        last = first + np.where(weights > 0, np.arange(len(weights))[:, None], 0).max(axis=0)
        assert first.min() >= 0 and last.max() < before and weights.min() >= 0
