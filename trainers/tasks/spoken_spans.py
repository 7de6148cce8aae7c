"""Masked language modelling for a METER with a decoder: it says what stands behind each sentinel, as T5 does.

15 % of a text's tokens are hidden; every run of them becomes one sentinel; the decoder's target is each sentinel with
what it stands for. Sentinels are words that BERT's vocabulary keeps free.
Source: METER, section 4.3. Shapes in this file: B texts, S decoder positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from trainers.batch import Batch
from trainers.models.fusion import to_sentinels
from trainers.models.heads import IGNORED, class_loss
from trainers.tasks.families import Family
from trainers.tasks.objective import Draft, Objective
from trainers.text import TextError, Tokenizer
from trainers.visual import Looked

RATE, SENTINELS = 0.15, 32


def sentinels_of(tokenizer: Tokenizer) -> list[int]:
    """The first of BERT's free words.

    Raises:
        TextError: the vocabulary has too few of them.
    """
    names = [f"[unused{number}]" for number in range(1, SENTINELS + 1)]
    found = [tokenizer.vocabulary[name] for name in names if name in tokenizer.vocabulary]
    if len(found) < SENTINELS:
        raise TextError(
            f"the vocabulary has {len(found)} of {SENTINELS} sentinels ([unused1], ...); use BERT's with a decoder."
        )
    return found


@dataclass(frozen=True)
class SpokenSpans(Objective):
    """Hidden runs of tokens, said by the decoder through the head "mlm"."""

    name: str = "mlm"

    def draw(self, draft: Draft, family: Family) -> None:
        ids, special = draft.row.ids, family.tokenizer.special
        fate = draft.chances["words"].random(len(ids)) < RATE
        hidden = [bool(each) and token not in special for each, token in zip(fate, ids, strict=True)]
        shown, told = to_sentinels(ids, hidden, sentinels_of(family.tokenizer))
        draft.row = replace(draft.row, ids=tuple(shown))
        draft.labels["told"], draft.labels["start"] = told, family.tokenizer.start

    def look(self, drafts: Sequence[Draft], looked: Looked, targets: dict[str, Tensor]) -> Looked:
        width = max(len(draft.labels["told"]) for draft in drafts)
        told = [draft.labels["told"] + [IGNORED] * (width - len(draft.labels["told"])) for draft in drafts]
        targets["told"] = torch.tensor(told)
        starts = torch.tensor([[draft.labels["start"]] for draft in drafts])
        targets["before"] = torch.cat([starts, targets["told"][:, :-1].clamp(min=0)], dim=1)
        return looked

    def count(self, batch: Batch) -> float:
        return float((batch.targets["told"] != IGNORED).sum())

    def loss(self, family: Family, model: nn.Module, states: Any, batch: Batch) -> Tensor:
        return class_loss(self._logits(family, model, states, batch), batch.targets["told"])

    def judge(self, family: Family, model: nn.Module, states: Any, batch: Batch) -> Tensor:
        told = batch.targets["told"]
        right = self._logits(family, model, states, batch).argmax(-1) == told
        return torch.stack([right.sum(1), (told != IGNORED).sum(1)], dim=1)

    def _logits(self, family: Family, model: Any, states: Any, batch: Batch) -> Tensor:
        """(B, S, W) behind each of the tokens before."""
        return family.word_logits(model, model.words(batch.targets["before"], states))
