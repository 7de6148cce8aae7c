"""Masked language modelling: some words are hidden, and told from the others and the image.

All three official rules give a hidden token the same fate: [MASK] in 8 of 10 cases, any word of the vocabulary in one,
itself in one. They differ in what is drawn:

    token  every token by itself with probability 15 %                            LXMERT, Grid-VLP
    word   every word by itself with probability 15 %, one fate for all its tokens  VL-BERT
    slots  whole words until exactly 15 % of a padded text's slots are drawn, the padding's among them, which are
           dropped afterwards; each token has a fate of its own                     ViLT, METER

Source: airsplay/lxmert `src/pretrain/lxmert_pretrain.py` random_word; jackroos/VL-BERT
`pretrain/data/datasets/conceptual_captions.py` random_word_wwm; ViLT and METER use transformers'
`DataCollatorForWholeWordMask`. Shapes in this file: B texts, T positions, M hidden tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from trainers.batch import Batch
from trainers.models.heads import IGNORED, class_loss
from trainers.tasks.families import Family
from trainers.tasks.objective import Draft, Objective
from trainers.tasks.rows import Row
from trainers.text import Tokenizer

MASKED, REPLACED = 0.8, 0.9  # below the first a token is masked, below the second replaced, else kept


@dataclass(frozen=True)
class Masking:
    """How words are hidden.

    unit   "token", "word" or "slots"
    rate   share that is drawn
    slots  positions of a padded text, where the unit is "slots"
    """

    unit: Literal["token", "word", "slots"] = "token"
    rate: float = 0.15
    slots: int = 40


def hide_words(row: Row, masking: Masking, tokenizer: Tokenizer, chance: np.random.Generator) -> Row:
    """The row with some tokens hidden, and with the labels of those."""
    drawn = _by_slots if masking.unit == "slots" else _by_unit
    fates = drawn(row.ids, masking, tokenizer, chance)
    ids, labels = list(row.ids), [IGNORED] * len(row)
    for place, fate in sorted(fates.items()):
        labels[place] = ids[place]
        if fate < MASKED:
            ids[place] = tokenizer.mask
        elif fate < REPLACED:
            ids[place] = int(chance.integers(tokenizer.words))
    return replace(row, ids=tuple(ids), labels=tuple(labels))


def words_of(ids: Sequence[int], tokenizer: Tokenizer) -> list[list[int]]:
    """Places of each word's tokens, special tokens left out."""
    found: list[list[int]] = []
    for place, (token, begins) in enumerate(zip(ids, tokenizer.begins(ids), strict=True)):
        if token in tokenizer.special:
            continue
        if found and not begins and found[-1][-1] == place - 1:
            found[-1].append(place)
        else:
            found.append([place])
    return found


def _by_unit(
    ids: Sequence[int], masking: Masking, tokenizer: Tokenizer, chance: np.random.Generator
) -> dict[int, float]:
    """Of each drawn place its fate, from 0 to 1."""
    words = words_of(ids, tokenizer)
    units = words if masking.unit == "word" else [[place] for word in words for place in word]
    draws = chance.random(len(units)) / masking.rate
    return {place: fate for unit, fate in zip(units, draws.tolist(), strict=True) if fate < 1 for place in unit}


def _by_slots(
    ids: Sequence[int], masking: Masking, tokenizer: Tokenizer, chance: np.random.Generator
) -> dict[int, float]:
    slots = [*ids, *[tokenizer.padding] * (masking.slots - len(ids))]
    words: list[list[int]] = []
    for place, (token, begins) in enumerate(zip(slots, tokenizer.begins(slots), strict=True)):
        if token in tokenizer.unmasked:
            continue
        if words and not begins:
            words[-1].append(place)
        else:
            words.append([place])
    wanted, drawn = max(1, round(len(slots) * masking.rate)), list[int]()
    for number in chance.permutation(len(words)).tolist():
        if len(drawn) + len(words[number]) <= wanted:
            drawn += words[number]
    real = [place for place in sorted(drawn) if place < len(ids) and ids[place] not in tokenizer.special]
    return dict(zip(real, chance.random(len(real)).tolist(), strict=True))


@dataclass(frozen=True)
class MaskedWords(Objective):
    """Hidden words told from their final states, by the head "mlm"."""

    masking: Masking
    name: str = "mlm"

    def draw(self, draft: Draft, family: Family) -> None:
        draft.row = hide_words(draft.row, self.masking, family.tokenizer, draft.chances["words"])

    def count(self, batch: Batch) -> float:
        return float(len(batch.targets["word_places"]))

    def loss(self, family: Family, model: nn.Module, states: Any, batch: Batch) -> Tensor:
        return class_loss(*self._told(family, model, states, batch))

    def judge(self, family: Family, model: nn.Module, states: Any, batch: Batch) -> Tensor:
        """(B, 2): hidden words told rightly, and hidden words."""
        logits, labels = self._told(family, model, states, batch)
        places = batch.targets["word_places"] // batch.text.ids.shape[1]
        pairs = torch.stack([logits.argmax(-1) == labels, torch.ones_like(labels, dtype=torch.bool)], dim=1)
        return pairs.new_zeros(len(batch), 2, dtype=torch.int64).index_add(0, places, pairs.long())

    def _told(self, family: Family, model: nn.Module, states: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """(M, W) logits of the hidden words alone, and their labels (M,)."""
        places = batch.targets["word_places"]
        hidden = family.words(states).flatten(0, 1).index_select(0, places)
        return family.word_logits(model, hidden), batch.targets["words"].flatten().index_select(0, places)
