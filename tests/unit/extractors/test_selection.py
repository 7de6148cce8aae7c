"""Each published rule against a slow, literal one in plain Python, through all its branches.

All tests run twice: as on a CPU, and on a CPU as on a GPU, which makes room for all there can be and asks for no value.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import given as drawn
from hypothesis import strategies as st
from torch import Tensor

from extractors.faster_rcnn import CAFFE, PY_BOTTOM_UP, Predictions
from extractors.selection import (
    DEFAULTS,
    RULES,
    Frame,
    Proposed,
    Selected,
    Selection,
    confidences,
    given,
    select,
    whole_image_box,
)
from tests.unit.extractors import plain

PROPOSALS, CLASSES = 40, 6
FRAME = Frame(input_size=(60, 80), image_size=(30, 40), scale=2.0)
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)


@pytest.fixture(autouse=True, params=["as on a CPU", "as on a GPU"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "as on a GPU":
        monkeypatch.setattr("extractors.boxes._at_hand", lambda boxes: False)


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
    return said(logits.softmax(1))


def said(class_probs: Tensor) -> Predictions:
    """What heads say that know classes only, (..., R, K + 1)."""
    nothing = class_probs.new_empty(*class_probs.shape[:-1], 0)
    return Predictions(class_probs, nothing, nothing)


def moved_to(regressed: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """`Proposed.regress` of proposals that classes move to (B, R, K, 4)."""
    return lambda rows, classes: regressed[torch.arange(len(rows))[:, None], rows, classes]


def alone(boxes: Tensor, found: Predictions, rule: Selection, frame: Frame = FRAME) -> Selected:
    """One image's selection, from proposals (R, 4), or from where classes move them, (R, K, 4)."""
    proposals, regressed = (boxes, boxes[:, None]) if boxes.dim() == 2 else (boxes[:, 0], boxes)
    together = Predictions(*(each[None] for each in found))
    counts = torch.tensor([len(boxes)])
    selected, [count] = select(Proposed(proposals[None], counts, together, [frame], moved_to(regressed[None])), rule)
    return Selected(*(each[0, :count] for each in selected))


# 10-100


def ten_to_hundred(boxes: Tensor, probs: Tensor, rule: Selection) -> Tensor:
    """Rows (N,) by the rule, from boxes (R, 4) and probabilities (R, K)."""
    return alone(boxes, said(torch.nn.functional.pad(probs, (0, 1))), rule, FRAME._replace(scale=1.0)).rows


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
    rows = ten_to_hundred(boxes, probs, rule)
    assert rows.tolist() == plain.ten_to_hundred(boxes.tolist(), probs.tolist(), rule)


def test_confident_boxes_keep_proposal_order_and_topped_up_ones_come_by_confidence() -> None:
    boxes = torch.tensor([[0.0, 0, 9, 9], [100, 0, 109, 9], [200, 0, 209, 9]])
    probs = torch.tensor([[0.3, 0.1], [0.9, 0.0], [0.1, 0.5]])
    within = ten_to_hundred(boxes, probs, Selection("10-100", 1, 3, 0.2, 0.3))
    fewer = ten_to_hundred(boxes, probs, Selection("10-100", 2, 3, 0.8, 0.3))
    more = ten_to_hundred(boxes, probs, Selection("10-100", 1, 2, 0.2, 0.3))
    assert within.tolist() == [0, 1, 2]
    assert fewer.tolist() == more.tolist() == [1, 2]
    swapped = [2, 1, 0]  # confidences 0.5, 0.9, 0.3
    exactly_min_and_max = ten_to_hundred(boxes, probs[swapped], Selection("10-100", 2, 2, 0.4, 0.3))
    assert exactly_min_and_max.tolist() == [0, 1]


def test_the_confidence_of_a_box_is_its_best_among_classes_it_survives_in() -> None:
    boxes = torch.tensor([[0.0, 0, 9, 9], [0, 0, 9, 9], [50, 50, 59, 59]])
    probs = torch.tensor([[0.9, 0.2], [0.8, 0.3], [0.1, 0.1]])
    confidence = confidences(boxes[None], probs[None], 0.3, torch.tensor([3]))
    torch.testing.assert_close(confidence, torch.tensor([[0.9, 0.3, 0.1]]))
    assert plain.confidences(boxes.tolist(), probs.tolist(), 0.3) == confidence[0].tolist()


def test_a_confidence_of_exactly_the_threshold_is_kept() -> None:
    boxes = torch.tensor([[0.0, 0, 9, 9], [50, 50, 59, 59]])
    rows = ten_to_hundred(boxes, torch.tensor([[0.25], [0.24]]), Selection("10-100", 0, 9, 0.25, 0.3))
    assert rows.tolist() == [0]


def test_equal_confidences_go_by_row() -> None:
    boxes = torch.tensor([[60.0 * row, 0, 60 * row + 9, 9] for row in range(6)])
    probs = torch.tensor([[0.5], [0.7], [0.5], [0.7], [0.5], [0.5]])
    rows = ten_to_hundred(boxes, probs, Selection("10-100", 0, 4, 0.2, 0.3))
    assert rows.tolist() == [1, 3, 0, 2]


def test_confident_boxes_are_proposals_in_original_pixels_with_their_best_real_class() -> None:
    proposals, found = random_boxes(1, PROPOSALS), predictions(1)
    selected = alone(proposals, found, DEFAULTS["10-100"])
    torch.testing.assert_close(selected.boxes, proposals[selected.rows] / 2)  # neither regressed nor clipped
    assert float(selected.boxes.min()) < 0 and float(selected.boxes[:, 3].max()) > 30
    best = found.class_probs[selected.rows, :-1].max(1)
    assert torch.equal(selected.class_ids, best.indices) and torch.equal(selected.class_scores, best.values)
    rows = plain.ten_to_hundred((proposals / 2).tolist(), found.class_probs[:, :-1].tolist(), DEFAULTS["10-100"])
    assert selected.rows.tolist() == rows


# Class-aware and class-agnostic: suppression is relaxed until there are enough boxes.


RELAXED = {
    "class-aware": (plain.class_aware_at, Selection("class-aware", 0, 36, 0.1, 0.5)),
    "class-agnostic": (plain.class_agnostic_at, Selection("class-agnostic", 0, 36, 0.0, 0.5)),
}
ON_REGRESSED = ("class-aware", "class-agnostic", "detectron2")


def plainly(regressed: Tensor, found: Predictions) -> plain.Moved:
    return plain.Moved(regressed.tolist(), found.class_probs[:, :-1].tolist(), FRAME)


def pairs_of(selected: Selected) -> list[plain.Pair]:
    return list(zip(selected.rows.tolist(), selected.class_ids.tolist(), strict=True))


@pytest.mark.parametrize("name", RELAXED)
@pytest.mark.parametrize("relaxations", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("seed", range(3))
def test_suppression_is_relaxed_as_often_as_it_takes_to_have_enough(name: str, relaxations: int, seed: int) -> None:
    slow, rule = RELAXED[name]
    regressed, found = random_boxes(seed, PROPOSALS, CLASSES), predictions(seed)
    left = [slow(plainly(regressed, found), rule, threshold) for threshold in THRESHOLDS]
    counts = [len(each) for each in left]
    assert sorted(set(counts)) == counts  # each step leaves more, so that each can be the one to stop at
    for wanted in (counts[relaxations], (counts[relaxations - 1] + 1) if relaxations else 1):
        selected = alone(regressed, found, replace(rule, max_boxes=wanted))
        assert pairs_of(selected) == left[relaxations][:wanted]


@pytest.mark.parametrize("name", RELAXED)
def test_where_relaxing_never_gives_enough_the_last_thresholds_boxes_stand(name: str) -> None:
    slow, rule = RELAXED[name]
    regressed, found = random_boxes(9, PROPOSALS, CLASSES), predictions(9)
    last = slow(plainly(regressed, found), rule, THRESHOLDS[-1])
    selected = alone(regressed, found, replace(rule, max_boxes=len(last) + 1))
    assert pairs_of(selected) == last


def test_a_proposal_may_appear_as_several_classes() -> None:
    regressed, found = random_boxes(0, PROPOSALS, CLASSES), predictions(0)
    rows = alone(regressed, found, RELAXED["class-aware"][1]).rows.tolist()
    assert len(set(rows)) < len(rows)


def test_equal_scores_of_different_classes_go_by_row() -> None:
    probs = torch.tensor([[0.125, 0.5, 0.375], [0.5, 0.125, 0.375]])
    regressed = torch.tensor([[0.0, 0, 10, 10], [40, 40, 50, 50]])[:, None].expand(2, 2, 4)
    selected = alone(regressed, said(probs), Selection("class-aware", 0, 9, 0.2, 0.5))
    assert pairs_of(selected) == [(0, 1), (1, 0)]


@pytest.mark.parametrize("classes", [20, 500])
@pytest.mark.parametrize("likely", range(1, 20))
def test_as_many_classes_of_a_proposal_as_can_be_above_a_threshold_are_kept_by_class(likely: int, classes: int) -> None:
    share = torch.tensor(1 / likely)
    probs = torch.zeros(5, classes + 1)
    generator = torch.Generator().manual_seed(likely)
    ids = torch.stack([torch.randperm(classes, generator=generator)[:likely] for _ in probs])
    probs.scatter_(1, ids, float(share))
    boxes = torch.tensor([[9.0 * row, 0, 9 * row + 8, 8] for row in range(5)])[:, None].expand(-1, classes, -1)
    threshold = float(share.nextafter(torch.tensor(0.0)))
    selected = alone(boxes, said(probs), Selection("class-aware", 0, 200, threshold, 0.5))
    assert pairs_of(selected) == [(row, each) for row in range(5) for each in sorted(ids[row].tolist())]


def test_no_score_above_the_threshold_gives_no_boxes() -> None:
    rule = replace(DEFAULTS["class-aware"], score_threshold=1.0)
    selected = alone(random_boxes(0, PROPOSALS, CLASSES), predictions(0), rule)
    assert [tuple(each.shape) for each in selected] == [(0,), (0, 4), (0,), (0,)]


def test_a_score_of_exactly_the_threshold_is_not_above_it() -> None:
    probs = torch.tensor([[0.25, 0.75], [0.5, 0.5]])
    regressed = torch.tensor([[[0.0, 0, 10, 10]], [[40, 40, 50, 50]]])
    assert alone(regressed, said(probs), Selection("class-aware", 0, 9, 0.25, 0.5)).rows.tolist() == [1]


@pytest.mark.parametrize("rule", ON_REGRESSED)
def test_the_background_is_never_chosen(rule: str) -> None:
    probs = torch.tensor([[0.1, 0.2, 0.7]])
    regressed = torch.tensor([[[0.0, 0, 10, 10], [40, 40, 50, 50]]])
    for threshold in (0.0, 0.15):
        selected = alone(regressed, said(probs), Selection(rule, 0, 1, threshold, 0.5))
        assert (selected.class_ids.tolist(), selected.boxes.tolist()) == ([1], [[20, 20, 25, 25]])


@pytest.mark.parametrize("rule", ON_REGRESSED)
def test_boxes_come_out_in_original_pixels_cut_to_the_image(rule: str) -> None:
    regressed, found = random_boxes(2, PROPOSALS, CLASSES), predictions(2)
    selected = alone(regressed, found, Selection(rule, 0, 36, 0.1, 0.5))
    for box, pair in zip(selected.boxes.tolist(), pairs_of(selected), strict=True):
        assert box == pytest.approx(plainly(regressed, found).original(pair), abs=1e-5)


@pytest.mark.parametrize("rule", ON_REGRESSED)
def test_a_box_outside_the_image_goes_together_with_its_row(rule: str) -> None:
    regressed = torch.tensor([[[90.0, 10, 99, 20]], [[10, 10, 20, 20]]])
    found = said(torch.tensor([[0.9, 0.1], [0.8, 0.2]]))
    selected = alone(regressed, found, Selection(rule, 0, 36, 0.1, 0.5))
    assert selected.rows.tolist() == [1] and selected.boxes.tolist() == [[5, 5, 10, 10]]
    torch.testing.assert_close(selected.class_scores, torch.tensor([0.8]))


# detectron2's own inference


@pytest.mark.parametrize("most", [5, 100])
@pytest.mark.parametrize("seed", range(3))
def test_detectron2s_inference_is_one_suppression_a_class_and_the_best_of_what_is_left(seed: int, most: int) -> None:
    regressed, found = random_boxes(seed, PROPOSALS, CLASSES), predictions(seed)
    rule = Selection("detectron2", 0, most, 0.2, 0.4)
    selected = alone(regressed, found, rule)
    wanted = plain.detectron2(plainly(regressed, found), rule)
    assert len(wanted) >= 5
    assert pairs_of(selected) == wanted
    assert selected.class_scores.tolist() == [float(found.class_probs[pair]) for pair in wanted]


def test_detectron2s_inference_looks_as_far_down_as_it_has_to() -> None:
    """A hundred boxes on top of each other, and one elsewhere that is the least likely of all."""
    boxes = torch.tensor([[0.0, 0, 20, 20]] * 100 + [[40, 40, 60, 60]])
    scores = torch.linspace(0.9, 0.1, 101)
    found = said(torch.stack([scores, 1 - scores], 1))
    selected = alone(boxes[:, None], found, Selection("detectron2", 0, 2, 0.0, 0.5))
    assert selected.rows.tolist() == [0, 100]


def test_detectron2s_inference_may_keep_nothing() -> None:
    regressed, found = random_boxes(0, PROPOSALS, CLASSES), predictions(0)
    assert len(alone(regressed, found, Selection("detectron2", 0, 9, 1.0, 0.5)).rows) == 0


# Several images.

FRAMES = (FRAME, Frame((64, 32), (16, 32), 0.5), Frame((32, 32), (128, 64), 0.25))  # factors are powers of two
PLAIN = {"class-aware": plain.class_aware, "class-agnostic": plain.class_agnostic, "detectron2": plain.detectron2}


def tied(images: int, proposals: int, classes: int, seed: int) -> tuple[Tensor, Tensor]:
    """Boxes (B, R, K, 4) of whole pixels, empty ones and some outside of the image among them, and probabilities
    (B, R, K + 1) of whole sixteenths, which makes many equal."""
    generator = torch.Generator().manual_seed(seed)
    shape = (images, proposals, classes, 2)
    corners = torch.randint(-8, 40, shape, generator=generator) // 4 * 4
    boxes = torch.cat([corners, corners + torch.randint(0, 9, shape, generator=generator) * 4], dim=-1)
    votes = torch.randint(0, classes + 1, (images, proposals, 16), generator=generator)
    votes = torch.where(torch.rand(votes.shape, generator=generator) < 0.6, votes[..., :1], votes)  # most for one class
    return boxes.float(), torch.nn.functional.one_hot(votes, classes + 1).sum(dim=2) / 16


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@drawn(
    name=st.sampled_from(sorted(RULES)),
    counts=st.lists(st.integers(0, 14), min_size=1, max_size=4),
    behind=st.integers(0, 3),
    classes=st.integers(1, 7),
    most=st.integers(1, 30),
    score_threshold=st.sampled_from([0.0, 0.0625, 0.1, 0.125, 0.2, 0.25, 0.5, 1.0]),
    nms_threshold=st.sampled_from([0.1, 0.25, 0.3, 0.5, 0.6, 0.75]),
    longest=st.sampled_from([3000, 20]),
    seed=st.integers(0, 10_000),
)
def test_images_are_selected_from_as_a_plain_loop_does_of_each(
    name: str,
    counts: list[int],
    behind: int,
    classes: int,
    most: int,
    score_threshold: float,
    nms_threshold: float,
    longest: int,
    seed: int,
) -> None:
    """Also where they are suppressed part by part. Behind an image's proposals stand others alike."""
    rule = Selection(name, most // 2, most, score_threshold, nms_threshold)
    regressed, probs = tied(len(counts), max(counts) + behind, classes, seed)
    frames = [FRAMES[(seed + row) % len(FRAMES)] for row in range(len(counts))]
    proposed = Proposed(regressed[:, :, 0], torch.tensor(counts), said(probs), frames, moved_to(regressed))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("extractors.suppression.LONGEST_IN_ROUNDS", longest)
        selected, kept = select(proposed, rule)
    for row, (count, frame) in enumerate(zip(counts, frames, strict=True)):
        mine = Selected(*(each[row, : kept[row]] for each in selected))
        moved = plain.Moved(regressed[row, :count].tolist(), probs[row, :count, :-1].tolist(), frame)
        if name == "10-100":
            boxes = (regressed[row, :count, 0] / frame.scale).tolist()
            rows = plain.ten_to_hundred(boxes, moved.probs, rule)
            wanted = [(each, max(range(classes), key=lambda column: moved.probs[each][column])) for each in rows]
            assert mine.boxes.tolist() == [boxes[each] for each in rows]
        else:
            wanted = PLAIN[name](moved, rule)
            assert mine.boxes.tolist() == [moved.original(pair) for pair in wanted]
        assert pairs_of(mine) == wanted
        assert mine.class_scores.tolist() == [moved.score(pair) for pair in wanted]


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("threshold", [0.2, 0.05])
def test_no_rule_asks_for_a_value(name: str, threshold: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device without values, which fails where a GPU would be waited for, or where a CPU's tensor is used. What
    settles stands for the kernel."""
    monkeypatch.setattr("extractors.boxes._at_hand", lambda boxes: boxes.device.type == "cpu")
    monkeypatch.setattr("extractors.suppression.settled", lambda over, alive: alive)
    boxes = torch.empty(3, 1000, 4, device="meta")
    found = said(torch.empty(3, 1000, 1601, device="meta"))
    counts = torch.empty(3, dtype=torch.int64, device="meta")
    regress = moved_to_nowhere
    rule = replace(DEFAULTS[name], score_threshold=threshold)
    selected, kept = select(Proposed(boxes, counts, found, [FRAME] * 3, regress), rule)
    assert [each.shape for each in selected] == [
        (3, rule.max_boxes),
        (3, rule.max_boxes, 4),
        *[(3, rule.max_boxes)] * 2,
    ]
    assert kept.shape == (3,) and {each.device.type for each in (*selected, kept)} == {"meta"}


def moved_to_nowhere(rows: Tensor, classes: Tensor) -> Tensor:
    return torch.empty(*rows.shape, 4, device=rows.device)


# Given boxes, and where pixels lie.


def test_given_boxes_stay_as_they_are_and_in_their_order() -> None:
    boxes, found = random_boxes(3, PROPOSALS), predictions(3)
    selected = given(boxes, None, found, FRAME)
    assert selected.rows.tolist() == list(range(PROPOSALS)) and torch.equal(selected.boxes, boxes)
    assert selected.class_ids.tolist() == [int(row.argmax()) for row in found.class_probs[:, :-1]]
    assert torch.equal(selected.class_scores, found.class_probs[:, :-1].amax(1))


def test_given_boxes_are_regressed_by_their_best_class_where_asked_for() -> None:
    boxes, found, regressed = random_boxes(4, PROPOSALS), predictions(4), random_boxes(5, PROPOSALS, CLASSES)
    selected = given(boxes, moved_to(regressed[None]), found, FRAME)
    assert selected.rows.tolist() == list(range(PROPOSALS))
    for box, pair in zip(selected.boxes.tolist(), pairs_of(selected), strict=True):
        assert box == pytest.approx(plainly(regressed, found).original(pair), abs=1e-5)


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
