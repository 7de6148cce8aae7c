"""What a published run is: model, data, task, settings, and the score that its paper reports."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from extractors import ConfigError, ExtractorConfig, GridConfig
from extractors.configs import NetworkConfig
from extractors.networks import GRID_MODELS, grid_colours
from trainers.codebook import CodebookConfig
from trainers.config import TrainConfig
from trainers.models.fast_rcnn import R101
from trainers.models.grid_vlp import GridVLPConfig
from trainers.models.vl_bert import VLBertConfig

TaskName = Literal[
    "pretraining",
    "vqa",
    "gqa",
    "nlvr2",
    "snli-ve",
    "vcr-answer",
    "vcr-rationale",
    "refcoco",
    "retrieval",
    "captions",
    "image-classes",
    "text-classes",
]
Prepared = Literal["fast-rcnn", "grid", "vilt", "clip", "imagenet"]


RANDOM = "random weights"  # what a recipe starts from that starts from nothing


@dataclass(frozen=True)
class Recipe:
    """One published run. A variant is one `dataclasses.replace` away; so is another source of what is seen.

    summary     what it is, in one line
    model       the model's config
    task        what is learnt
    data        data sets by the names of `triptych data check`, in order; of a pre-training several
    train       settings of the loop; `out` is given by who starts it
    expected    the score that its paper reports, and of which split
    source      where settings and score come from; what is not stated there
    starts      the weights that the paper starts from
    split       of the data that is trained on; several with + between them
    validation  the split that is scored
    tokenizer   of the texts
    longest     tokens of a text
    visual      "store", "pixels" or "cache-through"
    extractor   what fills a store, with "cache-through"
    boxes       at most so many of each image; None: all
    prepared    how pixels are prepared for the model
    side        pixels of the shorter side, or of the square
    patch       pixels a side of a patch, where masked patches come from pixels
    augment     whether images are changed at random while training
    codebook    the image tokenizer of masked patches as discrete codes
    objectives  of pre-training, by the names of their losses
    classes     of a probe
    """

    summary: str
    model: Any
    task: TaskName
    data: tuple[str, ...]
    train: TrainConfig
    expected: str
    source: str
    starts: str
    split: str = "train"
    validation: str = "val"
    tokenizer: str = "google-bert/bert-base-uncased"
    longest: int = 40
    visual: str = "store"
    extractor: ExtractorConfig | None = None
    boxes: int | None = None
    prepared: Prepared = "grid"
    side: int = 384
    patch: int | None = None
    augment: bool = False
    codebook: CodebookConfig | None = None
    objectives: tuple[str, ...] = ()
    classes: int = 0


def extracting_with(recipe: Recipe, weights: str | None) -> Recipe:
    """The recipe with these weights for what fills its store, where it fills one.

    Raises:
        ConfigError: that has no network.
    """
    if weights is None or recipe.visual != "cache-through":
        return recipe
    if not isinstance(recipe.extractor, NetworkConfig):
        raise ConfigError(f"--start-network {weights}: what fills this run's store has no network; leave it out.")
    return replace(recipe, extractor=replace(recipe.extractor, weights=weights))


def with_network(recipe: Recipe) -> Any:
    """The recipe's model; where it sees pixels with a network: its own, or that of the features it has from a cache."""
    config = recipe.model
    if recipe.visual != "pixels" or getattr(config, "body", None) is not None:
        return config
    if isinstance(config, VLBertConfig):
        return replace(config, body=R101)
    if isinstance(config, GridVLPConfig):
        assert isinstance(recipe.extractor, GridConfig)
        name = recipe.extractor.model
        return replace(config, body=GRID_MODELS[name].body, colours=grid_colours(name))
    return config
