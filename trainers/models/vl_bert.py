"""VL-BERT (Su et al., ICLR 2020): one BERT over words and regions, in which every token has a word and a visual part.

What makes it different: a region's visual part is its appearance feature together with sines and cosines of its place;
every word carries the whole image's; all regions of an image share one position, so their order tells nothing.

    [CLS] text [SEP] (second text [SEP]) whole-image region region ... [END]

Source: jackroos/VL-BERT `common/visual_linguistic_bert.py`, `common/fast_rcnn.py`, `*/modules/resnet_vlbert_for_*.py`,
whose geometry (centre, width, height) is not that of the paper (corners). Shapes in this file: B texts, V images, T
text positions, R regions an image with the whole image's before them, D model width, F feature width, N tokens of all
sequences.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from extractors.resnet import ResNetConfig
from trainers.batch import Batch, Part, Regions, Text
from trainers.models.fast_rcnn import FastRCNN, hide
from trainers.models.heads import Transform, WordHead
from trainers.models.layers import (
    Encoder,
    LayerConfig,
    Pooler,
    PostNormLayer,
    Spans,
    States,
    host_lengths,
    init_bert,
    packed_order,
)

WAVES = 256  # sines, and as many cosines, of each of a box's four numbers
VISUAL_SEGMENT = 2
BASE = LayerConfig()
LARGE = LayerConfig(dim=1024, heads=16, hidden=4096)  # with 24 layers


@dataclass(frozen=True)
class VLBertConfig:
    """One VL-BERT; the defaults are the base model's.

    vocabulary      words of the tokenizer (BERT's, uncased)
    positions       rows of the position table
    feature_dim     F, width of a region's appearance feature
    body            of the network that is trained along; None: features come from a cache
    heads           what it answers, out of HEADS
    answers         of the VQA head
    region_classes  of masked RoI classification: the detector's, with the background
    object_classes  of VCR's object loss: COCO's, 0 for the whole image
    text_only       whether it also takes batches without images (pre-training beside a text corpus)
    mask_id         the token at which questions are answered
    silent          whether regions begin without their visual part, as where the rest is BERT's, not random
    """

    layer: LayerConfig = BASE
    layers: int = 12
    vocabulary: int = 30522
    positions: int = 512
    feature_dim: int = 2048
    body: ResNetConfig | None = None
    heads: tuple[str, ...] = ("mlm", "mvrc")
    answers: int = 3129
    region_classes: int = 1601
    object_classes: int = 81
    text_only: bool = False
    mask_id: int = 103
    silent: bool = True

    def __post_init__(self) -> None:
        unknown = [name for name in self.heads if name not in HEADS]
        if unknown:
            raise ValueError(f"VL-BERT has no head {unknown[0]!r}; choose out of {', '.join(HEADS)}")


@dataclass(frozen=True, eq=False)
class Layout(Part):
    """Where a batch's words and regions go; made on the host, with no question to the device.

    text_rows     (N of text,) int64   the real tokens among B * T
    text_images   (N of text,) int64   the first region (the whole image) of each token's image, among the real regions
    region_rows   (N of V,) int64      the real regions among V * R
    region_of     (N of B,) int64      the regions of every sequence, among the real ones: images may be shared
    order         (N,) int64           rows of text, regions and [END]s, one after the other, that make the sequences
    positions     (N,) int64
    text_lengths, visual_lengths  (B,) int64
    """

    spans: Spans
    text_rows: Tensor
    text_images: Tensor
    region_rows: Tensor
    region_of: Tensor
    order: Tensor
    positions: Tensor
    text_lengths: Tensor
    visual_lengths: Tensor


class VLBert(nn.Module):
    """Batches of text and regions to states; `heads` turn states into logits."""

    def __init__(self, config: VLBertConfig) -> None:
        super().__init__()
        self.config, dim = config, config.layer.dim
        self.word = nn.Embedding(config.vocabulary, dim)
        self.position = nn.Embedding(config.positions, dim)
        self.segment = nn.Embedding(3, dim)
        self.end = nn.Embedding(1, dim)
        self.region_word = nn.Embedding(1, dim)
        self.norm = nn.LayerNorm(dim, config.layer.eps)
        self.dropout = nn.Dropout(config.layer.dropout)
        self.text_visual_norm = nn.LayerNorm(dim, config.layer.eps)
        self.region_visual_norm = nn.LayerNorm(dim, config.layer.eps)
        self.appearance = nn.Linear(8 * WAVES + config.feature_dim, dim)
        self.network = None if config.body is None else FastRCNN(config.body)
        masks = "mvrc" in config.heads
        self.hidden_word = nn.Embedding(1, dim) if masks else None
        self.hidden_feature = nn.Embedding(1, config.feature_dim) if masks and config.body is None else None
        self.no_image = nn.Embedding(1, dim) if config.text_only else None
        self.encoder = Encoder(PostNormLayer(config.layer) for _ in range(config.layers))
        self.pooler = Pooler(dim) if {"relationship", "vcr", "nlvr2", "rank"} & set(config.heads) else None
        self.heads = nn.ModuleDict({name: HEADS[name](config) for name in config.heads})
        self._init()

    @torch.no_grad()
    def _init(self) -> None:
        """BERT's start, but with silent visual parts: the model begins as BERT. With none to begin as, regions
        are seen at once, and as much of what they look like as of where they are."""
        for module in self.children():
            if module is not self.network:
                module.apply(partial(init_bert, std=self.config.layer.std))
        self.text_visual_norm.weight.zero_()
        if self.config.silent:
            self.region_visual_norm.weight.zero_()
        else:  # at the official width 1: of fewer features each counts more, or the 2,048 numbers of a place drown them
            self.appearance.weight[:, 8 * WAVES :] *= (8 * WAVES / self.config.feature_dim) ** 0.5
        if self.hidden_feature is not None:
            self.hidden_feature.weight.zero_()

    def layout(self, batch: Batch) -> Layout:
        """Where the model will put each token; as `lay_out`."""
        self._regions(batch)
        return lay_out(batch)

    def forward(self, batch: Batch) -> States:
        """The last layer's states; `States.visual` are the whole image's and then the regions'.

        Raises:
            ValueError: the visual input is no regions, or the model was not built for batches without.
        """
        layout: Layout = (batch.layout or self.layout(batch)).to(self.word.weight.device)
        regions = self._regions(batch)
        x = self.dropout(self.norm(self._embed(batch.text, regions, layout)))
        x = self.encoder(x, layout.spans)
        width = 0 if regions is None else regions.boxes.shape[1] + 1
        return States(x, layout.spans, layout.text_lengths, layout.visual_lengths, batch.text.ids.shape[1], width)

    def checkpoint(self) -> None:
        """While training keep no activations inside layers: compute them again."""
        self.encoder.checkpointing = True

    def pooled(self, states: States) -> Tensor:
        """(B, D) of [CLS]."""
        assert self.pooler is not None, "this model's heads need no pooler, so it has none"
        return self.pooler(states.first)

    def _regions(self, batch: Batch) -> Regions | None:
        if batch.visual is None and self.no_image is None:
            raise ValueError("a batch without images needs a VL-BERT that was built with text_only; give it regions")
        return _regions(batch)

    def _embed(self, text: Text, regions: Regions | None, layout: Layout) -> Tensor:
        """The sum of each token's parts, (N, D)."""
        rows, visual, seen = layout.text_rows, [], None
        if regions is not None:
            objects = self.see(regions, layout)
            whose = layout.text_images
            seen = objects.index_select(0, whose if text.tags is None else whose + text.tags.flatten()[rows])
            normed = self.region_visual_norm(objects).index_select(0, layout.region_of)
            visual.append(self._region_words(regions, layout) + normed)
        elif self.no_image is not None:
            seen = self.no_image.weight
        words = self.word(text.ids.flatten()[rows]) + self.text_visual_norm(seen)
        x = torch.cat([words, *visual, self.end.weight.expand(len(text), -1)])
        segments = torch.zeros_like(rows) if text.segments is None else text.segments.flatten()[rows]
        segments = torch.cat([segments, segments.new_full((len(x) - len(rows),), VISUAL_SEGMENT)])
        return (x + self.segment(segments)).index_select(0, layout.order) + self.position(layout.positions)

    def see(self, regions: Regions, layout: Layout) -> Tensor:
        """The visual part (N of V, D) of every real region, each image's whole image first."""
        return torch.relu(self.appearance(self.dropout(self.seen_of(regions, layout))))

    def seen_of(self, regions: Regions, layout: Layout) -> Tensor:
        """(N of V, 8 * WAVES + F): place and feature of every real region, each image's whole image first."""
        width, height = regions.image_sizes[:, 1], regions.image_sizes[:, 0]
        whole = torch.stack([torch.zeros_like(width), torch.zeros_like(width), width - 1, height - 1], dim=-1)
        boxes = torch.cat([whole[:, None], regions.boxes], dim=1).flatten(0, 1)[layout.region_rows]
        image = layout.region_rows // (regions.boxes.shape[1] + 1)
        cached = regions.pixels is None
        features = self._cached(regions, layout) if cached else self._fresh(regions, boxes, image, layout)
        place = geometry(boxes, regions.image_sizes[image]).to(features.dtype)
        return torch.cat([place, features], dim=-1)

    def _cached(self, regions: Regions, layout: Layout) -> Tensor:
        """(N of V, F): cached features, hidden ones replaced, behind the whole image's."""
        assert regions.features is not None
        features, hidden = regions.features.to(self.appearance.weight.dtype), regions.hidden
        whole = _mean_seen(features, regions) if regions.whole_image is None else regions.whole_image.to(features.dtype)
        if hidden is not None and self.hidden_feature is not None:
            features = torch.where(hidden[..., None], self.hidden_feature.weight.to(features.dtype), features)
        return torch.cat([whole[:, None], features], dim=1).flatten(0, 1)[layout.region_rows]

    def _fresh(self, regions: Regions, boxes: Tensor, image: Tensor, layout: Layout) -> Tensor:
        """(N of V, F): features of the pixels, the hidden ones blacked out."""
        assert regions.pixels is not None
        if self.network is None:
            raise ValueError("this VL-BERT has no network for pixels; build it with a body, or give cached features")
        pixels, outlines = regions.pixels, regions.outlines
        if regions.hidden is not None:
            pixels = hide(self.network.ready(pixels), regions.boxes, regions.hidden)
        if outlines is not None:
            outlines = torch.cat([torch.ones_like(outlines[:, :1]), outlines], dim=1).flatten(0, 1)[layout.region_rows]
        return self.network(pixels, torch.cat([image[:, None].to(boxes.dtype), boxes], dim=1), outlines)

    def _region_words(self, regions: Regions, layout: Layout) -> Tensor:
        """(N of B, D), or (1, D) where none is hidden: what stands where a region has no word."""
        if regions.hidden is None or self.hidden_word is None:
            return self.region_word.weight
        shown = torch.zeros_like(regions.hidden[:, :1])  # the whole image is never hidden
        hidden = torch.cat([shown, regions.hidden], dim=1).flatten()[layout.region_rows][layout.region_of]
        return torch.where(hidden[:, None], self.hidden_word.weight, self.region_word.weight)


def lay_out(batch: Batch) -> Layout:
    """Where a VL-BERT will put each token: on the CPU, best in the process that loads the data.

    `Batch.layout` takes it along; without it the model asks for it, and where the batch does not know its lengths on
    the host, waits for the device.

    Raises:
        ValueError: the visual input is no regions.
    """
    text, regions = batch.text, _regions(batch)
    words = np.array(host_lengths(text))
    starts = np.arange(len(words)) * text.ids.shape[1]
    seen = np.zeros(0, np.int64)  # regions of each image, the whole image among them
    counts = np.zeros_like(words)  # regions of each sequence
    region_rows, first = seen, counts
    if regions is not None:
        seen = np.array(host_lengths(regions)) + 1
        image_of = np.arange(len(words)) if batch.image_of is None else np.array(batch.image_of)
        region_rows = packed_order([np.arange(len(seen)) * (regions.boxes.shape[1] + 1)], [seen])
        first, counts = (np.cumsum(seen) - seen)[image_of], seen[image_of]
    ends = np.arange(len(words)) + words.sum() + counts.sum()
    parts = [np.cumsum(words) - words, words.sum() + np.cumsum(counts) - counts, ends]
    lengths = [words, counts, np.ones_like(words)]
    places = [[*range(w), *[w] * c, w + 1] for w, c in zip(words.tolist(), counts.tolist(), strict=True)]
    arrays = (
        packed_order([starts], [words]),
        np.repeat(first, words),
        region_rows,
        packed_order([first], [counts]),
        packed_order(parts, lengths),
        np.concatenate(places),
        words,
        counts,
    )
    return Layout(Spans.of((words + counts + 1).tolist()), *(torch.from_numpy(each) for each in arrays))


def _regions(batch: Batch) -> Regions | None:
    if not isinstance(batch.visual, Regions | None):
        raise ValueError(f"VL-BERT reads regions, not {type(batch.visual).__name__}; use a store of regions")
    return batch.visual


def geometry(boxes: Tensor, image_sizes: Tensor) -> Tensor:
    """Places as sines and cosines: (..., 4) boxes in images (..., 2) of height, width to (..., 8 * WAVES) float32.

    Of centre x, centre y, width and height as hundredths of the image, in this order, 256 sines and then 256 cosines
    each. Source: jackroos/VL-BERT `common/utils/bbox.py`, coordinate_embeddings.
    """
    low, high, size = boxes[..., :2].float(), boxes[..., 2:].float(), image_sizes.flip(-1).float()
    numbers = torch.cat([(low + high) / 2 / size, (high - low) / size], dim=-1) * 100
    exponents = torch.arange(WAVES, device=boxes.device, dtype=torch.float32) / WAVES
    angles = numbers[..., None] / 1000**exponents
    return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(-2)


def _mean_seen(features: Tensor, regions: Regions) -> Tensor:
    """(V, F): the mean of the regions that are real and not hidden, with the 1e-5 of pre-training where some may be."""
    seen = torch.ones(features.shape[:2], dtype=torch.bool, device=features.device)
    if regions.mask is not None:
        seen = regions.mask
    if regions.hidden is None:
        return (features * seen[..., None]).sum(1) / seen.sum(1, keepdim=True).clamp(min=1)
    seen = seen & ~regions.hidden
    return (features * seen[..., None]).sum(1) / (seen.sum(1, keepdim=True) + 1e-5)


class AnswerHead(nn.Module):
    """VQA: BERT's transform of the answer token's state, then a decoder of its own."""

    def __init__(self, config: VLBertConfig) -> None:
        super().__init__()
        self.transform = Transform(config.layer.dim)
        self.dropout = nn.Dropout(0.1)
        self.decoder = nn.Linear(config.layer.dim, config.answers)

    def forward(self, states: Tensor) -> Tensor:
        return self.decoder(self.dropout(self.transform(states)))


def _two_layers(config: VLBertConfig, classes: int, states: int = 1) -> nn.Sequential:
    """Of so many states side by side."""
    dim = config.layer.dim
    return nn.Sequential(nn.Linear(states * dim, dim), nn.GELU(), nn.Linear(dim, classes))


HEADS: dict[str, Callable[[VLBertConfig], nn.Module]] = {
    "mlm": lambda c: WordHead(c.layer.dim, c.vocabulary, tied=True),  # of text states and the word embeddings
    "mvrc": lambda c: _two_layers(c, c.region_classes),  # of region states
    "relationship": lambda c: nn.Linear(c.layer.dim, 2),  # of the pooled state; off in all released configs
    "vqa": AnswerHead,  # of the state at [MASK]
    "vcr": lambda c: nn.Sequential(nn.Dropout(0.1), nn.Linear(c.layer.dim, 1)),  # of the pooled state of each choice
    "vcr_objects": lambda c: _two_layers(c, c.object_classes),  # of region states, the whole image's, too
    "refcoco": lambda c: _two_layers(c, 1),  # of region states, the whole image's, too
    # No task of its paper: for comparisons with models that have them.
    "nlvr2": lambda c: _two_layers(c, 2, states=2),  # of both images' pooled states, side by side
    "rank": lambda c: nn.Linear(c.layer.dim, 1),  # of the pooled state: how well text and image go together
}


def answer_states(states: States, ids: Tensor, mask_id: int) -> Tensor:
    """(B, D): the state of each text's first [MASK], where VL-BERT answers questions."""
    place = states.spans.offsets[:-1] + (ids == mask_id).int().argmax(1)
    return states.tokens.index_select(0, place)
