"""Many lists suppressed at once, round by round and by the kernel, against plain walks with exact fractions."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from torch import Tensor

from extractors.suppression import OVERLAPS_AT_ONCE, bound_of, first_true, settled, survivors
from tests.unit.extractors.test_boxes import overlap

HALF, QUARTER = Fraction(1, 2), Fraction(1, 4)
LISTS = [(3, 40), (1, 1), (2, 0), (0, 4), (2, 90)]


def random_lists(lists: int, count: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes on a small grid, twins among them; who may live; classes."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.randint(0, 16, (lists, count, 2), generator=generator)
    boxes = torch.cat([corners, corners + torch.randint(1, 16, (lists, count, 2), generator=generator)], dim=2)
    alive = torch.rand(lists, count, generator=generator) > 0.1
    return boxes.float(), alive, torch.randint(0, 3, (lists, count), generator=generator)


def walked(boxes: Tensor, alive: Tensor, classes: Tensor | None, rule: tuple[Fraction, int, int]) -> list[bool]:
    """One list, as the papers' loops go through it."""
    threshold, plus, limit = rule
    kept: list[int] = []
    rows = [tuple(int(side) for side in box) for box in boxes.tolist()]

    def falls(row: int, other: int) -> bool:
        if classes is not None and classes[row] != classes[other]:
            return False
        found = overlap(rows[row], rows[other], plus)  # type: ignore[arg-type]
        return found >= threshold if plus else found > threshold

    for row in range(len(rows)):
        if alive[row] and len(kept) < limit and not any(falls(row, other) for other in kept):
            kept.append(row)
    return [row in kept for row in range(len(rows))]


@pytest.mark.parametrize("threshold", [HALF, QUARTER])
@pytest.mark.parametrize("limit", [5, 1000])
@pytest.mark.parametrize("by_class", [False, True])
@pytest.mark.parametrize("plus", [0, 1])
@pytest.mark.parametrize(("lists", "count"), LISTS)
def test_lists_settle_as_a_walk_leaves_them(
    lists: int, count: int, plus: int, by_class: bool, limit: int, threshold: Fraction
) -> None:
    boxes, alive, classes = random_lists(lists, count)
    kinds = classes if by_class else None
    found = survivors(boxes, alive, bound_of(float(threshold), bool(plus)), plus, limit, kinds)
    assert found.shape == (lists, count) and found.dtype == torch.bool
    for at in range(lists):
        kind = None if kinds is None else kinds[at]
        assert found[at].tolist() == walked(boxes[at], alive[at], kind, (threshold, plus, limit))


def test_lists_settle_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    boxes, alive, _ = random_lists(7, 30)
    whole = survivors(boxes, alive, 0.5, 0)
    monkeypatch.setattr("extractors.suppression.OVERLAPS_AT_ONCE", 2 * 30 * 30)
    assert OVERLAPS_AT_ONCE >= 7 * 30 * 30
    assert torch.equal(survivors(boxes, alive, 0.5, 0), whole)


@pytest.mark.parametrize("limit", [1, 5, 12, 1000])
@pytest.mark.parametrize("by_class", [False, True])
@pytest.mark.parametrize("longest", [1, 7, 30, 89])
def test_long_lists_settle_part_by_part(
    longest: int, by_class: bool, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("extractors.suppression.LONGEST_IN_ROUNDS", longest)
    boxes, alive, classes = random_lists(3, 90)
    alive[1] = False
    kinds = classes if by_class else None
    found = survivors(boxes, alive, bound_of(0.25, inclusive=False), 0, limit, kinds)
    for at in range(3):
        kind = None if kinds is None else kinds[at]
        assert found[at].tolist() == walked(boxes[at], alive[at], kind, (QUARTER, 0, limit))


def test_a_chain_settles_from_its_front() -> None:
    """Each box suppresses the next one alone, so every second one stays."""
    over = torch.diag(torch.ones(8, dtype=torch.bool), 1)[None]
    assert settled(over, torch.ones(1, 9, dtype=torch.bool)).tolist() == [[True, False] * 4 + [True]]


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 0.1])
def test_a_bound_is_the_threshold_as_both_rules_read_it(threshold: float) -> None:
    near = torch.tensor(threshold, dtype=torch.float32)
    for ratio in (near, near.nextafter(torch.tensor(0.0)), near.nextafter(torch.tensor(1.0))):
        assert (float(ratio) > bound_of(threshold, inclusive=False)) == (float(ratio) > threshold)
        assert (float(ratio) > bound_of(threshold, inclusive=True)) == bool(ratio >= near)


def test_the_first_true_columns_come_in_order() -> None:
    found = torch.rand(20, 15, generator=torch.Generator().manual_seed(0)) < torch.linspace(0, 1, 20)[:, None]
    for most in (15, 40):
        rows = first_true(found, most)
        assert rows.shape == (20, 15)
        for mine, row in zip(found, rows, strict=True):
            assert row.tolist() == mine.nonzero()[:, 0].tolist() + [0] * int((~mine).sum())
    assert first_true(found.logical_and(found.cumsum(1) <= 3), 3).shape == (20, 3)
