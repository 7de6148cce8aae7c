"""Pre-training: the objectives of a paper, in one or more runs of the model a step.

    VL-BERT   pairs (MLM, masked RoI classification, relation where it is on), and text alone (MLM)
    Grid-VLP  one run for all: MLM, ITM, image question answering
    ViLT      a run for MLM, one for ITM with word-patch alignment
    METER     a run for MLM, one for ITM, one for masked patches where they are on

Shapes in this file: B examples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from trainers.batch import Batch
from trainers.data.base import Split
from trainers.tasks.base import Batches, Prediction, seeds
from trainers.tasks.common import SplitTask, numbered, percent
from trainers.tasks.families import Family
from trainers.tasks.masked_words import MaskedWords, Masking, hide_words
from trainers.tasks.objective import Chances, Draft, Drawn, Objective
from trainers.tasks.rows import Row
from trainers.visual import Visual

TEXT = "text"  # the run without images

Passes = Mapping[str, Sequence[Objective]]


class Pretraining(SplitTask):
    """Examples of one image and one text, or several of which one is drawn.

    Args:
        passes: of each run of the model, its objectives in order.
        corpus: lines of text to be read beside the pairs, one window an example; default: none.
        split, family, visual, seed, training: as of `SplitTask`.
    """

    metric = "mlm_accuracy"

    def __init__(
        self,
        split: Split,
        family: Family,
        visual: Visual,
        passes: Passes,
        corpus: Sequence[str] | None = None,
        seed: int = 0,
        training: bool = False,
    ) -> None:
        super().__init__(split, family, visual, seed, training)
        self.passes, self.corpus = passes, corpus
        self._text = MaskedWords(Masking("word"))

    def collate(self, numbers: Sequence[int], epoch: int) -> Batches:
        streams = [seeds(self.seed, epoch, number).spawn(len(self.passes) + 1) for number in numbers]
        found = {}
        for place, (name, objectives) in enumerate(self.passes.items()):
            found[name] = self._pairs(numbers, objectives, [Chances(each[place]) for each in streams])
        if self.corpus is not None:
            found[TEXT] = self._text_alone(numbers, self.corpus, [np.random.default_rng(each[-1]) for each in streams])
        return found

    def _pairs(
        self,
        numbers: Sequence[int],
        objectives: Sequence[Objective],
        chance: Sequence[Mapping[str, np.random.Generator]],
    ) -> Batch:
        drafts = [self._draft(number, objectives, each) for number, each in zip(numbers, chance, strict=True)]
        looked = self.look([str(draft.image) for draft in drafts], chance, self.flips(chance))
        targets = numbered(numbers)
        for objective in objectives:
            looked = objective.look(drafts, looked, targets)
        cells = Drawn([draft.chances for draft in drafts], "cells")
        return self.family.batch([draft.row for draft in drafts], looked.visual, targets, chances=cells)

    def _draft(self, number: int, objectives: Sequence[Objective], chance: Mapping[str, np.random.Generator]) -> Draft:
        example = self.split.examples[number]
        text = example.texts[int(chance["text"].integers(len(example.texts)))]
        draft = Draft(example, text, example.images[0], Row(()), chance)
        for objective in objectives:
            objective.pair(draft, self.split)
        draft.row = self.family.row(self.family.tokenizer(draft.text))
        for objective in objectives:
            objective.draw(draft, self.family)
        return draft

    def _text_alone(
        self, numbers: Sequence[int], corpus: Sequence[str], chance: Sequence[np.random.Generator]
    ) -> Batch:
        rows = []
        for each in chance:
            ids = window(corpus, self.family.tokenizer, self.family.longest, each)
            rows.append(hide_words(Row(tuple(ids)), self._text.masking, self.family.tokenizer, each))
        return self.family.batch(rows, None, numbered(numbers))

    def counts(self, batches: Batches) -> dict[str, float]:
        found = {each.name: each.count(batches[name]) for name, each in self._each()}
        return found | ({f"{TEXT}_mlm": self._text.count(batches[TEXT])} if TEXT in batches else {})

    def losses(self, model: nn.Module, batches: Batches) -> dict[str, Tensor]:
        states = self._states(model, batches)
        found = {each.name: each.loss(self.family, model, states[name], batches[name]) for name, each in self._each()}
        if TEXT in batches:
            found[f"{TEXT}_mlm"] = self._text.loss(self.family, model, states[TEXT], batches[TEXT])
        return found

    def predict(self, model: nn.Module, batches: Batches) -> list[Prediction]:
        """Of each example, by objective: how much was told rightly, and how much there was."""
        states = self._states(model, batches)
        found = {
            each.name: each.judge(self.family, model, states[name], batches[name]).tolist()
            for name, each in self._each()
        }
        ids = self.ids(next(iter(batches.values())))
        return [{"id": id, **{name: pairs[row] for name, pairs in found.items()}} for row, id in enumerate(ids)]

    def score(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        totals = {each.name: np.sum([row[each.name] for row in predictions], axis=0) for _, each in self._each()}
        return {f"{name}_accuracy": percent(*total.tolist()) for name, total in totals.items() if total[1]}

    def _each(self) -> list[tuple[str, Objective]]:
        return [(name, each) for name, objectives in self.passes.items() for each in objectives]

    def _states(self, model: nn.Module, batches: Batches) -> dict[str, Any]:
        return {name: self.family.states(model, batch) for name, batch in batches.items()}


def window(corpus: Sequence[str], tokenizer: Any, length: int, chance: np.random.Generator) -> list[int]:
    """So many tokens of a line drawn by chance, the following lines appended where it is short; no special tokens.

    Source: jackroos/VL-BERT `pretrain/data/datasets/general_corpus.py`.
    """
    number = int(chance.integers(len(corpus)))
    ids: list[int] = tokenizer(corpus[number])
    for step in range(1, len(corpus)):
        if len(ids) >= length:
            break
        ids += tokenizer(corpus[(number + step) % len(corpus)])
    start = int(chance.integers(max(1, len(ids) - length + 1)))
    return ids[start : start + length]
