"""What tasks must know of each model: how its texts look, where a batch's tokens go, and which state answers what.

A task is written once against `Family`; what is different of a model stands in its class here, and nowhere else.
Shapes in this file: B texts, T positions, V images, D model width, E width of what is pooled, W words.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trainers.batch import Batch, Cells, Pixels, Regions, VisualInput
from trainers.models import grid_vlp, meter, vilt, vl_bert
from trainers.models.heads import IGNORED
from trainers.tasks.rows import Row, enclosed, labels_of, text_of
from trainers.text import Tokenizer

Chances = Sequence[np.random.Generator]


class Family(ABC):
    """One model's ways.

    mirrors  whether it is trained on mirrored images, too

    Args:
        config: the model's.
        tokenizer: of its texts.
        longest: tokens of a text, special ones counted; longer texts are cut.
        training: True where layouts draw cells or patches at random, as models do in pre-training.
    """

    mirrors = False

    def __init__(self, config: Any, tokenizer: Tokenizer, longest: int, training: bool = False) -> None:
        self.config, self.tokenizer, self.longest, self.training = config, tokenizer, longest, training

    def row(self, first: Sequence[int], second: Sequence[int] | None = None) -> Row:
        """One text, or two; the longer one loses its last tokens where both are too long."""
        room = self.longest - (2 if second is None else 3)
        if second is None:
            return enclosed(self.tokenizer, first[:room])
        first, second = list(first), list(second)
        while len(first) + len(second) > room:
            (first if len(first) > len(second) else second).pop()
        return enclosed(self.tokenizer, first, second)

    def question(self, ids: Sequence[int]) -> Row:
        """A question whose answer is a class."""
        return self.row(ids)

    def batch(
        self,
        rows: Sequence[Row],
        visual: VisualInput | None,
        targets: dict[str, Tensor],
        image_of: Sequence[int] | None = None,
        chances: Chances = (),
    ) -> Batch:
        """Rows and images as the model takes them, with its layout.

        Args:
            chances: of each image, where the layout draws.
        """
        if any(row.labels is not None for row in rows):
            labels = labels_of(rows)
            targets = {**targets, "words": labels, "word_places": (labels != IGNORED).flatten().nonzero()[:, 0]}
        of = None if image_of is None else tuple(image_of)
        batch = Batch(text_of(rows, self.tokenizer.padding), self.seen(visual), of, targets)
        return replace(batch, layout=self.layout(batch, chances))

    def seen(self, visual: VisualInput | None) -> VisualInput | None:
        """Images as the model reads them."""
        return visual

    @abstractmethod
    def layout(self, batch: Batch, chances: Chances = ()) -> Any:
        """Where the model will put each token."""

    def states(self, model: Any, batch: Batch, second_image: bool = False) -> Any:
        """The model's states; what `targets` has as "hidden" are patches it must not see."""
        return model(batch)

    def pooled(self, model: Any, states: Any) -> Tensor:
        """(B, E): the state that classifies a pair."""
        found: Tensor = model.pooled(states)
        return found

    def answer(self, model: Any, states: Any, batch: Batch) -> Tensor:
        """(B, E): the state that answers a question."""
        return self.pooled(model, states)

    def words(self, states: Any) -> Tensor:
        """(B, T, D) of the text."""
        found: Tensor = states.text
        return found

    def word_logits(self, model: Any, states: Tensor) -> Tensor:
        """(M, W) of states (M, D)."""
        found: Tensor = model.heads["mlm"](states)
        return found

    def patches(self, states: Any) -> tuple[Tensor, Tensor]:
        """(B, P, D) of the image, class token left out, and (B, P) bool, True where one is real.

        Raises:
            TypeError: the model reads no patches; `papers.py` gives it no objective that asks for them.
        """
        raise TypeError(f"{type(self.config).__name__} reads no patches; leave out objectives of masked patches")


class VLBertFamily(Family):
    """VL-BERT: questions are answered at a [MASK] behind them; boxes and words share a limit in pre-training.

    total  tokens of words and boxes together; None: no limit
    """

    mirrors = True

    def __init__(
        self,
        config: vl_bert.VLBertConfig,
        tokenizer: Tokenizer,
        longest: int = 64,
        training: bool = False,
        total: int | None = None,
    ) -> None:
        super().__init__(config, tokenizer, longest, training)
        self.total = total

    def question(self, ids: Sequence[int]) -> Row:
        return self.row(ids, [self.tokenizer.mask])

    def batch(
        self,
        rows: Sequence[Row],
        visual: VisualInput | None,
        targets: dict[str, Tensor],
        image_of: Sequence[int] | None = None,
        chances: Chances = (),
    ) -> Batch:
        if self.total is not None and isinstance(visual, Regions) and visual.lengths is not None:
            fitted = [fit(row, count, self.total) for row, count in zip(rows, visual.lengths, strict=True)]
            rows, visual = [row for row, _ in fitted], first_regions(visual, [count for _, count in fitted])
            targets = {**targets, **_cut(targets, visual.boxes.shape[1], visual.lengths)}
        return super().batch(rows, visual, targets, image_of, chances)

    def layout(self, batch: Batch, chances: Chances = ()) -> vl_bert.Layout:
        return vl_bert.lay_out(batch)

    def answer(self, model: Any, states: Any, batch: Batch) -> Tensor:
        return vl_bert.answer_states(states, batch.text.ids, self.tokenizer.mask)

    def word_logits(self, model: Any, states: Tensor) -> Tensor:
        found: Tensor = model.heads["mlm"](states, model.word.weight)
        return found


def fit(row: Row, boxes: int, total: int) -> tuple[Row, int]:
    """A row and a number of boxes that have room together: the longer one gives way, the row's last token stays.

    Source: jackroos/VL-BERT `pretrain/data/datasets/conceptual_captions.py`: two tokens and a box remain at least.
    """
    while len(row) + boxes > total:
        if boxes > len(row) and boxes > 1:
            boxes -= 1
        elif len(row) > 2:
            row = row.without(len(row) - 2)
        else:
            break
    return row, boxes


def first_regions(regions: Regions, counts: Sequence[int]) -> Regions:
    """The first boxes of each image, so many of each."""
    rows = max(counts)
    cut = {
        name: None if (value := getattr(regions, name)) is None else value[:, :rows]
        for name in ("boxes", "features", "outlines", "hidden")
    }
    mask = torch.arange(rows) < torch.tensor(counts)[:, None]
    return replace(regions, mask=mask, lengths=None, **cut)  # type: ignore[arg-type]


def _cut(targets: dict[str, Tensor], rows: int, lengths: Sequence[int] | None) -> dict[str, Tensor]:
    """Targets of regions that were left out, left out."""
    real = torch.arange(rows) < torch.tensor(lengths)[:, None]
    cut = {}
    if "regions" in targets:
        cut["regions"] = targets["regions"][:, :rows].where(real, IGNORED)
    if "region_classes" in targets:
        cut["region_classes"] = targets["region_classes"][:, :rows] * real[..., None]
    return cut


class GridFamily(Family):
    """Grid-VLP and PixelBERT. Regions are read as cells, by their features alone (Grid-VLP table 2)."""

    def seen(self, visual: VisualInput | None) -> VisualInput | None:
        if isinstance(visual, Regions) and visual.features is not None:
            return Cells(visual.features, visual.mask, lengths=visual.lengths)
        return visual

    def layout(self, batch: Batch, chances: Chances = ()) -> grid_vlp.Layout:
        kept = None
        if self.training and self.config.sampled is not None and batch.visual is not None:
            counts = grid_vlp.cell_counts(self.config, batch.visual)
            kept = [drawn(count, self.config.sampled, each) for count, each in zip(counts, chances, strict=True)]
        return grid_vlp.lay_out(self.config, batch, False, kept)

    def word_logits(self, model: Any, states: Tensor) -> Tensor:
        found: Tensor = model.heads["mlm"](states, model.text.word.weight)
        return found


class ViLTFamily(Family):
    """ViLT: the second image of a pair has a modality of its own."""

    def layout(self, batch: Batch, chances: Chances = ()) -> vilt.Layout:
        kept = None
        if self.training and self.config.max_patches is not None:
            counts = vilt.patch_counts(self.config, batch)
            kept = [drawn(count, self.config.max_patches, each) for count, each in zip(counts, chances, strict=True)]
        return vilt.lay_out(replace(self.config, max_patches=None), batch, kept)

    def batch(
        self,
        rows: Sequence[Row],
        visual: VisualInput | None,
        targets: dict[str, Tensor],
        image_of: Sequence[int] | None = None,
        chances: Chances = (),
    ) -> Batch:
        """Hidden patches (V, P), numbered row by row of each image, become those of the layout, (K,)."""
        found = super().batch(rows, visual, targets, image_of, chances)
        if "hidden" not in targets:
            return found
        assert isinstance(visual, Pixels) and visual.shapes is not None
        across = torch.tensor([width // self.config.patch for _, width in visual.shapes])
        image, row, column = found.layout.patches
        hidden = targets["hidden"][image, row * across[image] + column]
        return replace(found, targets={**found.targets, "hidden": hidden})

    def states(self, model: Any, batch: Batch, second_image: bool = False) -> Any:
        image_type = vilt.SECOND_IMAGE if second_image else vilt.IMAGE
        return model(batch, image_type, batch.targets.get("hidden"))

    def patches(self, states: Any) -> tuple[Tensor, Tensor]:
        patches: Tensor = states.visual[:, 1:]
        place = torch.arange(patches.shape[1], device=patches.device)
        return patches, place < states.visual_lengths[:, None] - 1


class MeterFamily(Family):
    """METER: encoders of its own for either side, so that an image may be read once for many texts."""

    def layout(self, batch: Batch, chances: Chances = ()) -> Tensor | None:
        return None if batch.image_of is None else torch.tensor(batch.image_of)

    def states(self, model: Any, batch: Batch, second_image: bool = False) -> Any:
        image_type = meter.SECOND_IMAGE if second_image else meter.IMAGE
        return model(batch, image_type, batch.targets.get("hidden"))

    def patches(self, states: Any) -> tuple[Tensor, Tensor]:
        mask = states.image_mask
        skip = int(states.has_class)
        if mask is None:
            mask = torch.ones(states.image.shape[:2], dtype=torch.bool, device=states.image.device)
        return states.patches, mask[:, skip:]


def drawn(count: int, most: int, chance: np.random.Generator) -> np.ndarray:
    """At most so many numbers below `count`, without replacement, in order."""
    return np.arange(count) if count <= most else np.sort(chance.permutation(count)[:most])


_FAMILIES: dict[type, tuple[type[Family], int]] = {
    vl_bert.VLBertConfig: (VLBertFamily, 64),
    grid_vlp.GridVLPConfig: (GridFamily, 20),
    vilt.ViLTConfig: (ViLTFamily, 40),
    meter.MeterConfig: (MeterFamily, 50),
}


def family_of(config: Any, tokenizer: Tokenizer, training: bool = False, longest: int | None = None) -> Family:
    """The family of a model's config, with the longest text of its paper unless another is given."""
    kind, usual = _FAMILIES[type(config)]
    return kind(config, tokenizer, longest or usual, training)


def build_model(config: Any) -> nn.Module:
    """The model of a config, with random weights but for encoders that a METER's config names."""
    kinds: dict[type, Any] = {
        vl_bert.VLBertConfig: vl_bert.VLBert,
        grid_vlp.GridVLPConfig: grid_vlp.GridVLP,
        vilt.ViLTConfig: vilt.ViLT,
        meter.MeterConfig: meter.Meter,
    }
    model: nn.Module = kinds[type(config)](config)
    return model
