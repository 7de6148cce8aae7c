"""Pixels in, records out: the extractors, by view. No Ray, no files but weights."""

from typing import Any

from extractors.base import ConfigError, Extractor, ExtractorConfig, Prepared
from extractors.grid import GridConfig
from extractors.images import ImageError, decode, read_image
from extractors.patches import PatchConfig
from extractors.pixels import PixelConfig
from extractors.regions import RegionConfig
from extractors.weights import WeightsError

CONFIGS: dict[str, type[ExtractorConfig]] = {
    kind.view: kind for kind in (RegionConfig, GridConfig, PatchConfig, PixelConfig)
}


def view_of(config: ExtractorConfig) -> str:
    """The view that a config's records are of."""
    return config.view


def make_extractor(config: ExtractorConfig) -> Extractor:
    """Build the extractor a config describes, weights loaded, on its device."""
    return config.make()


def load_extractor(view: str, **settings: Any) -> Extractor:
    """An extractor in one line: `load_extractor("regions", weights="random:0")`.

    Args:
        view: "regions", "grid", "patches" or "pixels".
        settings: fields of `RegionConfig`, `GridConfig`, `PatchConfig` or `PixelConfig`.

    Raises:
        ConfigError, WeightsError: the settings, or the weights, do not fit.
    """
    if view not in CONFIGS:
        raise ConfigError(f"view {view!r} is not known; choose one of {', '.join(CONFIGS)}.")
    return make_extractor(CONFIGS[view](**settings))


__all__ = [
    "ConfigError",
    "Extractor",
    "ExtractorConfig",
    "GridConfig",
    "ImageError",
    "PatchConfig",
    "PixelConfig",
    "Prepared",
    "RegionConfig",
    "WeightsError",
    "decode",
    "load_extractor",
    "make_extractor",
    "read_image",
    "view_of",
]
