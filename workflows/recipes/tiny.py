"""A recipe at a size that a CPU trains in seconds: the same model, task and rules, with little of everything."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from extractors import ExtractorConfig, PixelConfig
from extractors.configs import (
    GRID_PREFIX,
    SHIPPED,
    SHIPPED_DETECTOR,
    SHIPPED_SIZE,
    ConvConfig,
    PatchConfig,
    RegionConfig,
    ResizedConfig,
)
from extractors.resnet import ResNetConfig
from trainers.codebook import CodebookConfig
from trainers.config import Rule
from trainers.models.grid_vlp import GridVLPConfig
from trainers.models.meter import MeterConfig
from trainers.models.vilt import ViLTConfig
from trainers.models.vl_bert import VLBertConfig
from workflows.recipes.base import RANDOM, Recipe, with_network

DIM, HEADS, HIDDEN, LAYERS, NARROWER, SIDE = 128, 4, 256, 2, 16, 64
STEPS, BATCH = 20, 8
STD = DIM**-0.5  # of initial weights: BERT's 0.02 is for 768, and in a narrow layer all that it adds to a token is lost
SHIPPED_BODY = ResNetConfig(50).narrowed(8)  # of `extractors.configs.SHIPPED`
# A random network without normalisation runs off, or dies, at a higher rate, and by AdamW.
NETWORK = Rule(r"^network\.", lr=10, optimiser="sgd", optional=True)
SEEING = replace(NETWORK, lr=1)  # of the one that comes along, which unlearns to see in 30 updates at ten times that
VIT, SWIN = "timm:test_vit", "timm:swin_tiny_patch4_window7_224"
# The smallest models of timm like the towers of METER's comparisons, by the beginning of their names.
TOWERS = {
    "timm:deit_base_distilled": "timm:deit_tiny_distilled_patch16_224",
    "timm:deit": "timm:deit_tiny_patch16_224",
    "timm:cait": "timm:cait_xxs24_224",
    "timm:volo": "timm:volo_d1_224",
    "timm:beit": "timm:beit_base_patch16_224",
    "timm:swin": SWIN,
}
CODEBOOK = CodebookConfig("random:0", {"hidden_size": 4})
TEXT = {
    "hidden_size": DIM,
    "embedding_size": DIM,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "intermediate_size": HIDDEN,
    "initializer_range": STD,
}


def tiny(recipe: Recipe, steps: int = STEPS, shipped: bool = False) -> Recipe:
    """The tiny twin of a recipe: random weights, a few steps, learning rates that show in them.

    Args:
        shipped: whether convolutional networks are the one that comes along, and images of the size that it was
            trained on; else random ones, 64 pixels.
    """
    model = _tiny_model(with_network(recipe), shipped)
    scale = SHIPPED_SIZE[0] if shipped and sees_by_network(recipe) else SIDE
    seeing = getattr(model, "body", None) is not None
    train = replace(
        recipe.train,
        steps=steps,
        epochs=None,
        batch_size=BATCH,
        micro_batch=None,
        optimiser="adamw",  # a transformer with random weights does not get going by SGD
        lr=_rate(recipe),
        rules=(SEEING if shipped else NETWORK,) if seeing else recipe.train.rules,
        warmup=0.1,
        dtype="float32",
        log_every=max(1, steps // 10),
        save_every=steps,
        device="cpu",
    )
    side = min(recipe.side, scale) if recipe.prepared not in ("clip", "imagenet") else _tower(recipe.model).size or SIDE
    return replace(
        recipe,
        summary=f"{recipe.summary}; tiny",
        model=model,
        train=train,
        expected="none: it only shows that the recipe learns",
        starts=RANDOM,
        side=side,
        patch=recipe.patch and 16,
        codebook=recipe.codebook and CODEBOOK,
        boxes=recipe.boxes and min(recipe.boxes, 10),
        extractor=_tiny_extractor(recipe.extractor, shipped, scale),
    )


def sees_by_network(recipe: Recipe) -> bool:
    """Whether what a recipe sees has passed a convolutional network."""
    return isinstance(recipe.extractor, ConvConfig) or getattr(recipe.model, "body", None) is not None


def _rate(recipe: Recipe) -> float:
    """The largest rate. The heads of METER's tasks learn 10 to 50 times as fast as the rest, and run off at 1e-3."""
    answers = recipe.task not in ("pretraining", "image-classes", "text-classes")
    return 1e-4 if isinstance(recipe.model, MeterConfig) and answers else 1e-3


def _tiny_model(config: Any, shipped: bool) -> Any:
    layer = replace(config.layer, dim=DIM, heads=HEADS, hidden=HIDDEN, std=STD)
    if isinstance(config, ViLTConfig):
        return replace(config, layer=layer, layers=LAYERS, side=2)
    if isinstance(config, VLBertConfig | GridVLPConfig):
        body, width = config.body, config.feature_dim
        if body is not None:
            body = SHIPPED_BODY if shipped else body.narrowed(NARROWER)
            width = body.out_channels(5)
        same = replace(config, layer=layer, layers=LAYERS, body=body, feature_dim=width)
        return replace(same, silent=False) if isinstance(same, VLBertConfig) else same
    assert isinstance(config, MeterConfig)
    text = replace(config.text, weights="random:0", settings=TEXT)
    return replace(config, layer=layer, layers=LAYERS, text=text, image=_tower(config))


def _tiny_extractor(config: ExtractorConfig | None, shipped: bool, side: int) -> ExtractorConfig | None:
    if not isinstance(config, ResizedConfig):
        return config
    usual = 384 if isinstance(config, PixelConfig) else 600
    small = replace(config, shorter=config.shorter * side // usual, longer=config.longer * side // usual)
    if not isinstance(small, ConvConfig):
        return small
    if not shipped:
        return replace(small, weights="random:0", device="cpu", width_divisor=NARROWER)
    model = SHIPPED_DETECTOR if isinstance(small, RegionConfig) else SHIPPED_DETECTOR.removeprefix(GRID_PREFIX)
    return replace(small, model=model, weights=SHIPPED, device="cpu")  # type: ignore[call-arg]


def _tower(config: MeterConfig) -> PatchConfig:
    """A tower like the one of a METER, with about a quarter of its patches a side, two at least."""
    name, size = ("", None) if config.image is None else (config.image.model, config.image.size)
    model = next((small for start, small in TOWERS.items() if name.startswith(start)), VIT)
    if model == SWIN:
        return PatchConfig(model=model, weights="random:0", size=2 * 32)
    patches = _side(name, size) // (32 if "patch32" in name else 16)
    return PatchConfig(model=model, weights="random:0", size=16 * max(2, patches // 4))


def _side(name: str, size: int | None) -> int:
    """Pixels a side of what a tower sees, by its name where the config does not say."""
    last = name.rpartition("_")[2]
    return size or (int(last) if last.isdigit() else 224)
