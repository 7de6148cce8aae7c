"""transformers' LXMERT and VisualBERT on the project's batches, so that region models of others run on its caches, too.

The models are theirs, unchanged; here a batch becomes their arguments. Shapes in this file: B texts, T text positions,
V images, N regions or cells, F feature width, D model width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from trainers.batch import Batch, Cells, Regions
from trainers.models.borrowed import Kind, build
from trainers.models.heads import AnswerHead
from trainers.models.layers import init_bert

MODELS = {
    "lxmert": Kind("LxmertConfig", "LxmertModel", "unc-nlp/lxmert-base-uncased", argument={}),
    "visual_bert": Kind(
        "VisualBertConfig",
        "VisualBertModel",
        "uclanlp/visualbert-vqa-coco-pre",
        {"visual_embedding_dim": 2048},
        argument={},
    ),
}


@dataclass(frozen=True)
class AdapterConfig:
    """One model of MODELS.

    weights   a folder or a name on the hub, or random:SEED; None: the published ones
    settings  of transformers' configuration, for random weights
    heads     what it answers, out of HEADS: LXMERT's answer heads for both models
    """

    name: str
    weights: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    heads: tuple[str, ...] = ("vqa",)
    vqa_answers: int = 3129
    gqa_answers: int = 1842

    def __post_init__(self) -> None:
        if self.name not in MODELS:
            raise ValueError(f"no model is called {self.name!r}; choose out of {', '.join(MODELS)}")
        unknown = [name for name in self.heads if name not in HEADS]
        if unknown:
            raise ValueError(f"{self.name} has no head {unknown[0]!r} here; choose out of {', '.join(HEADS)}")


@dataclass(frozen=True, eq=False)
class AdapterStates:
    """(B, T, D) text states, (B, N, D) of regions or cells, and (B, D) of the model's own pooler."""

    text: Tensor
    visual: Tensor
    pooled: Tensor


class Adapter(nn.Module):
    """Batches of text and cached regions or cells through a model of transformers.

    Raises:
        WeightsError: the weights cannot be had, or do not fit.
    """

    def __init__(self, config: AdapterConfig) -> None:
        super().__init__()
        self.config = config
        self.model = build(MODELS[config.name], config.weights, config.settings)
        dim = int(self.model.config.hidden_size)  # type: ignore[union-attr, arg-type]
        self.heads = nn.ModuleDict({name: HEADS[name](config, dim) for name in config.heads})
        self.heads.apply(init_bert)

    def layout(self, batch: Batch) -> Tensor | None:
        """Which image each text goes with, (B,) int64, where that is not its own; for `Batch.layout`."""
        return None if batch.image_of is None else torch.tensor(batch.image_of)

    def forward(self, batch: Batch) -> AdapterStates:
        """The last layer's states. Errors as of `INPUTS`."""
        given = INPUTS[self.config.name](batch)
        dtype = next(self.model.parameters()).dtype
        given = {name: each.to(dtype) if each.is_floating_point() else each for name, each in given.items()}
        found = self.model(**given)
        if self.config.name == "lxmert":
            return AdapterStates(found.language_output, found.vision_output, found.pooled_output)
        width = batch.text.ids.shape[1]
        states = found.last_hidden_state
        return AdapterStates(states[:, :width], states[:, width:], found.pooler_output)

    def pooled(self, states: AdapterStates) -> Tensor:
        """(B, D)."""
        return states.pooled


def lxmert_inputs(batch: Batch) -> dict[str, Tensor]:
    """The arguments of `LxmertModel`: features, and boxes as fractions of their image; a cell's box is its place.

    Raises:
        ValueError: there are no cached features, or cells whose grid is not known.
    """
    features, mask, boxes = _visual(batch)
    if boxes is None:
        raise ValueError("LXMERT needs to know where cells lie; take them from a store of grids, uncut")
    given = {"visual_feats": features, "visual_pos": boxes, "visual_attention_mask": mask.float()}
    return {**_text(batch), **_repeated(batch, given)}


def visual_bert_inputs(batch: Batch) -> dict[str, Tensor]:
    """The arguments of `VisualBertModel`, which does not ask where regions lie. Errors as of `lxmert_inputs`."""
    features, mask, _ = _visual(batch)
    return {**_text(batch), **_repeated(batch, {"visual_embeds": features, "visual_attention_mask": mask.long()})}


INPUTS: dict[str, Callable[[Batch], dict[str, Tensor]]] = {
    "lxmert": lxmert_inputs,
    "visual_bert": visual_bert_inputs,
}
HEADS: dict[str, Callable[[AdapterConfig, int], nn.Module]] = {
    "itm": lambda _, dim: nn.Linear(dim, 2),  # of the pooled state; 1 is a match
    "vqa": lambda c, dim: AnswerHead(dim, 2 * dim, c.vqa_answers),  # of the pooled state
    "gqa": lambda c, dim: AnswerHead(dim, 2 * dim, c.gqa_answers),  # of the pooled state
    "nlvr2": lambda _, dim: AnswerHead(2 * dim, 2 * dim, 2),  # of both images' pooled states, side by side
}


def _text(batch: Batch) -> dict[str, Tensor]:
    text = batch.text
    mask = torch.ones_like(text.ids) if text.mask is None else text.mask.long()
    segments = torch.zeros_like(text.ids) if text.segments is None else text.segments
    return {"input_ids": text.ids, "attention_mask": mask, "token_type_ids": segments}


def _visual(batch: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
    """Features (V, N, F), their mask (V, N), and their boxes (V, N, 4) as fractions."""
    visual = batch.visual
    if not isinstance(visual, Regions | Cells) or visual.features is None:
        raise ValueError("this model reads cached features; use a store of regions, grids or patches")
    features, boxes = visual.features, None
    mask = torch.ones(features.shape[:2], dtype=torch.bool, device=features.device)
    if visual.mask is not None:
        mask = visual.mask
    if isinstance(visual, Regions):
        boxes = visual.boxes / visual.image_sizes.flip(1).repeat(1, 2)[:, None]
    elif visual.shapes is not None:
        boxes = torch.stack([_cell_boxes(shape, features.shape[1], features.device) for shape in visual.shapes])
    return features * mask[..., None], mask, boxes


def _cell_boxes(shape: tuple[int, int], count: int, device: torch.device) -> Tensor:
    """(count, 4): a grid's cells as fractions of the image, row by row, zeros behind."""
    down, across = shape
    rows, columns = (torch.arange(each, device=device) for each in shape)
    rows, columns = torch.meshgrid(rows, columns, indexing="ij")
    corners = [columns / across, rows / down, (columns + 1) / across, (rows + 1) / down]
    return nn.functional.pad(torch.stack(corners, dim=-1).flatten(0, 1), (0, 0, 0, count - down * across))


def _repeated(batch: Batch, given: dict[str, Tensor]) -> dict[str, Tensor]:
    """What belongs to images, for every text."""
    if batch.image_of is None:
        return given
    rows = torch.tensor(batch.image_of) if batch.layout is None else batch.layout
    return {name: tensor[rows.to(tensor.device)] for name, tensor in given.items()}
