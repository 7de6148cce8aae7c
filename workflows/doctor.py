"""`triptych doctor`: what this machine offers, what is set up badly, and what to expect of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from extractors import ConfigError
from pipeline.doctor import MODELS, bound, facts, images_to_try, troubles, try_model, write_rate
from workflows.demo import PHOTOS
from workflows.text import size


@dataclass(frozen=True)
class Doctor:
    """Say what this machine offers, what is set up badly, and how many images a second each network does here.

    triptych doctor --out features
    """

    out: str = "."
    """Folder whose disk is tried: the one that stores will lie in."""
    models: str = ",".join(MODELS)
    """Networks to try with random weights, comma-separated; none: an empty text."""

    def run(self) -> int:
        """Print what is found; returns 0, or 1 where something is set up badly."""
        wanted = [name.strip() for name in self.models.split(",") if name.strip()]
        for name in wanted:
            if name not in MODELS:
                raise ConfigError(f"--models: {name!r} is not known; choose from {', '.join(MODELS)}.")
        folder = _existing(Path(self.out))
        for name, text in facts():
            print(f"{name:<14}{text}", flush=True)
        rate = write_rate(folder)
        print(f"{'disk':<14}{size(round(rate))}/s written to {folder.absolute()}", flush=True)
        found = list(troubles(folder))
        print()
        print("\n".join(f"set up badly: {each}" for each in found) or "nothing is set up badly", flush=True)
        if wanted:
            print("\nimages/s from files to committed shards (600/1000, float32, random weights)", flush=True)
        for name in wanted:
            probe = try_model(MODELS[name], PHOTOS, images_to_try())
            each = f"{size(probe.bytes_for(1))} an image"
            print(f"{name:<20}{probe.images_per_second:>8.2f}   {each:<18}bound by {bound(probe, rate)}", flush=True)
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
