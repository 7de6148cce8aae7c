"""Box arithmetic and the rules of selection once more, slowly and on their own, for tests to compare with.

Boxes are [x1, y1, x2, y2]; a pair is a proposal and a class of it. Overlaps are float32, as in all official codes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from extractors.selection import Frame, Selection

Box = Sequence[float]
Pair = tuple[int, int]


def overlap(a: Box, b: Box, plus: int) -> float:
    """IoU of two boxes; `plus` is 1 where both end pixels count."""
    wide = min(a[2], b[2]) - max(a[0], b[0]) + plus
    high = min(a[3], b[3]) - max(a[1], b[1]) + plus
    if wide <= 0 or high <= 0:
        return 0.0
    areas = sum((box[2] - box[0] + plus) * (box[3] - box[1] + plus) for box in (a, b))
    return wide * high / (areas - wide * high)


def suppressed(boxes: Sequence[Box], scores: Sequence[float], threshold: float, plus: int) -> list[int]:
    """Rows that survive, best first. torchvision compares with a double; Caffe's rule is one of float32."""

    def falls(box: Box, other: Box) -> bool:
        found = np.float32(overlap(box, other, plus))
        return bool(found >= np.float32(threshold)) if plus else float(found) > threshold

    kept: list[int] = []
    for row in sorted(range(len(boxes)), key=lambda row: (-scores[row], row)):
        if not any(falls(boxes[row], boxes[other]) for other in kept):
            kept.append(row)
    return kept


def confidences(boxes: Sequence[Box], probs: Sequence[Sequence[float]], threshold: float) -> list[float]:
    """Of each box its best probability among the classes it survives in."""
    found = [0.0] * len(boxes)
    for column in range(len(probs[0]) if probs else 0):
        scores = [row[column] for row in probs]
        for row in suppressed(boxes, scores, threshold, plus=1):
            found[row] = max(found[row], scores[row])
    return found


def ten_to_hundred(boxes: Sequence[Box], probs: Sequence[Sequence[float]], rule: Selection) -> list[int]:
    """Rows of boxes in original pixels."""
    confidence = confidences(boxes, probs, rule.nms_threshold)
    kept = [row for row in range(len(boxes)) if confidence[row] >= np.float32(rule.score_threshold)]
    ranked = sorted(range(len(boxes)), key=lambda row: (-confidence[row], row))
    if len(kept) < rule.min_boxes:
        return ranked[: rule.min_boxes]
    return ranked[: rule.max_boxes] if len(kept) > rule.max_boxes else kept


def clipped(box: Box, size: tuple[int, int]) -> list[float]:
    height, width = size
    return [min(max(value, 0.0), limit) for value, limit in zip(box, (width, height, width, height), strict=True)]


class Moved:
    """One image's proposals as each of their classes moves them, (R, K, 4), and how likely these are, (R, K)."""

    def __init__(self, boxes: Sequence[Sequence[Box]], probs: Sequence[Sequence[float]], frame: Frame) -> None:
        self.boxes, self.probs, self.frame = boxes, probs, frame

    def box(self, pair: Pair) -> list[float]:
        row, column = pair
        return clipped(self.boxes[row][column], self.frame.input_size)

    def original(self, pair: Pair) -> list[float]:
        """The box in pixels of the original image."""
        (height, width), (raw_height, raw_width) = self.frame.input_size, self.frame.image_size
        factors = (raw_width / width, raw_height / height) * 2
        moved = [value * factor for value, factor in zip(self.box(pair), factors, strict=True)]
        return clipped(moved, self.frame.image_size)

    def score(self, pair: Pair) -> float:
        row, column = pair
        return self.probs[row][column]

    def confident(self, threshold: float) -> list[Pair]:
        rows, columns = range(len(self.probs)), range(len(self.probs[0]) if self.probs else 0)
        return [(row, column) for row in rows for column in columns if self.probs[row][column] > np.float32(threshold)]

    def suppressed(self, pairs: Sequence[Pair], threshold: float) -> list[Pair]:
        kept = suppressed([self.box(pair) for pair in pairs], [self.score(pair) for pair in pairs], threshold, plus=0)
        return [pairs[at] for at in kept]


def class_aware_at(moved: Moved, rule: Selection, threshold: float) -> list[Pair]:
    """What one threshold of suppression leaves, best first."""
    pairs, kept = moved.confident(rule.score_threshold), []
    for column in {column for _, column in pairs}:
        kept += moved.suppressed([pair for pair in pairs if pair[1] == column], threshold)
    return sorted(kept, key=lambda pair: (-moved.score(pair), pair))


def class_agnostic_at(moved: Moved, rule: Selection, threshold: float) -> list[Pair]:
    best = [(row, max(range(len(probs)), key=lambda column: probs[column])) for row, probs in enumerate(moved.probs)]
    return moved.suppressed(best, threshold)


def class_aware(moved: Moved, rule: Selection) -> list[Pair]:
    return _relaxed(class_aware_at, moved, rule)


def class_agnostic(moved: Moved, rule: Selection) -> list[Pair]:
    return _relaxed(class_agnostic_at, moved, rule)


def detectron2(moved: Moved, rule: Selection) -> list[Pair]:
    return _not_empty(moved, class_aware_at(moved, rule, rule.nms_threshold)[: rule.max_boxes])


def _relaxed(at: Callable[[Moved, Selection, float], list[Pair]], moved: Moved, rule: Selection) -> list[Pair]:
    kept: list[Pair] = []
    for threshold in np.arange(rule.nms_threshold, 1.0, 0.1):
        kept = at(moved, rule, float(threshold))[: rule.max_boxes]
        if len(kept) == rule.max_boxes:
            break
    return _not_empty(moved, kept)


def _not_empty(moved: Moved, pairs: Sequence[Pair]) -> list[Pair]:
    boxes = [moved.original(pair) for pair in pairs]
    return [pair for pair, (x1, y1, x2, y2) in zip(pairs, boxes, strict=True) if x2 > x1 and y2 > y1]
