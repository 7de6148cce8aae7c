"""Masked patches: 15 % of an image's patches are hidden, and told from the rest.

    patches  which of all patches of the batch stands there, by its likeness to each (METER 3.3, in-batch negatives)
    codes    which discrete code an image tokenizer gives it, from the pixels before any is hidden (METER 3.3)
    mpp      which mean colour it has, a choice of 256 a channel (ViLT, whose own code for it fails)

Both of METER's lower its scores (VQA 74.98 to 74.01 and 74.21); ViLT's does not help either.
Shapes in this file: V images, P patches of a padded image, M hidden patches, K patches of all images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from trainers.batch import Batch, Cells, Pixels, VisualInput
from trainers.codebook import Codebook
from trainers.models.heads import class_loss
from trainers.tasks.families import Family
from trainers.tasks.objective import Draft, Objective
from trainers.visual import Looked, VisualError

RATE = 0.15


def patches_of(visual: VisualInput, side: int | None) -> tuple[int, ...]:
    """Patches of each image.

    Args:
        side: of a patch in pixels; needed of pixels.
    """
    if isinstance(visual, Cells):
        assert visual.lengths is not None
        return visual.lengths
    if not isinstance(visual, Pixels) or side is None:
        raise VisualError("masked patches need cached patches, or pixels and the side of a patch; give one of these.")
    assert visual.shapes is not None
    return tuple((height // side) * (width // side) for height, width in visual.shapes)


@dataclass(frozen=True)
class MaskedPatches(Objective):
    """Hidden patches told from their final states.

    name      "patches", "codes" or "mpp", the model's head
    side      of a patch, in pixels; None: patches are cached
    codebook  the image tokenizer; for "codes", which needs pixels
    """

    name: Literal["patches", "codes", "mpp"] = "patches"
    side: int | None = None
    codebook: Codebook | None = None

    def look(self, drafts: Sequence[Draft], looked: Looked, targets: dict[str, Tensor]) -> Looked:
        counts = patches_of(looked.visual, self.side)
        hidden = torch.zeros(len(counts), max(counts), dtype=torch.bool)
        for row, (draft, count) in enumerate(zip(drafts, counts, strict=True)):
            drawn = draft.chances["image"].permutation(count)[: max(1, round(RATE * count))]
            hidden[row, torch.from_numpy(drawn)] = True
        targets["hidden"] = hidden
        if self.name == "codes" and not isinstance(looked.visual, Pixels):
            raise VisualError("discrete codes are told from pixels; give pixels.")
        if self.name == "patches":
            starts = torch.from_numpy(np.cumsum(counts) - counts)
            targets["patches"] = starts[:, None] + torch.arange(max(counts))
        return looked

    def count(self, batch: Batch) -> float:
        return float(batch.targets["hidden"].sum()) * (3 if self.name == "mpp" else 1)

    def loss(self, family: Family, model: nn.Module, states: Any, batch: Batch) -> Tensor:
        return class_loss(*self._told(model, states, batch))

    def judge(self, family: Family, model: nn.Module, states: Any, batch: Batch) -> Tensor:
        """Of the batch as a whole, in its first row: patches have no rows in ViLT's packed form."""
        logits, labels = self._told(model, states, batch)
        found = torch.zeros(len(batch), 2, dtype=torch.int64, device=labels.device)
        found[0, 0], found[0, 1] = (logits.argmax(-1) == labels).sum(), labels.numel()
        return found

    def _told(self, model: Any, states: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """(M, classes) logits of the hidden patches, and their labels; of "mpp" (M, 3, 256) and (M, 3)."""
        hidden = batch.targets["hidden"]
        if self.name == "mpp":
            tokens = states.tokens.index_select(0, batch.layout.patch_tokens)[hidden]
            return model.heads["mpp"](tokens), model.mean_colours(batch, batch.layout)[hidden]
        of_patches = states.patches[hidden]
        if self.name == "codes":
            assert self.codebook is not None and self.side is not None and isinstance(batch.visual, Pixels)
            return model.heads["codes"](of_patches), self.codebook.codes(batch.visual, self.side)[hidden]
        assert batch.visual is not None
        return model.heads["patches"](of_patches, model.originals(batch.visual)), batch.targets["patches"][hidden]
