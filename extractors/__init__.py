"""Pixels in, records out: the extractors, by view. No Ray, no files but weights.

Settings are light to import; networks, and the libraries that they need, come with the first name that needs them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from extractors.configs import (
    CONFIGS,
    ConfigError,
    ExtractorConfig,
    GridConfig,
    PatchConfig,
    PixelConfig,
    RegionConfig,
    view_of,
)
from storage.errors import did_you_mean

if TYPE_CHECKING:
    from extractors.base import Extractor, Prepared
    from extractors.images import ImageError, decode, read_image
    from extractors.weights import WeightsError

_LATER = {
    "Extractor": "extractors.base",
    "Prepared": "extractors.base",
    "ImageError": "extractors.images",
    "decode": "extractors.images",
    "read_image": "extractors.images",
    "WeightsError": "extractors.weights",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LATER[name]), name)


def make_extractor(config: ExtractorConfig) -> "Extractor":
    """Build the extractor a config describes, weights loaded, on its device."""
    return config.make()


def load_extractor(view: str, **settings: Any) -> "Extractor":
    """An extractor in one line: `load_extractor("regions", weights="random:0")`.

    Args:
        view: "regions", "grid", "patches" or "pixels".
        settings: fields of `RegionConfig`, `GridConfig`, `PatchConfig` or `PixelConfig`.

    Raises:
        ConfigError, WeightsError: the settings, or the weights, do not fit.
    """
    if view not in CONFIGS:
        near = did_you_mean(view, CONFIGS)
        raise ConfigError(f"view {view!r} is not known; choose one of {', '.join(CONFIGS)}{near}")
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
