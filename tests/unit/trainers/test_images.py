"""Images as the official codes prepare them, and the same logits from cached pixels as from images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from extractors import PixelConfig, load_extractor
from extractors.images import resize_shortest_edge, resize_to_patches, resize_truncated
from extractors.pixels import PixelExtractor
from storage import StoreWriter, open_store
from tests.unit.trainers.test_vilt import TINY, model_of
from trainers.batch import Batch, Pixels, Text, from_images, from_packed
from trainers.images import fast_rcnn_regions, meter_square, outline, square_pixels, vilt_pixels


def image(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize(
    ("size", "wanted"),
    [
        ((480, 640), (384, 512)),
        ((640, 480), (512, 384)),
        ((300, 900), (192, 608)),
        ((384, 384), (384, 384)),
        ((9, 900), (32, 608)),
    ],
)
def test_vilt_s_sides_are_whole_patches(size: tuple[int, int], wanted: tuple[int, int]) -> None:
    assert resize_to_patches(image(*size), 384).shape[:2] == wanted


@pytest.mark.parametrize(
    ("size", "wanted"),
    [((480, 640), (600, 800)), ((640, 427), (899, 600)), ((300, 900), (333, 999)), ((1, 900), (1, 900))],
)
def test_vl_bert_s_sides_are_cut_to_whole_pixels(size: tuple[int, int], wanted: tuple[int, int]) -> None:
    assert resize_truncated(image(*size), 600, 1000).shape[:2] == wanted


@pytest.mark.parametrize(
    "resized",
    [
        lambda image: resize_to_patches(image, 64),
        lambda image: resize_truncated(image, 64, 100),
        lambda image: resize_shortest_edge(image, 64, 100),
    ],
)
def test_an_image_of_the_right_size_is_given_back(resized: Callable[[np.ndarray], np.ndarray]) -> None:
    given = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    assert resized(given) is given
    assert resized(np.ascontiguousarray(given[:, :64])).shape == (64, 64, 3)
    assert resized(given[:50]).shape != (50, 96, 3)


def test_boxes_move_with_their_image() -> None:
    boxes = [np.array([[0, 0, 39, 29], [10, 10, 20, 50]], np.float32), np.array([[1, 2, 3, 4]], np.float32)]
    found = fast_rcnn_regions([image(30, 40), image(40, 40)], boxes, 60, 100)
    assert found.lengths == (2, 1) and found.image_sizes.tolist() == [[60, 80], [60, 60]]
    assert found.boxes[0].tolist() == [[0, 0, 78, 58], [20, 20, 40, 59]]  # the second is cut at the lower edge
    assert found.boxes[1, 0].tolist() == [1.5, 3, 4.5, 6]
    assert found.pixels is not None and found.pixels.shapes == ((60, 80), (60, 60))


def test_meter_s_square_is_normalised_by_its_own_colours() -> None:
    square = square_pixels([np.full((40, 60, 3), 255, np.uint8)], meter_square(32))
    assert square.images.dtype == torch.uint8
    found = square.normalised((0.0,) * 3, (1.0,) * 3)  # a network's
    wanted = (1 - torch.tensor([0.48145466, 0.4578275, 0.40821073])) / torch.tensor(
        [0.26862954, 0.26130258, 0.27577711]
    )
    torch.testing.assert_close(found.images[0, :, 5, 5], wanted)
    assert found.images.shape == (1, 3, 32, 32) and found.sizes is None


def test_an_outline_holds_its_edges() -> None:
    found = outline([np.array([[2, 3], [6, 3], [6, 8], [2, 8]])], [0, 0, 13, 13])
    wanted = torch.zeros(14, 14)
    wanted[3:9, 2:7] = 1
    assert torch.equal(found, wanted)
    triangle = outline([np.array([[0, 0], [4, 0], [0, 4]])], [0, 0, 13, 13])
    assert [int(row.sum()) for row in triangle[:6]] == [5, 4, 3, 2, 1, 0]
    both = outline(
        [np.array([[0, 0], [1, 0], [1, 1], [0, 1]]), np.array([[28, 28], [99, 28], [99, 99], [28, 99]])], [0, 0, 27, 27]
    )
    assert int(both.sum()) == 1 + 1 and both[13, 13] == 1  # beyond the box is its last row and column


def test_cached_pixels_give_the_logits_of_images(tmp_path: Path) -> None:
    images = {"a": image(30, 45), "b": image(50, 33)}
    extractor = PixelExtractor(PixelConfig(shorter=32, rule="vilt"))
    writer = StoreWriter(tmp_path, extractor.spec)
    with writer.unit(list(images)) as unit:
        for key, each in images.items():
            unit.append(extractor(each, key))
        unit.commit()
    cached = from_packed(open_store(tmp_path).batch(["b", "a"]))
    fresh = vilt_pixels([images["b"], images["a"]], 32)
    by_extractor = from_images(extractor, [images["b"], images["a"]])
    model, text = model_of(TINY), Text(torch.tensor([[4, 5, 6], [7, 8, 9]]))
    wanted = model(Batch(text, fresh)).tokens
    for found in (cached, by_extractor):
        assert isinstance(found, Pixels) and torch.equal(model(Batch(text, found)).tokens, wanted)


def test_the_rule_is_part_of_the_spec_and_the_usual_one_has_the_spec_it_had() -> None:
    usual, vilt = load_extractor("pixels").spec, load_extractor("pixels", rule="vilt").spec
    assert usual.preprocess["resize"] == "pil-bilinear" and usual.preprocess["longer"] == 640
    assert vilt.preprocess["resize"] == "vilt-bicubic-32" and vilt.id != usual.id
