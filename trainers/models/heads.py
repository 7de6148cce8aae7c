"""What stands on top of the models: heads from states to logits, and the losses that have no parameters.

Shapes in this file: D model width, W words, C classes or answers; `...` any rows. A head works on the rows it is given:
pass only those that have a label.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

IGNORED = -100  # the label of what no loss counts


class Transform(nn.Module):
    """BERT's step before a decoder: linear, GELU, layer normalisation."""

    def __init__(self, dim: int, eps: float = 1e-12) -> None:
        super().__init__()
        self.dense = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim, eps)

    def forward(self, states: Tensor) -> Tensor:
        return self.norm(F.gelu(self.dense(states)))


class WordHead(nn.Module):
    """Masked words: BERT's head, its decoder a matrix of its own (ViLT, METER) or the word embeddings (VL-BERT).

    tied  True where the decoder is the word embeddings, which `forward` is then given
    """

    def __init__(self, dim: int, words: int, tied: bool, eps: float = 1e-12) -> None:
        super().__init__()
        self.transform = Transform(dim, eps)
        self.decoder = None if tied else nn.Linear(dim, words, bias=False)
        self.bias = nn.Parameter(torch.zeros(words))

    def forward(self, states: Tensor, words: Tensor | None = None) -> Tensor:
        """(..., D) states to (..., W) logits; `words` (W, D) are the embeddings of a tied head."""
        weight = words if self.decoder is None else self.decoder.weight
        assert weight is not None
        return F.linear(self.transform(states), weight, self.bias)


class Classifier(nn.Sequential):
    """Linear, layer normalisation (eps 1e-5), GELU, linear: what ViLT and METER answer questions with."""

    def __init__(self, dim: int, hidden: int, classes: int) -> None:
        super().__init__(nn.Linear(dim, hidden), nn.LayerNorm(hidden), nn.GELU(), nn.Linear(hidden, classes))


def class_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy over the rows whose label is not IGNORED; 0 where there is none."""
    rows = F.cross_entropy(logits.flatten(0, -2).float(), labels.flatten(), ignore_index=IGNORED, reduction="sum")
    return rows / (labels != IGNORED).sum().clamp(min=1)


def answer_loss(logits: Tensor, scores: Tensor) -> Tensor:
    """Binary cross-entropy against soft scores (..., C), summed over the answers and averaged over the rows."""
    return F.binary_cross_entropy_with_logits(logits.float(), scores) * logits.shape[-1]


def soft_class_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy against distributions (..., C), over the rows whose target sums to 1 within 0.1.

    0 where there is none. Source: jackroos/VL-BERT `common/utils/misc.py`, soft_cross_entropy.
    """
    counted = (targets.sum(-1) - 1).abs() < 0.1
    rows = -(targets * logits.float().log_softmax(-1)).sum(-1)
    return rows.where(counted, 0).sum() / counted.sum().clamp(min=1)
