"""What a checker reads (a reference folder) and what it gives (a report of comparisons), with every tolerance."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from storage.errors import TriptychError

# The tolerances, all absolute. float32 on a CPU.
EXACT = 0.0  # preprocessed pixels, kept rows, labels, order, and scores copied from stored ones: equal
FEATURES = 1e-4  # feature maps, box features and what the network computes from them
DECODED = 1e-4  # pixels; boxes decoded from stored deltas: exp's last bit, which is the processor's, moves a corner
MODELS = 2e-5  # embeddings, states, logits and losses of the models; their RoI features, near 100, have FEATURES
SOFTMAX = 1e-6  # probabilities of stored logits: again exp's last bit
MATCHED = 1e-2  # pixels; end to end, by how much a box may differ and still be the same one

FILES = ("config.json", "weights.safetensors", "inputs.safetensors", "outputs.safetensors")
WITHOUT_WEIGHTS = tuple(name for name in FILES if not name.startswith("weights"))
PREPROCESSED = ("resized_", "network_input_")


class CannotCheckError(TriptychError):
    """A folder that is not a reference folder, or of a model no checker knows."""


class Tensors(dict[str, Tensor]):
    """Tensors by name; asking for one the file lacks says so."""

    def __init__(self, path: Path) -> None:
        super().__init__(_load(path))
        self.path = path

    def __missing__(self, name: str) -> Tensor:
        raise CannotCheckError(f"{self.path} lacks the tensor {name!r}, which this model's folders hold.")


@dataclass(frozen=True)
class Folder:
    """One reference folder.

    config   what config.json says
    inputs   images and preprocessed tensors, by name
    outputs  what the official code gave for them, by name
    """

    path: Path
    config: dict[str, Any]
    inputs: Tensors
    outputs: Tensors

    @classmethod
    def read(cls, path: Path, files: tuple[str, ...] = FILES) -> Folder:
        """Read a folder, all but its weights.

        Args:
            files: what it must hold; some need no weights.

        Raises:
            CannotCheckError: a file is missing or damaged.
        """
        missing = [name for name in files if not (path / name).is_file()]
        if missing:
            raise CannotCheckError(f"{path} lacks {', '.join(missing)}; a reference folder holds {', '.join(files)}.")
        return cls(path, read_config(path), Tensors(path / FILES[2]), Tensors(path / FILES[3]))

    @property
    def weights(self) -> str:
        """What `--weights` would name."""
        return f"reference:{self.path}"

    def setting(self, *names: str) -> Any:
        """A value of config.json by its path, `setting("input", "pixel_mean")`.

        Raises:
            CannotCheckError: config.json lacks it.
        """
        return setting(self.path, self.config, *names)

    def indices(self, stem: str) -> list[str]:
        """The numbers I of the input tensors `stem`_I.

        Raises:
            CannotCheckError: there are none.
        """
        found = [name.removeprefix(f"{stem}_") for name in self.inputs if name.startswith(f"{stem}_")]
        if not found:
            raise CannotCheckError(f"{self.inputs.path} lacks tensors {stem}_0, {stem}_1, ...")
        return sorted(found)

    def image(self, name: str) -> np.ndarray:
        """An input image as it lies in the file, uint8 (H, W, 3).

        Raises:
            CannotCheckError: it is not an image.
        """
        image = self.inputs[name]
        if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise CannotCheckError(f"{name} is {image.dtype} {list(image.shape)}; wanted torch.uint8 [H, W, 3].")
        return image.numpy()


@dataclass(frozen=True)
class Comparison:
    """One line of a report: `difference` is the largest absolute one, inf or nan where there is no saying."""

    name: str
    difference: float
    tolerance: float
    note: str = ""

    @property
    def ok(self) -> bool:
        return self.difference <= self.tolerance  # False for nan

    def __str__(self) -> str:
        verdict, note = "OK  " if self.ok else "FAIL", f"  ({self.note})" if self.note else ""
        return (
            f"{verdict} {self.name:<46} largest difference {self.difference:<8.3g} tolerance {self.tolerance:g}{note}"
        )


@dataclass
class Report:
    """The comparisons of one folder, in the order they were made."""

    comparisons: list[Comparison] = field(default_factory=list)

    def compare(self, name: str, found: Tensor, wanted: Tensor, tolerance: float) -> None:
        """Add a line: ours against the official tensor."""
        if found.shape != wanted.shape:
            self.fail(name, f"found shape {list(found.shape)}, wanted {list(wanted.shape)}", tolerance)
        else:
            self.comparisons.append(Comparison(name, largest_difference(found, wanted), tolerance))

    def same(self, name: str, found: Sequence[Any], wanted: Sequence[Any]) -> None:
        """Add a line for two lists, whose difference is the number of places where they are not equal."""
        if len(found) != len(wanted):
            self.fail(name, f"found {len(found)} entries, wanted {len(wanted)}")
            return
        wrong = [at for at, (ours, theirs) in enumerate(zip(found, wanted, strict=True)) if ours != theirs]
        note = f"entry {wrong[0]}: found {found[wrong[0]]!r}, wanted {wanted[wrong[0]]!r}" if wrong else ""
        self.comparisons.append(Comparison(name, len(wrong), EXACT, note))

    def fail(self, name: str, note: str, tolerance: float = EXACT) -> None:
        """Add a line for what cannot even be compared."""
        self.comparisons.append(Comparison(name, math.inf, tolerance, note))

    def fail_unhandled(self, folder: Folder) -> None:
        """Add a failure for every tensor that no line speaks of, so that none is skipped in silence."""
        named = {each.name for each in self.comparisons}
        for name in [*preprocessed(folder.inputs), *folder.outputs]:
            if name not in named:
                self.fail(name, "no check knows this tensor")

    @property
    def failures(self) -> list[Comparison]:
        return [each for each in self.comparisons if not each.ok]


def largest_difference(found: Tensor, wanted: Tensor) -> float:
    """Largest absolute difference of two tensors of one shape; nan where either has one."""
    if not found.numel():
        return 0.0
    return float((found.double() - wanted.double()).abs().max())


def preprocessed(names: Iterable[str]) -> list[str]:
    """Those input tensors that are the outcome of preprocessing."""
    return [name for name in names if name.startswith(PREPROCESSED)]


def read_config(path: Path) -> dict[str, Any]:
    """A folder's config.json.

    Raises:
        CannotCheckError: it is absent, or not a JSON object.
    """
    try:
        config = json.loads((path / FILES[0]).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CannotCheckError(f"{path / FILES[0]} cannot be read as JSON ({error}).") from error
    if not isinstance(config, dict):
        raise CannotCheckError(f"{path / FILES[0]} holds a {type(config).__name__}; wanted an object.")
    return config


def setting(path: Path, config: dict[str, Any], *names: str) -> Any:
    """A value of a config by its path.

    Raises:
        CannotCheckError: the config lacks it.
    """
    value: Any = config
    for name in names:
        if not isinstance(value, dict) or name not in value:
            raise CannotCheckError(f"{path / FILES[0]} lacks {'.'.join(names)!r}.")
        value = value[name]
    return value


def _load(path: Path) -> dict[str, Tensor]:
    try:
        return dict(load_file(path))
    except (SafetensorError, OSError) as error:
        raise CannotCheckError(f"{path} is not a readable safetensors file ({error}).") from error
