"""Tiny METERs, with and without an image encoder, and batches for them."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from extractors.configs import PatchConfig
from trainers.batch import Batch, Cells, Pixels, Text
from trainers.models.layers import LayerConfig
from trainers.models.meter import Meter, MeterConfig
from trainers.models.text_towers import TextTowerConfig

M = TypeVar("M", bound=nn.Module)
WORDS, START, PADDING, MASK = 40, 0, 1, 39
LAYER = LayerConfig(dim=12, heads=3, hidden=20)
SMALL = {
    "vocab_size": WORDS,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 12,
}
ROBERTA = TextTowerConfig("roberta", "random:0", {**SMALL, "max_position_embeddings": 20})
HEADS = ("mlm", "itm", "vqa", "nlvr2", "snli", "rank", "patches", "codes")
CACHED = MeterConfig(ROBERTA, image_dim=6, layer=LAYER, layers=2, heads=HEADS, answers=7, codes=11)

_VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 3, "num_heads": 2}
_SWIN = {"img_size": 64, "embed_dim": 4, "depths": [1, 2, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 2}
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "clip": ("vit_base_patch16_clip_quickgelu_224", _VIT),
    "vit": ("vit_base_patch16_384", _VIT),
    "deit": ("deit_base_patch16_384", _VIT),
    "distilled-deit": ("deit_base_distilled_patch16_384", _VIT),
    "beit": ("beit_base_patch16_224", {**_VIT, "init_values": 0.1}),
    "cait": ("cait_m36_384", {**_VIT, "init_values": 0.1}),
    "volo": ("volo_d1_224", {"img_size": 64}),  # nothing else of it can be chosen
    "swin": ("swin_base_patch4_window12_384", _SWIN),
}


_FOLDERS = TemporaryDirectory()


@cache
def tower(name: str, size: int | None = None) -> PatchConfig:
    """One of ARCHITECTURES, described in a folder as timm does."""
    architecture, settings = ARCHITECTURES[name]
    folder, side = Path(_FOLDERS.name) / name, settings["img_size"]
    folder.mkdir(exist_ok=True)
    config = {"architecture": architecture, "pretrained_cfg": {"input_size": [3, side, side]}, "model_args": settings}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return PatchConfig(model=f"timm:{folder}", weights="random:0", layer=-2 if name == "clip" else -1, size=size)


def end_to_end(name: str = "clip", **changes: Any) -> MeterConfig:
    return replace(CACHED, image=tower(name), **changes)


def meter(config: MeterConfig = CACHED) -> Meter:
    torch.manual_seed(0)
    return stirred(Meter(config)).eval()


@torch.no_grad()
def stirred(model: M) -> M:
    """With weights far from their start, so that everything has a say in every logit."""
    for parameter in model.parameters():
        parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def text(lengths: tuple[int, ...] = (5, 3, 4)) -> Text:
    torch.manual_seed(1)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    ids = torch.randint(4, WORDS - 1, mask.shape)
    ids[:, 0] = START
    return Text(ids.where(mask, PADDING), mask)


def cells(count: int = 3, mask: Tensor | None = None, whole: bool = True) -> Cells:
    torch.manual_seed(2)
    return Cells(torch.randn(count, 4, 6), mask, whole_image=torch.randn(count, 6) if whole else None)


def pixels(count: int = 3, size: int = 32) -> Pixels:
    torch.manual_seed(3)
    return Pixels(torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8))


def cached_batch(**changes: Any) -> Batch:
    return replace(Batch(text(), cells()), **changes)


def assert_cache_is_true(
    wanted: dict[str, Tensor], cached: dict[str, Tensor], others: dict[str, Tensor], exact: bool
) -> None:
    """Logits of cached features are those of pixels: in float32 but for rounding; in float16 they move by less than a
    hundredth of what other images move them."""
    for name, logits in wanted.items():
        moved, error = ((each[name] - logits).abs().max() for each in (others, cached))
        assert moved > 1e-3, f"{name} does not look at the image"
        assert error < (1e-5 if exact else moved / 100), f"{name}: {error} of {moved}"
