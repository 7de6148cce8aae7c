"""Frozen vision transformers: the towers of timm and transformers, cut behind the layer whose tokens are wanted.

A tower is built by its own library and keeps its numbers; cutting only leaves out what comes later. The library's
version is not part of the spec: the same weights have to mean the same in every version, or no published checkpoint
would be worth anything. Random weights that another version draws otherwise have another SHA-256, which is part of it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from extractors.configs import ConfigError
from extractors.square import Square
from extractors.weights import WeightsError
from storage.interop.unpickling import first_line

HUB = "the Hugging Face hub"


@dataclass(frozen=True)
class TowerChoice:
    """Which tower.

    library  "hf" or "timm"
    name     of the model in it, or a folder
    weights  a folder or file, None for the model's own
    seed     of random weights, None for real ones
    size     side of the square it sees, None for its own
    layer    0: the patch embedding, with positions; 1 the first block (of Swin: stage), and so on; -1 the last
    norm     True: apply the tower's final normalisation to that layer
    """

    library: str
    name: str
    weights: str | None
    seed: int | None
    size: int | None
    layer: int
    norm: bool

    @property
    def flags(self) -> str:
        return f"--model {self.library}:{self.name}" + (f" --weights {self.weights}" if self.weights else "")


class Tower(nn.Module):
    """Pixels (B, 3, S, S) to the class token (B, D), if there is one, and patches (B, H, W, D), H = W = S / stride.

    prefix     tokens before the patches, of which the first is the class token where has_class
    layer      how many blocks (or stages) it has left
    facts      what shapes it, for the spec
    """

    model: Any
    square: Square
    prefix = 0
    has_class = False
    stride: int
    dim: int
    layer: int
    facts: dict[str, Any]

    def forward(self, pixels: Tensor) -> tuple[Tensor | None, Tensor]:
        tokens = self.tokens(pixels)
        side = self.square.size // self.stride
        if tokens.ndim == 4:
            return None, tokens
        return tokens[:, 0] if self.has_class else None, tokens[:, self.prefix :].unflatten(1, (side, side))

    def tokens(self, pixels: Tensor) -> Tensor:
        """(B, T, D) of the layer, prefix included; or (B, H, W, D), as timm's Swin has it."""
        raise NotImplementedError


def layer_number(layer: int, depth: int) -> int:
    """Blocks (or stages) to keep.

    Raises:
        ConfigError: the tower has no such layer.
    """
    number = layer if layer >= 0 else depth + 1 + layer
    if not 0 <= number <= depth:
        raise ConfigError(
            f"--layer {layer}: this tower has {depth} layers; choose 0 (patch embedding) to {depth}, or -1 (last) to "
            f"{-depth - 1}."
        )
    return number


def normalised(model: Any, name: str, dim: int, choice: TowerChoice) -> None:
    """Keep the final normalisation, or replace it by nothing.

    Raises:
        ConfigError: the layer has another width than it, as the earlier stages of Swin.
    """
    found = getattr(model, name)
    width = getattr(found, "normalized_shape", (dim,))[0]
    if choice.norm and width != dim:
        raise ConfigError(
            f"--layer {choice.layer} is {dim} wide, the tower's final normalisation {width}; add --no-norm for the "
            "layer as it is."
        )
    if not choice.norm:
        setattr(model, name, nn.Identity())


def check_size(size: int, stride: int) -> None:
    """Refuse a square that is not cut into whole patches.

    Raises:
        ConfigError: it is not.
    """
    if size < stride or size % stride:
        raise ConfigError(f"--size {size} must be a multiple of {stride}, the pixels of a patch of this tower.")


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """torch's random numbers from a seed, without touching the caller's."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


@contextmanager
def loading(choice: TowerChoice, where: str) -> Iterator[None]:
    """What a library raises over weights, as one line. The hub's retries are not told one by one.

    Raises:
        WeightsError: with what was found and what to do.
    """
    hub = logging.getLogger("huggingface_hub")
    level = hub.level
    hub.setLevel(logging.ERROR)
    try:
        yield
    except (WeightsError, ConfigError):
        raise
    except Exception as error:  # hubs and damaged files raise nearly any type
        raise WeightsError(
            f"{choice.flags} cannot be loaded from {where} ({first_line(error)}); give a folder with config.json and "
            "model.safetensors, or --weights random:0 for trying things out."
        ) from error
    finally:
        hub.setLevel(level)


def safetensors_of(path: str) -> Path:
    """The weights file that `--weights` names: the file, or model.safetensors of a folder.

    Raises:
        WeightsError: there is none; nothing is unpickled.
    """
    found = Path(path).expanduser()
    found = found / "model.safetensors" if found.is_dir() else found
    if found.suffix != ".safetensors" or not found.is_file():
        raise WeightsError(f"{found} is no safetensors file; give one, or a folder with model.safetensors.")
    return found
