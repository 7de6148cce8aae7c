"""Codes of images: one a patch, of the right pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from extractors.weights import WeightsError
from trainers.batch import Pixels
from trainers.codebook import STRIDE, Codebook, CodebookConfig
from trainers.images import meter_square, square_pixels

SETTINGS = {"hidden_size": 4, "vocab_size": 50}
RANDOM = CodebookConfig("random:0", SETTINGS)


def images(count: int = 3, side: int = 64) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (4, 4, 3), np.uint8).repeat(side // 4, 0).repeat(side // 4, 1) for _ in range(count)]


def as_bytes(pictures: list[np.ndarray]) -> Pixels:
    return Pixels(torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2))


def test_a_patch_has_the_code_that_transformers_gives_its_place() -> None:
    """Patches of eight pixels a side are not resized: they are prepared as FLAVA's own processor does."""
    found = Codebook(RANDOM)
    processor = transformers.FlavaImageProcessor(
        codebook_size={"height": 32, "width": 32}, codebook_crop_size={"height": 32, "width": 32}
    )
    pictures = images(side=32)
    prepared = processor(pictures, return_codebook_pixels=True, return_tensors="pt")["codebook_pixel_values"]
    wanted = found.model.get_codebook_indices(prepared).flatten(1)
    codes = found.codes(as_bytes(pictures), STRIDE)
    assert codes.shape == (3, 16) and codes.dtype == torch.int64 and len(codes.unique()) > 3
    assert torch.equal(codes, wanted)


def test_pixels_that_are_normalised_are_refused() -> None:
    square = square_pixels(images(), meter_square(64))
    assert torch.equal(Codebook(RANDOM).codes(square, 16), Codebook(RANDOM).codes(as_bytes(images()), 16))
    with pytest.raises(ValueError, match=r"of bytes, not of torch.float32"):
        Codebook(RANDOM).codes(square.normalised((0.0,) * 3, (1.0,) * 3), 16)


def test_codes_are_of_each_image_and_the_same_again() -> None:
    found, pixels = Codebook(RANDOM), as_bytes(images())
    whole = found.codes(pixels, 16)
    assert torch.equal(found.codes(Pixels(pixels.images[1:2]), 16)[0], whole[1])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(Codebook(RANDOM).codes(pixels, 16), whole)


def test_weights_are_those_of_a_folder(tmp_path: Path) -> None:
    torch.manual_seed(1)
    theirs = transformers.FlavaImageCodebook(transformers.FlavaImageCodebookConfig(**SETTINGS))
    theirs.save_pretrained(tmp_path)
    found = Codebook(CodebookConfig(str(tmp_path)))
    assert all(torch.equal(each, found.model.state_dict()[name]) for name, each in theirs.state_dict().items())
    with pytest.raises(WeightsError, match="FlavaImageCodebook .*nothing cannot be loaded"):
        Codebook(CodebookConfig(str(tmp_path / "nothing")))


def test_images_of_several_sizes_are_refused() -> None:
    pixels = Pixels(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), torch.tensor([[32, 32], [16, 32]]))
    with pytest.raises(ValueError, match="of one size"):
        Codebook(RANDOM).codes(pixels, 8)
