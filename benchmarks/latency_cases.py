"""What `latency.py` times: one question about one image, from resized pixels to an answer, as each model sees it.

A case is made once, with random weights, and then run many times; it says when a stage ends. The stages are those of
ViLT's figure 1: "visual", pixels to the tokens that the transformer reads; "transformer", these and the words to
states; "heads", states to scores of 3,129 answers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.model_cases import texts
from extractors import RegionConfig, make_extractor
from extractors.images import ImageError
from extractors.networks import GRID_MODELS, grid_colours
from extractors.resnet import ResNetConfig, fold
from trainers.batch import Batch, Cells, Pixels, Regions, from_records
from trainers.images import grid_pixels, meter_square, square_pixels, vilt_pixels
from trainers.models.adapters import Adapter, AdapterConfig
from trainers.models.grid_vlp import GridNetwork, GridVLP, GridVLPConfig
from trainers.models.image_towers import IMAGE_TOWERS
from trainers.models.meter import Meter, MeterConfig
from trainers.models.published_grid import load_grid_network
from trainers.models.text_towers import TextTowerConfig
from trainers.models.vilt import ViLT, ViLTConfig
from trainers.models.vl_bert import VLBert, VLBertConfig, answer_states

SIZE = (480, 640)  # height, width: most of COCO's images
RANDOM, HEAD = "random:0", "vqa"
GRID_WORDS, VILT_WORDS, METER_WORDS = 20, 40, 50  # the longest texts of each paper
BODIES = {
    "x50": ResNetConfig(50, groups=32, width_per_group=8),
    **{name: GRID_MODELS[name].body for name in GRID_MODELS},
}
CAFFE_BOXES, GRID_BOXES = 36, 100

Mark = Callable[[str], None]
Run = Callable[[Mark], None]


@dataclass(frozen=True)
class Where:
    """On what, and in what number type: as torch knows it, and as `--dtype` of an extraction."""

    device: torch.device
    dtype: str

    def put(self, module: nn.Module) -> Any:
        """A module there, for inference."""
        return module.to(self.device, getattr(torch, self.dtype)).eval()


def image() -> np.ndarray:
    """(480, 640, 3) uint8 RGB: noise. No stage's work depends on what is seen, once the number of boxes is fixed."""
    return np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)


def answered(model: Any, batch: Batch, mark: Mark, pooled: Callable[[Any], Tensor] | None = None) -> None:
    """The last two stages."""
    states = model(batch)
    mark("transformer")
    model.heads[HEAD]((pooled or model.pooled)(states))
    mark("heads")


def grid_vlp(body: str, shorter: int = 600, longer: int = 1000, pool: int = 1) -> Callable[[Where], Run]:
    """The map of a network with fixed weights, one token a cell; `pool` 2 is PixelBERT's."""
    config = GridVLPConfig(body=BODIES[body], colours=grid_colours("x152"), pool=pool, heads=(HEAD,))

    def make(where: Where) -> Run:
        network = GridNetwork(config)
        load_grid_network(network, RANDOM)
        fold(network)
        network = where.put(network).to(memory_format=torch.channels_last)
        model = where.put(GridVLP(replace(config, body=None, pool=1)))
        pixels, text = grid_pixels([image()], shorter, longer), texts(1, GRID_WORDS, full=True)

        def run(mark: Mark) -> None:
            cells = Cells(network(pixels.to(where.device))[None])
            mark("visual")
            answered(model, Batch(text.to(where.device), cells), mark)

        return run

    return make


def detected(where: Where, model: str, boxes: int) -> Callable[[], Regions]:
    """The features of so many boxes: of a detector, by the 10-100 rule, which always finds them."""
    many: Any = {"selection": "10-100", "min_boxes": boxes, "max_boxes": boxes}
    extractor = make_extractor(
        RegionConfig(model=model, weights=RANDOM, dtype=where.dtype, device=str(where.device), **many)  # type: ignore[arg-type]
    )
    prepared = extractor.prepare("image", image())

    def run() -> Regions:
        [record] = extractor.extract([prepared])
        if isinstance(record, ImageError):
            raise record
        regions = from_records([record]).to(where.device)
        assert isinstance(regions, Regions) and regions.boxes.shape[1] == boxes
        return regions

    return run


def grid_vlp_on_regions(where: Where) -> Run:
    """Grid-VLP's transformer over the boxes of the detector that the grid network was trained as."""
    regions = detected(where, "grid-x152", GRID_BOXES)
    model = where.put(GridVLP(GridVLPConfig(feature_dim=1024, heads=(HEAD,))))
    text = texts(1, GRID_WORDS, full=True)

    def run(mark: Mark) -> None:
        features = regions().features
        assert features is not None
        mark("visual")
        answered(model, Batch(text.to(where.device), Cells(features)), mark)

    return run


def vl_bert(where: Where) -> Run:
    """One transformer over words and 36 boxes of the bottom-up detector."""
    regions = detected(where, "butd-r101", CAFFE_BOXES)
    model = where.put(VLBert(VLBertConfig(heads=(HEAD,))))
    text = texts(1, GRID_WORDS, full=True)
    text.ids[0, -2] = model.config.mask_id

    def run(mark: Mark) -> None:
        seen = regions()
        mark("visual")
        batch = Batch(text.to(where.device), seen)
        answered(model, batch, mark, lambda states: answer_states(states, batch.text.ids, model.config.mask_id))

    return run


def adapter(name: str) -> Callable[[Where], Run]:
    """transformers' LXMERT or VisualBERT over 36 boxes of the bottom-up detector."""

    def make(where: Where) -> Run:
        regions = detected(where, "butd-r101", CAFFE_BOXES)
        model = where.put(Adapter(AdapterConfig(name, RANDOM)))
        text = texts(1, GRID_WORDS, full=True)

        def run(mark: Mark) -> None:
            seen = regions()
            mark("visual")
            answered(model, Batch(text.to(where.device), seen), mark)

        return run

    return make


def vilt(where: Where) -> Run:
    """ViLT-B/32; what is before its transformer, the words' embedding too, is "visual"."""
    model = where.put(ViLT(ViLTConfig(heads=(HEAD,))))
    batch = Batch(texts(1, VILT_WORDS, full=True), vilt_pixels([image()]))

    def run(mark: Mark) -> None:
        embedded = model.encoder.register_forward_pre_hook(lambda *_: mark("visual"))
        answered(model, batch.to(where.device), mark)
        embedded.remove()

    return run


def meter(tower: str, size: int) -> Callable[[Where], Run]:
    """METER with RoBERTa and co-attention; the text encoder counts to "transformer"."""
    image_config = replace(IMAGE_TOWERS[tower], weights=RANDOM, size=size)

    def make(where: Where) -> Run:
        model = where.put(Meter(MeterConfig(TextTowerConfig("roberta", RANDOM), image_config, heads=(HEAD,))))
        pixels: Pixels = square_pixels([image()], meter_square(size, imagenet="swin" in tower))
        text = texts(1, METER_WORDS, full=True)

        def run(mark: Mark) -> None:
            seen = model.see(pixels.to(where.device))
            mark("visual")
            states = model.fuse(text.to(where.device), seen)
            mark("transformer")
            model.heads[HEAD](model.pooled(states))
            mark("heads")

        return run

    return make


CASES: dict[str, Callable[[Where], Run]] = {
    "grid-vlp-x50": grid_vlp("x50"),
    "grid-vlp-x101": grid_vlp("x101"),
    "grid-vlp-x152": grid_vlp("x152"),
    "grid-vlp-x152-regions": grid_vlp_on_regions,
    "grid-vlp-x152-448-448": grid_vlp("x152", 448, 448),
    "grid-vlp-x152-448-746": grid_vlp("x152", 448, 746),
    "visual-bert": adapter("visual_bert"),
    "lxmert": adapter("lxmert"),
    "vl-bert": vl_bert,
    "pixel-bert-x152": grid_vlp("x152", pool=2),
    "vilt": vilt,
    "meter-swin": meter("swin-b-384", 384),
    "meter-clip": meter("clip-b16-224", 576),
}
