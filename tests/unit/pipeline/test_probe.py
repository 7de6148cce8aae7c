"""Which images a probe tries."""

from __future__ import annotations

import pytest

from pipeline.plan import Unit
from pipeline.probe import spread
from pipeline.sources import ImageRef


def units(*counts: int) -> list[Unit]:
    return [Unit(tuple(ImageRef(f"{at}-{row}", "") for row in range(count))) for at, count in enumerate(counts)]


@pytest.mark.parametrize(("counts", "images"), [((4,), 16), ((3, 1), 16), ((100,), 16), ((50, 50, 50), 4), ((1,), 2)])
def test_no_image_is_tried_twice(counts: tuple[int, ...], images: int) -> None:
    keys = [ref.key for ref in spread(units(*counts), images)]
    assert len(set(keys)) == len(keys) == min(images, sum(counts))


def test_those_of_a_large_unit_are_far_apart() -> None:
    assert [ref.key for ref in spread(units(100), 4)] == ["0-0", "0-25", "0-50", "0-75"]
