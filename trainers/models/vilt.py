"""ViLT (Kim et al., ICML 2021): text and raw image patches in one ViT, without any network before it.

What makes it different: an image is cut into 32 x 32 patches that one matrix projects; images keep their shapes, so
that each has its own number of patches, and its positions are the square table stretched to that shape.

    [CLS] text [SEP] [image class] patch patch ...

Source: dandelin/ViLT `vilt/modules/vilt_module.py`, `vision_transformer.py`, `objectives.py`, `heads.py`. The official
code computes patches of padding and hides them; here tokens are packed, so that padding costs nothing. It also shuffles
patches, which changes no number but their order; here they stay row by row.

Shapes in this file: B texts, V images, D model width, S x S positions, N tokens of all sequences, K patches of all
images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainers.batch import Batch, Part, Pixels
from trainers.models.heads import Classifier, Transform, WordHead
from trainers.models.layers import (
    Encoder,
    LayerConfig,
    Pooler,
    PreNormLayer,
    Spans,
    States,
    TextEmbedding,
    drawn,
    host_lengths,
    host_shapes,
    init_bert,
    packed_order,
)

BASE = LayerConfig(eps=1e-6)
TEXT_EPS = 1e-12
TEXT, IMAGE, SECOND_IMAGE = 0, 1, 2  # rows of the modality table; the last is NLVR2's
HALF = 127.5  # mean and deviation of bytes: pixels end up between -1 and 1
COLOURS = 256


@dataclass(frozen=True)
class ViLTConfig:
    """One ViLT; the defaults are the published one's, ViLT-B/32.

    vocabulary      words of the tokenizer (BERT's, uncased)
    text_positions  rows of the text's position table: the longest text
    patch           side of a patch, in pixels
    side            S, positions down and across: 384 / 32
    image_types     rows of the modality table for images: 2 for NLVR2
    max_patches     of an image, chosen at random without replacement; None: all. Pre-training takes 200
    heads           what it answers, out of HEADS
    answers         of the VQA head
    masks_patches   whether some patches may be hidden (masked patch prediction)
    """

    layer: LayerConfig = BASE
    layers: int = 12
    vocabulary: int = 30522
    text_positions: int = 40
    patch: int = 32
    side: int = 12
    image_types: int = 1
    max_patches: int | None = None
    heads: tuple[str, ...] = ("mlm", "itm")
    answers: int = 3129
    masks_patches: bool = False

    def __post_init__(self) -> None:
        unknown = [name for name in self.heads if name not in HEADS]
        if unknown:
            raise ValueError(f"ViLT has no head {unknown[0]!r}; choose out of {', '.join(HEADS)}")


@dataclass(frozen=True, eq=False)
class Layout(Part):
    """Where a batch's words and patches go; made on the host, with no question to the device.

    visual_width  int                  the most visual tokens of a sequence
    text_rows     (N of text,) int64   the real tokens among B * T
    text_places   (N of text,) int64   their positions
    patches       (3, K) int64         image, row and column of each patch that is used
    places        (K, 2) float32       row and column of each in the table of positions
    order         (N,) int64           rows of text, image classes and patches, one after the other, that make sequences
    patch_tokens  (K of B,) int64      the tokens that are patches
    text_lengths, visual_lengths  (B,) int64
    """

    spans: Spans
    visual_width: int
    text_rows: Tensor
    text_places: Tensor
    patches: Tensor
    places: Tensor
    order: Tensor
    patch_tokens: Tensor
    text_lengths: Tensor
    visual_lengths: Tensor


class ViLT(nn.Module):
    """Batches of text and pixels to states; `heads` turn states into logits."""

    def __init__(self, config: ViLTConfig) -> None:
        super().__init__()
        self.config, dim = config, config.layer.dim
        self.text = TextEmbedding(config.vocabulary, config.text_positions, 2, replace(config.layer, eps=TEXT_EPS))
        self.patch = nn.Conv2d(3, dim, config.patch, config.patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.position = nn.Parameter(torch.zeros(1, 1 + config.side**2, dim))
        self.modality = nn.Embedding(1 + config.image_types, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, dim)) if config.masks_patches else None
        self.dropout = nn.Dropout(config.layer.dropout)
        self.encoder = Encoder(PreNormLayer(config.layer) for _ in range(config.layers))
        self.norm = nn.LayerNorm(dim, config.layer.eps)
        self.pooler = Pooler(dim)
        self.heads = nn.ModuleDict({name: HEADS[name](config) for name in config.heads})
        self.apply(partial(init_bert, std=config.layer.std))
        nn.init.normal_(self.patch.weight, 0.0, 0.02)  # of a patch's 3,072 numbers, whatever the width
        for parameter in (self.class_token, self.position):
            nn.init.trunc_normal_(parameter, 0.0, config.layer.std)

    def layout(self, batch: Batch, kept: Sequence[np.ndarray] | None = None) -> Layout:
        """Where the model will put each token; as `lay_out`."""
        return lay_out(self.config, batch, kept)

    def forward(self, batch: Batch, image_type: int = IMAGE, hidden: Tensor | None = None) -> States:
        """The last layer's states, normalised; `States.visual` are the image class's and then the patches'.

        Args:
            image_type: SECOND_IMAGE for the second image of NLVR2.
            hidden: (K,) bool, the patches of the layout that the model must not see.

        Raises:
            ValueError: the visual input is no pixels.
        """
        layout: Layout = (batch.layout or self.layout(batch)).to(self.patch.weight.device)
        x = self.encoder(self._embed(batch, layout, image_type, hidden), layout.spans)
        lengths = (layout.text_lengths, layout.visual_lengths)
        return States(self.norm(x), layout.spans, *lengths, batch.text.ids.shape[1], layout.visual_width)

    def checkpoint(self) -> None:
        """While training keep no activations inside layers: compute them again."""
        self.encoder.checkpointing = True

    def pooled(self, states: States) -> Tensor:
        """(B, D) of the text's [CLS]."""
        return self.pooler(states.first)

    def _embed(self, batch: Batch, layout: Layout, image_type: int, hidden: Tensor | None) -> Tensor:
        """Every token's embedding, (N, D)."""
        pixels = _pixels(batch)
        text = self.text(batch.text.ids.flatten()[layout.text_rows], positions=layout.text_places)
        patches = F.linear(self._cut(pixels, layout), self.patch.weight.flatten(1), self.patch.bias)
        if hidden is not None:
            assert self.mask_token is not None, "patches are hidden by a model with masks_patches"
            patches = torch.where(hidden[:, None], self.mask_token.to(patches.dtype), patches)
        table = self.position[0]
        patches = self.dropout(patches + stretched(table[1:], layout.places))
        classes = self.dropout((self.class_token[0] + table[:1]).expand(len(pixels), -1))
        types = self.modality.weight
        parts = [text + types[TEXT], classes + types[image_type], patches + types[image_type]]
        return torch.cat([part.to(text.dtype) for part in parts]).index_select(0, layout.order)

    def _cut(self, pixels: Pixels, layout: Layout) -> Tensor:
        """(K, 3 * patch * patch): the pixels of the patches that are used."""
        side, (height, width) = self.config.patch, pixels.images.shape[2:]
        whole = pixels.images[:, :, : height // side * side, : width // side * side]
        cut = whole.unflatten(3, (-1, side)).unflatten(2, (-1, side)).permute(0, 2, 4, 1, 3, 5)
        patches = cut[layout.patches[0], layout.patches[1], layout.patches[2]].flatten(1)
        if not patches.is_floating_point():
            patches = (patches.float() - HALF) / HALF
        return patches.to(self.patch.weight.dtype)

    def mean_colours(self, batch: Batch, layout: Layout) -> Tensor:
        """(K, 3) int64: the mean red, green and blue of each patch, 0 to 255: what masked patch prediction asks for."""
        colours = self._cut(_pixels(batch), layout).float().unflatten(1, (3, -1)).mean(2)
        return ((colours * 0.5 + 0.5) * (COLOURS - 1)).long()


def patch_counts(config: ViLTConfig, batch: Batch) -> list[int]:
    """Whole patches of each image, before any are left out. Errors as of `lay_out`."""
    return [down * across for down, across in patch_grids(config, batch)]


def patch_grids(config: ViLTConfig, batch: Batch) -> list[tuple[int, int]]:
    """Whole patches of each image, down and across. Errors as of `lay_out`."""
    return [(down, across) for down, across in _grids(_pixels(batch), config.patch).tolist()]


def lay_out(config: ViLTConfig, batch: Batch, kept: Sequence[np.ndarray] | None = None) -> Layout:
    """Where a ViLT will put each token: on the CPU, best in the process that loads the data.

    `Batch.layout` takes it along; without it the model asks for it, and where the batch does not know its lengths on
    the host, waits for the device. Where `max_patches` is set, torch's generator chooses the patches.

    Args:
        kept: of each image the patches to use, numbered row by row; default: all, or those chosen at random.

    Raises:
        ValueError: the visual input is no pixels, or an image is smaller than a patch.
    """
    pixels = _pixels(batch)
    words, grids = np.array(host_lengths(batch.text)), _grids(pixels, config.patch)
    if kept is None:
        kept = [drawn(int(rows * columns), config.max_patches) for rows, columns in grids]
    counts = np.array([len(each) for each in kept])
    image_of = np.arange(len(words)) if batch.image_of is None else np.array(batch.image_of)
    image, number = np.repeat(np.arange(len(kept)), counts), np.concatenate(kept)
    place = np.stack(np.divmod(number, grids[image, 1]))
    scale = (config.side - 1) / np.maximum(grids - 1, 1)
    ends = words.sum() + len(pixels)
    parts = [np.cumsum(words) - words, words.sum() + image_of, ends + (np.cumsum(counts) - counts)[image_of]]
    order = packed_order(parts, [words, np.ones_like(words), counts[image_of]])
    arrays = (
        packed_order([np.arange(len(words)) * batch.text.ids.shape[1]], [words]),
        np.concatenate([np.arange(each) for each in words]),
        np.stack([image, *place]),
        (place.T * scale[image]).astype(np.float32),
        order,
        np.flatnonzero(order >= ends),
        words,
        counts[image_of] + 1,
    )
    spans, width = Spans.of((words + 1 + counts[image_of]).tolist()), int(counts.max()) + 1
    return Layout(spans, width, *(torch.from_numpy(each) for each in arrays))


def stretched(table: Tensor, places: Tensor) -> Tensor:
    """(K, D) float32: a square table (S * S, D) read between its rows, bilinear at places (K, 2) of row and column."""
    with torch.autocast(table.device.type, enabled=False):
        steps = torch.arange(round(len(table) ** 0.5), device=places.device)
        near = (1 - (places[..., None] - steps).abs()).clamp(min=0)  # (K, 2, S): how much of each row, of each column
        return (near[:, 0, :, None] * near[:, 1, None, :]).flatten(1) @ table.float()


def _pixels(batch: Batch) -> Pixels:
    if not isinstance(batch.visual, Pixels):
        raise ValueError(f"ViLT reads pixels, not {type(batch.visual).__name__}; use a store of pixels, or images")
    return batch.visual


def _grids(pixels: Pixels, patch: int) -> np.ndarray:
    """(V, 2): whole patches down and across."""
    shapes = host_shapes(pixels)
    grids = np.array(shapes) // patch
    if not grids.all():
        small = shapes[int((grids == 0).any(1).argmax())]
        raise ValueError(f"an image of {small[0]} x {small[1]} pixels holds no patch of {patch}; resize it to more")
    return grids


class ColourHead(nn.Module):
    """Masked patches: their mean colour, a choice of 256 for each channel."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.transform = Transform(dim)
        self.decoder = nn.Linear(dim, 3 * COLOURS)

    def forward(self, states: Tensor) -> Tensor:
        """(..., D) to (..., 3, 256)."""
        return self.decoder(self.transform(states)).unflatten(-1, (3, COLOURS))


HEADS: dict[str, Callable[[ViLTConfig], nn.Module]] = {
    "mlm": lambda c: WordHead(c.layer.dim, c.vocabulary, tied=False),  # of text states
    "itm": lambda c: nn.Linear(c.layer.dim, 2),  # of the pooled state; 1 is a match
    "mpp": lambda c: ColourHead(c.layer.dim),  # of the states of hidden patches
    "vqa": lambda c: Classifier(c.layer.dim, 2 * c.layer.dim, c.answers),  # of the pooled state
    "nlvr2": lambda c: Classifier(2 * c.layer.dim, 2 * c.layer.dim, 2),  # of both images' pooled states, side by side
    "rank": lambda c: nn.Linear(c.layer.dim, 1),  # of the pooled state: how well text and image go together
}
