"""Grid features: the last map of a ResNet or ResNeXt, one feature a cell of 32 x 32 pixels.

Source: facebookresearch/grid-feats-vqa `extract_grid_feature.py` and `configs/*-grid.yaml`, `X-152-challenge.yaml`
(Jiang et al. 2020, "In Defense of Grid Features for Visual Question Answering").
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from extractors.base import (
    Extractor,
    ExtractorConfig,
    Prepared,
    model_facts,
    narrowed,
    pick_device,
    pil_facts,
    prepare_pil,
)
from extractors.images import ImageError
from extractors.resnet import ResNet, ResNetConfig, infer_config
from extractors.weights import Checkpoint, WeightsError, fill, find_weights
from storage.records import GridRecord, Record
from storage.spec import FeatureLayout, Spec

MEAN_BGR = (103.53, 116.28, 123.675)
UNIT_STD = (1.0, 1.0, 1.0)
X101_STD = (57.375, 57.12, 58.395)  # of the X-101 alone: the other three networks were trained on 0..255


@dataclass(frozen=True)
class GridModel:
    """A grid network: its body, the deviation its pixels are divided by, and the name of its official config."""

    body: ResNetConfig
    upstream: str
    std: tuple[float, float, float] = UNIT_STD


_X152 = ResNetConfig(depth=152, groups=32, width_per_group=8)
MODELS = {
    "r50": GridModel(ResNetConfig(depth=50), "R-50-grid"),
    "x101": GridModel(ResNetConfig(depth=101, groups=32, width_per_group=8), "X-101-grid", X101_STD),
    "x152": GridModel(_X152, "X-152-grid"),
    "x152pp": GridModel(replace(_X152, deform_stages=(4, 5)), "X-152-challenge"),
}


@dataclass(frozen=True)
class GridConfig(ExtractorConfig):
    """Settings of a grid extraction."""

    model: Literal["r50", "x101", "x152", "x152pp"] = "x101"
    """Network: ResNet-50, ResNeXt-101 or -152, or the deformable ResNeXt-152 (X-152++)."""


class GridExtractor(Extractor):
    """Pixels to `GridRecord`s.

    Raises:
        ConfigError, WeightsError: the settings, or the weights, do not fit.
    """

    def __init__(self, config: GridConfig) -> None:
        model = MODELS[config.model]
        self.config = config
        self.device = pick_device(config.device)
        published = f"grid-{config.model}"
        checkpoint = find_weights(config.weights or published, fitting=(published,))
        body = body_for(config, model, checkpoint)
        self.network = ResNet(body).eval()
        holder = torch.nn.ModuleDict({"backbone": self.network})  # checkpoints name it so
        digest = fill(holder, checkpoint, f"grid network {config.model}")
        self.network.to(self.device).to(memory_format=torch.channels_last)
        self.mean, self.std = (torch.tensor(each, device=self.device)[:, None, None] for each in (MEAN_BGR, model.std))
        self.vocabulary = {}
        self.spec = Spec(
            view="grid",
            layout=FeatureLayout(body.out_channels(5), config.store_dtype),
            model=model_facts(config, checkpoint, digest),
            preprocess=pil_facts(config, MEAN_BGR, model.std),
        )

    def prepare(self, key: str, image: np.ndarray) -> Prepared:
        return prepare_pil(key, image, self.config)

    def forward(self, batch: list[Prepared]) -> list[Record | ImageError]:
        x = torch.stack([image.pixels for image in batch]).to(self.device, non_blocking=True)
        maps = self.network((x.float() - self.mean) / self.std)
        return [self._record(image, cells) for image, cells in zip(batch, maps.float(), strict=True)]

    def _record(self, image: Prepared, cells: torch.Tensor) -> Record | ImageError:
        try:
            return GridRecord(image.key, image.image_size, self.to_numpy(cells.permute(1, 2, 0).contiguous()))
        except ImageError as error:
            return error


def body_for(config: GridConfig, model: GridModel, checkpoint: Checkpoint) -> ResNetConfig:
    """The body to build: the model's own, narrowed where asked; a reference folder's is read off its weights."""
    body = narrowed(model.body, config, checkpoint)
    if not checkpoint.is_reference or checkpoint.tensors is None:
        return body
    if checkpoint.upstream and checkpoint.upstream != model.upstream:
        raise WeightsError(
            f"{checkpoint.description} was made with {checkpoint.upstream}, and {config.model} is {model.upstream}; "
            "choose another --model."
        )
    shapes = {n.removeprefix("backbone."): t.shape for n, t in checkpoint.tensors.items() if n.startswith("backbone.")}
    try:
        body = infer_config(shapes, last_stage=5, ceil_pool=False)
    except KeyError as error:
        raise WeightsError(
            f"{checkpoint.description} is not a grid network (no {error}); is it for `regions`?"
        ) from error
    if (body.groups > 1, body.deform_stages) != (model.body.groups > 1, model.body.deform_stages):
        raise WeightsError(
            f"{checkpoint.description} is not a {config.model}: it has groups {body.groups} and deformable stages "
            f"{list(body.deform_stages)}; choose another --model."
        )
    return body
