"""Where a run's images come from: stores and folders on the command line, asked by a data set's keys.

Several data sets have equal keys, so each group of images has a store, and a folder, of its own below the one that is
named: S/coco, S/visual_genome, ... One that is a store itself, or a folder without such folders, serves all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from extractors import ConfigError, decode, make_extractor
from extractors.images import ImageError
from pipeline.sources import SourceConfig, open_source
from storage.store import FeatureStore, open_store
from storage.writer import HEAD
from trainers.augment import rand_augment
from trainers.cache_through import CacheThrough
from trainers.data.keys import matched
from trainers.images import grid_pixels, meter_square, square_pixels, vilt_pixels
from trainers.models.vl_bert import VLBertConfig
from trainers.object_pixels import ObjectPixels
from trainers.visual import PixelVisual, RegionPixels, Renamed, StoreVisual, Visual
from workflows.recipes.base import Recipe

VCR_IMAGES = "vcr1images"  # VCR's keys are paths below this folder
VISUALS = ("store", "pixels", "cache-through")
_GROUPS = dict.fromkeys(("coco_captions", "vqav2", "coco", "refcoco", "refcoco+", "refcocog"), "coco")
_GROUPS |= {"visual_genome_qa": "visual_genome"}


@dataclass(frozen=True)
class Places:
    """Where a run's data lies; all as on the command line."""

    store: str | None = None
    images: str | None = None
    annotations: str | None = None
    tokenizer: str | None = None
    answers: str | None = None
    corpus: str | None = None


class SourceImages:
    """The images of a source, by its keys or by the data set's."""

    def __init__(self, images: str, names: Mapping[str, str] | None = None) -> None:
        self._source = open_source(SourceConfig(images))
        self._uris = {ref.key: ref.uri for ref in self._source.list().refs}
        self._names = names

    @property
    def keys(self) -> list[str]:
        return list(self._uris)

    def called(self, keys: Sequence[str]) -> SourceImages:
        """The same, asked by a data set's keys."""
        self._names = matched(keys, self._uris)
        return self

    def __contains__(self, key: object) -> bool:
        return (key if self._names is None else self._names.get(str(key))) in self._uris

    def read(self, key: str) -> np.ndarray:
        name = key if self._names is None else self._names[key]
        if name not in self._uris:
            raise ImageError("missing", "it is not among the images", "read")
        return decode(self._source.read(self._uris[name]))


def group_of(name: str) -> str:
    """The images that a data set is about."""
    return _GROUPS.get(name, name)


def find_store(places: Places, group: str) -> FeatureStore:
    """The store of a group of images.

    Raises:
        ConfigError: none was named.
        StoreError: it is not there.
    """
    if places.store is None:
        raise ConfigError("this run reads a store; name it with --store, or choose --visual pixels.")
    return open_store(_store_path(places.store, group))


def _store_path(store: str, group: str) -> str:
    below = Path(store) / group
    return str(below) if below.is_dir() and not (Path(store) / HEAD).is_file() else store


def find_images(places: Places, group: str) -> SourceImages:
    """The images of a group.

    Raises:
        ConfigError: none were named.
        SourceError: they cannot be listed.
    """
    if places.images is None:
        raise ConfigError("this run reads images; name their folder with --images, or choose --visual store.")
    return SourceImages(_image_root(places, group))


def _image_root(places: Places, group: str) -> str:
    root = str(places.images)  # a folder, or an address
    for below in (group, VCR_IMAGES):
        root = str(Path(root) / below) if (Path(root) / below).is_dir() else root
    return root


def known_keys(recipe: Recipe, places: Places, group: str) -> list[str]:
    """The keys that are there, in the store or among the images."""
    return list(find_store(places, group)) if recipe.visual == "store" else find_images(places, group).keys


def visual_of(recipe: Recipe, places: Places, group: str, keys: Sequence[str], fields: Sequence[str] = ()) -> Visual:
    """What a model is to see of these images.

    Args:
        fields: as of `StoreVisual`.

    Raises:
        ConfigError: the recipe's source of images needs what was not named.
        TriptychError: what was named is not there.
    """
    if recipe.visual not in VISUALS:
        raise ConfigError(f"--visual {recipe.visual!r} is not known; choose one of {', '.join(VISUALS)}.")
    if recipe.visual == "store":
        return _stored(recipe, places, group, keys, fields)
    images = find_images(places, group)
    if recipe.visual == "cache-through":
        return _cached_through(recipe, places, group, images, keys, fields)
    if recipe.task.startswith("vcr"):
        return ObjectPixels(images.called(keys), Path(_image_root(places, group)), recipe.side, 2 * recipe.side)
    if isinstance(recipe.model, VLBertConfig):
        regions = _stored(recipe, places, group, keys, fields)
        return RegionPixels(images.called(keys), regions, recipe.side, recipe.side * 5 // 3)
    change = rand_augment if recipe.augment else None
    return PixelVisual(images.called(keys), _prepare(recipe), change)


def _stored(recipe: Recipe, places: Places, group: str, keys: Sequence[str], fields: Sequence[str]) -> Visual:
    store = find_store(places, group)
    return Renamed(StoreVisual(store, recipe.boxes, fields), matched(keys, store))


def _cached_through(
    recipe: Recipe, places: Places, group: str, images: SourceImages, keys: Sequence[str], fields: Sequence[str]
) -> Visual:
    if recipe.extractor is None or places.store is None:
        raise ConfigError("--visual cache-through needs --store, and a recipe with an extractor to fill it.")
    path = _store_path(places.store, group)
    cache = CacheThrough(images, make_extractor(recipe.extractor), path, recipe.boxes, fields)
    return Renamed(cache, matched(keys, images.keys))


def _prepare(recipe: Recipe) -> Callable[[Sequence[np.ndarray]], Any]:
    """How images are prepared for a model."""
    if recipe.prepared == "vilt":
        return lambda images: vilt_pixels(images, recipe.side)
    if recipe.prepared == "grid":
        return lambda images: grid_pixels(images, recipe.side, recipe.side * 5 // 3)
    square = meter_square(recipe.side, imagenet=recipe.prepared == "imagenet")
    return lambda images: square_pixels(images, square)
