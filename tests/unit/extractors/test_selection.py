"""Each published rule against a slow, literal one in plain Python, through all its branches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from extractors.faster_rcnn import CAFFE, PY_BOTTOM_UP, Predictions
from extractors.selection import (
    DEFAULTS,
    Frame,
    Selected,
    Selection,
    by_confidence,
    by_confidence_together,
    class_agnostic,
    class_aware,
    detectron2_inference,
    given,
    ten_to_hundred,
    whole_image_box,
)
from tests.unit.extractors.plain import overlap

Rule = Callable[[Tensor, Predictions, Frame, Selection], Selected]

PROPOSALS, CLASSES = 40, 6
FRAME = Frame(input_size=(60, 80), image_size=(30, 40), scale=2.0)
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)


def random_boxes(seed: int, *shape: int) -> Tensor:
    """Boxes (..., 4) of 20 to 60 pixels, some of which pass the edge of a 60 x 80 input."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(*shape, 2, generator=generator) * 40 - 5
    return torch.cat([corners, corners + 20 + torch.rand(*shape, 2, generator=generator) * 40], dim=-1)


def predictions(seed: int, sharpness: float = 1.0) -> Predictions:
    """Random class probabilities, background last; a few proposals are twins of others, as RoIPool makes them."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(PROPOSALS, CLASSES + 1, generator=generator) * sharpness
    logits[[7, 8, 30]] = logits[[3, 3, 12]]
    return Predictions(logits.softmax(1), torch.zeros(PROPOSALS, 4 * CLASSES), torch.zeros(PROPOSALS, 2))


def slow_nms(boxes: list[list[float]], scores: list[float], threshold: float, plus: int) -> list[int]:
    kept: list[int] = []
    for row in sorted(range(len(boxes)), key=lambda row: (-scores[row], row)):
        if all(overlap(boxes[row], boxes[other], plus) <= threshold for other in kept):
            kept.append(row)
    return kept


# 10-100


def slow_ten_to_hundred(boxes: list[list[float]], probs: list[list[float]], rule: Selection) -> list[int]:
    confidence = [0.0] * len(boxes)
    for column in range(CLASSES):
        scores = [row[column] for row in probs]
        for row in slow_nms(boxes, scores, rule.nms_threshold, plus=1):
            confidence[row] = max(confidence[row], scores[row])
    kept = [row for row in range(len(boxes)) if confidence[row] >= rule.score_threshold]
    ranked = sorted(range(len(boxes)), key=lambda row: (-confidence[row], row))
    if len(kept) < rule.min_boxes:
        return ranked[: rule.min_boxes]
    return ranked[: rule.max_boxes] if len(kept) > rule.max_boxes else kept


BRANCHES = {
    "fewer than min": (0.9, 10, 20),
    "none above the threshold": (1.0, 10, 20),
    "within": (0.4, 2, 40),
    "exactly min = max": (0.4, 15, 15),
    "more than max": (0.1, 2, 12),
    "all": (0.0, 0, 100),
    "more wanted than there are": (1.0, 100, 100),
    "none wanted": (1.0, 0, 10),
}


@pytest.mark.parametrize(("threshold", "least", "most"), BRANCHES.values(), ids=BRANCHES.keys())
@pytest.mark.parametrize("seed", range(5))
def test_ten_to_hundred_is_that_of_a_plain_loop(threshold: float, least: int, most: int, seed: int) -> None:
    rule = Selection("10-100", least, most, threshold, 0.3)
    boxes, probs = random_boxes(seed, PROPOSALS), predictions(seed).class_probs[:, :-1]
    rows, _ = ten_to_hundred(boxes, probs, rule)
    assert rows.tolist() == slow_ten_to_hundred(boxes.tolist(), probs.tolist(), rule)


def test_confident_boxes_keep_proposal_order_and_topped_up_ones_come_by_confidence() -> None:
    boxes = torch.tensor([[0.0, 0, 9, 9], [100, 0, 109, 9], [200, 0, 209, 9]])
    probs = torch.tensor([[0.3, 0.1], [0.9, 0.0], [0.1, 0.5]])
    within = ten_to_hundred(boxes, probs, Selection("10-100", 1, 3, 0.2, 0.3))
    fewer = ten_to_hundred(boxes, probs, Selection("10-100", 2, 3, 0.8, 0.3))
    more = ten_to_hundred(boxes, probs, Selection("10-100", 1, 2, 0.2, 0.3))
    assert within[0].tolist() == [0, 1, 2]
    assert fewer[0].tolist() == more[0].tolist() == [1, 2]
    swapped = [2, 1, 0]  # confidences 0.5, 0.9, 0.3
    exactly_min_and_max = ten_to_hundred(boxes, probs[swapped], Selection("10-100", 2, 2, 0.4, 0.3))
    assert exactly_min_and_max[0].tolist() == [0, 1]


def test_the_confidence_of_a_box_is_its_best_among_classes_it_survives_in() -> None:
    boxes = torch.tensor([[0.0, 0, 9, 9], [0, 0, 9, 9], [50, 50, 59, 59]])
    probs = torch.tensor([[0.9, 0.2], [0.8, 0.3], [0.1, 0.1]])
    _, confidence = ten_to_hundred(boxes, probs, DEFAULTS["10-100"])
    torch.testing.assert_close(confidence, torch.tensor([0.9, 0.3, 0.1]))


def test_a_confidence_of_exactly_the_threshold_is_kept() -> None:
    boxes = torch.tensor([[0.0, 0, 9, 9], [50, 50, 59, 59]])
    rows, _ = ten_to_hundred(boxes, torch.tensor([[0.25], [0.24]]), Selection("10-100", 0, 9, 0.25, 0.3))
    assert rows.tolist() == [0]


def test_equal_confidences_go_by_row() -> None:
    boxes = torch.tensor([[60.0 * row, 0, 60 * row + 9, 9] for row in range(6)])
    probs = torch.tensor([[0.5], [0.7], [0.5], [0.7], [0.5], [0.5]])
    rows, _ = ten_to_hundred(boxes, probs, Selection("10-100", 0, 4, 0.2, 0.3))
    assert rows.tolist() == [1, 3, 0, 2]


def test_by_confidence_reports_proposals_in_original_pixels_with_their_best_real_class() -> None:
    proposals, found = random_boxes(1, PROPOSALS), predictions(1)
    selected = by_confidence(proposals, found, FRAME, DEFAULTS["10-100"])
    torch.testing.assert_close(selected.boxes, proposals[selected.rows] / 2)  # neither regressed nor clipped
    assert float(selected.boxes.min()) < 0 and float(selected.boxes[:, 3].max()) > 30
    best = found.class_probs[selected.rows, :-1].max(1)
    assert torch.equal(selected.class_ids, best.indices) and torch.equal(selected.class_scores, best.values)
    rows = slow_ten_to_hundred((proposals / 2).tolist(), found.class_probs[:, :-1].tolist(), DEFAULTS["10-100"])
    assert selected.rows.tolist() == rows


# Class-aware and class-agnostic: suppression is relaxed until there are enough boxes.


def clipped(box: list[float]) -> list[float]:
    height, width = FRAME.input_size
    return [min(max(value, 0.0), limit) for value, limit in zip(box, (width, height, width, height), strict=True)]


def slow_class_aware(regressed: Tensor, probs: Tensor, rule: Selection, threshold: float) -> list[tuple[int, int]]:
    """(row, class) pairs that one threshold leaves, best first."""
    pairs = [(row, column) for row in range(PROPOSALS) for column in range(CLASSES)]
    pairs = [(row, column) for row, column in pairs if probs[row, column] > rule.score_threshold]
    kept = []
    for column in range(CLASSES):
        mine = [pair for pair in pairs if pair[1] == column]
        boxes = [clipped(regressed[pair].tolist()) for pair in mine]
        kept += [mine[at] for at in slow_nms(boxes, [float(probs[pair]) for pair in mine], threshold, plus=0)]
    return sorted(kept, key=lambda pair: (-float(probs[pair]), pair))


def slow_class_agnostic(regressed: Tensor, probs: Tensor, rule: Selection, threshold: float) -> list[tuple[int, int]]:
    best = [int(row.argmax()) for row in probs]
    boxes = [clipped(regressed[row, column].tolist()) for row, column in enumerate(best)]
    scores = [float(probs[row, column]) for row, column in enumerate(best)]
    return [(row, best[row]) for row in slow_nms(boxes, scores, threshold, plus=0)]


RELAXED = {
    "class-aware": (class_aware, slow_class_aware, Selection("class-aware", 0, 36, 0.1, 0.5)),
    "class-agnostic": (class_agnostic, slow_class_agnostic, Selection("class-agnostic", 0, 36, 0.0, 0.5)),
}


def pairs_of(selected: Selected) -> list[tuple[int, int]]:
    return list(zip(selected.rows.tolist(), selected.class_ids.tolist(), strict=True))


@pytest.mark.parametrize("name", RELAXED)
@pytest.mark.parametrize("relaxations", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("seed", range(3))
def test_suppression_is_relaxed_as_often_as_it_takes_to_have_enough(name: str, relaxations: int, seed: int) -> None:
    fast, slow, rule = RELAXED[name]
    regressed, found = random_boxes(seed, PROPOSALS, CLASSES), predictions(seed)
    probs = found.class_probs[:, :-1]
    left = [slow(regressed, probs, rule, threshold) for threshold in THRESHOLDS]
    counts = [len(each) for each in left]
    assert sorted(set(counts)) == counts  # each step leaves more, so that each can be the one to stop at
    for wanted in (counts[relaxations], (counts[relaxations - 1] + 1) if relaxations else 1):
        selected = fast(regressed, found, FRAME, replace(rule, max_boxes=wanted))
        assert pairs_of(selected) == left[relaxations][:wanted]


@pytest.mark.parametrize("name", RELAXED)
def test_where_relaxing_never_gives_enough_the_last_thresholds_boxes_stand(name: str) -> None:
    fast, slow, rule = RELAXED[name]
    regressed, found = random_boxes(9, PROPOSALS, CLASSES), predictions(9)
    last = slow(regressed, found.class_probs[:, :-1], rule, THRESHOLDS[-1])
    selected = fast(regressed, found, FRAME, replace(rule, max_boxes=len(last) + 1))
    assert pairs_of(selected) == last


def test_a_proposal_may_appear_as_several_classes() -> None:
    regressed, found = random_boxes(0, PROPOSALS, CLASSES), predictions(0)
    rows = class_aware(regressed, found, FRAME, RELAXED["class-aware"][2]).rows.tolist()
    assert len(set(rows)) < len(rows)


def test_equal_scores_of_different_classes_go_by_row() -> None:
    probs = torch.tensor([[0.125, 0.5, 0.375], [0.5, 0.125, 0.375]])
    found = Predictions(probs, torch.zeros(2, 8), torch.zeros(2, 2))
    regressed = torch.tensor([[0.0, 0, 10, 10], [40, 40, 50, 50]])[:, None].expand(2, 2, 4)
    selected = class_aware(regressed, found, FRAME, Selection("class-aware", 0, 9, 0.2, 0.5))
    assert pairs_of(selected) == [(0, 1), (1, 0)]


def test_no_score_above_the_threshold_gives_no_boxes() -> None:
    rule = replace(DEFAULTS["class-aware"], score_threshold=1.0)
    selected = class_aware(random_boxes(0, PROPOSALS, CLASSES), predictions(0), FRAME, rule)
    assert [tuple(each.shape) for each in selected] == [(0,), (0, 4), (0,), (0,)]


def test_a_score_of_exactly_the_threshold_is_not_above_it() -> None:
    probs = torch.tensor([[0.25, 0.75], [0.5, 0.5]])
    found = Predictions(probs, torch.zeros(2, 4), torch.zeros(2, 2))
    regressed = torch.tensor([[[0.0, 0, 10, 10]], [[40, 40, 50, 50]]])
    assert class_aware(regressed, found, FRAME, Selection("class-aware", 0, 9, 0.25, 0.5)).rows.tolist() == [1]


def test_the_background_is_never_chosen() -> None:
    probs = torch.tensor([[0.1, 0.2, 0.7]])
    found = Predictions(probs, torch.zeros(1, 8), torch.zeros(1, 2))
    regressed = torch.tensor([[[0.0, 0, 10, 10], [40, 40, 50, 50]]])
    for rule in (class_aware, class_agnostic, detectron2_inference):
        selected = rule(regressed, found, FRAME, Selection("", 0, 1, 0.15, 0.5))
        assert (selected.class_ids.tolist(), selected.boxes.tolist()) == ([1], [[20, 20, 25, 25]])


@pytest.mark.parametrize("rule", [class_aware, class_agnostic, detectron2_inference])
def test_boxes_come_out_in_original_pixels_cut_to_the_image(rule: Rule) -> None:
    regressed, found = random_boxes(2, PROPOSALS, CLASSES), predictions(2)
    selected = rule(regressed, found, FRAME, Selection("", 0, 36, 0.1, 0.5))
    for box, row, column in zip(selected.boxes.tolist(), *selected[::2], strict=True):
        assert box == pytest.approx([value / 2 for value in clipped(regressed[row, column].tolist())], abs=1e-5)


@pytest.mark.parametrize("rule", [class_aware, class_agnostic, detectron2_inference])
def test_a_box_outside_the_image_goes_together_with_its_row(rule: Rule) -> None:
    regressed = torch.tensor([[[90.0, 10, 99, 20]], [[10, 10, 20, 20]]])
    found = Predictions(torch.tensor([[0.9, 0.1], [0.8, 0.2]]), torch.zeros(2, 4), torch.zeros(2, 2))
    selected = rule(regressed, found, FRAME, Selection("", 0, 36, 0.1, 0.5))
    assert selected.rows.tolist() == [1] and selected.boxes.tolist() == [[5, 5, 10, 10]]
    torch.testing.assert_close(selected.class_scores, torch.tensor([0.8]))


# detectron2's own inference


@pytest.mark.parametrize("most", [5, 100])
@pytest.mark.parametrize("seed", range(3))
def test_detectron2s_inference_is_one_suppression_a_class_and_the_best_of_what_is_left(seed: int, most: int) -> None:
    regressed, found = random_boxes(seed, PROPOSALS, CLASSES), predictions(seed)
    probs, kept = found.class_probs[:, :-1], []
    for column in range(CLASSES):
        rows = [row for row in range(PROPOSALS) if probs[row, column] > 0.2]
        boxes = [clipped(regressed[row, column].tolist()) for row in rows]
        scores = [float(probs[row, column]) for row in rows]
        kept += [(-scores[at], rows[at], column) for at in slow_nms(boxes, scores, 0.4, plus=0)]
    selected = detectron2_inference(regressed, found, FRAME, Selection("", 0, most, 0.2, 0.4))
    wanted = sorted(kept)[:most]
    assert len(kept) > 5
    assert list(zip(selected.rows.tolist(), selected.class_ids.tolist(), strict=True)) == [each[1:] for each in wanted]
    torch.testing.assert_close(selected.class_scores, torch.tensor([-each[0] for each in wanted]))


def test_detectron2s_inference_looks_as_far_down_as_it_has_to() -> None:
    """A hundred boxes on top of each other, and one elsewhere that is the least likely of all."""
    boxes = torch.tensor([[0.0, 0, 20, 20]] * 100 + [[40, 40, 60, 60]])
    scores = torch.linspace(0.9, 0.1, 101)
    found = Predictions(torch.stack([scores, 1 - scores], 1), torch.zeros(101, 4), torch.zeros(101, 2))
    selected = detectron2_inference(boxes[:, None], found, FRAME, Selection("", 0, 2, 0.0, 0.5))
    assert selected.rows.tolist() == [0, 100]


def test_detectron2s_inference_may_keep_nothing() -> None:
    regressed, found = random_boxes(0, PROPOSALS, CLASSES), predictions(0)
    assert len(detectron2_inference(regressed, found, FRAME, Selection("", 0, 9, 1.0, 0.5)).rows) == 0


# Given boxes, and where pixels lie.


def test_given_boxes_stay_as_they_are_and_in_their_order() -> None:
    boxes, found = random_boxes(3, PROPOSALS), predictions(3)
    selected = given(boxes, None, found, FRAME)
    assert selected.rows.tolist() == list(range(PROPOSALS)) and torch.equal(selected.boxes, boxes)
    assert selected.class_ids.tolist() == [int(row.argmax()) for row in found.class_probs[:, :-1]]
    assert torch.equal(selected.class_scores, found.class_probs[:, :-1].amax(1))


def test_given_boxes_are_regressed_by_their_best_class_where_asked_for() -> None:
    boxes, found, regressed = random_boxes(4, PROPOSALS), predictions(4), random_boxes(5, PROPOSALS, CLASSES)
    selected = given(boxes, regressed, found, FRAME)
    for row, (box, column) in enumerate(zip(selected.boxes.tolist(), selected.class_ids.tolist(), strict=True)):
        assert box == pytest.approx([value / 2 for value in clipped(regressed[row, column].tolist())], abs=1e-5)


def test_a_frame_maps_each_axis_by_its_own_factor() -> None:
    frame = Frame(input_size=(60, 80), image_size=(45, 40), scale=1.5)
    boxes = torch.tensor([[8.0, 8, 80, 60], [-8, -8, 800, 600]])
    assert frame.to_original(boxes).tolist() == [[4, 6, 40, 45], [0, 0, 40, 45]]
    torch.testing.assert_close(frame.to_input(frame.to_original(boxes[:1])), boxes[:1])


def test_the_whole_image_is_one_box_that_ends_as_its_convention_counts() -> None:
    assert whole_image_box((60, 80), PY_BOTTOM_UP).tolist() == [[0, 0, 80, 60]]
    assert whole_image_box((60, 80), CAFFE).tolist() == [[0, 0, 79, 59]]


def test_the_defaults_are_those_of_the_official_codes() -> None:
    assert DEFAULTS["10-100"] == Selection("10-100", 10, 100, 0.2, 0.3)
    assert DEFAULTS["class-aware"] == Selection("class-aware", 0, 36, 0.2, 0.5)
    assert DEFAULTS["class-agnostic"] == Selection("class-agnostic", 0, 36, 0.0, 0.3)
    assert DEFAULTS["detectron2"] == Selection("detectron2", 0, 100, 0.05, 0.5)
    assert set(DEFAULTS) == {"10-100", "class-aware", "class-agnostic", "detectron2"}


@pytest.mark.parametrize(("count", "behind"), [(0, 3), (1, 1), (5, 4), (12, 5), (30, 0)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_what_stands_behind_the_proposals_is_never_selected(count: int, behind: int, seed: int) -> None:
    """On a GPU all images have as many boxes, and what is none follows; here it would win and suppress the others."""
    generator = torch.Generator().manual_seed(seed)
    corners = (torch.rand(count + behind, 2, generator=generator) * 8).round()
    boxes = torch.cat([corners, corners + (torch.rand(count + behind, 2, generator=generator) * 8).round()], dim=1)
    boxes[count:] = torch.tensor([0.0, 0, 16, 16])
    probs = torch.rand(count + behind, 4, generator=generator)
    probs[count:] = 1
    found = Predictions(probs, torch.zeros(count + behind, 12), torch.zeros(count + behind, 2))
    together = Predictions(*(torch.stack([each, each.flip(0)]) for each in found))
    twice, counts = torch.stack([boxes, boxes.flip(0)]), torch.tensor([count, count + behind])
    for rule in (Selection("10-100", 2, 5, 0.6, 0.3), Selection("10-100", 10, 20, 0.6, 0.3)):
        selected, kept = by_confidence_together(twice, together, [FRAME, FRAME], rule, counts)
        assert selected.rows.shape == (2, min(rule.max_boxes, count + behind))
        for row, (mine, those) in enumerate(zip(twice, zip(*together, strict=True), strict=True)):
            alone = Predictions(*(each[: counts[row]] for each in those))
            wanted = by_confidence(mine[: counts[row]], alone, FRAME, rule)
            pairs = zip(selected, wanted, strict=True)
            assert all(torch.equal(each[row, : kept[row]], other) for each, other in pairs)
