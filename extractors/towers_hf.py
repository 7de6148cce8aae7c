"""Towers of transformers by name: CLIP, SigLIP, ViT, DINOv2 (also with registers) and Swin."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor, nn

from extractors.configs import ConfigError
from extractors.square import Square
from extractors.towers import HUB, Tower, TowerChoice, check_size, layer_number, loading, normalised, seeded
from extractors.weights import WeightsError

HALF = (0.5, 0.5, 0.5)
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


@dataclass(frozen=True)
class Kind:
    """A tower's classes in transformers, and how it differs from the others.

    norm      name of its final normalisation
    outside   True where the model's own forward leaves the patches without it
    resizes   True where its forward takes interpolate_pos_encoding; DINOv2 always interpolates
    settings  of its config, so that what is not needed is not built
    model     what its constructor takes for the same reason
    """

    config: str
    model: str
    norm: str = "layernorm"
    outside: bool = False
    resizes: bool = True
    settings: tuple[tuple[str, Any], ...] = ()
    arguments: tuple[tuple[str, Any], ...] = ()


_NO_POOLER = (("add_pooling_layer", False),)
KINDS = {
    "clip_vision_model": Kind("CLIPVisionConfig", "CLIPVisionModel", "post_layernorm", outside=True),
    "siglip_vision_model": Kind(
        "SiglipVisionConfig", "SiglipVisionModel", "post_layernorm", settings=(("vision_use_head", False),)
    ),
    "vit": Kind("ViTConfig", "ViTModel", arguments=_NO_POOLER),
    "dinov2": Kind("Dinov2Config", "Dinov2Model", resizes=False),
    "dinov2_with_registers": Kind("Dinov2WithRegistersConfig", "Dinov2WithRegistersModel", resizes=False),
    "swin": Kind("SwinConfig", "SwinModel", arguments=_NO_POOLER),
}
# What decides a tower's numbers besides its weights, as far as its config has it.
_SHAPING = (
    "hidden_size", "embed_dim", "num_hidden_layers", "depths", "num_attention_heads", "num_heads", "intermediate_size",
    "mlp_ratio", "window_size", "patch_size", "image_size", "num_register_tokens", "hidden_act", "layer_norm_eps",
    "use_swiglu_ffn", "use_absolute_embeddings", "qkv_bias",
)  # fmt: skip


@dataclass(frozen=True)
class Known:
    """A published tower, for random weights without a download: its config and what becomes of an image."""

    kind: str
    config: dict[str, Any]
    square: Square


def _known() -> dict[str, Known]:
    large: dict[str, Any] = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}
    clip, imagenet = (
        Square(224, 224, False, "bicubic", "down", *CLIP),
        Square(224, 224, True, "bicubic", "down", *IMAGENET),
    )
    dino = Square(224, 256, False, "bicubic", "down", *IMAGENET)
    half = Square(224, 224, True, "bilinear", "down", HALF, HALF)
    found: dict[str, Known] = {}
    for name, config in {
        "base-patch32": {"patch_size": 32},
        "base-patch16": {"patch_size": 16},
        "large-patch14": {"patch_size": 14, "intermediate_size": 4096, **large},
    }.items():
        found[f"openai/clip-vit-{name}"] = Known("clip_vision_model", config, clip)
    for name, config in {
        "small": {"hidden_size": 384, "num_attention_heads": 6},
        "base": {"hidden_size": 768, "num_attention_heads": 12},
        "large": large,
    }.items():
        found[f"facebook/dinov2-{name}"] = Known("dinov2", {"image_size": 518, "patch_size": 14, **config}, dino)
    for name, window, size, config in (
        ("tiny-patch4-window7-224", 7, 224, {"embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24]}),
        ("base-patch4-window7-224", 7, 224, {"embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32]}),
        ("base-patch4-window12-384", 12, 384, {"embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32]}),
    ):
        settings = {"image_size": size, "window_size": window, **config}
        found[f"microsoft/swin-{name}"] = Known("swin", settings, imagenet.at(size))
    found["google/vit-base-patch16-224"] = Known("vit", {}, half)
    found["google/siglip-base-patch16-224"] = Known(
        "siglip_vision_model", {}, Square(224, 224, True, "bicubic", "down", HALF, HALF)
    )
    return found


KNOWN = _known()


class HFTower(Tower):
    """A vision transformer of transformers.

    Positions are interpolated (bicubic) when another size is asked for; Swin's windows stay as they are, its maps are
    padded to whole windows. Weights are read from safetensors only.

    Raises:
        ConfigError: the model is of another kind, or the layer or size do not fit.
        WeightsError: the weights cannot be had, or do not fit.
    """

    def __init__(self, choice: TowerChoice) -> None:
        super().__init__()
        config, square = _described(choice)
        self._kind = KINDS[config.model_type]
        self.model = _built(choice, config, self._kind)
        self.square = square if choice.size is None else square.at(choice.size)
        swin = config.model_type == "swin"
        holder, name = _layers(self.model)
        layers = getattr(holder, name)
        self.layer = layer_number(choice.layer, len(layers))
        setattr(holder, name, layers[: self.layer])
        self.stride, self.dim = int(config.patch_size), int(config.embed_dim if swin else config.hidden_size)
        if swin:
            self.stride *= 2 ** max(0, self.layer - 1)
            self.dim *= 2 ** max(0, self.layer - 1)
            if self.layer:
                layers[self.layer - 1].downsample = None  # it belongs to the next stage
        else:
            self.has_class = config.model_type != "siglip_vision_model"
            self.prefix = int(self.has_class) + getattr(config, "num_register_tokens", 0)
        check_size(self.square.size, int(config.patch_size) * (2 ** (len(layers) - 1) if swin else 1))
        normalised(self.model, self._kind.norm, self.dim, choice)
        self.facts = {name: getattr(config, name) for name in _SHAPING if hasattr(config, name)}
        self.facts = {"architecture": config.model_type, **self.facts}

    def tokens(self, pixels: Tensor) -> Tensor:
        resizing = {"interpolate_pos_encoding": True} if self._kind.resizes else {}
        found: Tensor = self.model(pixels, **resizing).last_hidden_state
        if self._kind.outside:
            found = getattr(self.model, self._kind.norm)(found)
        return found


def _layers(model: Any) -> tuple[Any, str]:
    """Where a model keeps its blocks; releases of transformers differ."""
    for holder in (model, getattr(model, "encoder", None)):
        for name in ("layers", "layer"):
            if isinstance(getattr(holder, name, None), nn.ModuleList):
                return holder, name
    raise ConfigError(f"transformers' {type(model).__name__} keeps its layers where this release does not know them.")


def _described(choice: TowerChoice) -> tuple[Any, Square]:
    """The tower's config, and what becomes of an image."""
    import transformers

    source, local = _source(choice)
    if choice.seed is not None and not local:
        if choice.name not in KNOWN:
            raise ConfigError(
                f"--model hf:{choice.name} with random weights must be a folder with config.json, or one of "
                f"{', '.join(KNOWN)}."
            )
        known = KNOWN[choice.name]
        config = getattr(transformers, KINDS[known.kind].config)(**known.config)
        return _prepared(config, KINDS[known.kind]), known.square
    with loading(choice, source if local else HUB):
        config = transformers.AutoConfig.from_pretrained(source, local_files_only=local, trust_remote_code=False)
        config = getattr(config, "vision_config", config)
        if config.model_type not in KINDS:
            raise ConfigError(
                f"--model hf:{choice.name} is a {config.model_type}; the towers here are {', '.join(KINDS)}."
            )
        processor = transformers.AutoImageProcessor.from_pretrained(
            source, backend="pil", local_files_only=local, trust_remote_code=False
        )
    return _prepared(config, KINDS[config.model_type]), square_of(processor)


@contextmanager
def _quiet(local: bool) -> Iterator[None]:
    """No bar of tensors read from a folder; what is downloaded may show its own."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    if local:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _source(choice: TowerChoice) -> tuple[str, bool]:
    """The folder or name to load from, and whether it is a folder.

    Raises:
        WeightsError: the weights are named, but are no folder.
    """
    folder = Path(choice.weights or choice.name).expanduser()
    if choice.weights and not folder.is_dir():
        raise WeightsError(
            f"--weights {choice.weights} is no folder; for hf: models give that of a snapshot, with config.json, "
            "preprocessor_config.json and model.safetensors."
        )
    return (str(folder), True) if folder.is_dir() else (choice.name, False)


def _prepared(config: Any, kind: Kind) -> Any:
    for name, value in kind.settings:
        setattr(config, name, value)
    return config


def _built(choice: TowerChoice, config: Any, kind: Kind) -> nn.Module:
    import transformers

    model = getattr(transformers, kind.model)
    if choice.seed is not None:
        with seeded(choice.seed):
            built: nn.Module = model(config, **dict(kind.arguments))
            return built.eval()
    source, local = _source(choice)
    with loading(choice, source if local else HUB), _quiet(local):
        loaded, report = model.from_pretrained(
            source,
            config=config,
            use_safetensors=True,
            local_files_only=local,
            output_loading_info=True,
            **dict(kind.arguments),
        )
    missing = sorted({*report["missing_keys"], *(each[0] for each in report["mismatched_keys"])})
    if missing:
        raise WeightsError(
            f"{choice.flags}: {len(missing)} tensors of the tower are missing in {source}, or of another shape, the "
            f"first is {missing[0]}; give the weights of this model."
        )
    tower: nn.Module = loaded.float().eval()
    return tower


def square_of(processor: Any) -> Square:
    """What an image processor of transformers does, as a square.

    Raises:
        ConfigError: it does something else, such as padding.
    """
    size, crop = _given(processor.size), _given(processor.crop_size) if processor.do_center_crop else {}
    squash = size.keys() == {"height", "width"}
    sides = set(size.values())
    resized = int(size["height"] if squash else size.get("shortest_edge", 0))
    side = int(crop.get("height", size.get("height", 0)))
    is_square = len(sides) == 1 and set(crop.values()) <= {side} and 0 < side <= resized
    if not processor.do_resize or not is_square or getattr(processor, "do_pad", None):
        raise ConfigError(f"preprocessor_config.json makes no square of an image (size {size}, crop {crop}).")
    plain = not processor.do_normalize
    return Square(
        size=side,
        resized=resized,
        squash=squash,
        interpolation=Image.Resampling(int(processor.resample)).name.lower(),
        rounding="down",
        mean=(0.0, 0.0, 0.0) if plain else tuple(processor.image_mean),
        std=(1.0, 1.0, 1.0) if plain else tuple(processor.image_std),
        scale=processor.rescale_factor if processor.do_rescale else 1.0,
    )


def _given(sizes: Any) -> dict[str, int]:
    return {name: value for name, value in dict(sizes or {}).items() if value is not None}
