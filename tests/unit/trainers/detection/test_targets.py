"""Matching, drawing and deltas, on boxes small enough to do by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from extractors import boxes as box_ops
from extractors.boxes import taken
from trainers.detection.targets import draw, encode, match, overlaps

YES, NO = 1, 0


def boxes(*rows: tuple[float, float, float, float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32)[None]


def test_overlap_is_intersection_over_union_and_padding_has_none() -> None:
    truth = boxes((0, 0, 10, 10), (0, 0, 10, 10))
    found = overlaps(truth, torch.tensor([[True, False]]), boxes((5, 0, 15, 10), (0, 0, 10, 10), (20, 20, 30, 30)))
    torch.testing.assert_close(found, torch.tensor([[[1 / 3, 1.0, 0.0], [-1.0, -1.0, -1.0]]]))


def test_between_the_thresholds_is_neither() -> None:
    overlap = torch.tensor([[[0.8, 0.5, 0.1], [0.2, 0.6, 0.2]]])
    found = match(overlap, 0.7, 0.3, best_too=False)
    assert found.labels.tolist() == [[1, -1, 0]]
    assert found.rows.tolist() == [[0, 1, 1]]


def test_no_object_is_left_without_its_best_anchor() -> None:
    overlap = torch.tensor([[[0.8, 0.5, 0.1], [0.1, 0.4, 0.2], [-1.0, -1.0, -1.0]]])
    assert match(overlap, 0.7, 0.3, best_too=True).labels.tolist() == [[1, 1, 0]]
    nowhere = torch.zeros(1, 1, 3)
    assert match(nowhere, 0.7, 0.3, best_too=True).labels.tolist() == [[0, 0, 0]]


@pytest.mark.parametrize(("objects", "expected"), [(3, 3), (7, 4), (0, 0)])
def test_background_fills_up_what_is_drawn(objects: int, expected: int) -> None:
    labels = torch.tensor([[1] * objects + [-1] * 4 + [0] * 20], dtype=torch.int8)
    found = draw(labels, 8, 0.5)
    assert found.rows.shape == (1, 8) and bool(found.counts.all())
    drawn = taken(labels, found.rows)[0].tolist()
    assert (drawn.count(YES), drawn.count(NO)) == (expected, 8 - expected)
    assert len(set(found.rows[0].tolist())) == 8


def test_too_few_to_draw_from_do_not_count() -> None:
    found = draw(torch.tensor([[1, 0, -1, -1], [0, 0, 0, -1]], dtype=torch.int8), 4, 0.5)
    assert found.counts.sum(dim=1).tolist() == [2, 3]
    assert sorted(found.rows[0][found.counts[0]].tolist()) == [0, 1]


def test_another_draw_is_another() -> None:
    labels = torch.zeros(1, 100, dtype=torch.int8)
    torch.manual_seed(0)
    first, second = draw(labels, 10, 0.5), draw(labels, 10, 0.5)
    torch.manual_seed(0)
    assert torch.equal(draw(labels, 10, 0.5).rows, first.rows) and not torch.equal(first.rows, second.rows)


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)])
def test_extraction_decodes_what_training_encodes(weights: tuple[float, float, float, float]) -> None:
    generator = torch.Generator().manual_seed(0)
    corner, side = torch.rand(2, 50, 2, generator=generator) * 100, torch.rand(2, 50, 2, generator=generator) * 50 + 1
    truth, start = torch.cat([corner, corner + side], dim=2)
    found = box_ops.decode(encode(truth, start, weights), start, weights, plus=0)
    torch.testing.assert_close(found, truth, atol=1e-3, rtol=1e-4)
