"""`suppression.survivors` and its twin as one Triton program a list."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

FEW = 512  # boxes that one warp walks through by itself, without waiting for others


Rule = tuple[float, int, int]  # bound, plus and limit


def walk(boxes: Tensor, alive: Tensor, classes: Tensor | None, rule: Rule) -> Tensor:
    """As `survivors`."""
    return _walked(boxes, alive, (None, classes), rule)


def walk_orders(boxes: Tensor, orders: Tensor, alive: Tensor, rule: Rule) -> Tensor:
    """As `survivors_of_orders`."""
    return _walked(boxes, alive.flatten(0, 1), (orders, None), rule).view(alive.shape)


def _walked(boxes: Tensor, alive: Tensor, lists: tuple[Tensor | None, Tensor | None], rule: Rule) -> Tensor:
    orders, classes = lists
    survives = torch.zeros(alive.shape, dtype=torch.int8, device=alive.device)  # row by row, however `alive` lies
    if not survives.numel():
        return survives.bool()
    none = torch.empty(1, device=boxes.device)
    lanes = max(32, triton.next_power_of_2(alive.shape[1]))
    # Fused multiplications and additions would round otherwise than a CPU does.
    _walk[(len(alive),)](
        boxes.contiguous(),
        none if orders is None else orders.contiguous(),
        alive.to(torch.int8).contiguous(),
        none if classes is None else classes.contiguous(),
        survives,
        alive.shape[1],
        len(alive) // len(boxes),
        *rule,
        LANES=lanes,
        ORDERED=orders is not None,
        BY_CLASS=classes is not None,
        num_warps=1 if lanes <= FEW else min(16, lanes // 256),
        enable_fp_fusion=False,
    )
    return survives.bool()


@triton.jit(do_not_specialize=["count", "shared", "plus", "limit"])  # else a compilation for many a count
def _walk(  # type: ignore[no-untyped-def]
    boxes, orders, alive, classes, survives, count, shared, bound, plus, limit,
    LANES: tl.constexpr, ORDERED: tl.constexpr, BY_CLASS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * count
    lane = tl.arange(0, LANES)
    inside = lane < count
    mine = boxes + tl.program_id(0).to(tl.int64) // shared * count * 4  # `shared` lists are of the same boxes
    box = lane
    if ORDERED:
        box = tl.load(orders + row + lane, mask=inside, other=0)
    corner = mine + box * 4
    x1 = tl.load(corner, mask=inside, other=0.0)
    y1 = tl.load(corner + 1, mask=inside, other=0.0)
    x2 = tl.load(corner + 2, mask=inside, other=0.0)
    y2 = tl.load(corner + 3, mask=inside, other=0.0)
    area = (x2 - x1 + plus) * (y2 - y1 + plus)
    left = tl.load(alive + row + lane, mask=inside, other=0) != 0
    if BY_CLASS:
        kind = tl.load(classes + row + lane, mask=inside, other=-1)
    found = 0
    best = tl.min(tl.where(left, lane, LANES), axis=0)
    while (best < LANES) & (found < limit):
        if ORDERED:
            chosen = tl.load(orders + row + best)
            tl.store(survives + row + chosen, 1)
            own = mine + chosen * 4
        else:
            tl.store(survives + row + best, 1)
            own = mine + best * 4
        own_x1, own_y1, own_x2, own_y2 = tl.load(own), tl.load(own + 1), tl.load(own + 2), tl.load(own + 3)
        wide = tl.maximum(tl.minimum(own_x2, x2) - tl.maximum(own_x1, x1) + plus, 0.0)
        high = tl.maximum(tl.minimum(own_y2, y2) - tl.maximum(own_y1, y1) + plus, 0.0)
        own_area = (own_x2 - own_x1 + plus) * (own_y2 - own_y1 + plus)
        overlap = wide * high
        over = tl.div_rn(overlap, own_area + area - overlap) > bound
        if BY_CLASS:
            over = over & (kind == tl.load(classes + row + best))
        left = left & (lane > best) & (over == 0)
        found += 1
        best = tl.min(tl.where(left, lane, LANES), axis=0)
