"""How many images of patches and of pixels make a unit."""

from __future__ import annotations

import pytest

from pipeline.plan import CPU_SHARD_IMAGES, bytes_per_image, images_per_unit
from storage import FeatureLayout, Spec

PATCHES = Spec("patches", FeatureLayout(768), model={"stride": 16}, preprocess={"size": 224})
PIXELS = Spec("pixels", FeatureLayout(3, "bytes"), preprocess={"shorter": 384, "longer": 640})


def test_patches_of_an_image_are_a_square_and_a_class_token() -> None:
    assert bytes_per_image(PATCHES) == (14 * 14 + 1) * 768 * 2
    assert images_per_unit(PATCHES, on_cpu=True) == CPU_SHARD_IMAGES < images_per_unit(PATCHES, on_cpu=False) < 1000


def test_pixels_of_an_image_are_bytes_and_no_network_makes_their_units_small() -> None:
    assert bytes_per_image(PIXELS) == 384 * 512 * 3
    by_vilt = Spec("pixels", FeatureLayout(3, "bytes"), preprocess={"shorter": 384})
    assert bytes_per_image(by_vilt) == 384 * 512 * 3
    assert 400 < images_per_unit(PIXELS, on_cpu=True) == images_per_unit(PIXELS, on_cpu=False) < 500


@pytest.mark.parametrize("view", ["regions", "grid", "patches", "pixels"])
def test_an_extractor_of_someones_own_need_not_tell_how_it_resizes(view: str) -> None:
    """It ended in a KeyError."""
    layout = FeatureLayout(3, "bytes") if view == "pixels" else FeatureLayout(4)
    assert 1 <= images_per_unit(Spec(view, layout), on_cpu=False) < 10_000_000
