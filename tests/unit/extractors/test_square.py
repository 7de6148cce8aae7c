"""Squares for towers: which part of an image they show, and that no image fills the memory on its way."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from extractors import square as module
from extractors.square import Square
from tests.unit.extractors.pictures import noisy_photo

CROP = Square(32, 36, False, "bicubic", "down", (0.5,) * 3, (0.5,) * 3)


def photo(height: int, width: int) -> np.ndarray:
    small = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    return np.array(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("size", [(50, 70), (70, 50), (33, 33), (1, 1), (1, 90), (2000, 3)])
@pytest.mark.parametrize("squash", [False, True])
def test_every_image_becomes_a_square(size: tuple[int, int], squash: bool) -> None:
    found = replace(CROP, squash=squash).of(photo(*size))
    assert (found.shape, found.dtype) == ((32, 32, 3), np.uint8)


def test_the_middle_is_kept_or_the_whole_squashed() -> None:
    image = np.zeros((32, 96, 3), np.uint8)
    image[:, 32:64] = 200
    kept = replace(CROP, resized=32)
    assert (kept.of(image) == 200).all()
    squashed = replace(kept, squash=True).of(image)
    assert (squashed[:, [0, -1]] == 0).all() and (squashed[:, 16] == 200).all()


def test_margins_that_cannot_be_equal_are_rounded_as_the_libraries_do() -> None:
    image = photo(36, 39)  # margins of 4 and of 7 pixels
    np.testing.assert_array_equal(CROP.of(image), image[2:34, 3:35])
    np.testing.assert_array_equal(replace(CROP, rounding="even").of(image), image[2:34, 4:36])


def test_another_size_keeps_the_margins_in_proportion() -> None:
    assert (CROP.at(64).size, CROP.at(64).resized) == (64, 72)
    assert replace(CROP, resized=32).at(50).resized == 50


@pytest.mark.parametrize("size", [(50, 70), (400, 30), (31, 57)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_resizing_the_middle_only_gives_the_same_to_one_step(
    size: tuple[int, int], interpolation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    square = replace(CROP, interpolation=interpolation)
    wanted = square.of(photo(*size)).astype(int)
    monkeypatch.setattr(module, "WHOLE_PIXELS", 0)
    assert np.abs(square.of(photo(*size)) - wanted).max() <= 1


def test_an_image_like_a_thread_needs_no_more_memory_than_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """Resized as a whole, this one would have 800 million pixels."""
    resized, thread = [], photo(1, 16000)
    real = Image.Image.resize
    monkeypatch.setattr(
        Image.Image, "resize", lambda self, size, *rest: resized.append(size) or real(self, size, *rest)
    )
    found = replace(CROP, size=224, resized=224).of(thread)
    assert found.shape == (224, 224, 3) and resized == [(224, 224)]


def test_rows_are_resized_before_columns_whatever_pillow_would_do() -> None:
    image = noisy_photo(160, 64)
    found = replace(CROP, squash=True, size=48, resized=48).of(image)
    rows = Image.fromarray(image).resize((48, 160), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(found, np.asarray(rows.resize((48, 48), Image.Resampling.BICUBIC)))
