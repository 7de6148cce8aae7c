"""`triptych doctor`: what this machine offers, what is set up badly, and what to expect of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from extractors import ConfigError, GridConfig, RegionConfig
from storage.errors import did_you_mean
from workflows.output import Command, emit
from workflows.scenes import PHOTOS
from workflows.text import size

RANDOM = "random:0"
MODELS: dict[str, GridConfig | RegionConfig] = {
    "grid r50": GridConfig(model="r50", weights=RANDOM),
    "grid x101": GridConfig(model="x101", weights=RANDOM),
    "grid x152": GridConfig(model="x152", weights=RANDOM),
    "grid x152pp": GridConfig(model="x152pp", weights=RANDOM),
    "regions butd-r101": RegionConfig(model="butd-r101", weights=RANDOM),
}


@dataclass(frozen=True)
class Doctor(Command):
    """Say what this machine offers, what is set up badly, and how fast each network is.

    triptych doctor --out features
    """

    out: str = "."
    """Folder whose disk is tried: the one that stores will lie in."""
    models: str = ",".join(MODELS)
    """Networks to try with random weights, comma-separated; none: an empty text."""
    dtype: str = "float32"
    """Number type to try them in, as --dtype of `triptych extract`."""

    def run(self) -> int:
        """Print what is found; returns 0, or 1 where something is set up badly."""
        wanted = [name.strip() for name in self.models.split(",") if name.strip()]
        for name in wanted:
            if name not in MODELS:
                near = did_you_mean(name, MODELS)
                raise ConfigError(f"--models: {name!r} is not known; choose from {', '.join(MODELS)}{near}")
        dtype: Any = self.dtype  # the configs say which there are
        configs = {name: replace(MODELS[name], dtype=dtype) for name in wanted}
        from pipeline.doctor import bound, facts, images_to_try, troubles, try_model, write_rate

        folder = _existing(Path(self.out))
        about = []
        for name, text in facts():
            about.append((name, text))
            print(f"{name:<14}{text}", flush=True)
        found = list(troubles())
        rate = None
        try:
            rate = write_rate(folder)
            print(f"{'disk':<14}{size(round(rate))}/s written to {folder.absolute()}", flush=True)
        except OSError as error:
            found.append(f"{folder.absolute()} cannot be written ({error.strerror}): choose another --out")
        print()
        print("\n".join(f"set up badly: {each}" for each in found) or "nothing is set up badly", flush=True)
        if wanted:
            print(f"\nimages/s from files to committed shards (600/1000, {self.dtype}, random weights)", flush=True)
        speeds = {}
        for name, config in configs.items():
            probe = try_model(config, PHOTOS, images_to_try())
            each = f"{size(probe.bytes_for(1))} an image"
            print(f"{name:<20}{probe.images_per_second:>8.2f}   {each:<22}bound by {bound(probe, rate)}", flush=True)
            speeds[name] = {"images_per_second": probe.images_per_second, "bound_by": bound(probe, rate)}
        disk = rate and round(rate)
        emit({"machine": dict(about), "disk_bytes_per_second": disk, "troubles": found, "models": speeds})
        return 1 if found else 0


def _existing(path: Path) -> Path:
    """A folder, or the nearest one above it that exists.

    Raises:
        ConfigError: it is an address.
    """
    if "://" in str(path) or ":/" in str(path):
        raise ConfigError(f"--out {path} is an address; `triptych doctor` tries the disks of this machine.")
    while not path.is_dir():
        path = path.absolute().parent
    return path
