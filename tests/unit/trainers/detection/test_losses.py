"""Losses against sums done by hand, and gradients for every layer."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from extractors.boxes import shifted_anchors
from trainers.detection.building import Kind, Plan, build
from trainers.detection.losses import ANCHORS, Truth, attribute_loss, losses, proposal_losses, proposals
from trainers.detection.vocabulary import Names, Vocabulary

pytestmark = pytest.mark.usefixtures("one_thread")
VOCABULARY = Vocabulary(Names.of(["cat", "dog"]), Names.of(["red", "wet", "old"]))
KINDS: tuple[Kind, ...] = ("regions", "grid")


def truth(*rows: tuple[float, float, float, float], attributes: int = 2) -> Truth:
    """One image of 64 x 96 pixels with these boxes, all of them old dogs."""
    count = len(rows)
    said = torch.tensor([2, -1][:attributes]).expand(1, count, attributes)
    boxes, classes = torch.tensor([rows], dtype=torch.float32), torch.ones(1, count, dtype=torch.int64)
    return Truth(boxes, torch.ones(1, count, dtype=torch.bool), classes, said, ((64, 96),))


def test_attributes_are_a_mean_over_rows_of_means_over_their_attributes() -> None:
    probs = torch.tensor([[0.5, 0.25, 0.25], [0.2, 0.3, 0.5], [0.1, 0.1, 0.8]])
    said = torch.tensor([[0, 2], [1, -1], [-1, -1]])
    expected = ((-math.log(0.5) - math.log(0.25)) / 2 - math.log(0.3)) / 2
    assert attribute_loss(probs.log(), said).item() == pytest.approx(expected, rel=1e-5)


def test_attributes_of_nothing_cost_nothing_and_move_nothing() -> None:
    logits = torch.randn(2, 3, requires_grad=True)
    loss = attribute_loss(logits, torch.full((2, 4), -1))
    loss.backward()
    assert loss.item() == 0 and logits.grad is not None and not logits.grad.any()


def test_undecided_proposals_cost_the_logarithm_of_two_an_anchor() -> None:
    detector = build(Plan("grid", divisor=16), VOCABULARY).detector
    count = len(detector.config.anchors)
    found = proposal_losses(
        detector, torch.zeros(1, count, 8, 12), torch.zeros(1, 4 * count, 8, 12), truth((0, 0, 32, 32))
    )
    assert found["proposal"].item() == pytest.approx(math.log(2), rel=1e-5)


def test_a_box_that_is_an_anchor_needs_no_move_and_another_does() -> None:
    detector = build(Plan("grid", divisor=16), VOCABULARY).detector
    cell = detector.proposal_generator.anchor_generator.cell
    anchors = shifted_anchors(cell, (8, 12))
    row = (3 * 12 + 5) * len(cell) + 1  # the square of 32 pixels, in the middle
    exact = tuple(anchors[row].tolist())
    none, moves = torch.zeros(1, len(cell), 8, 12), torch.zeros(1, 4 * len(cell), 8, 12)
    assert proposal_losses(detector, none, moves, truth(exact))["proposal_box"].item() == 0  # type: ignore[arg-type]
    moves[0, 4:8, 3, 5] = torch.tensor([0.5, 0.0, 0.0, 0.0])  # one delta of 0.5 is past smooth L1's 1/9
    found = proposal_losses(detector, none, moves, truth(exact))["proposal_box"].item()  # type: ignore[arg-type]
    assert found == pytest.approx((0.5 - 0.5 / 9) / ANCHORS, rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_s_proposals_are_those_of_the_network_s_own_generator(kind: Kind) -> None:
    torch.manual_seed(0)
    detector = build(Plan(kind, divisor=16, shorter=64), VOCABULARY).detector.train()
    count, sizes = len(detector.config.anchors), ((64, 96), (48, 90))
    logits, deltas = torch.randn(2, count, 4, 6), torch.randn(2, 4 * count, 4, 6) * 0.3
    found = proposals(detector, logits, deltas, sizes)
    own = detector.proposal_generator
    for row, size in enumerate(sizes):
        expected, _ = own.propose(logits[row : row + 1], deltas[row : row + 1], size, 1.0)
        assert len(expected) > 10
        torch.testing.assert_close(found[row], expected)


@pytest.mark.parametrize("kind", KINDS)
def test_features_of_a_batch_are_those_of_its_images(kind: Kind) -> None:
    detector = build(Plan(kind, divisor=16, shorter=64), VOCABULARY).detector.eval()
    cells = torch.randn(2, detector.config.map_channels, 4, 6)
    boxes = torch.tensor([[[0.0, 0, 40, 50], [20, 10, 90, 60]], [[5.0, 5, 30, 30], [0, 0, 96, 64]]])
    with torch.no_grad():
        found = detector.roi_heads.features_in_batch(cells, boxes)
        expected = detector.roi_heads.features_of(list(cells.split(1)), list(boxes))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_every_loss_is_finite_and_every_weight_has_a_gradient(kind: Kind) -> None:
    torch.manual_seed(0)
    detector = build(Plan(kind, divisor=16, shorter=64), VOCABULARY).detector.train()
    found = losses(detector, torch.randn(1, 3, 64, 96) * 50, truth((4, 4, 40, 44), (50, 10, 90, 60)))
    assert sorted(found) == ["attribute", "box", "class", "proposal", "proposal_box"]
    total: Tensor = torch.stack(list(found.values())).sum()
    total.backward()
    assert math.isfinite(total.item())
    without = [name for name, each in detector.named_parameters() if each.grad is None or not each.grad.any()]
    assert not without


@pytest.mark.parametrize("kind", KINDS)
def test_data_without_attributes_has_no_loss_of_them(kind: Kind) -> None:
    detector = build(Plan(kind, divisor=16, shorter=64), Vocabulary(VOCABULARY.classes, Names.of([]))).detector.train()
    found = losses(detector, torch.randn(1, 3, 64, 96), truth((4, 4, 40, 44), attributes=0))
    assert sorted(found) == ["box", "class", "proposal", "proposal_box"]


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_without_boxes_is_all_background(kind: Kind) -> None:
    detector = build(Plan(kind, divisor=16, shorter=64), VOCABULARY).detector.train()
    nothing = Truth(
        torch.zeros(1, 1, 4), torch.zeros(1, 1, dtype=torch.bool), torch.zeros(1, 1, dtype=torch.int64),
        torch.full((1, 1, 1), -1), ((64, 96),),
    )  # fmt: skip
    found = losses(detector, torch.randn(1, 3, 64, 96), nothing)
    torch.stack(list(found.values())).sum().backward()
    assert [found[name].item() for name in ("box", "proposal_box", "attribute")] == [0, 0, 0]
    assert all(each.grad is None or bool(each.grad.isfinite().all()) for each in detector.parameters())
