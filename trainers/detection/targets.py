"""What anchors and RoIs should become: matching them to true boxes, drawing some of them, and the deltas between.

Shapes in this file: B images, N anchors or RoIs of each, G true boxes, padded, S of them drawn.

Sources: facebookresearch/detectron2 `modeling/matcher.py`, `modeling/sampling.py`, `modeling/box_regression.py` and its
defaults (RPN: foreground from an overlap of 0.7, background below 0.3, 256 anchors an image, half of them foreground;
RoIs: foreground from 0.5, the rest background). Here all images of a batch are done at once, and nothing depends on how
many there are of a kind, so that a GPU never waits for the host.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

FOREGROUND, BACKGROUND, NEITHER = 1, 0, -1


class Matches(NamedTuple):
    """labels (B, N) int8: FOREGROUND, BACKGROUND or NEITHER; rows (B, N) int64: the true box of each."""

    labels: Tensor
    rows: Tensor


class Drawn(NamedTuple):
    """rows (B, S) int64 of what was drawn; counts (B, S) bool: False where too few were there to draw from."""

    rows: Tensor
    counts: Tensor


def overlaps(truth: Tensor, real: Tensor, boxes: Tensor) -> Tensor:
    """Intersection over union, (B, G, N); -1 for true boxes that are padding.

    Args:
        truth: (B, G, 4), of which those are real that `real` (B, G) says.
        boxes: (B, N, 4), or (1, N, 4), the same for all images.
    """
    low = torch.maximum(truth[:, :, None, :2], boxes[:, None, :, :2])
    high = torch.minimum(truth[:, :, None, 2:], boxes[:, None, :, 2:])
    common = (high - low).clamp(min=0).prod(dim=3)
    joined = _area(truth)[:, :, None] + _area(boxes)[:, None] - common
    return (common / joined).where(real[:, :, None], -1.0)


def _area(boxes: Tensor) -> Tensor:
    found: Tensor = (boxes[..., 2:] - boxes[..., :2]).prod(dim=-1)
    return found


def match(overlap: Tensor, foreground: float, background: float, best_too: bool) -> Matches:
    """Give each box the true one that it overlaps most.

    Args:
        overlap: (B, G, N), of `overlaps`; G > 0.
        foreground: overlaps from this on are the object; below `background` they are none.
        best_too: whether what overlaps a true box most is its, too, however little: no object is left out.
    """
    most, rows = overlap.max(dim=1)
    labels = torch.full_like(rows, NEITHER, dtype=torch.int8)
    labels = labels.masked_fill(most < background, BACKGROUND).masked_fill(most >= foreground, FOREGROUND)
    if best_too:
        best = overlap.amax(dim=2, keepdim=True)
        labels = labels.masked_fill(((overlap == best) & (best > 0)).any(dim=1), FOREGROUND)
    return Matches(labels, rows)


def draw(labels: Tensor, size: int, share: float) -> Drawn:
    """Draw `size` boxes of each image, at most a share of them foreground; background fills up.

    Chance is torch's own.
    """
    chance = torch.rand(labels.shape, device=labels.device)
    first, second = (
        chance.where(labels == kind, -1.0).topk(min(most, labels.shape[1]))
        for kind, most in ((FOREGROUND, int(size * share)), (BACKGROUND, size))
    )
    taken = first.values >= 0
    room = size - taken.sum(dim=1, keepdim=True)
    fill = (second.values >= 0) & (torch.arange(second.values.shape[1], device=labels.device) < room)
    counts = torch.cat([taken, fill], dim=1)
    front = counts.to(torch.int8).sort(dim=1, descending=True, stable=True).indices[:, :size]
    rows = torch.cat([first.indices, second.indices], dim=1)
    return Drawn(rows.gather(1, front), counts.gather(1, front))


def encode(truth: Tensor, boxes: Tensor, weights: tuple[float, float, float, float]) -> Tensor:
    """The deltas (..., 4) by which `extractors.boxes.decode` moves boxes (..., 4) to the true ones, without `plus`."""
    size, true_size = boxes[..., 2:] - boxes[..., :2], truth[..., 2:] - truth[..., :2]
    centre, true_centre = boxes[..., :2] + 0.5 * size, truth[..., :2] + 0.5 * true_size
    moved, grown = (true_centre - centre) / size, (true_size / size).log()
    return torch.cat([moved, grown], dim=-1) * boxes.new_tensor(weights)
