"""Grid features: the last map of a ResNet or ResNeXt, one feature a cell of 32 x 32 pixels.

Source: facebookresearch/grid-feats-vqa `extract_grid_feature.py` and `configs/*-grid.yaml`, `X-152-challenge.yaml`
(Jiang et al. 2020, "In Defense of Grid Features for Visual Question Answering"). The bottom-up detector gives grids,
too: its box head, res5, over the whole of res4, as that project's `AttributeRes5ROIHeads.get_conv5_features` does for
detectors of this kind. Its res5 keeps res4's size, so these cells are 16 x 16 pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from extractors.base import Prepared, device_for, model_facts
from extractors.configs import BUTD, GRID_PREFIX, GridConfig
from extractors.faster_rcnn import RoIHeads
from extractors.fused import compute_dtype
from extractors.images import ImageError
from extractors.networks import LoadedDetector, as_in_checkpoints, grid_body, grid_colours, load_detector
from extractors.ragged import Areas, own_cells
from extractors.resnet import ResNet, Stage, fold, redilated
from extractors.trunk import Colours, Results, TrunkExtractor
from extractors.weights import Checkpoint, fill, find_weights
from storage.records import GridRecord, Record
from storage.spec import FeatureLayout, Spec

BUTD_STRIDE = 16  # its res5 does not step, it is dilated


@dataclass(frozen=True)
class _Parts:
    """What a grid extractor is made of: `network` up to res4, then `res5`; sha256 is of the weights."""

    network: ResNet
    res5: Stage
    colours: Colours
    checkpoint: Checkpoint
    sha256: str


class GridExtractor(TrunkExtractor):
    """Pixels to `GridRecord`s.

    Args:
        detector: a detector whose network it is to use, with these very weights: nothing is loaded then.

    Raises:
        ConfigError, WeightsError: the settings, or the weights, do not fit.
    """

    def __init__(self, config: GridConfig, detector: LoadedDetector | None = None) -> None:
        if config.model == BUTD:
            parts = _box_head_of(detector or load_detector(BUTD, config))
        else:
            parts = _backbone_of(detector) if detector else _load(config)
        super().__init__(config, parts.network, parts.colours)
        self.res5 = parts.res5
        self.vocabulary = {}
        self.spec = Spec(
            view="grid",
            layout=FeatureLayout(parts.network.config.out_channels(5), config.store_dtype),
            model={
                **model_facts(config, parts.checkpoint, parts.sha256),
                **({"stride": BUTD_STRIDE} if config.model == BUTD else {}),  # of a cell, where it is not 32 pixels
            },
            preprocess=self.preprocess_facts(),
        )

    def finish(self, batch: list[Prepared], res4: Tensor, areas: Areas | None) -> Results:
        maps: Tensor = self.res5(res4, areas)
        cells, shapes = own_cells(maps, len(batch), areas)
        arrived = self.leaving(cells.float(), shapes)

        def results() -> list[Record | ImageError]:
            return [
                each if isinstance(each, ImageError) else GridRecord(image.key, image.image_size, each)
                for image, each in zip(batch, arrived(), strict=True)
            ]

        return results


def _load(config: GridConfig) -> _Parts:
    """A grid network of its own."""
    device = device_for(config)
    published = f"{GRID_PREFIX}{config.model}"
    checkpoint = find_weights(config.weights or published, fitting=(published,))
    network = ResNet(grid_body(config.model, config, checkpoint)).eval()
    sha256 = fill(as_in_checkpoints(network), checkpoint, f"grid network {config.model}")
    fold(network)
    network.to(device, compute_dtype(config.dtype)).to(memory_format=torch.channels_last)
    return _Parts(network, network.res5, grid_colours(config.model), checkpoint, sha256)


def _backbone_of(loaded: LoadedDetector) -> _Parts:
    """The backbone of a grid network's detector, its res5 back to a step of 2 as in the official extraction."""
    network = loaded.detector.backbone
    res5 = redilated(network.res5, network.config, dilation=1)
    return _Parts(network, res5, loaded.colours, loaded.checkpoint, loaded.backbone_sha256)


def _box_head_of(loaded: LoadedDetector) -> _Parts:
    """The bottom-up detector's backbone and box head."""
    heads = loaded.detector.roi_heads
    assert isinstance(heads, RoIHeads)
    return _Parts(loaded.detector.backbone, heads.res5, loaded.colours, loaded.checkpoint, loaded.sha256)
