"""Pixel records: the bytes of the resized image, upright and red first, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from extractors import ConfigError, PixelConfig, load_extractor
from extractors.images import resized_shape
from storage import PixelRecord

SIZES = [(50, 70), (90, 60), (1, 1), (1, 1000), (300, 400)]


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("size", SIZES)
def test_a_record_is_the_image_resized_by_pillow(size: tuple[int, int]) -> None:
    record = load_extractor("pixels", shorter=64, longer=100)(photo(*size), "some/key")
    assert isinstance(record, PixelRecord)
    assert (record.key, record.image_size) == ("some/key", size)
    height, width = resized_shape(*size, 64, 100)
    wanted = Image.fromarray(photo(*size)).resize((width, height), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(record.pixels, wanted)
    assert record.pixels.flags.c_contiguous and record.features is record.pixels


def test_an_image_of_the_size_asked_for_keeps_its_bytes() -> None:
    record = load_extractor("pixels", shorter=64, longer=96)(photo(64, 96))
    np.testing.assert_array_equal(record.features, photo(64, 96))


def test_a_batch_of_several_sizes_equals_one_by_one() -> None:
    made = load_extractor("pixels", shorter=64, longer=100)
    batch = [made.prepare(str(at), photo(*size, seed=at)) for at, size in enumerate(SIZES)]
    for image, found in zip(batch, made.extract(batch), strict=True):
        [alone] = made.extract([image])
        assert isinstance(found, PixelRecord) and isinstance(alone, PixelRecord)
        assert found.key == image.key and np.array_equal(found.pixels, alone.pixels)


def test_the_sizes_are_vilts_and_decide_the_spec() -> None:
    assert (PixelConfig().shorter, PixelConfig().longer) == (384, 640)
    specs = [load_extractor("pixels", shorter=shorter, longer=640).spec for shorter in (384, 385)]
    assert specs[0].id == load_extractor("pixels").spec.id != specs[1].id
    assert (specs[0].layout.dim, specs[0].layout.dtype, specs[0].preprocess["colour"]) == (3, "bytes", "RGB")


def test_settings_of_networks_are_none_of_its() -> None:
    with pytest.raises(TypeError, match="weights"):
        PixelConfig(weights="random:0")  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match="--shorter 700 .* not above --longer 640"):
        PixelConfig(shorter=700)
