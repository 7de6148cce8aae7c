"""Towers of timm (huggingface/pytorch-image-models) by name: VisionTransformer (ViT, DeiT, CLIP, DINOv2, SigLIP), BEiT,
CaiT, VOLO and Swin."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor, nn

from extractors.configs import ConfigError
from extractors.square import Square
from extractors.towers import (
    HUB,
    Tower,
    TowerChoice,
    check_size,
    layer_number,
    loading,
    normalised,
    safetensors_of,
    seeded,
)


class TimmTower(Tower):
    """A transformer of patches of timm.

    Positions are resampled by timm when another size is asked for. Swin's windows are then the side of its last map at
    every stage, as METER has them (zdou0830/METER `meter/modules/swin_transformer.py`), with timm's resampled tables.
    VOLO's stages are of different kinds and count as one layer. CaiT's and VOLO's class token joins behind the layers,
    in last blocks.

    Raises:
        ConfigError: timm has no such model, or it is of another kind, or the layer or size do not fit.
        WeightsError: the weights cannot be had, or do not fit.
    """

    def __init__(self, choice: TowerChoice) -> None:
        super().__init__()
        self.model = _created(choice)
        self.square = _square(self.model, choice.size)
        swin, volo = hasattr(self.model, "layers"), hasattr(self.model, "network")
        name = "layers" if swin else "blocks"
        stages = [self.model.network] if volo else getattr(self.model, name)
        patch = _patch(self.model)
        last = patch * 2 ** (len(stages) - 1) if swin else patch
        check_size(self.square.size, last)
        self.facts = {"architecture": _architecture(self.model), "img_size": self.square.size}
        if swin and choice.size is not None:
            self.facts["window"] = window = choice.size // last
            self.model.set_input_size((choice.size, choice.size), window_size=window)
        self.layer = layer_number(choice.layer, len(stages))
        if not volo:
            setattr(self.model, name, stages[: self.layer])
        elif not self.layer:
            raise ConfigError(f"--layer {choice.layer}: {choice.name} is whole or not at all; choose -1.")
        self.stride, self.dim = patch, self.model.num_features if volo else self.model.embed_dim
        if swin:
            self.stride *= 2 ** max(0, self.layer - 1)
            self.dim *= 2 ** max(0, self.layer - 1)
        elif getattr(self.model, "cls_token", None) is not None:
            self.prefix, self.has_class = getattr(self.model, "num_prefix_tokens", 1), True
        else:
            self.prefix = self.model.num_prefix_tokens
        if isinstance(self.model.norm, nn.Identity) and hasattr(self.model, "fc_norm"):
            # BEiT's comes behind the mean over the patches, which is not taken here
            self.model.norm, self.model.fc_norm = self.model.fc_norm, nn.Identity()
        normalised(self.model, "norm", self.dim, choice)
        self.model.reset_classifier(0, "")

    def tokens(self, pixels: Tensor) -> Tensor:
        found: Tensor = self.model.forward_features(pixels)
        return found


def _created(choice: TowerChoice) -> Any:
    import timm

    folder = Path(choice.name).expanduser()
    name = f"local-dir:{folder}" if folder.is_dir() else choice.name
    if not folder.is_dir() and not timm.is_model(choice.name):
        near = ", ".join(timm.list_models(f"*{choice.name.partition('.')[0]}*")[:3])
        raise ConfigError(
            f"--model timm:{choice.name} is neither a model of timm {timm.__version__} nor a folder"
            f"{f'; did you mean {near}?' if near else '.'}"
        )
    settings: dict[str, Any] = {"img_size": choice.size} if choice.size else {}
    if choice.seed is not None:
        with loading(choice, "timm"), seeded(choice.seed):
            return _checked(timm.create_model(name, pretrained=False, **settings))
    local = choice.weights or (choice.name if folder.is_dir() else None)
    with loading(choice, local or HUB):
        if local:  # read here, since timm would take a pickle, too
            tensors = load_file(safetensors_of(local))
            overlay: dict[str, Any] = {"source": "", "state_dict": tensors}
            if not any(name.startswith("head") for name in tensors):
                # No classifier is needed; told of it twice, timm still wants all else to fit.
                settings["num_classes"] = overlay["num_classes"] = 0
            settings["pretrained_cfg_overlay"] = overlay
        model = _checked(timm.create_model(name, pretrained=True, **settings))
        model.pretrained_cfg.pop("state_dict", None)
        return model


def _checked(model: nn.Module) -> Any:
    from timm.models.beit import Beit
    from timm.models.cait import Cait
    from timm.models.swin_transformer import SwinTransformer
    from timm.models.vision_transformer import VisionTransformer
    from timm.models.volo import VOLO

    if not isinstance(model, VisionTransformer | Beit | Cait | VOLO | SwinTransformer):
        raise ConfigError(
            f"timm's {type(model).__name__} is no tower of patches; choose a VisionTransformer (vit_*, deit_*), a BEiT "
            "(beit_*), a CaiT (cait_*), a VOLO (volo_*) or a SwinTransformer (swin_*)."
        )
    return model.eval()


def _patch(model: Any) -> int:
    """Pixels a side of a patch: of the first layer, or of VOLO's last, since it halves its map on the way."""
    if hasattr(model, "network"):
        return int(model.patch_embed.proj.stride[0] * model.patch_embed.conv[0].stride[0] * model.pooling_scale)
    return int(model.patch_embed.patch_size[0])


def _square(model: nn.Module, size: int | None) -> Square:
    """As timm.data.transforms_factory.transforms_imagenet_eval does, from the model's own data config.

    But for the black border that it leaves around VOLO's images (a crop above 1): they fill the square.
    """
    from timm.data import resolve_data_config

    config = resolve_data_config({}, model=model)
    side, mode = config["input_size"][-1], config["crop_mode"]
    if mode not in ("center", "squash"):
        raise ConfigError(f"this tower's images have borders added (crop_mode {mode!r}), which is not done here.")
    return Square(
        size=size or side,
        resized=max(size or side, int((size or side) / config["crop_pct"])),
        squash=mode == "squash",
        interpolation=config["interpolation"],
        rounding="even",
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )


def _architecture(model: Any) -> str:
    config = model.pretrained_cfg
    extra = config.get("model_args") or {}
    return f"{config['architecture']}{json.dumps(extra, sort_keys=True) if extra else ''}"
