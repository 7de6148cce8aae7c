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


class AnswerHead(nn.Sequential):
    """Linear, GELU, layer normalisation (eps 1e-12), linear: LXMERT's, which Grid-VLP and PixelBERT answer with, too.

    Source: airsplay/lxmert `src/lxrt/modeling.py`, BertVisualAnswerHead.
    """

    def __init__(self, dim: int, hidden: int, answers: int) -> None:
        super().__init__(nn.Linear(dim, hidden), nn.GELU(), nn.LayerNorm(hidden, 1e-12), nn.Linear(hidden, answers))


def class_loss(logits: Tensor, labels: Tensor, by_sample: bool = False) -> Tensor:
    """Mean cross-entropy over the rows (..., C) whose label is not IGNORED; 0 where there is none.

    `by_sample`: of (B, L, C) the mean of each sample first, then of the samples that have labels.
    """
    losses = F.cross_entropy(logits.flatten(0, -2).float(), labels.flatten(), ignore_index=IGNORED, reduction="none")
    return _mean(losses.view(labels.shape), labels != IGNORED, by_sample)


def soft_class_loss(logits: Tensor, targets: Tensor, by_sample: bool = False) -> Tensor:
    """As `class_loss` against distributions (..., C); rows count whose target sums to 1 within 0.1.

    Source: jackroos/VL-BERT `common/utils/misc.py`, soft_cross_entropy.
    """
    losses = -(targets * logits.float().log_softmax(-1)).sum(-1)
    return _mean(losses, (targets.sum(-1) - 1).abs() < 0.1, by_sample)


def answer_loss(logits: Tensor, scores: Tensor) -> Tensor:
    """Binary cross-entropy against soft scores (..., C), summed over the answers and averaged over the rows."""
    return F.binary_cross_entropy_with_logits(logits.float(), scores) * logits.shape[-1]


def binary_loss(logits: Tensor, targets: Tensor, counted: Tensor | None = None) -> Tensor:
    """Mean binary cross-entropy over all logits, or over those that are counted (bool, of their shape)."""
    losses = F.binary_cross_entropy_with_logits(logits.float(), targets.float(), reduction="none")
    return losses.mean() if counted is None else _mean(losses, counted, by_sample=False)


def _mean(losses: Tensor, counted: Tensor, by_sample: bool) -> Tensor:
    """Mean over what is counted; by sample with the 1e-4 that VL-BERT's `..._NORM_IN_BATCH_FIRST` divides by."""
    losses = losses.where(counted, 0)
    if not by_sample:
        return losses.sum() / counted.sum().clamp(min=1)
    counts = counted.sum(1)
    return (losses.sum(1) / (counts + 1e-4)).sum() / ((counts > 0).sum() + 1e-4)
