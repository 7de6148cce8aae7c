"""Greedy suppression of many ranked lists of boxes at once, for GPUs: a walk box by box would wait a thousand times.

Where Triton is, one program walks down each list and keeps what it knows in registers; else the lists settle round by
round. Both do the float32 operations of `extractors/boxes.py`, one by one, so that ties end the same way everywhere.

Shapes in this file: P lists (images, or classes) of N boxes each, x1 y1 x2 y2, best first.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from extractors.kernels import kernels_for

LONGEST = 8192  # boxes of a list that one program can hold
OVERLAPS_AT_ONCE = 9_000_000  # of the rounds, in a few float32 matrices of 36 MB; one list is never split


def survivors(
    boxes: Tensor, alive: Tensor, bound: float, plus: int, limit: int | None = None, classes: Tensor | None = None
) -> Tensor:
    """Which boxes survive those before them.

    Args:
        boxes: (P, N, 4) float32.
        alive: (P, N) bool; the others neither survive nor suppress.
        bound: a box falls whose IoU with an earlier survivor is above it; `bound_of` turns a threshold into it.
        plus: 1 where widths count both end pixels.
        limit: no more than so many survive, the best.
        classes: (P, N) int64, where boxes suppress within their class only.

    Returns:
        (P, N) bool.
    """
    limit = boxes.shape[1] if limit is None else limit
    if kernels_for(boxes) and boxes.shape[1] <= LONGEST:
        from extractors.suppression_kernel import walk  # Triton is no package of every machine

        return walk(boxes, alive, classes, (bound, plus, limit))
    at_once = max(1, OVERLAPS_AT_ONCE // max(1, boxes.shape[1] ** 2))
    groups = [slice(start, start + at_once) for start in range(0, len(boxes), at_once)]
    parts = [_rounds(boxes[at], alive[at], bound, plus, None if classes is None else classes[at]) for at in groups]
    found = torch.cat(parts) if parts else torch.zeros_like(alive)
    return found & (found.cumsum(dim=1) <= limit)


def survivors_of_orders(boxes: Tensor, orders: Tensor, alive: Tensor, bound: float, plus: int) -> Tensor:
    """As `survivors` of several rankings of each image's boxes.

    Args:
        boxes: (B, N, 4) float32.
        orders: (B, P, N) int64, rows of an image's boxes, best first.
        alive: (B, P, N) bool, in these orders.

    Returns:
        (B, P, N) bool, in the boxes' own order.
    """
    if kernels_for(boxes) and boxes.shape[1] <= LONGEST:
        from extractors.suppression_kernel import walk_orders  # Triton is no package of every machine

        return walk_orders(boxes, orders, alive, (bound, plus, boxes.shape[1]))
    rows = orders[..., None].expand(*orders.shape, 4)
    ranked = boxes[:, None].expand(-1, orders.shape[1], -1, -1).gather(2, rows)
    found = survivors(ranked.flatten(0, 1), alive.flatten(0, 1), bound, plus).view_as(alive)
    return torch.zeros_like(found).scatter_(2, orders, found)


def bound_of(threshold: float, inclusive: bool) -> float:
    """The float32 that an IoU is above where it is above `threshold` or, if inclusive, at least the float32 next to it.

    torchvision compares float32 ratios with a double threshold, and 0.3 as float32 lies above 0.3; Caffe's rule is one
    of float32.
    """
    near = np.float32(threshold)
    below = inclusive or float(near) > threshold
    return float(np.nextafter(near, np.float32(-1)) if below else near)


def overlaps(boxes: Tensor, plus: int) -> Tensor:
    """IoU of boxes (P, N, 4) with one another, (P, N, N) float32."""
    x1, y1, x2, y2 = boxes.unbind(2)
    overlap = _shared(x1, x2, plus).mul_(_shared(y1, y2, plus))
    area = (x2 - x1 + plus) * (y2 - y1 + plus)
    return overlap / (area[:, :, None] + area[:, None, :]).sub_(overlap)


def _shared(low: Tensor, high: Tensor, plus: int) -> Tensor:
    """Of intervals (P, N), what two share, (P, N, N); an axis at a time takes half the memory."""
    ends, starts = torch.minimum(high[:, :, None], high[:, None]), torch.maximum(low[:, :, None], low[:, None])
    return ends.sub_(starts).add_(plus).clamp_(min=0)


def _rounds(boxes: Tensor, alive: Tensor, bound: float, plus: int, classes: Tensor | None) -> Tensor:
    over = overlaps(boxes, plus) > bound
    if classes is not None:
        over &= classes[:, :, None] == classes[:, None, :]
    return settled(over & alive[:, :, None], alive)


def settled(over: Tensor, alive: Tensor) -> Tensor:
    """Greedy suppression without a walk: (P, N) bool, those that survive.

    Round by round, what a box still alive overlaps further down falls, and what only the fallen overlap rises again.
    After k rounds the first k ranks are as a walk leaves them, and where nothing changes all are: as many rounds as the
    longest chain of overlaps.

    Args:
        over: (P, N, N) bool: whether the one suppresses the other; only later ones are looked at.
        alive: (P, N) bool, those that can survive.
    """
    over = over.triu(1)
    now = alive
    while True:
        after = alive & ~(over & now[..., None]).any(dim=-2)
        if torch.equal(after, now):
            return now
        now = after
