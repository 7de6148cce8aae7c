"""How many images of patches and of pixels make a unit."""

from __future__ import annotations

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
