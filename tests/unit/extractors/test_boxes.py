"""Box arithmetic against published anchors, cases worked out by hand, and plain loops with exact fractions."""

from __future__ import annotations

import math
import random
from fractions import Fraction

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from extractors.boxes import (
    SCALE_CLAMP,
    caffe_anchors,
    class_survivors_together,
    clip,
    decode,
    detectron2_anchors,
    nms_together,
    nonempty,
    shifted_anchors,
)

Box = tuple[int, int, int, int]

# The nine anchors that py-faster-rcnn's generate_anchors prints for scales 8, 16, 32.
PUBLISHED_ANCHORS = [
    [-84, -40, 99, 55],
    [-176, -88, 191, 103],
    [-360, -184, 375, 199],
    [-56, -56, 71, 71],
    [-120, -120, 135, 135],
    [-248, -248, 263, 263],
    [-36, -80, 51, 95],
    [-80, -168, 95, 183],
    [-168, -344, 183, 359],
]


def test_caffe_anchors_are_the_published_ones() -> None:
    assert caffe_anchors((8, 16, 32)).tolist() == PUBLISHED_ANCHORS


def test_the_detectors_twelve_caffe_anchors_hold_the_published_nine() -> None:
    anchors = caffe_anchors().tolist()
    assert len(anchors) == 12
    assert [anchor for row, anchor in enumerate(anchors) if row % 4] == PUBLISHED_ANCHORS
    assert anchors[::4] == [[-38, -16, 53, 31], [-24, -24, 39, 39], [-14, -36, 29, 51]]  # scale 4, worked by hand


def test_detectron2_anchors_are_centred_with_the_size_slowest() -> None:
    anchors = detectron2_anchors()
    assert anchors.shape == (12, 4)
    assert anchors[[1, 4, 7, 10]].tolist() == [[-half, -half, half, half] for half in (32, 64, 128, 256)]
    sides = anchors[:, 2:] - anchors[:, :2]
    torch.testing.assert_close(sides.prod(1).sqrt(), torch.tensor([64.0, 128, 256, 512]).repeat_interleave(3))
    torch.testing.assert_close(sides[:, 1] / sides[:, 0], torch.tensor([0.5, 1.0, 2.0]).repeat(4))
    torch.testing.assert_close(anchors[:, :2], -anchors[:, 2:])


def test_anchors_are_shifted_row_by_row_then_column_by_column() -> None:
    cell = torch.tensor([[0.0, 0, 15, 15], [-8, -8, 23, 23]])
    shifted = shifted_anchors(cell, (2, 3))
    assert shifted.shape == (12, 4)
    assert shifted[:3].tolist() == [[0, 0, 15, 15], [-8, -8, 23, 23], [16, 0, 31, 15]]
    assert shifted[6].tolist() == [0, 16, 15, 31]
    assert shifted[11].tolist() == [24, 8, 55, 39]


def test_a_delta_of_zero_keeps_the_box_but_for_caffes_missing_pixel() -> None:
    box, still = torch.tensor([[3.0, 5, 12, 24]]), torch.zeros(1, 4)
    assert decode(still, box, (1, 1, 1, 1), 0).tolist() == [[3, 5, 12, 24]]
    assert decode(still, box, (1, 1, 1, 1), 1).tolist() == [[3, 5, 13, 25]]  # 10 x 20 around (8, 15)


# A box from (0, 0) to (9, 19): 9 x 19 around (4.5, 9.5), or in Caffe's convention 10 x 20 around (5, 10).
MOVED = [
    (0, (1.0, 0.0, 0.0, 0.0), [9, 0, 18, 19]),
    (1, (1.0, 0.0, 0.0, 0.0), [10, 0, 20, 20]),
    (0, (0.0, -1.0, 0.0, 0.0), [0, -19, 9, 0]),
    (1, (0.0, -1.0, 0.0, 0.0), [0, -20, 10, 0]),
    (0, (0.0, 0.0, math.log(2), 0.0), [-4.5, 0, 13.5, 19]),
    (1, (0.0, 0.0, 0.0, math.log(3)), [0, -20, 10, 40]),
]


@pytest.mark.parametrize(("plus", "deltas", "moved"), MOVED)
def test_a_box_is_moved_by_its_deltas(plus: int, deltas: tuple[float, ...], moved: list[float]) -> None:
    found = decode(torch.tensor([deltas]), torch.tensor([[0.0, 0, 9, 19]]), (1, 1, 1, 1), plus)
    torch.testing.assert_close(found, torch.tensor([moved], dtype=torch.float32))


def test_deltas_are_divided_by_the_weights_of_their_training() -> None:
    box = torch.tensor([[0.0, 0, 10, 20]])
    plain = decode(torch.tensor([[0.2, -0.1, 0.3, 0.4]]), box, (1, 1, 1, 1), 0)
    torch.testing.assert_close(decode(torch.tensor([[2.0, -1.0, 1.5, 2.0]]), box, (10, 10, 5, 5), 0), plain)


def test_no_box_grows_past_the_published_clamp() -> None:
    assert pytest.approx(62.5) == math.exp(SCALE_CLAMP)
    found = decode(torch.tensor([[0.0, 0, 100, 100]]), torch.tensor([[0.0, 0, 16, 16]]), (1, 1, 1, 1), 0)
    torch.testing.assert_close(found, torch.tensor([[-492.0, -492, 508, 508]]))


def test_each_class_moves_the_box_by_its_own_deltas() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 20], [5, 5, 9, 9]])
    deltas = torch.linspace(-1, 1, 24).reshape(2, 12)
    together = decode(deltas, boxes, (1, 1, 1, 1), 1)
    assert together.shape == (2, 12)
    for column in range(0, 12, 4):
        torch.testing.assert_close(
            together[:, column : column + 4], decode(deltas[:, column : column + 4], boxes, (1, 1, 1, 1), 1)
        )


@pytest.mark.parametrize(("plus", "cut"), [(0, [0, 0, 50, 40]), (1, [0, 0, 49, 39])])
def test_boxes_are_cut_to_the_image(plus: int, cut: list[float]) -> None:
    boxes = torch.tensor([[[-3.0, -4, 100, 200]], [[10, 20, 30, 35]]])
    assert clip(boxes, 40 - plus, 50 - plus).tolist() == [[cut], [[10, 20, 30, 35]]]
    assert clip(torch.tensor([60.0, 45, 70, 50]), 40 - plus, 50 - plus).tolist() == [cut[2], cut[3], cut[2], cut[3]]


def test_a_box_needs_width_and_height() -> None:
    boxes = torch.tensor([[0.0, 0, 1, 1], [5, 5, 5, 9], [5, 5, 9, 5], [5, 5, 4, 9], [0, 0, 0.1, 0.1]])
    assert nonempty(boxes).tolist() == [True, False, False, False, True]


# Plain loops with exact fractions. Thresholds are quarters, which floats hold exactly, so that a box whose overlap
# equals the threshold is decided by the rule and not by rounding.


def overlap(a: Box, b: Box, plus: int) -> Fraction:
    wide = min(a[2], b[2]) - max(a[0], b[0]) + plus
    high = min(a[3], b[3]) - max(a[1], b[1]) + plus
    if wide <= 0 or high <= 0:
        return Fraction(0)
    areas = sum((box[2] - box[0] + plus) * (box[3] - box[1] + plus) for box in (a, b))
    return Fraction(wide * high, areas - wide * high)


def slow_nms(boxes: list[Box], scores: list[float], threshold: Fraction, plus: int) -> list[int]:
    ranked = sorted(range(len(boxes)), key=lambda row: (-scores[row], row))
    kept: list[int] = []
    for row in ranked:
        for other in kept:
            shared = overlap(boxes[row], boxes[other], plus)
            if shared > threshold or (plus and shared == threshold):
                break
        else:
            kept.append(row)
    return kept


def random_boxes(seed: int, count: int) -> list[Box]:
    """Integer boxes that overlap a lot, some of them twice."""
    rng = random.Random(seed)
    boxes = []
    for _ in range(count):
        x, y = rng.randrange(20), rng.randrange(20)
        boxes.append((x, y, x + rng.randrange(1, 16), y + rng.randrange(1, 16)))
    return [rng.choice(boxes) if rng.random() < 0.1 else box for box in boxes]


def random_scores(seed: int, count: int) -> list[float]:
    """Scores with many ties."""
    rng = random.Random(seed)
    return [rng.randrange(8) / 8 for _ in range(count)]


def as_tensors(boxes: list[Box], scores: list[float]) -> tuple[Tensor, Tensor]:
    return torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), torch.tensor(scores)


def nms(boxes: Tensor, scores: Tensor, threshold: float, plus: int, limit: int = 1000) -> Tensor:
    """Rows of one image's boxes that survive."""
    [rows], [count] = nms_together(boxes[None], scores[None], [threshold], plus, limit)
    return rows[:count]


def class_survivors(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Of one image's boxes (N, 4) and scores (N, C), (N, C) bool."""
    return class_survivors_together(boxes[None], scores[None], threshold, torch.tensor([len(boxes)]))[0]


@pytest.mark.parametrize("plus", [0, 1])
@pytest.mark.parametrize("threshold", [Fraction(1, 4), Fraction(1, 2), Fraction(3, 4)])
@pytest.mark.parametrize("seed", range(6))
def test_suppression_is_that_of_a_plain_loop(plus: int, threshold: Fraction, seed: int) -> None:
    boxes, scores = random_boxes(seed, 60), random_scores(seed, 60)
    wanted = slow_nms(boxes, scores, threshold, plus)
    assert 3 < len(wanted) < 60
    tensors = as_tensors(boxes, scores)
    assert nms(*tensors, float(threshold), plus).tolist() == wanted
    assert nms(*tensors, float(threshold), plus, limit=5).tolist() == wanted[:5]


def test_an_overlap_of_exactly_the_threshold_falls_in_caffes_convention_only() -> None:
    # 10 x 10 and 5 x 10 inside it: half, by either way of counting pixels.
    caffe = torch.tensor([[0.0, 0, 9, 9], [0, 0, 4, 9]])
    torchvision = torch.tensor([[0.0, 0, 10, 10], [0, 0, 5, 10]])
    scores = torch.tensor([0.9, 0.8])
    assert nms(caffe, scores, 0.5, plus=1).tolist() == [0]
    assert nms(torchvision, scores, 0.5, plus=0).tolist() == [0, 1]


def test_caffes_boxes_that_share_one_line_of_pixels_overlap() -> None:
    boxes, scores = torch.tensor([[0.0, 0, 3, 3], [3, 0, 6, 3]]), torch.tensor([0.9, 0.8])
    assert nms(boxes, scores, 0.1, plus=1).tolist() == [0]
    assert nms(boxes, scores, 0.1, plus=0).tolist() == [0, 1]


@pytest.mark.parametrize("plus", [0, 1])
def test_of_equal_boxes_with_equal_scores_the_first_stays(plus: int) -> None:
    boxes = torch.tensor([[0.0, 0, 9, 9]]).repeat(5, 1)
    assert nms(boxes, torch.full((5,), 0.5), 0.5, plus).tolist() == [0]


@pytest.mark.parametrize("plus", [0, 1])
def test_without_boxes_nothing_survives(plus: int) -> None:
    assert nms(torch.empty(0, 4), torch.empty(0), 0.5, plus).tolist() == []
    assert nms(torch.tensor([[0.0, 0, 9, 9]]), torch.ones(1), 0.5, plus, limit=0).tolist() == []


@pytest.mark.parametrize("threshold", [Fraction(1, 4), Fraction(1, 2)])
@pytest.mark.parametrize(("count", "classes"), [(40, 7), (1, 3), (8, 1), (9, 20), (64, 2)])
def test_survivors_of_each_class_are_those_of_a_plain_loop(threshold: Fraction, count: int, classes: int) -> None:
    boxes = random_boxes(count, count)
    scores = [random_scores(100 * count + each, count) for each in range(classes)]
    found = class_survivors(torch.tensor(boxes, dtype=torch.float32), torch.tensor(scores).t(), float(threshold))
    assert found.shape == (count, classes) and found.dtype == torch.bool
    for each in range(classes):
        wanted = slow_nms(boxes, scores[each], threshold, plus=1)
        assert found[:, each].nonzero()[:, 0].tolist() == sorted(wanted), each


def test_survivors_of_no_boxes_are_none() -> None:
    assert class_survivors(torch.empty(0, 4), torch.empty(0, 5), 0.3).shape == (0, 5)


@pytest.mark.parametrize("plus", [0, 1])
def test_images_are_suppressed_one_by_one_whatever_stands_beside_them(plus: int) -> None:
    several = [as_tensors(random_boxes(count, count), random_scores(count, count)) for count in (40, 7, 0, 60)]
    boxes, scores = (list(each) for each in zip(*several, strict=True))
    padded = pad_sequence(boxes, batch_first=True), pad_sequence(scores, batch_first=True, padding_value=-torch.inf)
    rows, counts = nms_together(*padded, [0.5], plus, 9)
    found = [mine[:count].tolist() for mine, count in zip(rows, counts, strict=True)]
    assert found == [nms(*each, 0.5, plus, 9).tolist() for each in several]


@pytest.mark.parametrize("plus", [0, 1])
def test_a_score_of_minus_infinity_is_of_no_box(plus: int) -> None:
    boxes = torch.tensor([[0.0, 0, 9, 9], [50, 50, 59, 59], [0, 0, 9, 8]])
    scores = torch.tensor([-torch.inf, 0.3, 0.2])
    assert nms(boxes, scores, 0.5, plus).tolist() == [1, 2]


THRESHOLDS = (Fraction(1, 4), Fraction(1, 2), Fraction(3, 4))


@pytest.mark.parametrize("by_class", [False, True])
@pytest.mark.parametrize("short", [0, 10, 512])
@pytest.mark.parametrize("at_hand", [True, False])
def test_each_image_is_suppressed_at_the_first_threshold_that_leaves_enough(
    at_hand: bool, short: int, by_class: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("extractors.boxes._at_hand", lambda boxes: at_hand)
    monkeypatch.setattr("extractors.boxes.SHORT", short)
    counts = (60, 7, 0, 60, 30)
    boxes = [random_boxes(row, count) for row, count in enumerate(counts)]
    scores = [random_scores(row, count) for row, count in enumerate(counts)]
    rng = random.Random(0)
    kinds = [[rng.randrange(3) if by_class else 0 for _ in range(count)] for count in counts]
    left = [
        [slow_nms_of_classes(boxes[row], scores[row], kinds[row], threshold) for threshold in THRESHOLDS]
        for row in range(len(counts))
    ]
    padded = (
        pad_sequence([as_tensors(*each)[0] for each in zip(boxes, scores, strict=True)], batch_first=True),
        pad_sequence([torch.tensor(each) for each in scores], batch_first=True, padding_value=-torch.inf),
    )
    classes = pad_sequence([torch.tensor(each, dtype=torch.int64) for each in kinds], batch_first=True)
    stops = set()
    for limit in range(1, 61, 3):
        rows, many = nms_together(*padded, list(map(float, THRESHOLDS)), 0, limit, classes if by_class else None)
        for each, mine, count in zip(left, rows, many.tolist(), strict=True):
            at = next((at for at, kept in enumerate(each) if len(kept) >= limit), len(THRESHOLDS) - 1)
            stops.add(at)
            assert mine[:count].tolist() == each[at][:limit]
    assert stops == {0, 1, 2}


@pytest.mark.parametrize("at_hand", [True, False])
def test_the_first_threshold_that_leaves_enough_counts_although_a_later_one_leaves_fewer(
    at_hand: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A box that no longer falls may suppress two others."""
    monkeypatch.setattr("extractors.boxes._at_hand", lambda boxes: at_hand)
    boxes = [(0, 5, 100, 15), (0, 0, 100, 10), (0, 0, 55, 10), (45, 0, 100, 10)]
    scores = [0.9, 0.8, 0.7, 0.6]
    assert [slow_nms(boxes, scores, threshold, 0) for threshold in THRESHOLDS] == [[0, 2, 3], [0, 1], [0, 1, 2, 3]]
    thresholds, alone = list(map(float, THRESHOLDS)), [each[None] for each in as_tensors(boxes, scores)]
    for limit, wanted in ((2, [0, 2]), (3, [0, 2, 3]), (4, [0, 1, 2, 3]), (5, [0, 1, 2, 3])):
        [rows], [count] = nms_together(alone[0], alone[1], thresholds, 0, limit)
        assert rows[:count].tolist() == wanted


def slow_nms_of_classes(boxes: list[Box], scores: list[float], kinds: list[int], threshold: Fraction) -> list[int]:
    kept = []
    for kind in set(kinds):
        mine = [row for row, each in enumerate(kinds) if each == kind]
        kept += [mine[at] for at in slow_nms([boxes[row] for row in mine], [scores[row] for row in mine], threshold, 0)]
    return sorted(kept, key=lambda row: (-scores[row], row))
