"""Beam search: the likeliest sequences of words, by whatever tells the next one.

Shapes in this file: V sequences to find, K beams of each, W words.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Search:
    """How to search.

    start, end  tokens before the first word and behind the last
    beams       K, sequences kept at every step
    longest     words of a sequence at most, the end counted
    """

    start: int
    end: int
    beams: int = 5
    longest: int = 30


@torch.no_grad()
def beam_search(
    step: Callable[[Tensor], Tensor], count: int, search: Search, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The best sequence found for each of V, by the sum of its words' log probabilities; length is not corrected for.

    A sequence that has ended stays among the beams with its score until K better ones push it out; with as many beams
    as there are sequences the search is exhaustive.

    Args:
        step: (V K, t) tokens so far, the K of each one after the other, to log probabilities (V K, W) of the next.
        count: V.

    Returns:
        (V, t) int64 from the start token on, filled with the end token, and (V,) float32 scores.
    """
    tokens = torch.full((count, 1, 1), search.start, device=device)
    scores = torch.zeros(count, 1, device=device)
    ended = torch.zeros(count, 1, dtype=torch.bool, device=device)
    for _ in range(search.longest):
        following = step(tokens.flatten(0, 1)).float().unflatten(0, (count, -1))
        only_end = torch.full_like(following[0, 0], -torch.inf).index_fill(0, tokens.new_tensor([search.end]), 0.0)
        totals = scores[..., None] + torch.where(ended[..., None], only_end, following)
        scores, best = totals.flatten(1).topk(min(search.beams, totals[0].numel()))
        parent, word = best // totals.shape[2], best % totals.shape[2]
        tokens = torch.cat(
            [tokens.gather(1, parent[..., None].expand(-1, -1, tokens.shape[2])), word[..., None]], dim=2
        )
        ended = ended.gather(1, parent) | (word == search.end)
        if bool(ended.all()):
            break
    return tokens[:, 0], scores[:, 0]
