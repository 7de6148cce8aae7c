"""Patch features: the tokens of a frozen vision transformer, one a patch, of any layer.

The square that the tower sees is its own: a centre crop (CLIP, DINOv2) or the whole image squashed (ViT, SigLIP, Swin),
as its library's configuration says. METER uses CLIP without its last block, all tokens through the final normalisation
(--layer -2), and the last map of Swin. Source: zdou0830/METER `meter/modules/clip_model.py`, `swin_transformer.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from extractors.base import DECODE_POLICY, Extractor, Prepared, device_for
from extractors.configs import PatchConfig
from extractors.images import ImageError
from extractors.launching import to_device
from extractors.square import Square
from extractors.towers import Tower, TowerChoice
from extractors.weights import find_weights, tensors_sha256
from storage.records import PatchRecord, Record
from storage.spec import FeatureLayout, Spec


class PatchExtractor(Extractor):
    """Pixels to `PatchRecord`s; the class token is the record's `whole_image`, other tokens but patches are dropped.

    Raises:
        ConfigError, WeightsError: the settings, or the weights, do not fit.
    """

    def __init__(self, config: PatchConfig) -> None:
        self.config = config
        self.device = device_for(config)
        seed = _seed(config.weights)
        self.tower = make_tower(config).requires_grad_(False).eval()
        digest = tensors_sha256(self.tower)
        self.tower.to(self.device)
        self.square = self.tower.square
        self.mean, self.std = (
            torch.tensor(each, device=self.device)[:, None, None] for each in (self.square.mean, self.square.std)
        )
        self.vocabulary = {}
        without = () if self.tower.has_class else ("whole_image",)
        self.spec = Spec(
            view="patches",
            layout=FeatureLayout(self.tower.dim, config.store_dtype, without=without),
            model=_model_facts(config, self.tower, seed, digest),
            preprocess=_square_facts(self.square),
        )

    def prepare(self, key: str, image: np.ndarray) -> Prepared:
        pixels = torch.from_numpy(np.ascontiguousarray(self.square.of(image).transpose(2, 0, 1)))
        height, width = image.shape[:2]
        return Prepared(key, (height, width), pixels, self.square.resized / min(height, width))

    def forward(self, batch: list[Prepared]) -> list[Record | ImageError]:
        x = to_device(torch.stack([image.pixels for image in batch]), self.device)
        token, patches = self.tower((x.float() * self.square.scale - self.mean) / self.std)
        features = self.to_numpy(list(patches.float()))
        wholes = [None] * len(batch) if token is None else self.to_numpy(list(token.float()))
        return [_record(*each) for each in zip(batch, features, wholes, strict=True)]


def _record(
    image: Prepared, features: np.ndarray | ImageError, whole: np.ndarray | ImageError | None
) -> Record | ImageError:
    if isinstance(features, ImageError):
        return features
    return whole if isinstance(whole, ImageError) else PatchRecord(image.key, image.image_size, features, whole)


def _seed(weights: str | None) -> int | None:
    """The seed of `random:SEED`, None for real weights."""
    if not weights or not weights.startswith("random:"):
        return None
    return int(find_weights(weights).origin.partition(":")[2])


def make_tower(config: PatchConfig) -> Tower:
    """The tower that a config names, with its weights, on the CPU.

    Raises:
        ConfigError, WeightsError: the settings, or the weights, do not fit.
    """
    library, _, name = config.model.partition(":")
    seed = _seed(config.weights)
    weights = config.weights if seed is None else None
    choice = TowerChoice(library, name, weights, seed, config.size, config.layer, config.norm)
    if library == "timm":  # either library takes seconds to import
        from extractors.towers_timm import TimmTower

        return TimmTower(choice)
    from extractors.towers_hf import HFTower

    return HFTower(choice)


def _model_facts(config: PatchConfig, tower: Tower, seed: int | None, digest: str) -> dict[str, Any]:
    library = config.model.partition(":")[0]
    return {
        "name": f"{library}:{tower.facts['architecture']}",
        "weights": {"origin": "checkpoint" if seed is None else f"random:{seed}", "sha256": digest},
        "dtype": config.dtype,
        "layer": tower.layer,
        "norm": config.norm,
        "stride": tower.stride,
        "tower": tower.facts,
    }


def _square_facts(square: Square) -> dict[str, Any]:
    return {
        "decode": DECODE_POLICY,
        "resize": f"pil-{square.interpolation}",
        "aspect": "squashed" if square.squash else f"centre crop, margins rounded {square.rounding}",
        "resized": square.resized,
        "size": square.size,
        "colour": "RGB",
        "scale": square.scale,
        "mean": square.mean,
        "std": square.std,
    }
