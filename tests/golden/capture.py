"""What an extractor's network meets while it runs, and whether it gives the same when it runs again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from extractors.base import Extractor, Prepared
from storage.records import Record
from tests.golden.compare import EXACT, ROUNDING, Report, largest_difference


@dataclass(frozen=True)
class Seen:
    """What a module was given and what it gave, the last time it ran."""

    given: Tensor
    gave: Any


@contextmanager
def captured(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, Seen]]:
    """Watch modules by name while the block runs."""
    seen: dict[str, Seen] = {}

    def watch(name: str, module: nn.Module) -> Any:
        return module.register_forward_hook(lambda _, given, gave: seen.update({name: Seen(given[0], gave)}))

    handles = [watch(name, module) for name, module in modules.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def extract_last(extractor: Extractor, *batch: Prepared) -> Record:
    """The record of a batch's last image.

    Raises:
        ImageError: the image cannot be used.
    """
    last = extractor.extract(batch)[-1]
    if isinstance(last, Exception):
        raise last
    return last


def check_repeatable(report: Report, extractor: Extractor, prepared: Prepared) -> None:
    """One image alone, again, behind another size, and behind an image of its own size, which shares its run."""
    alone, pixels = extract_last(extractor, prepared), prepared.pixels
    mates: dict[str, tuple[list[Prepared], float]] = {
        "repeatable": ([], EXACT),
        "repeatable beside another size": ([replace(prepared, pixels=pixels[:, : pixels.shape[1] // 2])], EXACT),
        "repeatable beside its own size": ([replace(prepared, pixels=pixels.flip(2))], ROUNDING),
    }
    for name, (batch, tolerance) in mates.items():
        difference = records_difference(alone, extract_last(extractor, *batch, prepared))
        report.compare(f"{name} {prepared.key}", difference, torch.zeros(()), tolerance)


def records_difference(one: Record, other: Record) -> Tensor:
    """Largest difference of any array of two records; inf where their shapes differ."""
    arrays = [name for name, value in vars(one).items() if isinstance(value, np.ndarray)]
    pairs = [(torch.from_numpy(getattr(one, name)), torch.from_numpy(getattr(other, name))) for name in arrays]
    differences = [largest_difference(*pair) if pair[0].shape == pair[1].shape else torch.inf for pair in pairs]
    return torch.tensor(differences).max()
