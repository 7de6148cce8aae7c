"""The cached features that cells need: what fills their stores, where these lie, and what they cost.

    OUT/stores/<view>-<hash of the settings>/<group of images>

Cells whose extractors have equal settings share stores.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from extractors import ConfigError, ExtractorConfig, view_of
from extractors.configs import NetworkConfig
from pipeline.config import EngineConfig, ExtractJob
from pipeline.job import INTERRUPTED, Progress, run_job
from pipeline.sources import SourceConfig
from storage import TriptychError, open_store
from storage.spec import canonical_json
from trainers.models.meter import MeterConfig
from trainers.models.vl_bert import VLBertConfig
from workflows.comparing.data import file_digest
from workflows.recipes import Recipe
from workflows.recipes.sources import group_of

STORES = "stores"


@dataclass(frozen=True)
class Features:
    """The stores of one extractor, of one or more groups of images.

    config  of the extractor
    groups  of images
    """

    config: ExtractorConfig
    groups: tuple[str, ...]

    @property
    def view(self) -> str:
        return view_of(self.config)

    @property
    def name(self) -> str:
        """Of the folder; equal for equal settings and weights, wherever the network runs."""
        same = self.config
        if isinstance(same, NetworkConfig):
            same = replace(same, device="auto", weights=same.weights and file_digest(same.weights))
        facts = [type(same).__name__, vars(same)]
        return f"{self.view}-{hashlib.sha256(canonical_json(facts)).hexdigest()[:12]}"

    def folder(self, out: str) -> Path:
        """Where the stores of the groups lie."""
        return Path(out) / STORES / self.name

    def folders(self, out: str) -> list[Path]:
        """Where the stores of all groups lie, each once."""
        return list(dict.fromkeys((self.folder(out) / group).resolve() for group in self.groups))


def features_of(recipe: Recipe) -> Features | None:
    """What a recipe reads from a cache; None where it sees nothing but images.

    VL-BERT reads its boxes from a store even where it sees pixels.

    Raises:
        ConfigError: it is to read a store, and nothing is known to fill one.
    """
    if recipe.visual == "pixels" and not (isinstance(recipe.model, VLBertConfig) and recipe.task[:3] != "vcr"):
        return None
    config = extractor_of(recipe)
    if config is None:
        raise ConfigError(f"nothing is known that fills a store for {recipe.summary!r}; choose --visuals pixels.")
    groups = dict.fromkeys(group_of(name) for name in recipe.data if name != "corpus")
    return Features(config, tuple(groups))


def extractor_of(recipe: Recipe) -> ExtractorConfig | None:
    """What fills a recipe's store: its own extractor, or a METER's image encoder."""
    if recipe.extractor is None and isinstance(recipe.model, MeterConfig) and recipe.model.image is not None:
        return recipe.model.image
    return recipe.extractor


def extract(features: Features, images: Path, device: str, engine: EngineConfig, progress: Progress) -> None:
    """Fill what stores lack.

    Args:
        images: the folder with a folder of images for each group, or of all images.
        engine: how; its `out` is the comparison's.

    Raises:
        TriptychError: the extractor or the images are not to be had.
        KeyboardInterrupt: it was asked to stop; what is committed is kept.
    """
    config: Any = features.config
    if isinstance(config, NetworkConfig):
        config = replace(config, device=device)
    for group, source in _sources(features.groups, images).items():
        target = replace(engine, out=str(features.folder(engine.out) / group))
        if run_job(ExtractJob(SourceConfig(str(source)), config, target), progress).status == INTERRUPTED:
            raise KeyboardInterrupt
    _link(features, images, engine.out)


def _sources(groups: Sequence[str], images: Path) -> dict[str, Path]:
    """Of each folder of images the first group that is about it; folders that are links to others, once."""
    found: dict[Path, str] = {}
    for group in groups:
        folder = images / group if (images / group).is_dir() else images
        found.setdefault(folder.resolve(), folder.resolve().name if folder != images else group)
    return {group: folder for folder, group in found.items()}


def _link(features: Features, images: Path, out: str) -> None:
    """A group whose folder of images is a link to another group's has that one's store."""
    for group in features.groups:
        target, real = features.folder(out) / group, (images / group).resolve().name
        if not target.exists() and real != group:
            target.symlink_to(real)


@dataclass(frozen=True)
class Cost:
    """What the stores of some features cost.

    images   in them
    ms       of one image: read, decode, extract, write
    bytes    on disk
    specs    ids of their specs
    """

    images: int
    ms: float
    bytes: int
    specs: tuple[str, ...]

    @property
    def hours(self) -> float:
        """Of one device, for all images."""
        return self.images * self.ms / 3.6e6


def cost_of(folders: Sequence[Path]) -> Cost:
    """What stores tell of the runs that filled them.

    Raises:
        TriptychError: one is not there, or was filled by something that kept no time.
    """
    stores = [open_store(folder) for folder in folders]
    images = sum(len(store) for store in stores)
    seconds = 0.0
    for store in stores:
        rate = store.run.get("images_per_second")
        if not rate:
            raise TriptychError(f"{store.place.name} does not tell how fast it was filled; delete it and run again.")
        seconds += len(store) / rate
    size = sum(entry.shard.bytes for store in stores for entry in store.entries if entry.shard)
    return Cost(images, 1e3 * seconds / max(1, images), size, tuple(dict.fromkeys(store.spec.id for store in stores)))
