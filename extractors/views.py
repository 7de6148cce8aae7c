"""Several views of an image from one decode: it is resized once for views that ask for the same, and a network that two
views share runs once."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from extractors import CONFIGS, GridConfig, RegionConfig, make_extractor
from extractors.base import Extractor, Prepared
from extractors.configs import BUTD, DETECTORS, GRID_PREFIX, ConfigError, ExtractorConfig, NetworkConfig
from extractors.faster_rcnn import HEADS_ONLY
from extractors.grid import GridExtractor
from extractors.images import ImageError
from extractors.networks import LoadedDetector
from extractors.regions import RegionExtractor
from extractors.trunk import TrunkExtractor, extract_together
from storage.errors import did_you_mean
from storage.records import Record
from storage.spec import Spec, canonical_json

Ready = dict[str, Prepared | ImageError]  # one image on its way to the device, by view
Results = dict[str, Record | ImageError]  # what became of one image, by view
SHARED = ("device", "dtype", "width_divisor", "shorter", "longer")  # settings that decide what a shared network sees


class Views:
    """What one image is turned into, by view; a single extractor is Views of one.

    A view's records are those that its extractor gives by itself: to the bit, but for what a device's sums owe to the
    batch they are in, where an image fails for some views only.

    Attributes:
        extractors: by view, in the order of the results.
        device: where the networks are.

    Raises:
        ConfigError: the networks are on several devices.
    """

    def __init__(self, extractors: Mapping[str, Extractor]) -> None:
        self.extractors = dict(extractors)
        self.specs: dict[str, Spec] = {view: each.spec for view, each in extractors.items()}
        self.vocabularies = {view: each.vocabulary for view, each in extractors.items()}
        self.device = _common_device(each.device for each in extractors.values())
        self._resizes = {view: canonical_json(spec.preprocess) for view, spec in self.specs.items()}
        self._families = self._find_families()

    def prepare(self, key: str, image: np.ndarray) -> Ready:
        """Resize on the CPU for every view; runs in decode threads. What fails for one view is that view's result.

        Args:
            key: names the image.
            image: uint8 (H, W, 3) RGB, upright.
        """
        resized: dict[bytes, Prepared] = {}
        ready: Ready = {}
        for view in self.extractors:
            try:
                ready[view] = self._prepare(view, key, image, resized)
            except ImageError as error:
                ready[view] = error
        return ready

    def _prepare(self, view: str, key: str, image: np.ndarray, resized: dict[bytes, Prepared]) -> Prepared:
        extractor, how = self.extractors[view], self._resizes[view]
        if not isinstance(extractor, TrunkExtractor):
            return extractor.prepare(key, image)
        if how not in resized:
            resized[how] = extractor.resize_late(key, image)
        return extractor.accept(resized[how])

    def extract(self, batch: Sequence[Ready]) -> list[Results]:
        """Run images of any sizes; one result a view and image, in order.

        Raises:
            torch.OutOfMemoryError: the device has no room for so many at once; a CPU, cuBLAS and cuDNN say so by a
                RuntimeError or MemoryError.
        """
        results: list[Results] = [{} for _ in batch]
        for family in self._families:
            _run_shared(family, batch, results)
        for view, extractor in self.extractors.items():
            _run_rest(view, extractor, batch, results)
        return [{view: found[view] for view in self.extractors} for found in results]

    def _find_families(self) -> list[dict[str, TrunkExtractor]]:
        """Groups of views that have one network and show it the same pixels."""
        families: dict[Any, dict[str, TrunkExtractor]] = {}
        for view, each in self.extractors.items():
            if isinstance(each, TrunkExtractor):
                families.setdefault((id(each.network), self._resizes[view]), {})[view] = each
        return [family for family in families.values() if len(family) > 1]


def without_weights(views: Views) -> Views:
    """A copy that can `prepare` but not extract; it is small, and needs no GPU."""
    known: dict[int, Any] = {}
    for extractor in views.extractors.values():
        for value in vars(extractor).values():
            if isinstance(value, torch.nn.Module):
                known |= {id(weight): None for weight in (*value.parameters(), *value.buffers())}
            elif isinstance(value, LoadedDetector):
                known[id(value.checkpoint.tensors)] = None
            elif isinstance(value, torch.Tensor):
                known[id(value)] = value.cpu()
    return copy.deepcopy(views, known)


def _run_shared(family: Mapping[str, TrunkExtractor], batch: Sequence[Ready], results: list[Results]) -> None:
    """The views of a family, for the images that all of them can use."""
    rows, images = [], []
    for row, ready in enumerate(batch):
        prepared = {view: each for view in family if isinstance(each := ready[view], Prepared)}
        if len(prepared) == len(family):
            rows.append(row)
            images.append(prepared)
    for row, found in zip(rows, extract_together(family, images), strict=True):
        results[row].update(found)


def _run_rest(view: str, extractor: Extractor, batch: Sequence[Ready], results: list[Results]) -> None:
    """One view of the images that have no result for it yet; what failed while it was prepared keeps its error."""
    rows, images = [], []
    for row, ready in enumerate(batch):
        each = ready[view]
        if isinstance(each, ImageError):
            results[row][view] = each
        elif view not in results[row]:
            rows.append(row)
            images.append(each)
    for row, found in zip(rows, extractor.extract(images) if images else [], strict=True):
        results[row][view] = found


def _common_device(devices: Iterable[torch.device]) -> torch.device:
    """The GPU where there is one: what runs no network is on the CPU."""
    found = set(devices)
    gpus = sorted(str(device) for device in found if device.type != "cpu")
    if len(gpus) > 1:
        raise ConfigError(f"the views are on {' and '.join(gpus)}; give all of them the same --device.")
    return torch.device(gpus[0] if gpus else "cpu")


def make_views(configs: Mapping[str, ExtractorConfig]) -> Views:
    """Build the extractors of several views; a network that regions and grid share is built, and held, once.

    Args:
        configs: by view, in the order of the results.

    Raises:
        ConfigError, WeightsError: settings, or weights, do not fit.
    """
    regions, grid = configs.get("regions"), configs.get("grid")
    if not (isinstance(regions, RegionConfig) and isinstance(grid, GridConfig) and _share(regions, grid)):
        return Views({view: make_extractor(config) for view, config in configs.items()})
    detector = RegionExtractor(regions)
    built: dict[str, Extractor] = {"regions": detector, "grid": GridExtractor(grid, detector.loaded)}
    return Views({view: built.get(view) or make_extractor(config) for view, config in configs.items()})


def _share(regions: RegionConfig, grid: GridConfig) -> bool:
    """Whether the grid comes from the detector's own network, with the same weights and the same pixels."""
    name = grid.model if grid.model == BUTD else f"{GRID_PREFIX}{grid.model}"
    same_weights = (regions.weights or name) == (grid.weights or name)
    same_settings = all(getattr(regions, each) == getattr(grid, each) for each in SHARED)
    return regions.model == name and same_weights and same_settings


def configs_beside(main: ExtractorConfig, views: Sequence[str]) -> dict[str, ExtractorConfig]:
    """Settings for several views where only one of them is set: a grid beside regions, and regions beside a grid, come
    from the same network with the same weights; other views have their own defaults, on the same device.

    Raises:
        ConfigError: a view is not known, or the network has no such view.
    """
    configs: dict[str, ExtractorConfig] = {}
    for view in views:
        if view not in CONFIGS:
            near = did_you_mean(view, CONFIGS)
            raise ConfigError(f"view {view!r} is not known; choose from {', '.join(CONFIGS)}{near}")
        kind = CONFIGS[view]
        if isinstance(main, kind):
            configs[view] = main
        elif isinstance(main, RegionConfig | GridConfig) and issubclass(kind, RegionConfig | GridConfig):
            configs[view] = _other_view_of(main)
        elif issubclass(kind, NetworkConfig) and isinstance(main, NetworkConfig):
            configs[view] = kind(device=main.device)
        else:
            configs[view] = kind()
    return configs


def _other_view_of(main: RegionConfig | GridConfig) -> ExtractorConfig:
    """The grid of a region network, or the regions of a grid network."""
    same: dict[str, Any] = {name: getattr(main, name) for name in (*SHARED, "weights", "store_dtype")}
    if isinstance(main, RegionConfig) and main.model in DETECTORS:
        same["dtype"] = "float32" if main.dtype.endswith(HEADS_ONLY) else main.dtype
        return GridConfig(model=main.model.removeprefix(GRID_PREFIX), **same)  # type: ignore[arg-type]
    model = main.model if main.model == BUTD else f"{GRID_PREFIX}{main.model}"
    if isinstance(main, GridConfig) and model in DETECTORS:
        return RegionConfig(model=model, **same)
    raise ConfigError(
        f"--views: {main.model} gives no {'grid' if isinstance(main, RegionConfig) else 'regions'}; leave it out, "
        "and extract it by itself."
    )
