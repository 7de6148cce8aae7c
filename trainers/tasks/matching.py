"""Image-text matching, and word-patch alignment beside it: does this text speak of this image?

Half of the examples get a stranger: another example's image (ViLT, METER), or the text of another image (LXMERT,
Grid-VLP, VL-BERT). Official ViLT and METER code takes exactly half of each device's batch; here every example draws for
itself, so that nothing depends on how a batch was put together.

Source: dandelin/ViLT `vilt/modules/objectives.py` compute_itm_wpa; airsplay/lxmert `src/pretrain/lxmert_data.py`;
jackroos/VL-BERT `pretrain/data/datasets/conceptual_captions.py`. Shapes in this file: B pairs, T words, P patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from trainers.batch import Batch
from trainers.data.base import Split
from trainers.models.alignment import alignment_loss, distances, inner_words
from trainers.models.heads import class_loss
from trainers.tasks.families import Family
from trainers.tasks.objective import Draft, Objective
from trainers.visual import Looked

STRANGER = 0.5
MOST_TRIES = 100  # to find an example of another image
ALIGNMENT = 0.1  # its weight


@dataclass(frozen=True)
class Matching(Objective):
    """Pairs told from strangers, by a head of two classes on the pooled state; 1 is a match.

    stranger  "image": any other example's, which may be the same; "text": of an example with another image
    name      "itm", in VL-BERT "relationship"
    """

    stranger: Literal["image", "text"] = "image"
    name: str = "itm"

    def pair(self, draft: Draft, split: Split) -> None:
        chance = draft.chances["pair"]
        draft.labels[self.name] = 1
        if chance.random() >= STRANGER:
            return
        draft.labels[self.name] = 0
        if self.stranger == "image":
            draft.image = split.examples[int(chance.integers(len(split.examples)))].images[0]
            return
        for _ in range(MOST_TRIES):
            other = split.examples[int(chance.integers(len(split.examples)))]
            if other.images[0] != draft.image:
                draft.text = other.texts[0]
                return
        draft.labels[self.name] = 1  # all examples are of one image: there is no stranger

    def look(self, drafts: Sequence[Draft], looked: Looked, targets: dict[str, Tensor]) -> Looked:
        targets[self.name] = torch.tensor([draft.labels[self.name] for draft in drafts])
        return looked

    def count(self, batch: Batch) -> float:
        return len(batch)

    def loss(self, family: Family, model: nn.Module, states: Any, batch: Batch) -> Tensor:
        return class_loss(self._logits(family, model, states), batch.targets[self.name])

    def judge(self, family: Family, model: nn.Module, states: Any, batch: Batch) -> Tensor:
        right = self._logits(family, model, states).argmax(-1) == batch.targets[self.name]
        return torch.stack([right, torch.ones_like(right)], dim=1).long()

    def _logits(self, family: Family, model: Any, states: Any) -> Tensor:
        found: Tensor = model.heads[self.name](family.pooled(model, states))
        return found


@dataclass(frozen=True)
class Alignment(Objective):
    """Words and patches of a pair brought together, of strangers apart; behind `Matching` in the same pass (ViLT)."""

    name: str = "wpa"

    def count(self, batch: Batch) -> float:
        return len(batch)

    def loss(self, family: Family, model: nn.Module, states: Any, batch: Batch) -> Tensor:
        return ALIGNMENT * alignment_loss(self._distances(family, states), batch.targets["itm"])

    def judge(self, family: Family, model: nn.Module, states: Any, batch: Batch) -> Tensor:
        """Alignment answers nothing."""
        return torch.zeros(len(batch), 2, dtype=torch.int64, device=batch.text.ids.device)

    def _distances(self, family: Family, states: Any) -> Tensor:
        words, (patches, real) = family.words(states), family.patches(states)
        return distances(words, patches, inner_words(states.text_lengths, words.shape[1]), real)
