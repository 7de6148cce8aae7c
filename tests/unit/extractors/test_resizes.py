"""Each resize on images made here, and against the official one's stored output."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from extractors.images import caffe_scale, resize_caffe, resize_shortest_edge, resized_shape
from tests.unit.extractors.pictures import photo


@pytest.mark.parametrize(
    ("size", "shorter", "longer", "wanted"),
    [
        ((480, 640), 600, 1000, (600, 800)),
        ((640, 480), 600, 1000, (800, 600)),
        ((427, 640), 800, 1333, (800, 1199)),
        ((150, 451), 600, 1000, (333, 1000)),
        ((600, 600), 600, 1000, (600, 600)),
        ((1, 5000), 600, 1000, (1, 1000)),
        ((5000, 1), 600, 1000, (1000, 1)),
        ((1, 1), 600, 1000, (600, 600)),
    ],
)
def test_resized_shape(size, shorter, longer, wanted):
    assert resized_shape(*size, shorter, longer) == wanted


@given(st.tuples(st.integers(1, 5000), st.integers(1, 5000)), st.integers(1, 900), st.integers(1, 1400))
def test_a_resized_shape_fits_and_keeps_its_side(size, shorter, longer):
    height, width = resized_shape(*size, shorter, longer)
    assert min(height, width) >= 1 and max(height, width) <= longer
    assert (height == width) or ((height < width) == (size[0] < size[1]))
    assert resized_shape(*size[::-1], shorter, longer) == (width, height)


def test_the_caffe_scale_rounds_half_to_even():
    assert caffe_scale(480, 640, 600, 1000) == 1.25
    assert caffe_scale(100, 200, 600, 1000) == 5.0
    assert caffe_scale(200, 401, 5, 10) == 5 / 200  # 10.025 rounds to 10
    assert caffe_scale(200, 420, 5, 10) == 5 / 200  # 10.5 rounds to 10 as well
    assert caffe_scale(200, 421, 5, 10) == 10 / 421


def test_caffe_resize_of_a_thin_strip_keeps_a_pixel():
    for strip in (photo(1, 5000), photo(5000, 1)):
        resized, scale = resize_caffe(strip, (1, 2, 3), 600, 1000)
        assert sorted(resized.shape[:2]) == [1, 1000] and scale == 0.2


def test_caffe_resize_subtracts_in_the_order_given_and_leaves_its_input_alone():
    image = photo()
    resized, scale = resize_caffe(image, (1.5, 2.5, 300), 24, 36)
    assert scale == 1 and resized.dtype == np.float32
    np.testing.assert_array_equal(resized, photo().astype(np.float32) - np.float32([1.5, 2.5, 300]))
    np.testing.assert_array_equal(image, photo())


def test_shortest_edge_resize_is_anti_aliased_and_takes_any_layout():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    assert np.ptp(resize_shortest_edge(stripes, 16, 100)[:, 2:-2]) < 20
    flipped = resize_shortest_edge(photo()[..., ::-1], 12, 100)
    np.testing.assert_array_equal(flipped[..., ::-1], resize_shortest_edge(photo(), 12, 100))
    assert flipped.flags.c_contiguous and flipped.flags.writeable


def numbered(tensors: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    """The tensors called `name_I`, by I."""
    return {key.removeprefix(f"{name}_"): value for key, value in tensors.items() if key.startswith(f"{name}_")}


@pytest.mark.parametrize(
    ("folder", "raw"),
    [
        ("grid_feats/r50", "image_rgb"),
        ("grid_feats/x101", "image_rgb"),
        ("grid_feats/x152pp", "image_rgb"),
        ("butd_regions", "image_bgr"),
    ],
)
def test_shortest_edge_resize_equals_detectron2s(folder, raw, shared: Path):
    tensors = load_file(shared / "reference" / folder / "inputs.safetensors")
    sizes = json.loads((shared / "reference" / folder / "config.json").read_text())["input"]
    images, wanted = numbered(tensors, raw), numbered(tensors, "resized_bgr")
    assert images and images.keys() == wanted.keys()
    for number, image in images.items():
        resized = resize_shortest_edge(image, sizes["min_size_test"], sizes["max_size_test"])
        bgr = resized[..., ::-1] if raw == "image_rgb" else resized
        np.testing.assert_array_equal(bgr.transpose(2, 0, 1), wanted[number])


def test_caffe_resize_equals_bottom_up_attentions(shared: Path):
    tensors = load_file(shared / "reference" / "bua_selection" / "inputs.safetensors")
    images, wanted = numbered(tensors, "image_bgr"), numbered(tensors, "network_input_sample")
    assert images and images.keys() == wanted.keys()
    for number, image in images.items():
        resized, _ = resize_caffe(image, (102.9801, 115.9465, 122.7717), 288, 480)
        np.testing.assert_array_equal(resized.transpose(2, 0, 1)[:, ::7, ::7], wanted[number])
