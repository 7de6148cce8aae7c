"""Box arithmetic: anchors, decoding, clipping and suppression, in both conventions of pixel width.

Boxes are (N, 4) float32, x1 y1 x2 y2. `plus` is 1 in Caffe's convention, where a box from pixel 3 to pixel 5 is 3
wide, and 0 in detectron2's. Ties are broken by row everywhere: descending sorts are stable.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from extractors.suppression import bound_of, first_true, survivors, survivors_of_orders, taken

SHORT = 512  # boxes whose overlaps are rather computed all at once than class by class
SCALE_CLAMP = math.log(1000.0 / 16)  # detectron2 `modeling/box_regression.py`: no box grows past 62.5 times its anchor


def detectron2_anchors(sizes: Sequence[float] = (64, 128, 256, 512)) -> Tensor:
    """(12, 4) anchors around (0, 0), size slowest: detectron2 `modeling/anchor_generator.py`."""
    rows = []
    for size in sizes:
        for ratio in (0.5, 1.0, 2.0):
            width = math.sqrt(size**2 / ratio)
            height = ratio * width
            rows.append([-width / 2, -height / 2, width / 2, height / 2])
    return torch.tensor(rows)


def caffe_anchors(scales: Sequence[float] = (4, 8, 16, 32)) -> Tensor:
    """(12, 4) anchors on the 16-pixel base (0, 0, 15, 15), ratio slowest, sides rounded before they are scaled.

    Source: peteanderson80/bottom-up-attention `lib/rpn/generate_anchors.py`.
    """
    rows = []
    for ratio in (0.5, 1.0, 2.0):
        width = np.round(np.sqrt(256 / ratio))
        height = np.round(width * ratio)
        for scale in scales:
            half = np.array([width * scale - 1, height * scale - 1]) / 2
            rows.append([*(7.5 - half), *(7.5 + half)])
    return torch.tensor(np.array(rows), dtype=torch.float32)


def shifted_anchors(cell: Tensor, map_size: tuple[int, int], stride: int = 16) -> Tensor:
    """Anchors of every cell of a map (height, width), (height * width * A, 4): row, column, anchor, slowest first."""
    height, width = map_size
    x = torch.arange(0, width * stride, stride, dtype=torch.float32, device=cell.device)
    y = torch.arange(0, height * stride, stride, dtype=torch.float32, device=cell.device)
    ys, xs = torch.meshgrid(y, x, indexing="ij")
    shifts = torch.stack([xs, ys, xs, ys], dim=-1).reshape(-1, 1, 4)
    return (shifts + cell).reshape(-1, 4)


def decode(deltas: Tensor, boxes: Tensor, weights: tuple[float, float, float, float], plus: int) -> Tensor:
    """Move boxes by predicted deltas.

    Args:
        deltas: (N, C * 4), C boxes predicted from each.
        boxes: (N, 4) they start from.
        weights: by which dx, dy, dw, dh were multiplied in training.

    Returns:
        (N, C * 4), not clipped. As in both official codes, a width of w ends at centre + w / 2, without the -1.
    """
    width, height = boxes[:, 2] - boxes[:, 0] + plus, boxes[:, 3] - boxes[:, 1] + plus
    x, y = boxes[:, 0] + 0.5 * width, boxes[:, 1] + 0.5 * height
    dx, dy, dw, dh = (deltas[:, i::4] / weight for i, weight in enumerate(weights))
    new_x, new_y = dx * width[:, None] + x[:, None], dy * height[:, None] + y[:, None]
    new_width = torch.exp(dw.clamp(max=SCALE_CLAMP)) * width[:, None]
    new_height = torch.exp(dh.clamp(max=SCALE_CLAMP)) * height[:, None]
    half_w, half_h = 0.5 * new_width, 0.5 * new_height
    return torch.stack([new_x - half_w, new_y - half_h, new_x + half_w, new_y + half_h], dim=-1).flatten(1)


def clip(boxes: Tensor, height: float, width: float) -> Tensor:
    """Boxes (..., 4) of one image cut to [0, size]."""
    return clip_to(boxes, corners(boxes, width, height))


def clip_to(boxes: Tensor, ends: Tensor) -> Tensor:
    """Boxes (..., 4) cut to what begins at 0; its ends, as x, y, x, y, are of what broadcasts."""
    return torch.minimum(boxes.clamp(min=0), ends)


def corners(boxes: Tensor, x: float, y: float) -> Tensor:
    """(4,): x, y, x, y where the boxes are, and like them. A GPU fills it in by itself, where to copy it there would
    wait for all that was before."""
    found = boxes.new_full((2, 2), x)
    found[:, 1] = y
    return found.flatten()


def nonempty(boxes: Tensor) -> Tensor:
    """Of boxes (..., 4), (...) bool: wider and higher than nothing."""
    return (boxes[..., 2] > boxes[..., 0]) & (boxes[..., 3] > boxes[..., 1])


def nms_together(
    boxes: Tensor,
    scores: Tensor,
    thresholds: Sequence[float],
    plus: int,
    limit: int,
    classes: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Greedy suppression in each of several images, best score first, at most `limit`; a GPU is not waited for.

    Without `plus`, a box with IoU > threshold falls (torchvision's rule); with it, IoU >= threshold, on inclusive
    widths: MILVLG/bottom-up-attention.pytorch's compiled CPU kernel, and Caffe's CPU NMS.

    Args:
        boxes: (B, N, 4).
        scores: (B, N), -inf where a box is none.
        thresholds: of several, the first counts that leaves `limit` boxes, or else the last: an image by itself.
        classes: (B, N) int64, where boxes suppress within their class only; without `plus`. True suppression a class:
            shifting the classes apart, as torchvision's `batched_nms` may, rounds coordinates to 1/8 pixel at 1600
            classes.

    Returns:
        rows (B, M) int64 and how many of them are survivors (B,) int64; behind these are any rows.
    """
    orders = scores.argsort(dim=1, descending=True, stable=True)
    ranked, alive = taken(boxes, orders), taken(scores, orders) > -torch.inf
    kinds = None if classes is None else taken(classes, orders)
    if _at_hand(boxes):
        kept = []
        for row, (order, good) in enumerate(zip(orders, alive, strict=True)):
            kind = None if kinds is None else kinds[row, good]
            kept.append(order[good][_kept(ranked[row, good], kind, thresholds, plus, limit)])
        rows = torch.nn.utils.rnn.pad_sequence(kept, batch_first=True)
        return rows, torch.tensor([len(each) for each in kept], device=rows.device)
    bounds = [bound_of(threshold, bool(plus)) for threshold in thresholds]
    found = torch.stack([survivors(ranked, alive, bound, plus, limit, kinds) for bound in bounds])
    counts = found.sum(dim=2)  # (thresholds, B)
    first = (counts[:-1] < limit).int().cumprod(dim=0).sum(dim=0)  # how many have too few before one has enough
    best = found.gather(0, first[None, :, None].expand_as(found[:1]))[0]
    return taken(orders, first_true(best, limit)), best.sum(dim=1)


def _at_hand(boxes: Tensor) -> bool:
    """Whether values can be asked for without waiting: a CPU's, which then has nothing to do for what is no box."""
    return boxes.device.type == "cpu"


def _kept(ranked: Tensor, kinds: Tensor | None, thresholds: Sequence[float], plus: int, limit: int) -> Tensor:
    """Rows of one image's ranked boxes that survive, at the first threshold that is enough."""
    kept = torch.empty(0, dtype=torch.int64, device=ranked.device)
    for threshold in thresholds:
        if kinds is not None:
            kept = _best_within_classes(ranked, kinds, threshold, limit)
        elif plus:
            kept = torch.from_numpy(_greedy_inclusive(ranked.numpy(), np.float32(threshold), limit))
        else:
            kept = _torchvision_nms(ranked, threshold)[:limit]
        if len(kept) == limit:
            break
    return kept


def _torchvision_nms(ranked: Tensor, threshold: float) -> Tensor:
    from torchvision.ops import nms  # it takes seconds to import, and grids need none of it

    found: Tensor = nms(ranked, -torch.arange(len(ranked), dtype=torch.float32, device=ranked.device), threshold)
    return found


def _best_within_classes(ranked: Tensor, kinds: Tensor, threshold: float, limit: int) -> Tensor:
    """A box is suppressed by better ones alone, so the best survivors are those of the best part: with a low score
    threshold there are 1600 times as many boxes as proposals."""
    bound = bound_of(threshold, inclusive=False)
    kept, count = kinds[:0], 0
    while len(kept) < limit and count < len(ranked):
        count = 4 * max(limit, count)
        best, kind = ranked[:count], kinds[:count]
        if len(best) <= SHORT:
            everyone = torch.ones_like(kind, dtype=torch.bool)
            alive = survivors(best[None], everyone[None], bound, 0, limit, kind[None])[0]
        else:
            alive = torch.zeros_like(kind, dtype=torch.bool)
            for mine in kind.argsort(stable=True).split(kind.unique(return_counts=True)[1].tolist()):
                alive[mine[_torchvision_nms(best[mine], threshold)]] = True
        kept = alive.nonzero()[:limit, 0]
    return kept


def _greedy_inclusive(boxes: np.ndarray, threshold: np.float32, limit: int) -> np.ndarray:
    """Rows of sorted boxes that survive; only a kept box's overlaps are computed, and the search stops at `limit`."""
    kept: list[int] = []
    open_rows = np.arange(len(boxes))
    while len(open_rows) and len(kept) < limit:
        best, open_rows = open_rows[0], open_rows[1:]
        kept.append(int(best))
        open_rows = open_rows[_iou_inclusive(boxes[best], boxes[open_rows]) < threshold]
    return np.array(kept, np.int64)


def _iou_inclusive(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    one = np.float32(1)
    wide = np.minimum(box[..., 2], others[..., 2]) - np.maximum(box[..., 0], others[..., 0]) + one
    high = np.minimum(box[..., 3], others[..., 3]) - np.maximum(box[..., 1], others[..., 1]) + one
    overlap = np.maximum(wide, 0) * np.maximum(high, 0)
    return overlap / (_area(box) + _area(others) - overlap)


def _area(boxes: np.ndarray) -> np.ndarray:
    one = np.float32(1)
    return (boxes[..., 2] - boxes[..., 0] + one) * (boxes[..., 3] - boxes[..., 1] + one)


def class_survivors_together(boxes: Tensor, scores: Tensor, threshold: float, counts: Tensor) -> Tensor:
    """Caffe's per-class NMS on shared boxes: (B, N, 4) and scores (B, N, C) to (B, N, C) bool, where a box survives.

    All classes rank the same N boxes, so one IoU matrix serves them all: the boxes that one box suppresses are the
    bits of one integer, and a class is one walk down its ranking. On a GPU all classes are walked at once.

    Args:
        counts: (B,), how many boxes an image has; those behind them neither survive nor suppress.
    """
    if not _at_hand(boxes):
        orders = scores.transpose(1, 2).contiguous().argsort(dim=2, descending=True, stable=True)
        bound = bound_of(threshold, inclusive=True)
        there = orders < counts[:, None, None]
        return survivors_of_orders(boxes, orders, there, bound, plus=1).transpose(1, 2)
    found = torch.zeros_like(scores, dtype=torch.bool)
    for row, (each, count) in enumerate(zip(boxes, counts.tolist(), strict=True)):
        order = scores[row, :count].t().argsort(dim=1, descending=True, stable=True)
        found[row, :count] = _walked(each[:count].numpy(), order, threshold)
    return found


def _walked(pixels: np.ndarray, order: Tensor, threshold: float) -> Tensor:
    """One image's survivors (N, C), on a CPU; order (C, N)."""
    over = _iou_inclusive(pixels[:, None], pixels[None]) >= np.float32(threshold)
    np.fill_diagonal(over, False)
    spares = [~int.from_bytes(row.tobytes(), "little") for row in np.packbits(over, axis=1, bitorder="little")]
    alive = b"".join(_walk(ranking, spares) for ranking in order.tolist())
    bits = np.frombuffer(alive, np.uint8).reshape(len(order), -1)
    survives = np.unpackbits(bits, axis=1, count=len(pixels), bitorder="little").astype(bool)
    return torch.from_numpy(survives).t()


def _walk(ranking: list[int], spares: list[int]) -> bytes:
    """One class's survivors as bits. A box still alive at its turn overlaps no kept one, so the boxes it now
    suppresses are all ranked below it or dead already."""
    alive = (1 << len(ranking)) - 1
    for row in ranking:
        if alive >> row & 1:
            alive &= spares[row]
    return alive.to_bytes((len(ranking) + 7) // 8, "little")
