"""Word-patch alignment: how far a text's words must be moved to become an image's patches.

An optimal transport between both sets of final states, its plan found by IPOT (Xie et al., 2018), which needs nothing
but products of matrices. Source: ViLT's paper, section 3.2; dandelin/ViLT `vilt/modules/objectives.py`,
`compute_itm_wpa`. Shapes in this file: B pairs, T words, P patches, D model width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

BETA, STEPS = 0.5, 50


def distances(words: Tensor, patches: Tensor, word_mask: Tensor, patch_mask: Tensor) -> Tensor:
    """(B,): the cost of the transport plan, with gradients through the costs alone.

    Args:
        words: (B, T, D), patches: (B, P, D): states.
        word_mask, patch_mask: bool (B, T) and (B, P), True where a row takes part.
    """
    with torch.autocast(words.device.type, enabled=False):
        one, other = (F.normalize(x.float(), dim=-1, eps=1e-5) for x in (words, patches))
        both = word_mask[:, :, None] & patch_mask[:, None, :]
        cost = (1 - one @ other.transpose(1, 2)) * both
        return (cost * transport(cost.detach(), word_mask, patch_mask)).sum((1, 2))


@torch.no_grad()
def transport(cost: Tensor, row_mask: Tensor, column_mask: Tensor) -> Tensor:
    """(B, T, P): how much of each row goes to each column, rows and columns of a pair weighing the same."""
    plan = (row_mask[:, :, None] & column_mask[:, None, :]).to(cost.dtype)
    kernel = torch.exp(-cost / BETA) * plan
    rows, columns = (mask.sum(1, keepdim=True).to(cost.dtype) for mask in (row_mask, column_mask))
    by_row = row_mask / rows
    for _ in range(STEPS):
        moved = kernel * plan
        by_column = _inverse(columns * torch.einsum("btp,bt->bp", moved, by_row), column_mask)
        by_row = _inverse(rows * torch.einsum("btp,bp->bt", moved, by_column), row_mask)
        plan = by_row[:, :, None] * moved * by_column[:, None, :]
    return plan


def alignment_loss(distance: Tensor, matched: Tensor) -> Tensor:
    """Distances (B,) of pairs that match less those of pairs that do not, over their number; ViLT weighs it by 0.1."""
    return (distance * torch.where(matched.bool(), 1, -1)).sum() / len(distance)


def inner_words(lengths: Tensor, width: int) -> Tensor:
    """(B, T) bool: a text's tokens without the first and the last, [CLS] and [SEP]."""
    place = torch.arange(width, device=lengths.device)
    return (place > 0) & (place < lengths[:, None] - 1)


def _inverse(x: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, 1 / x, 0)
