"""Pictures of maps: the hot cell's pixels are red, and the heaviest box is the strongest."""

from __future__ import annotations

import numpy as np
import pytest

from trainers.heat import Frame, boxes, heat

IMAGE = np.full((60, 90, 3), 120, np.uint8)


def redness(picture: np.ndarray) -> np.ndarray:
    """(H, W): how much more red than blue."""
    return picture[..., 0].astype(int) - picture[..., 2]


def hot(cell: tuple[int, int], shape: tuple[int, int]) -> np.ndarray:
    cells = np.zeros(shape, np.float32)
    cells[cell] = 3
    return cells


@pytest.mark.parametrize("cell", [(0, 0), (0, 2), (1, 1), (1, 2)])
@pytest.mark.parametrize(
    ("frame", "side"),
    [((0, 0, 90, 60), (30, 30)), ((0, 0, 99, 66), (33, 33)), ((15, 10, 75, 50), (20, 20))],
    ids=["all of it", "beyond it", "its middle"],
)
def test_a_hot_cell_lights_its_own_pixels(cell: tuple[int, int], frame: Frame, side: tuple[int, int]) -> None:
    found = redness(heat(IMAGE, hot(cell, (2, 3)), frame))
    top, left = frame[1] + cell[0] * side[0], frame[0] + cell[1] * side[1]
    y, x = (int(start + size / 2) for start, size in ((top, side[0]), (left, side[1])))
    if y < 60 and x < 90:
        assert found[y, x] > 0.9 * found.max() > 100
    rows, columns = np.nonzero(found > 0.55 * found.max())
    assert top - 1 <= rows.min() and rows.max() <= top + side[0] + 1
    assert left - 1 <= columns.min() and columns.max() <= left + side[1] + 1


def test_what_a_map_does_not_cover_stays_plain() -> None:
    found = redness(heat(IMAGE, np.array([[1, 2], [3, 4]], np.float32), (15, 0, 75, 60)))
    assert not found[:, :15].any() and not found[:, 75:].any()
    assert bool((found[31:, 16:75] > 0).all())


def test_equal_weights_light_nothing() -> None:
    for value in (0.0, 0.7):
        found = heat(IMAGE, np.full((2, 3), value, np.float32), (0, 0, 90, 60))
        assert found.dtype == np.uint8 and not redness(found).any()


def test_boxes_are_as_strong_as_they_weigh() -> None:
    regions = np.array([[2, 30, 20, 55], [40, 30, 60, 55], [65, 30, 88, 55], [5, 5, 10, 10]], np.float32)
    found = redness(boxes(IMAGE, regions, np.array([0.1, 0.9, 0.5, 0.0], np.float32)))
    edges = [found[55, int((box[0] + box[2]) / 2)] for box in regions[:3]]
    assert 0 < edges[0] < edges[2] < edges[1]
    assert 0 < found[10, 7] < edges[0]
    assert not found[2].any()
