"""Grid-VLP (Yan et al., 2021): one BERT over words and the cells of a convolutional map; PixelBERT is the same, tuned.

What makes it different: no boxes and no pre-training on what is seen. An image is the last map of a ResNet or ResNeXt,
one token a cell of 32 x 32 pixels, projected; in pre-training a new random part of them at every step, later all.

    [CLS] text [SEP] cell cell ...

Grid-VLP's network is frozen, so that maps may come from a cache; PixelBERT (Huang et al., 2020) tunes its network and
halves the map once more. No official code is public: the papers' text is the reference, and what it leaves open is in
docs/models.md. The random part as jayleicn/ClipBERT `src/modeling/modeling.py` takes it, but of every image its own.

Shapes in this file: B texts, V images, T text positions, L cells of a padded image, K cells that are used, of all
images, F feature width, D model width, N tokens of all sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from extractors.networks import grid_colours
from extractors.resnet import ResNet, ResNetConfig
from extractors.trunk import Colours
from trainers.batch import Batch, Cells, Part, Pixels, VisualInput
from trainers.models.heads import AnswerHead, WordHead
from trainers.models.layers import (
    Encoder,
    LayerConfig,
    Pooler,
    PostNormLayer,
    Spans,
    States,
    TextEmbedding,
    drawn,
    host_lengths,
    host_shapes,
    init_bert,
    packed_order,
)

BASE, X152 = LayerConfig(), grid_colours("x152")
TEXT, IMAGE = 0, 1  # rows of the modality table, which BERT calls segments
STRIDE = 32  # pixels a side of a cell


@dataclass(frozen=True)
class GridVLPConfig:
    """One Grid-VLP; the defaults are the published one's, fed from a cache.

    vocabulary   words of the tokenizer (BERT's, uncased)
    positions    rows of the text's position table
    feature_dim  F, width of a cell
    body         of the network for pixels, out of `extractors.networks.GRID_MODELS`; None: maps come from a cache
    colours      what the network's pixels need
    tuned        whether the network is trained along, as PixelBERT's
    pool         cells a side that become one, the largest of each channel: 2 in PixelBERT; with a network only
    sampled      cells of an image while training, drawn anew at every step; None: all. Pre-training takes 100
    spatial      rows of a table of row and column positions, which are added to the cells; 0: none
    visual_norm  whether the cells are normalised as the words are
    heads        what it answers, out of HEADS
    """

    layer: LayerConfig = BASE
    layers: int = 12
    vocabulary: int = 30522
    positions: int = 512
    feature_dim: int = 2048
    body: ResNetConfig | None = None
    colours: Colours = X152
    tuned: bool = False
    pool: int = 1
    sampled: int | None = None
    spatial: int = 0
    visual_norm: bool = False
    heads: tuple[str, ...] = ("mlm", "itm", "qa")
    qa_answers: int = 9500
    vqa_answers: int = 3129
    gqa_answers: int = 1842

    def __post_init__(self) -> None:
        unknown = [name for name in self.heads if name not in HEADS]
        if unknown:
            raise ValueError(f"Grid-VLP has no head {unknown[0]!r}; choose out of {', '.join(HEADS)}")
        if self.pool > 1 and self.body is None:
            raise ValueError("a cached map is what it is; give the network, or leave out pool")


@dataclass(frozen=True, eq=False)
class Layout(Part):
    """Where a batch's words and cells go; made on the host, with no question to the device.

    visual_width  int                the most cells of a sequence
    text_rows     (N of text,) int64 the real tokens among B * T
    text_places   (N of text,) int64 their positions
    cells         (K,) int64         the cells that are used, among V * L, or among the maps as `see` gives them
    places        (2, K) int64       row and column of each; None where no one asks
    order         (N,) int64         rows of text and cells, one after the other, that make the sequences
    text_lengths, visual_lengths  (B,) int64
    """

    spans: Spans
    visual_width: int
    text_rows: Tensor
    text_places: Tensor
    cells: Tensor
    places: Tensor | None
    order: Tensor
    text_lengths: Tensor
    visual_lengths: Tensor


class GridNetwork(nn.Module):
    """Images to the cells of their maps, in the names of detectron2's checkpoints.

    Images of one shape run together and are cut to it first: a cell does not depend on what else is in the batch, and
    is the cell that `extract grid` stores. Batch normalisation has fixed statistics.
    """

    def __init__(self, config: GridVLPConfig) -> None:
        super().__init__()
        assert config.body is not None
        self.colours, self.pool = config.colours, config.pool
        self.backbone = ResNet(config.body).requires_grad_(config.tuned)

    def forward(self, pixels: Pixels) -> Tensor:
        """(cells of all images, F): shape after shape, of each the images in order, row by row."""
        images = pixels.normalised(self.colours.mean, self.colours.std, bgr=True).images
        found = []
        for (height, width), numbers in by_shape(pixels).items():
            alike = images if len(numbers) == len(images) else torch.stack([images[number] for number in numbers])
            maps = self.backbone(alike[:, :, :height, :width].to(self.backbone.stem.conv1.weight.dtype))
            if self.pool > 1:
                maps = F.max_pool2d(maps, self.pool, ceil_mode=True)
            found.append(maps.flatten(2).transpose(1, 2).flatten(0, 1))
        return torch.cat(found)


class GridVLP(nn.Module):
    """Batches of text and grids, or pixels, to states; `heads` turn states into logits."""

    def __init__(self, config: GridVLPConfig) -> None:
        super().__init__()
        self.config, dim = config, config.layer.dim
        self.text = TextEmbedding(config.vocabulary, config.positions, 2, config.layer)
        self.cell = nn.Linear(config.feature_dim, dim)
        self.row, self.column = (nn.Embedding(config.spatial, dim) if config.spatial else None for _ in range(2))
        self.visual_norm = nn.LayerNorm(dim, config.layer.eps) if config.visual_norm else nn.Identity()
        self.dropout = nn.Dropout(config.layer.dropout)
        self.encoder = Encoder(PostNormLayer(config.layer) for _ in range(config.layers))
        self.pooler = Pooler(dim)
        self.heads = nn.ModuleDict({name: HEADS[name](config) for name in config.heads})
        self.apply(partial(init_bert, std=config.layer.std))
        self.network = None if config.body is None else GridNetwork(config)

    def layout(self, batch: Batch) -> Layout:
        """Where the model will put each token; as `lay_out`, with a random part of the cells while training."""
        return lay_out(self.config, batch, self.training)

    def forward(self, batch: Batch) -> States:
        """The last layer's states; `States.visual` are the cells that were used, row by row.

        Raises:
            ValueError: the batch has no images, or such as this model does not read.
        """
        layout: Layout = (batch.layout or self.layout(batch)).to(self.cell.weight.device)
        text = self.text(batch.text.ids.flatten()[layout.text_rows], positions=layout.text_places)
        cells = self._embed(self.see(_visual(batch)), layout)
        x = self.encoder(torch.cat([text, cells.to(text.dtype)])[layout.order], layout.spans)
        lengths = (layout.text_lengths, layout.visual_lengths)
        return States(x, layout.spans, *lengths, batch.text.ids.shape[1], layout.visual_width)

    def checkpoint(self) -> None:
        """While training keep no activations inside layers: compute them again."""
        self.encoder.checkpointing = True

    def pooled(self, states: States) -> Tensor:
        """(B, D) of [CLS]."""
        return self.pooler(states.first)

    def see(self, visual: VisualInput) -> Tensor:
        """(V * L, F) cached cells, or what the network makes of pixels; frozen, it keeps nothing to go back."""
        if isinstance(visual, Cells):
            return visual.features.flatten(0, 1)
        assert isinstance(visual, Pixels)
        if self.network is None:
            raise ValueError("this Grid-VLP has no network for pixels; build it with a body, or give a cached grid")
        return self.network(visual)

    def _embed(self, features: Tensor, layout: Layout) -> Tensor:
        """(K, D): the cells that are used."""
        x = self.cell(features[layout.cells].to(self.cell.weight.dtype)) + self.text.segment.weight[IMAGE]
        if self.row is not None and self.column is not None:
            assert layout.places is not None
            x = x + self.row(layout.places[0]) + self.column(layout.places[1])
        return self.dropout(self.visual_norm(x))


def cell_counts(config: GridVLPConfig, visual: VisualInput) -> list[int]:
    """Cells of each image, before any are left out."""
    return _starts(config, visual)[2]


def cell_grids(config: GridVLPConfig, visual: VisualInput) -> tuple[tuple[int, int], ...] | None:
    """Rows and columns of each image's cells; None where a cache does not tell them."""
    return _starts(config, visual)[1]


def lay_out(config: GridVLPConfig, batch: Batch, training: bool, kept: Sequence[np.ndarray] | None = None) -> Layout:
    """Where a Grid-VLP will put each token: on the CPU, best in the process that loads the data.

    `Batch.layout` takes it along; without it the model asks for it, and where the batch does not know its lengths on
    the host, waits for the device. torch's generator draws the cells, where `sampled` is set and it is for training.

    Args:
        kept: of each image the cells to use, numbered row by row; default: all, or those that are drawn.

    Raises:
        ValueError: the batch has no images, or such as Grid-VLP does not read; or places are wanted, and not known.
    """
    visual, words = _visual(batch), np.array(host_lengths(batch.text))
    starts, grids, total = _starts(config, visual)
    if kept is None:
        kept = [drawn(count, config.sampled if training else None) for count in total]
    counts = np.array([len(each) for each in kept])
    image, number = np.repeat(np.arange(len(kept)), counts), np.concatenate(kept)
    places = None
    if config.spatial:
        if grids is None:
            raise ValueError("cells have places in a grid of known shape; take them from a store of grids, uncut")
        places = torch.from_numpy(np.stack(np.divmod(number, np.array(grids)[image, 1])))
    image_of = np.arange(len(words)) if batch.image_of is None else np.array(batch.image_of)
    first = words.sum() + np.cumsum(counts) - counts
    visible = counts[image_of]
    arrays = (
        packed_order([np.arange(len(words)) * batch.text.ids.shape[1]], [words]),
        np.concatenate([np.arange(each) for each in words]),
        np.array(starts)[image] + number,
    )
    order = packed_order([np.cumsum(words) - words, first[image_of]], [words, visible])
    text_rows, text_places, cells = (torch.from_numpy(each) for each in arrays)
    rest = [torch.from_numpy(each) for each in (order, words, visible)]
    spans = Spans.of((words + visible).tolist())
    return Layout(spans, int(counts.max()), text_rows, text_places, cells, places, *rest)


def by_shape(pixels: Pixels) -> dict[tuple[int, int], list[int]]:
    """Numbers of the images of each shape, in the order in which a network sees them."""
    found: dict[tuple[int, int], list[int]] = {}
    for number, shape in enumerate(host_shapes(pixels)):
        found.setdefault(shape, []).append(number)
    return found


def _starts(
    config: GridVLPConfig, visual: VisualInput
) -> tuple[list[int], tuple[tuple[int, int], ...] | None, list[int]]:
    """Of each image where its cells begin, their grid, if that is known, and how many there are."""
    if isinstance(visual, Cells):
        width = visual.features.shape[1]
        return [number * width for number in range(len(visual))], visual.shapes, list(host_lengths(visual))
    assert isinstance(visual, Pixels)
    step, alike = STRIDE * config.pool, by_shape(visual)
    grid_of = {shape: (-(-shape[0] // step), -(-shape[1] // step)) for shape in alike}
    grids = {number: grid_of[shape] for shape, numbers in alike.items() for number in numbers}
    starts, start = {}, 0
    for number, (down, across) in grids.items():  # in the network's order
        starts[number] = start
        start += down * across
    shapes = tuple(grids[number] for number in range(len(grids)))
    return [starts[number] for number in range(len(grids))], shapes, [down * across for down, across in shapes]


def _visual(batch: Batch) -> VisualInput:
    if not isinstance(batch.visual, Cells | Pixels):
        found = "nothing" if batch.visual is None else type(batch.visual).__name__
        raise ValueError(f"Grid-VLP reads grids or pixels, not {found}; use a store of grids")
    return batch.visual


HEADS: dict[str, Callable[[GridVLPConfig], nn.Module]] = {
    "mlm": lambda c: WordHead(c.layer.dim, c.vocabulary, tied=True),  # of text states, and `model.text.word.weight`
    "itm": lambda c: nn.Linear(c.layer.dim, 2),  # of the pooled state; 1 is a match
    "qa": lambda c: AnswerHead(c.layer.dim, 2 * c.layer.dim, c.qa_answers),  # of the pooled state, in pre-training
    "vqa": lambda c: AnswerHead(c.layer.dim, 2 * c.layer.dim, c.vqa_answers),  # of the pooled state
    "gqa": lambda c: AnswerHead(c.layer.dim, 2 * c.layer.dim, c.gqa_answers),  # of the pooled state
    "nlvr2": lambda c: AnswerHead(2 * c.layer.dim, 2 * c.layer.dim, 2),  # of both images' pooled states, side by side
    "rank": lambda c: nn.Linear(c.layer.dim, 1),  # of the pooled state: how well text and image go together
}
