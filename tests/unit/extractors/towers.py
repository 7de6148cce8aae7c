"""Tiny towers in the folders that their libraries write: a few layers, random weights, and how images are prepared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image

_VIT = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48}
_TEXT = {**_VIT, "vocab_size": 40, "max_position_embeddings": 8}
_HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
_BICUBIC, _BILINEAR = int(Image.Resampling.BICUBIC), int(Image.Resampling.BILINEAR)
_SHORTEST = {"size": {"shortest_edge": 37}, "crop_size": {"height": 32, "width": 32}}
_SQUASH = {"size": {"height": 32, "width": 32}}


def _clip() -> Any:
    vision = {**_VIT, "patch_size": 8, "image_size": 32}
    return transformers.CLIPModel(transformers.CLIPConfig(text_config=_TEXT, vision_config=vision, projection_dim=16))


def _siglip() -> Any:
    vision = {**_VIT, "patch_size": 8, "image_size": 32}
    return transformers.SiglipModel(transformers.SiglipConfig(text_config=_TEXT, vision_config=vision))


def _vit() -> Any:
    return transformers.ViTForImageClassification(transformers.ViTConfig(**_VIT, patch_size=8, image_size=32))


def _dinov2() -> Any:
    config = {**_VIT, "mlp_ratio": 2, "patch_size": 8, "image_size": 48}
    return transformers.Dinov2Model(transformers.Dinov2Config(**config))


def _registers() -> Any:
    config = {**_VIT, "mlp_ratio": 2, "patch_size": 8, "image_size": 48, "num_register_tokens": 3}
    return transformers.Dinov2WithRegistersModel(transformers.Dinov2WithRegistersConfig(**config))


def _swin() -> Any:
    config = {"embed_dim": 8, "depths": [1, 2, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 2}
    return transformers.SwinForImageClassification(transformers.SwinConfig(**config, patch_size=2, image_size=32))


# Name -> the model, and its image processor's class and settings.
TOWERS: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "clip": (_clip, "CLIPImageProcessor", {**_SHORTEST, "resample": _BICUBIC}),
    "siglip": (_siglip, "SiglipImageProcessor", {**_SQUASH, **_HALF, "resample": _BICUBIC}),
    "vit": (_vit, "ViTImageProcessor", {**_SQUASH, **_HALF, "resample": _BILINEAR}),
    "dinov2": (_dinov2, "BitImageProcessor", {**_SHORTEST, "resample": _BICUBIC}),
    "registers": (_registers, "BitImageProcessor", {**_SHORTEST, "resample": _BICUBIC}),
    "swin": (_swin, "ViTImageProcessor", {**_SQUASH, "resample": _BICUBIC}),
}


def save_tower(name: str, folder: Path) -> Path:
    """Write a tower as transformers does: config.json, model.safetensors and preprocessor_config.json."""
    make, processor, settings = TOWERS[name]
    torch.manual_seed(len(name))
    make().save_pretrained(folder)
    getattr(transformers, processor)(**settings).save_pretrained(folder)
    return folder


# Name -> architecture of timm, and what makes it tiny.
TIMM_TOWERS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("vit_tiny_patch16_224", {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2}),
    "registers": (
        "vit_small_patch14_reg4_dinov2",
        {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2},
    ),
    "clip": (
        "vit_base_patch32_clip_224",
        {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2},
    ),
    "siglip": (
        "vit_base_patch16_siglip_224",
        {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2},
    ),
    "swin": (
        "swin_tiny_patch4_window7_224",
        {"img_size": 64, "embed_dim": 8, "depths": [1, 2, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 2},
    ),
}


def save_timm_tower(name: str, folder: Path) -> Path:
    """Write a tower as timm does: config.json, with what makes it tiny and how images are prepared, and weights."""
    import timm
    from timm.models import save_for_hf

    architecture, settings = TIMM_TOWERS[name]
    torch.manual_seed(len(name))
    model = timm.create_model(architecture, **settings)
    save_for_hf(model, folder, model_args=settings, safe_serialization=True)
    return folder
