"""Tiny models, words, pictures and stores to try tasks on: a picture is one plain colour, and texts name it."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import nn

from extractors.base import Extractor
from extractors.configs import PixelConfig
from extractors.pixels import PixelExtractor
from extractors.resnet import ResNetConfig
from storage import FeatureLayout, GridRecord, PatchRecord, Record, RegionRecord, Spec, StoreWriter
from tests.unit.trainers import meters
from trainers.data.base import Example, Split
from trainers.images import meter_square, square_pixels, vilt_pixels
from trainers.models.grid_vlp import GridVLPConfig
from trainers.models.layers import LayerConfig
from trainers.models.meter import MeterConfig
from trainers.models.text_towers import TextTowerConfig
from trainers.models.vilt import ViLTConfig
from trainers.models.vl_bert import VLBertConfig
from trainers.tasks.base import Batches, Task
from trainers.tasks.families import Family, build_model, family_of
from trainers.text import Tokenizer, load_tokenizer
from trainers.visual import PixelVisual, RegionPixels, StoreVisual, Visual

COLOURS = {
    "red": (220, 20, 20),
    "green": (20, 200, 20),
    "blue": (20, 20, 220),
    "white": (240, 240, 240),
    "black": (5, 5, 5),
    "yellow": (230, 220, 20),
}
_WORDS = (
    "[PAD] [UNK] [CLS] [SEP] [MASK] a the is what colour of it picture this no yes why because same not both ? . "
    "square ##s thing ##y box all in left right"
)
WORDS = _WORDS.split()
SENTINELS = [f"[unused{number}]" for number in range(1, 33)]
DIM, CLASSES, SIDE = 16, 6, 32
LAYER = LayerConfig(dim=24, heads=2, hidden=48, dropout=0.0, attention_dropout=0.0)
_FOLDER = TemporaryDirectory()
ROOT = Path(_FOLDER.name)


@cache
def tokenizer() -> Tokenizer:
    path = ROOT / "vocab.txt"
    path.write_text("\n".join([*WORDS, *COLOURS, *SENTINELS]), encoding="utf-8")
    return load_tokenizer(str(path))


# pictures


def colour_of(key: str) -> str:
    """The colour that a key's number stands for."""
    return list(COLOURS)[int(key.rpartition("-")[2]) % len(COLOURS)]


def picture(key: str) -> np.ndarray:
    """(64, 64 or 96, 3) uint8 of one colour with a little noise."""
    number = int(key.rpartition("-")[2])
    chance = np.random.default_rng(number)
    noise = chance.integers(-5, 6, (64, 64 + 32 * (number % 2), 3))
    return np.clip(np.array(COLOURS[colour_of(key)]) + noise, 0, 255).astype(np.uint8)


class Pictures:
    """Pictures of the keys picture-0, picture-1, ... up to a number."""

    def __init__(self, count: int = 24) -> None:
        self.keys = {f"picture-{number}" for number in range(count)}

    def __contains__(self, key: object) -> bool:
        return key in self.keys

    def read(self, key: str) -> np.ndarray:
        return picture(key)


def _feature(colour: str) -> np.ndarray:
    chance = np.random.default_rng(zlib.crc32(colour.encode()))
    return chance.normal(size=DIM, scale=8).astype(np.float16)  # as strong as a box's 2,048 sines and cosines


def _regions(key: str) -> RegionRecord:
    """Two to four boxes; the first has the picture's colour, others have the following ones."""
    height, width = picture(key).shape[:2]
    count, own = 2 + int(key.rpartition("-")[2]) % 3, list(COLOURS).index(colour_of(key))
    names = [list(COLOURS)[(own + step) % len(COLOURS)] for step in range(count)]
    lefts = np.arange(count, dtype=np.float32) * 14
    boxes = np.stack([lefts, lefts, lefts + 12, lefts + 12], axis=1)
    probs = np.full((count, CLASSES + 1), 0.01, np.float16)
    ids = np.array([list(COLOURS).index(name) for name in names], np.int32)
    probs[np.arange(count), ids] = 0.94
    return RegionRecord(
        key,
        (height, width),
        boxes,
        np.stack([_feature(name) for name in names]),
        class_ids=ids,
        class_scores=np.linspace(0.9, 0.5, count, dtype=np.float32),
        class_probs=probs,
    )


def _cells(key: str) -> np.ndarray:
    height, width = (side // 32 for side in picture(key).shape[:2])
    return np.tile(_feature(colour_of(key)), (height, width, 1))


def _record(view: str, key: str) -> Record:
    if view == "regions":
        return _regions(key)
    size = picture(key).shape[:2]
    if view == "grid":
        return GridRecord(key, size, _cells(key))
    own = _feature(colour_of(key))
    return PatchRecord(key, size, np.tile(own, (2, 2, 1)), own)


_LAYOUTS = {
    "regions": FeatureLayout(
        DIM, class_probs=CLASSES + 1, without=("whole_image", "attribute_ids", "attribute_scores")
    ),
    "grid": FeatureLayout(DIM),
    "patches": FeatureLayout(DIM),
}


@cache
def store(view: str, count: int = 24) -> Path:
    """A store of the pictures' made-up features."""
    path = ROOT / f"{view}-{count}"
    writer = StoreWriter(path, Spec(view, _LAYOUTS[view]))
    keys = [f"picture-{number}" for number in range(count)]
    with writer.unit(keys) as unit:
        for key in keys:
            unit.append(_record(view, key))
        unit.commit()
    return path


def pixel_extractor() -> Extractor:
    return PixelExtractor(PixelConfig(shorter=64, rule="vilt"))


# models


VL_BERT = VLBertConfig(LAYER, 2, 80, 80, DIM, region_classes=CLASSES + 1, text_only=True, object_classes=CLASSES + 1)
GRID = GridVLPConfig(LAYER, 2, 80, 40, DIM, qa_answers=len(COLOURS))
_BODY = ResNetConfig(50).narrowed(64)
PIXEL_BERT = replace(GRID, feature_dim=32, body=_BODY, tuned=True, pool=2, visual_norm=True, heads=("mlm", "itm"))
VILT = ViLTConfig(LAYER, 2, 80, side=3)
METER = MeterConfig(
    TextTowerConfig("bert", "random:0", {**meters.SMALL, "vocab_size": 80, "max_position_embeddings": 60}),
    image_dim=DIM,
    layer=LAYER,
    layers=2,
)


@dataclass(frozen=True)
class Setting:
    """A model's config and where its images come from."""

    config: Any
    visual: Callable[[], Visual]


def _vl_bert_pixels() -> Visual:
    return RegionPixels(Pictures(), StoreVisual(store("regions"), fields=("class_probs",)), 64, 96)


SETTINGS: Mapping[str, Setting] = {
    "vl_bert": Setting(VL_BERT, lambda: StoreVisual(store("regions"), 3, ("class_probs",))),
    "vl_bert_all": Setting(VL_BERT, lambda: StoreVisual(store("regions"))),
    "vl_bert_e2e": Setting(replace(VL_BERT, feature_dim=32, body=ResNetConfig(50).narrowed(64)), _vl_bert_pixels),
    "grid_vlp": Setting(GRID, lambda: StoreVisual(store("grid"))),
    "grid_vlp_regions": Setting(GRID, lambda: StoreVisual(store("regions"), 3)),
    "pixel_bert": Setting(PIXEL_BERT, lambda: PixelVisual(Pictures(), lambda images: vilt_pixels(images, 64))),
    "vilt": Setting(VILT, lambda: PixelVisual(Pictures(), lambda images: vilt_pixels(images, 64))),
    "meter_cached": Setting(METER, lambda: StoreVisual(store("patches"))),
    "meter": Setting(
        replace(METER, image=meters.tower("clip")),
        lambda: PixelVisual(Pictures(), lambda images: square_pixels(images, meter_square(32))),
    ),
}


def setting(name: str, training: bool = True, longest: int | None = None, **changes: Any) -> tuple[Any, Family, Visual]:
    """A config with these changes, its family and its visual inputs."""
    config = replace(SETTINGS[name].config, **changes)
    return config, family_of(config, tokenizer(), training, longest), SETTINGS[name].visual()


def captions(count: int = 24, each: int = 1) -> Split:
    """Pictures with captions that name their colour."""
    texts = ("this is a {} picture", "a {} square", "the squares is {}", "it is {} .", "all of it is {}")
    examples = []
    for number in range(count):
        key = f"picture-{number}"
        told = tuple(text.format(colour_of(key)) for text in texts[:each])
        examples.append(Example(str(number), (key,), told))
    return Split("captions", "train", examples)


# training


def train(
    model: nn.Module, task: Task, numbers: Sequence[int], steps: int, lr: float = 3e-3, fixed: bool = True
) -> list[float]:
    """The sum of losses at every step of a plain loop; `fixed`: of the same epoch, and so of the same chance."""
    torch.manual_seed(0)
    parameters = [each for each in model.parameters() if each.requires_grad]
    optimiser, found = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0), []
    model.train()
    batches = task.collate(numbers, 0)
    for step in range(steps):
        if not fixed:
            batches = task.collate(numbers, step)
        loss = total(model, task, batches)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        found.append(float(loss.detach()))
    return found


def total(model: nn.Module, task: Task, batches: Batches) -> torch.Tensor:
    """The sum of all losses; each has a count."""
    losses = task.losses(model, batches)
    assert losses.keys() == task.counts(batches).keys()
    return torch.stack(list(losses.values())).sum()


@torch.no_grad()
def built(config: Any) -> nn.Module:
    """A model whose weights are as wide as so narrow layers need them to learn fast, and VL-BERT's eyes open."""
    torch.manual_seed(0)
    model = build_model(config)
    for name, parameter in model.named_parameters():
        if name.startswith(("network", "image.", "text.model", "appearance", "cell.")):
            continue
        if name.endswith("visual_norm.weight"):
            parameter.fill_(1.0)
        elif parameter.dim() > 1:
            parameter.mul_(6)
    return model
