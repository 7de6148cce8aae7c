"""Padded batches of any sizes give what each image gives alone: grids and regions, all kinds of network and rules.

Equal within float32's rounding: a convolution may add up a larger batch in another order, which moves a map of about
1 by some 1e-6, amplified by the depth of the network to below 1e-4 of the largest value; what is kept, and the order of
it, is the same wherever no two candidates tie within that.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from extractors import GridConfig, RegionConfig, make_extractor
from extractors.ragged import WASTE, Areas, common_size, groups, largest, padded_count
from extractors.resnet import ResNet, ResNetConfig
from extractors.trunk import TrunkExtractor
from extractors.weights import randomise
from storage import RegionRecord
from storage.records import Record

SMALL: dict[str, Any] = {
    "weights": "random:0", "width_divisor": 32, "shorter": 96, "longer": 160, "device": "cpu", "store_dtype": "float32",
}  # fmt: skip
GRIDS = ("r50", "x101", "x152pp", "butd-r101")
REGIONS: dict[str, dict[str, Any]] = {
    "10-100": {"min_boxes": 8, "max_boxes": 30},
    "class-aware": {"selection": "class-aware", "score_threshold": 0.004, "max_boxes": 20},
    "class-agnostic": {"selection": "class-agnostic", "max_boxes": 20},
    "grid-r50": {"model": "grid-r50", "score_threshold": 0.004, "max_boxes": 20},
}
SIZES = st.lists(
    st.tuples(st.integers(24, 120), st.integers(24, 120)), min_size=2, max_size=7
)  # five are filled up to six
CLOSE = 1e-4  # of the largest value


@cache
def extractor(view: str, name: str) -> TrunkExtractor:
    """One that runs all images of a batch at once, as on a GPU."""
    config = GridConfig(model=name, **SMALL) if view == "grid" else RegionConfig(**SMALL, **REGIONS[name])  # type: ignore[arg-type]
    made = make_extractor(config)
    assert isinstance(made, TrunkExtractor)
    made.batched = True
    return made


def photo(size: tuple[int, int], seed: int) -> np.ndarray:
    """Smooth colours, so that proposals differ in score."""
    coarse = torch.rand(1, 3, 5, 6, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.interpolate(coarse, size, mode="bicubic")[0].clamp(0, 1)
    return (smooth * 255).byte().permute(1, 2, 0).contiguous().numpy()


def together_and_alone(made: TrunkExtractor, sizes: list[tuple[int, int]]) -> list[tuple[Record, Record]]:
    batch = [made.prepare(str(at), photo(size, at)) for at, size in enumerate(sizes)]
    with torch.inference_mode():
        found = made.forward(batch)
        alone = [made.forward([image])[0] for image in batch]
    assert all(isinstance(each, Record) for each in (*found, *alone))
    return list(zip(found, alone, strict=True))  # type: ignore[arg-type]


def assert_close(found: np.ndarray, wanted: np.ndarray) -> None:
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, rtol=0, atol=CLOSE * max(1.0, float(np.abs(wanted).max(initial=0))))


@pytest.mark.parametrize("name", GRIDS)
@settings(max_examples=3, deadline=None)
@given(sizes=SIZES)
def test_grids_of_a_padded_batch_are_those_of_each_image_alone(name: str, sizes: list[tuple[int, int]]) -> None:
    for found, alone in together_and_alone(extractor("grid", name), sizes):
        assert (found.key, found.image_size) == (alone.key, alone.image_size)
        assert_close(found.features, alone.features)  # type: ignore[union-attr]


@pytest.mark.parametrize("name", REGIONS)
@settings(max_examples=3, deadline=None)
@given(sizes=SIZES)
def test_regions_of_a_padded_batch_are_those_of_each_image_alone(name: str, sizes: list[tuple[int, int]]) -> None:
    made = extractor("regions", name)
    for found, alone in together_and_alone(made, sizes):
        assert isinstance(found, RegionRecord) and isinstance(alone, RegionRecord)
        assert (found.key, found.image_size) == (alone.key, alone.image_size)
        assert_close(found.whole_image, alone.whole_image)
        assert_same_boxes(found, alone)


def assert_same_boxes(found: RegionRecord, alone: RegionRecord) -> None:
    """Box by box, found again by place: random weights leave near-ties, which rounding may put in another order."""
    assert len(found.boxes) == len(alone.boxes)
    if not len(found.boxes):
        return
    classes = found.class_ids[:, None] != alone.class_ids[None]
    gaps = np.abs(found.boxes[:, None] - alone.boxes[None]).max(axis=2) + 1000 * classes
    scores = np.abs(found.class_scores[:, None] - alone.class_scores[None])
    rows = (gaps + 100 * scores).argmin(axis=1)
    near = gaps[np.arange(len(rows)), rows] < 0.05
    assert near.mean() >= 0.9  # a near-tie at the cut may keep another one
    assert_close(found.features[near], alone.features[rows[near]])
    assert_close(found.class_scores[near], alone.class_scores[rows[near]])
    assert_close(found.attribute_scores[near], alone.attribute_scores[rows[near]])
    assert (found.attribute_ids[near] == alone.attribute_ids[rows[near]]).mean() >= 0.9


# Five go together, filled up to six.
COMPANY = [(60, 80), (62, 80), (60, 84), (3, 4), (61, 80), (1, 30), (40, 1), (90, 60), (1, 1)]


@pytest.mark.parametrize(("view", "name"), [("grid", "x101"), ("regions", "10-100"), ("regions", "class-aware")])
def test_order_and_company_do_not_matter(view: str, name: str) -> None:
    """Sizes in any order, tiny and thin ones among them, beside any others: groups differ, records do not."""
    made = extractor(view, name)
    batch = [made.prepare(str(at), photo(size, at)) for at, size in enumerate(COMPANY)]
    wanted = [made.extract([image])[0] for image in batch]
    assert view == "grid" or sum(len(each.boxes) > 5 for each in wanted) >= 5  # type: ignore[union-attr]
    assert [0, 1, 2, 3, 4] in [sorted(group) for group in made.groups(batch[:7])]
    for order in ([6, 3, 1, 0, 5, 2, 4], [2, 0], [1], [4, 0, 3, 2], [8, 7, 4, 1], [3, 8, 5]):
        found = made.extract([batch[row] for row in order])
        assert [each.key for each in found] == [str(row) for row in order]  # type: ignore[union-attr]
        for each, row in zip(found, order, strict=True):
            alone = wanted[row]
            assert isinstance(each, Record) and isinstance(alone, Record) and each.image_size == alone.image_size
            if isinstance(each, RegionRecord) and isinstance(alone, RegionRecord):
                assert_close(each.whole_image, alone.whole_image)
                assert_same_boxes(each, alone)
                assert (each.class_ids != alone.class_ids).sum() <= 0.1 * len(alone.boxes)  # near-ties
            else:
                assert_close(each.features, alone.features)


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("sizes", [[(60, 80)], [(60, 80), (62, 78), (64, 80)]])
def test_a_batch_takes_as_many_operators_however_many_images_are_in_it(name: str, sizes: list[tuple[int, int]]) -> None:
    """One thread gives a GPU all of them, and shares Python with those that load and write."""
    made = extractor("grid", name)

    def operators(images: int) -> int:
        batch = [made.prepare(str(at), photo(sizes[at % len(sizes)], at)) for at in range(images)]
        stacked = made.stack(batch)
        with torch.inference_mode(), Operators() as counted:
            arrived = made.finish(batch, *made.res4(stacked))
        assert len(arrived()) == images
        return counted.count

    assert operators(12) == operators(3)


class Operators(TorchDispatchMode):
    """Counts torch's operators."""

    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("ceil_pool", [False, True])
@given(size=st.tuples(st.integers(3, 40), st.integers(3, 40)), more=st.tuples(st.integers(0, 9), st.integers(0, 9)))
@settings(max_examples=20, deadline=None)
def test_areas_are_the_sizes_of_an_image_alone(ceil_pool: bool, size: tuple[int, int], more: tuple[int, int]) -> None:
    network = tiny_body(ceil_pool)
    padded = (size[0] + more[0], size[1] + more[1])
    areas = Areas([size, padded], ceil_pool, torch.device("cpu"))
    with torch.inference_mode():
        alone = dict(network.stages(torch.zeros(1, 3, *size)))
        for name, maps in network.stages(torch.zeros(2, 3, *areas.padded)):
            assert areas.own(maps)[0].shape == alone[name].shape


@cache
def tiny_body(ceil_pool: bool) -> ResNet:
    network = ResNet(ResNetConfig(50, ceil_pool=ceil_pool).narrowed(64)).eval()
    randomise(network, 0)
    return network


def test_clearing_keeps_each_image_and_nothing_else() -> None:
    areas = Areas([(2, 3), (4, 1)], False, torch.device("cpu"))
    maps: Tensor = torch.full((2, 1, *areas.padded), torch.nan)
    for each in areas.own(maps):
        each.fill_(1)
    areas.clear(maps)
    assert maps[0, 0].nonzero().tolist() == [[row, column] for row in range(2) for column in range(3)]
    assert maps[1, 0].nonzero().tolist() == [[row, 0] for row in range(4)]
    assert maps.max() == 1 and not maps.isnan().any()


def test_a_padded_size_is_one_of_few_and_that_of_equal_images_their_own() -> None:
    assert common_size([(600, 799)] * 3) == (600, 799)
    assert common_size([(600, 799), (598, 800)]) == (600, 800)
    assert common_size([(600, 801), (605, 640)]) == (608, 808)


def test_a_batch_is_filled_up_by_half_at_most_to_one_of_few_counts() -> None:
    found = [padded_count(images) for images in range(1, 100)]
    assert sorted(set(found)) == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128]
    assert all(images <= count < 1.5 * images for images, count in enumerate(found, 1))


@given(sizes=st.lists(st.tuples(st.integers(1, 99), st.integers(1, 99)), max_size=12))
def test_groups_hold_every_image_once_and_little_padding(sizes: list[tuple[int, int]]) -> None:
    found = groups(sizes)
    assert sorted(row for group in found for row in group) == list(range(len(sizes)))
    for group in found:
        height, width = largest([sizes[row] for row in group])
        assert height * width * len(group) <= WASTE * sum(sizes[row][0] * sizes[row][1] for row in group)


def test_on_a_cpu_every_image_runs_by_itself() -> None:
    made = make_extractor(GridConfig(**SMALL))
    batch = [made.prepare(str(at), photo((60, 80), at)) for at in range(3)]
    assert made.groups(batch) == [[0], [1], [2]]
