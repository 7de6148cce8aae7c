"""An extractor of one's own: the last map of torchvision's MobileNetV3 as a grid, in a store like any other.
WEIGHTS is a state dict's file, or random:SEED. With `ray` the settings travel, and each actor builds its own.

    uv run python examples/own_extractor.py IMAGES STORE WEIGHTS [ray]
"""

import sys
from dataclasses import dataclass

import torch
from torchvision.models import mobilenet_v3_small

from extractors import Extractor, ImageError, Prepared
from extractors.base import device_for, pil_facts, prepare_pil
from extractors.configs import NetworkConfig, ResizedConfig
from extractors.weights import fill, find_weights
from pipeline.config import EngineConfig, ExtractJob
from pipeline.job import run_job
from pipeline.sources import SourceConfig
from storage import FeatureLayout, GridRecord, Spec
from workflows.progress import TerminalProgress, summary

MEAN, STD = (103.53, 116.28, 123.675), (57.375, 57.12, 58.395)  # of ImageNet; blue first, as pixels are prepared


@dataclass(frozen=True)
class MobileConfig(ResizedConfig, NetworkConfig):
    view = "grid"
    shorter: int = 224
    longer: int = 448

    def make(self):
        return MobileExtractor(self)


class MobileExtractor(Extractor):
    def __init__(self, config):
        self.config, self.device, self.vocabulary = config, device_for(config), {}
        checkpoint, network = find_weights(config.weights), mobilenet_v3_small()
        weights = {"origin": checkpoint.origin, "sha256": fill(network, checkpoint, "mobilenet_v3_small")}
        self.network = network.features.eval().requires_grad_(False).to(self.device)
        self.mean, self.std = (torch.tensor(each, device=self.device)[:, None, None] for each in (MEAN, STD))
        model = {"name": "mobilenet_v3_small", "weights": weights, "dtype": config.dtype}
        self.spec = Spec("grid", FeatureLayout(576, config.store_dtype), model, pil_facts(config, MEAN, STD))

    def prepare(self, key, image):  # on the CPU, in a thread
        return prepare_pil(key, image, self.config)

    def forward(self, batch: list[Prepared]):  # on the device, images of one size
        pixels = torch.stack([image.pixels for image in batch]).to(self.device)
        maps = self.network(((pixels - self.mean) / self.std).flip(1))
        found = zip(batch, self.to_numpy(list(maps.permute(0, 2, 3, 1).float())), strict=True)
        return [c if isinstance(c, ImageError) else GridRecord(i.key, i.image_size, c) for i, c in found]


if __name__ == "__main__":
    images, store, weights, engine = [*sys.argv[1:], "local"][:4]
    job = ExtractJob(SourceConfig(images), MobileConfig(weights=weights), EngineConfig(store, engine=engine))
    print(summary(run_job(job, TerminalProgress())))
