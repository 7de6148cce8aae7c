"""Greedy suppression of many ranked lists of boxes at once, for GPUs: a walk box by box would wait a thousand times.

Where Triton is, one program walks down each list and keeps what it knows in registers; else the lists settle round by
round. Both do the float32 operations of `extractors/boxes.py`, one by one, so that ties end the same way everywhere.
Longer lists than they can hold go part by part.

Shapes in this file: P lists (images, or classes) of N boxes each, x1 y1 x2 y2, best first.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from operator import getitem
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from extractors.kernels import kernels_for

LONGEST = 8192  # boxes of a list that one program can hold
OVERLAPS_AT_ONCE = 9_000_000  # of the rounds, in a few float32 matrices of 36 MB
LONGEST_IN_ROUNDS = math.isqrt(OVERLAPS_AT_ONCE)


class Lists(NamedTuple):
    """boxes (P, N, 4) float32; alive (P, N) bool, which of them are some; classes (P, N) int64, or None for one."""

    boxes: Tensor
    alive: Tensor
    classes: Tensor | None

    def each(self, take: Callable[[Tensor, Any], Tensor], of: Any) -> Lists:
        kinds = self.classes
        return Lists(take(self.boxes, of), take(self.alive, of), None if kinds is None else take(kinds, of))


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
    lists, count = Lists(boxes, alive, classes), boxes.shape[1]
    limit = count if limit is None else limit
    longest = LONGEST if kernels_for(boxes) else LONGEST_IN_ROUNDS
    found = _best(lists.each(getitem, np.s_[:, :longest]), bound, plus, limit)
    for start in range(longest, count, longest):  # those found so far are better than any of these
        best = lists._replace(alive=found).each(taken, first_true(found, limit))
        now = lists.each(getitem, np.s_[:, start : start + longest])
        now = now._replace(alive=now.alive & ~_suppresses(best, now, bound, plus).any(dim=1))
        found = _no_more_than(limit, torch.cat([found, _best(now, bound, plus, limit)], dim=1))
    return found


def _best(lists: Lists, bound: float, plus: int, limit: int) -> Tensor:
    """As `survivors`, of lists that are not too long."""
    if kernels_for(lists.boxes):
        from extractors.suppression_kernel import walk  # Triton is no package of every machine

        return walk(*lists, (bound, plus, limit))
    at_once = max(1, OVERLAPS_AT_ONCE // max(1, lists.boxes.shape[1] ** 2))
    groups = [lists.each(getitem, slice(start, start + at_once)) for start in range(0, len(lists.boxes), at_once)]
    found = [settled(_suppresses(each, each, bound, plus), each.alive) for each in groups]
    return _no_more_than(limit, torch.cat(found)) if found else torch.zeros_like(lists.alive)


def _no_more_than(limit: int, found: Tensor) -> Tensor:
    """Of what is true in each row (P, N), the first."""
    return found & (found.cumsum(dim=1) <= limit)


def _suppresses(some: Lists, others: Lists, bound: float, plus: int) -> Tensor:
    """Whether each one of some (P, N) would suppress each of the others (P, M), if it came first: (P, N, M) bool."""
    over = overlaps(some.boxes, others.boxes, plus) > bound
    if some.classes is not None and others.classes is not None:
        over &= some.classes[:, :, None] == others.classes[:, None, :]
    return over & some.alive[:, :, None]


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


def overlaps(some: Tensor, others: Tensor, plus: int) -> Tensor:
    """IoU of boxes (P, N, 4) with others (P, M, 4), (P, N, M) float32."""
    overlap = _shared(some, others, 0, plus).mul_(_shared(some, others, 1, plus))
    return overlap / (_area(some, plus)[:, :, None] + _area(others, plus)[:, None, :]).sub_(overlap)


def _shared(some: Tensor, others: Tensor, axis: int, plus: int) -> Tensor:
    """What boxes share of x, or y; an axis at a time takes half the memory."""
    ends = torch.minimum(some[:, :, None, axis + 2], others[:, None, :, axis + 2])
    starts = torch.maximum(some[:, :, None, axis], others[:, None, :, axis])
    return ends.sub_(starts).add_(plus).clamp_(min=0)


def _area(boxes: Tensor, plus: int) -> Tensor:
    return (boxes[..., 2] - boxes[..., 0] + plus) * (boxes[..., 3] - boxes[..., 1] + plus)


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


def taken(values: Tensor, rows: Tensor) -> Tensor:
    """Of each image's (B, N, ...) the rows (B, M) of it: (B, M, ...)."""
    wide = rows.reshape(*rows.shape, *[1] * (values.dim() - 2))
    return values.gather(1, wide.expand(*rows.shape, *values.shape[2:]))


def first_true(found: Tensor, most: int) -> Tensor:
    """Where in each row of (P, N) bool it is true, in order: (P, `most` or N) int64, with zeros behind. Rows have no
    more than `most`. Unlike `nonzero` it does not wait for a GPU."""
    lists, count = found.shape
    most = min(most, count)
    places = torch.where(found, found.cumsum(dim=1) - 1, most)  # the last place is for what is false
    columns = torch.arange(count, device=found.device).expand_as(found)
    return torch.zeros(lists, most + 1, dtype=torch.int64, device=found.device).scatter_(1, places, columns)[:, :most]
