"""What a model looks at when it reads a word: its attention to the image, and Grad-CAM.

    found = explain(family, model, batch, positions)

Attention is that of the word to each cell, patch or region, in the layers where words see the image: METER's
cross-attention, of the other models the self-attention of all tokens. Grad-CAM weighs it by how much more of it would
raise a score. A model that tells hidden words has the word hidden, and the score is that word's (METER, appendix H,
which says no more); any other is asked for the score of its own answer.

Grad-CAM on attention is as in salesforce/ALBEF `Grounding.py`: weights times gradients above zero, the mean over heads.
Nobody says which layer is best for these models, so both maps are means over all layers: in the last one a word has no
way to an answer that is told from [CLS]. Shapes in this file: B texts, L positions (Lq asking, Lk asked), P positions
of a word, H x W cells or patches, R regions of one image.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from storage.errors import TriptychError
from trainers.batch import Batch, Pixels, Regions
from trainers.models.fusion import CoAttention
from trainers.models.grid_vlp import GridVLP, cell_grids
from trainers.models.layers import Attention, FusedAttention, Padding, Spans
from trainers.models.meter import Meter
from trainers.models.vilt import ViLT, patch_grids
from trainers.tasks.families import Family

WORDS = "mlm"  # the head that tells hidden words
ANSWERS = ("vqa", "gqa", "qa", "snli")  # heads that choose an answer
MATCHES = {"itm": 1, "rank": 0}  # heads that tell whether text and image go together, by the column that says so
BOXES = "refcoco"  # the head that chooses a box


class ExplainError(TriptychError):
    """A model, or a batch, of which there are no such maps."""


@dataclass(frozen=True)
class Asked:
    """The score that Grad-CAM is of.

    head    of the model
    choice  the class that was chosen: a token id, a number among the answers, or a box, 0 for the whole image
    score   its logit; the mean, of a word of several tokens
    """

    head: str
    choice: int
    score: float


@dataclass(frozen=True, eq=False)
class Map:
    """What one word looks at, on the CPU: (H, W) over an image's cells or patches, or (R,) over its regions.

    attention  float32, above zero; the sum is the share of the word's attention that goes to them
    gradcam    float32, zero or above, of no unit
    asked      the score that `gradcam` is of
    """

    attention: Tensor
    gradcam: Tensor
    asked: Asked


def explain(family: Family, model: nn.Module, batch: Batch, positions: Sequence[int], row: int = 0) -> Map:
    """The maps of one word of a text.

    Args:
        family: of the model; its model's way of answering.
        batch: as a task makes it, on the model's device.
        positions: of the word's tokens in the text, [CLS] being 0.
        row: the text in the batch.

    Raises:
        ExplainError: the model has no such attention, or no score of one text and one image; or what the batch has of
            the image does not say where it is of.
    """
    layers, places = _looking(model), list(positions)
    asks_words = _tells_words(model)
    given = _hidden(family, batch, row, places) if asks_words else batch
    training = model.training
    model.eval()
    try:
        with torch.enable_grad(), watched(layers) as seen:
            states = family.states(model, given)
            of_word = (family, model, states, batch, row)
            choice, score, head = _word(*of_word, places) if asks_words else _answer(*of_word)
            gradients = torch.autograd.grad(score, seen, allow_unused=True)
    finally:
        model.train(training)
    start, shape = _columns(model, states, given, row)
    stop = start + math.prod(shape)
    maps = []
    for weights, gradient in zip(seen, gradients, strict=True):
        mine = weights.detach()[row, :, places, start:stop].float()
        slope = torch.zeros_like(mine) if gradient is None else gradient[row, :, places, start:stop].float()
        maps.append(torch.stack([mine, mine * slope.clamp(min=0)]).mean((1, 2)))
    attention, gradcam = torch.stack(maps).mean(0).view(2, *shape).cpu()
    return Map(attention, gradcam, Asked(head, choice, float(score.detach())))


@contextmanager
def watched(layers: Sequence[Attention | FusedAttention]) -> Iterator[list[Tensor]]:
    """The attention weights of layers, (B, heads, Lq, Lk) each in the order in which they run, while the block runs.

    What is computed stays the same but for rounding. Packed tokens are padded. There is no dropout.
    """
    seen: list[Tensor] = []

    def attend(query: Tensor, key: Tensor, value: Tensor, heads: int, padding: Padding = None, *_: Any) -> Tensor:
        spans = padding if isinstance(padding, Spans) else None
        if spans is not None:
            query, key, value = (spans.pad(each) for each in (query, key, value))
            padding = spans.mask()
        q, k, v = (each.unflatten(-1, (heads, -1)).transpose(-3, -2) for each in (query, key, value))
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
        if padding is not None:
            assert isinstance(padding, Tensor)
            scores = scores.masked_fill(~padding[:, None, None, :], -torch.inf)
        weights = scores.softmax(-1)
        seen.append(weights)
        found = (weights @ v).transpose(-3, -2).flatten(-2)
        return found if spans is None else spans.pack(found)

    for layer in layers:
        layer.attend = attend
    try:
        yield seen
    finally:
        for layer in layers:
            del layer.attend


def _looking(model: Any) -> list[Attention | FusedAttention]:
    """The layers in which words see the image."""
    if isinstance(model, Meter):
        fusion: Any = model.fusion
        if isinstance(fusion, CoAttention):
            return [layer.cross for layer in fusion.text_layers]  # type: ignore[misc]
        return [layer.attention for layer in fusion.layers]
    if not hasattr(model, "encoder"):
        raise ExplainError(f"{type(model).__name__} has no layers of ours in which words see an image.")
    return [layer.attention for layer in model.encoder]


def _tells_words(model: Any) -> bool:
    """A decoder tells words, too, but not from the states of the text that it was given."""
    return WORDS in model.heads and getattr(model, "decoder", None) is None


def _hidden(family: Family, batch: Batch, row: int, places: list[int]) -> Batch:
    """The batch with a word hidden."""
    ids = batch.text.ids.clone()
    ids[row, places] = family.tokenizer.mask
    return replace(batch, text=replace(batch.text, ids=ids))


Score = tuple[int, Tensor, str]  # what was chosen, its logit, and the head


def _word(family: Family, model: Any, states: Any, batch: Batch, row: int, places: list[int]) -> Score:
    logits = family.word_logits(model, family.words(states)[row, places])
    ids = batch.text.ids[row, places]
    return int(ids[0]), logits.gather(1, ids[:, None]).mean(), WORDS


def _answer(family: Family, model: Any, states: Any, batch: Batch, row: int) -> Score:
    heads = model.heads
    if BOXES in heads:
        scores = heads[BOXES](states.visual)[row, : int(states.visual_lengths[row]), 0]
        return int(scores.argmax()), scores.max(), BOXES
    for name in ANSWERS:
        if name in heads:
            logits = heads[name](family.answer(model, states, batch))[row]
            return int(logits.argmax()), logits.max(), name
    for name, column in MATCHES.items():
        if name in heads:
            return column, heads[name](family.pooled(model, states))[row, column], name
    raise ExplainError(
        f"the model answers by {', '.join(heads) or 'nothing'}, which is no score of one text and one image; "
        f"explain one with {', '.join((WORDS, *ANSWERS, *MATCHES, BOXES))}."
    )


def _columns(model: Any, states: Any, batch: Batch, row: int) -> tuple[int, tuple[int, ...]]:
    """Where a text's cells, patches or regions begin among what is attended to, and their shape."""
    image = row if batch.image_of is None else batch.image_of[row]
    if isinstance(model, Meter):
        skip = int(states.has_class)
        mask = states.image_mask
        count = states.image.shape[1] if mask is None else int(mask[row].sum())
        start = 0 if isinstance(model.fusion, CoAttention) else states.text.shape[1]
    else:
        skip = 0 if isinstance(model, GridVLP) else 1  # ViLT's image class, VL-BERT's whole image
        start, count = int(states.text_lengths[row]), int(states.visual_lengths[row])
    shape = _shape(model, batch, image, count - skip)
    if math.prod(shape) != count - skip:
        raise ExplainError(f"{count - skip} of {math.prod(shape)} cells were read; explain with all of them.")
    return start + skip, shape


def _shape(model: Any, batch: Batch, image: int, count: int) -> tuple[int, ...]:
    visual = batch.visual
    if isinstance(visual, Regions):
        return (count,)
    if isinstance(model, ViLT):
        return patch_grids(model.config, batch)[image]
    if isinstance(model, Meter) and isinstance(visual, Pixels):
        return (math.isqrt(count), math.isqrt(count))
    assert visual is not None
    grids = cell_grids(model.config, visual) if isinstance(model, GridVLP) else visual.shapes
    if grids is None:
        raise ExplainError("where the cells lie is not known; take them from a store of grids or patches, uncut.")
    return grids[image]
