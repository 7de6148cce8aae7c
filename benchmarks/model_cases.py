"""What `models.py` times: the models at their papers' sizes, and the batches that they read, made up.

Groups read the same batch. "mixed" batches have the shapes of photographs and texts of 9 to 20 words, padded; "uniform"
ones one shape and full texts, so that nothing is padded. Shapes in this file: B pairs, T text positions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import cycle, islice
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from extractors.configs import PatchConfig
from extractors.networks import GRID_MODELS, grid_colours
from trainers.batch import Batch, Cells, Pixels, Regions, Text, stack_pixels
from trainers.models.adapters import Adapter, AdapterConfig
from trainers.models.grid_vlp import GridVLP, GridVLPConfig, lay_out
from trainers.models.layers import LayerConfig
from trainers.models.meter import Meter, MeterConfig
from trainers.models.published import load_vilt
from trainers.models.published_grid import load_grid_network
from trainers.models.text_towers import TextTowerConfig
from trainers.models.vilt import ViLT, ViLTConfig
from trainers.models.vl_bert import VLBert, VLBertConfig

T = TypeVar("T")
LAYER = LayerConfig(dropout=0, attention_dropout=0)
WORDS = (12, 9, 15, 20, 11, 13, 10, 17)
VILT_SHAPES = ((384, 512), (512, 384), (384, 576), (384, 384), (384, 512), (384, 512), (576, 384), (384, 544))
GRID_SHAPES = ((600, 800), (800, 600), (600, 900), (600, 600), (600, 800), (600, 800), (900, 600), (600, 1000))
LARGEST = (600, 1000)  # pixels: 19 x 32 cells
CELL = 32
FEATURES = 2048
METER_SIDE = 288
DRAWN = 100
UNUSED: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


@dataclass(frozen=True)
class Model:
    """One model to time.

    make    builds it, on the CPU
    run     the pass: the module and a batch to what a loss is taken of, (B, ...)
    theirs  whether it is transformers': what the others are compared with
    """

    make: Callable[[], nn.Module]
    run: Callable[[Any, Batch], Tensor]
    theirs: bool = False


@dataclass(frozen=True)
class Group:
    """Models that read the same batches.

    batches  by kind: from B to a batch on the CPU
    share    of the batch size asked for: large images come in fewer
    """

    models: dict[str, Model]
    batches: dict[str, Callable[[int], Batch]]
    share: float = 1.0


def some(values: tuple[T, ...], count: int) -> list[T]:
    """The values in turn."""
    return list(islice(cycle(values), count))


def texts(count: int, width: int, full: bool) -> Text:
    """Random words."""
    lengths = [width] * count if full else some(WORDS, count)
    mask = torch.arange(width) < torch.tensor(lengths)[:, None]
    return Text(torch.randint(1000, 30000, mask.shape), mask)


def with_pixels(shapes: tuple[tuple[int, int], ...], width: int, full: bool) -> Callable[[int], Batch]:
    """Images of these shapes, as numbers that need no more normalising."""
    return lambda count: Batch(
        texts(count, width, full), stack_pixels([torch.randn(3, *shape) for shape in some(shapes, count)])
    )


def with_regions(most: int, adaptive: bool, full: bool) -> Callable[[int], Batch]:
    """Boxes with features; adaptive: 10 to `most` of them."""

    def make(count: int) -> Batch:
        lengths = torch.randint(10, most + 1, (count,)) if adaptive else torch.full((count,), most)
        mask = torch.arange(most) < lengths[:, None]
        corner = torch.rand(count, most, 2) * 200
        boxes = torch.cat([corner, corner + 20 + torch.rand(count, most, 2) * 200], dim=-1)
        sizes = torch.tensor([480.0, 640.0]).expand(count, 2)
        return Batch(texts(count, 20, full), Regions(boxes, sizes, mask, torch.randn(count, most, FEATURES)))

    return make


def with_cells(shapes: tuple[tuple[int, int], ...], full: bool) -> Callable[[int], Batch]:
    """Grids of images of these shapes."""

    def make(count: int) -> Batch:
        grids = [(-(-height // CELL), -(-width // CELL)) for height, width in some(shapes, count)]
        lengths = torch.tensor([down * across for down, across in grids])
        mask = torch.arange(int(lengths.max())) < lengths[:, None]
        cells = Cells(torch.randn(*mask.shape, FEATURES), mask, tuple(grids))
        return Batch(texts(count, 20, full), cells)

    return make


def pooled(model: Any, batch: Batch) -> Tensor:
    """Forward and the pooler."""
    found: Tensor = model.pooled(model(batch))
    return found


def drawn(model: GridVLP, batch: Batch) -> Tensor:
    """Of 100 cells an image, as pre-training has it, whether it trains or not."""
    return model.pooled(model(replace(batch, layout=lay_out(model.config, batch, training=True))))


def vilt_of_theirs(model: Any, batch: Batch) -> Tensor:
    """Our batch as transformers' arguments."""
    pixels = batch.visual
    assert isinstance(pixels, Pixels)
    mask = torch.ones_like(batch.text.ids) if batch.text.mask is None else batch.text.mask.long()
    found: Tensor = model(
        input_ids=batch.text.ids,
        attention_mask=mask,
        pixel_values=pixels.images,
        pixel_mask=pixels.inside().long(),
    ).pooler_output
    return found


def their_vilt() -> nn.Module:
    from transformers import ViltConfig, ViltModel

    torch.manual_seed(0)
    return ViltModel(ViltConfig(max_image_length=-1, layer_norm_eps=1e-12, **UNUSED))


def vilt() -> ViLT:
    """With transformers' weights, so that both compute the same."""
    model = ViLT(ViLTConfig(LAYER, heads=()))
    load_vilt(model, their_vilt().state_dict())
    return model


def vl_bert() -> VLBert:
    return VLBert(VLBertConfig(LAYER, heads=("relationship",)))


def grid_vlp(**changes: Any) -> GridVLP:
    return GridVLP(GridVLPConfig(LAYER, heads=(), **changes))


def pixel_bert() -> GridVLP:
    """With ResNet-50, tuned, and the map halved once more."""
    model = grid_vlp(body=GRID_MODELS["r50"].body, colours=grid_colours("r50"), tuned=True, pool=2)
    load_grid_network(model.network, "random:0")
    return model


def meter(fusion: str, layers: int) -> Meter:
    """CLIP B/16 and RoBERTa with random weights, 288 pixels a side."""
    clip = PatchConfig(model="timm:vit_base_patch16_clip_quickgelu_224", weights="random:0", layer=-2, size=METER_SIDE)
    roberta = TextTowerConfig("roberta", "random:0", UNUSED)
    return Meter(MeterConfig(roberta, clip, layer=LAYER, fusion=fusion, layers=layers, heads=()))


def adapter(name: str) -> Model:
    """A model of transformers on our batches."""
    return Model(lambda: Adapter(AdapterConfig(name, "random:0", UNUSED, ())), pooled, theirs=True)


_REGION_MODELS = {"vl-bert": Model(vl_bert, pooled), "LXMERT": adapter("lxmert"), "VisualBERT": adapter("visual_bert")}
_METERS = {
    "meter co-attention": Model(lambda: meter("co-attention", 6), pooled),
    "meter merged": Model(lambda: meter("merged", 12), pooled),
}
_SQUARE = ((METER_SIDE, METER_SIDE),)
GROUPS = {
    "vilt": Group(
        {"vilt": Model(vilt, pooled), "ViLT": Model(their_vilt, vilt_of_theirs, theirs=True)},
        {"mixed": with_pixels(VILT_SHAPES, 40, False), "uniform": with_pixels(VILT_SHAPES[:1], 40, True)},
    ),
    "regions-36": Group(
        _REGION_MODELS, {"mixed": with_regions(36, False, False), "uniform": with_regions(36, False, True)}
    ),
    "regions-100": Group(
        _REGION_MODELS, {"mixed": with_regions(100, True, False), "uniform": with_regions(100, False, True)}
    ),
    "grid": Group(
        {
            "grid-vlp": Model(grid_vlp, pooled),
            "grid-vlp, 100 drawn": Model(lambda: grid_vlp(sampled=DRAWN), drawn),
            "VisualBERT": adapter("visual_bert"),
        },
        {"mixed": with_cells(GRID_SHAPES, False), "uniform": with_cells((LARGEST,), True)},
        share=0.5,
    ),
    "pixel-bert": Group(
        {"pixel-bert": Model(pixel_bert, pooled)},
        {"mixed": with_pixels(GRID_SHAPES, 20, False), "uniform": with_pixels((LARGEST,), 20, True)},
        share=0.25,
    ),
    "meter": Group(
        _METERS, {"mixed": with_pixels(_SQUARE, 50, False), "uniform": with_pixels(_SQUARE, 50, True)}, share=0.5
    ),
}
