"""RoI max-pooling on a CPU is torchvision's, to the bit."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.ops import roi_pool as official

from extractors import roi_pool as module
from extractors.roi_pool import roi_pool


@pytest.fixture(autouse=True)
def any_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """By tables, however few boxes there are."""
    monkeypatch.setattr(module, "FEWEST", 0)


ODD = [  # in input pixels, of a map of 11 x 9 cells
    [0.0, 0, 144, 176],  # all of it
    [8, 24, 8, 24],  # a point, whose ends round up
    [-30, -20, -5, -3],  # outside
    [100, 90, 60, 50],  # turned around
    [130, 30, 400, 90.5],  # beyond the edge
]


def cells_of(height: int, width: int, channels: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(height * width)
    return torch.randn(1, channels, height, width, generator=generator)


@pytest.mark.parametrize("side", [1, 2, 14])
@pytest.mark.parametrize("at_once", [1, 2, 5, 100])
def test_odd_boxes(side: int, at_once: int) -> None:
    cells, boxes = cells_of(11, 9), torch.tensor(ODD)
    parts = list(roi_pool(cells, boxes, side, 1 / 16, at_once))
    assert [len(each) for each in parts] == [len(each) for each in boxes.split(at_once)]
    assert all(each.is_contiguous(memory_format=torch.channels_last) for each in parts)
    assert torch.equal(torch.cat(parts), official(cells, [boxes], side, 1 / 16))


coordinate = st.floats(-100, 1100, width=32)


@given(
    st.lists(st.tuples(*[coordinate] * 4), min_size=1, max_size=20),
    st.tuples(st.integers(1, 64), st.integers(1, 64)),
    st.sampled_from([1, 3, 7, 14]),
)
def test_any_boxes_on_any_map(corners: list[tuple[float, ...]], size: tuple[int, int], side: int) -> None:
    cells, boxes = cells_of(*size), torch.tensor(corners)
    assert torch.equal(torch.cat([*roi_pool(cells, boxes, side, 1 / 16, 7)]), official(cells, [boxes], side, 1 / 16))


@pytest.mark.parametrize("large", [False, True])
def test_few_boxes_and_tables_too_large_are_torchvisions(large: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if large:
        monkeypatch.setattr(module, "TABLES", 11 * 9 * 5 * 4)  # bytes: the map itself
    else:
        monkeypatch.setattr(module, "FEWEST", len(ODD) + 1)
    monkeypatch.setattr(module, "_largest", None)
    cells, boxes = cells_of(11, 9), torch.tensor(ODD)
    parts = list(roi_pool(cells, boxes, 2, 1 / 16, 2))
    assert [len(each) for each in parts] == [2, 2, 1]
    assert torch.equal(torch.cat(parts), official(cells, [boxes], 2, 1 / 16))


def test_part_of_a_padded_map_in_bfloat16() -> None:
    padded = torch.randn(2, 6, 12, 14).bfloat16().to(memory_format=torch.channels_last)
    cells, boxes = padded[1:, :, :11, :9], torch.tensor(ODD)
    (found,) = roi_pool(cells, boxes, 7, 1 / 16, len(boxes))
    assert found.dtype == torch.float32
    assert torch.equal(found, official(cells.float(), [boxes], 7, 1 / 16))


def test_no_boxes() -> None:
    (found,) = roi_pool(cells_of(4, 4), torch.empty(0, 4), 2, 1 / 16, 25)
    assert found.shape == (0, 5, 2, 2)


def test_what_was_given_stays_as_it_is() -> None:
    """Pools are not memory that the next ones are written into."""
    cells, boxes = cells_of(11, 9), torch.tensor(ODD)
    pools = roi_pool(cells, boxes, 2, 1 / 16, 1)
    first = next(pools)
    before = first.clone()
    rest = list(pools)
    assert len(rest) == len(ODD) - 1 and torch.equal(first, before)


def test_gradients_are_torchvisions() -> None:
    boxes, found = torch.tensor(ODD[:2]), []
    for pool in (lambda x: next(roi_pool(x, boxes, 2, 1 / 16, 2)), lambda x: official(x, [boxes], 2, 1 / 16)):
        cells = cells_of(11, 9).requires_grad_()
        pool(cells).square().sum().backward()
        found.append(cells.grad)
    assert found[0] is not None and torch.equal(*found)
