"""Image encoders of METER: the towers of `extract patches`, trained along, so that one config names both.

Shapes in this file: V images, S pixels a side, L tokens: the class token, where there is one, then the patches row by
row; D width of the encoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from extractors.configs import ConfigError, PatchConfig
from extractors.patches import make_tower
from trainers.batch import Pixels

# The encoders that METER's paper compares (tables 4 and 5); of CLIP without its last block, as in the official code.
# The paper counts 32 pixels a patch for CaiT and VOLO, whose published models have 16.
IMAGE_TOWERS = {
    "clip-b32-224": PatchConfig(model="timm:vit_base_patch32_clip_quickgelu_224", layer=-2),
    "clip-b16-224": PatchConfig(model="timm:vit_base_patch16_clip_quickgelu_224", layer=-2),
    "vit-b16-384": PatchConfig(model="timm:vit_base_patch16_384"),
    "deit-b16-384": PatchConfig(model="timm:deit_base_patch16_384"),
    "distilled-deit-b16-384": PatchConfig(model="timm:deit_base_distilled_patch16_384"),
    "cait-m36-384": PatchConfig(model="timm:cait_m36_384"),
    "volo-d4-448": PatchConfig(model="timm:volo_d4_448"),
    "beit-b16-224": PatchConfig(model="timm:beit_base_patch16_224"),
    "swin-b-384": PatchConfig(model="timm:swin_base_patch4_window12_384"),
    "swin-l-384": PatchConfig(model="timm:swin_large_patch4_window12_384"),
}


class ImageTower(nn.Module):
    """Pixels to tokens.

    dim        D
    size       S
    has_class  True where the first token is a class token
    widths     of the states before the last layer's, for gated fusion; Swin's differ
    seen       what the layers got and gave, while `states` runs

    Raises:
        ConfigError, WeightsError: the settings, or the weights, do not fit.
    """

    def __init__(self, config: PatchConfig) -> None:
        super().__init__()
        self.watched = False
        self.seen: list[Tensor] | None = None
        self.tower = make_tower(config).train()
        self.square, self.dim, self.has_class = self.tower.square, self.tower.dim, self.tower.has_class
        self.size, model = self.square.size, self.tower.model
        self.swin = config.model.startswith("timm:") and hasattr(model, "layers")

    def forward(self, pixels: Pixels) -> Tensor:
        """(V, L, D)."""
        return self._joined(*self.tower(self.ready(pixels)))

    def ready(self, pixels: Pixels) -> Tensor:
        """(V, 3, S, S), normalised as the tower wants it.

        Raises:
            ValueError: the images are of another size.
        """
        if pixels.images.shape[2:] != (self.size, self.size) or pixels.sizes is not None:
            found = "x".join(str(each) for each in pixels.images.shape[2:])
            raise ValueError(f"images are {found} pixels, the tower sees {self.size}x{self.size}; crop them to that")
        mean, std = ([each / self.square.scale for each in part] for part in (self.square.mean, self.square.std))
        return pixels.normalised(mean, std).images.to(next(self.tower.parameters()).dtype)

    def checkpoint(self) -> None:
        """While training keep no activations inside layers: compute them again."""
        model = self.tower.model
        timm = hasattr(model, "set_grad_checkpointing")
        model.set_grad_checkpointing() if timm else model.gradient_checkpointing_enable()

    @property
    def widths(self) -> list[int]:
        self._layers()
        if self.swin:
            model = self.tower.model
            return [model.embed_dim, *(model.embed_dim * 2**stage for stage in range(self.tower.layer - 1))]
        return [self.dim] * self.tower.layer

    def states(self, pixels: Pixels) -> list[Tensor]:
        """What enters the first layer and what every layer gives, (V, L, width) each; the last is that of `forward`.

        Swin's are averaged to the cells of its last map. Source: METER's appendix D.

        Raises:
            ConfigError: the tower's class token is not in its layers, or they are of different kinds (CaiT, VOLO).
        """
        if not self.watched:
            self.watch()
        self.seen = []
        class_token, patches = self.tower(self.ready(pixels))
        seen, self.seen = self.seen, None
        prefix, side = self.tower.prefix, patches.shape[1]
        if self.swin:
            maps = [F.adaptive_avg_pool2d(each.permute(0, 3, 1, 2), side) for each in seen[:-1]]
            return [*(each.flatten(2).transpose(1, 2) for each in maps), self._joined(class_token, patches)]
        tokens = [torch.cat([each[:, : int(self.has_class)], each[:, prefix:]], dim=1) for each in seen[:-1]]
        return [*tokens, self._joined(class_token, patches)]

    def watch(self) -> None:
        """Have the layers tell `states` what they get and give; once, since hooks that come and go break compilation.

        Raises:
            ConfigError: as of `states`.
        """
        layers = self._layers()
        layers[0].register_forward_pre_hook(self._note_given)
        for layer in layers:
            layer.register_forward_hook(self._note_gave)
        self.watched = True

    def _note_given(self, _: nn.Module, given: tuple[Tensor, ...]) -> None:
        if self.seen is not None:
            self.seen.append(given[0])

    def _note_gave(self, _: nn.Module, __: tuple[Tensor, ...], gave: Tensor) -> None:
        if self.seen is not None:
            self.seen.append(gave)

    def _layers(self) -> Sequence[nn.Module]:
        model: Any = self.tower.model
        if self.swin:
            return list(model.layers)
        if not hasattr(model, "blocks") or hasattr(model, "blocks_token_only"):
            raise ConfigError(
                "the layers of this image encoder cannot be fused: its class token joins behind them (CaiT, VOLO), or "
                "it is transformers'; choose timm's CLIP, ViT, DeiT, BEiT or Swin."
            )
        return list(model.blocks)

    def _joined(self, class_token: Tensor | None, patches: Tensor) -> Tensor:
        tokens = patches.flatten(1, 2)
        return tokens if class_token is None else torch.cat([class_token[:, None], tokens], dim=1)
