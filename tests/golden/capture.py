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
from tests.golden.compare import EXACT, FEATURES, Report


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
    """One image alone, again, behind another size, and behind an image of its own size.

    Images of one size run together, and for some shapes the convolution library adds up a larger batch in another
    order: there features may differ by rounding. All else is equal to the bit.
    """
    pixels, key = prepared.pixels, prepared.key
    half = replace(prepared, pixels=pixels[:, : pixels.shape[1] // 2])
    flipped = replace(prepared, pixels=pixels.flip(2))
    alone = arrays_of(extract_last(extractor, prepared))
    again = arrays_of(extract_last(extractor, prepared))
    beside_half = arrays_of(extract_last(extractor, half, prepared))
    beside_flipped = arrays_of(extract_last(extractor, flipped, prepared))
    report.compare(f"repeatable {key}", flat(again), flat(alone), EXACT)
    report.compare(f"repeatable beside another size {key}", flat(beside_half), flat(alone), EXACT)
    report.compare(f"repeatable beside its own size {key}", beside_flipped["features"], alone["features"], FEATURES)


def arrays_of(record: Record) -> dict[str, Tensor]:
    """A record's arrays as tensors, by field."""
    return {name: torch.from_numpy(value) for name, value in vars(record).items() if isinstance(value, np.ndarray)}


def flat(arrays: Mapping[str, Tensor]) -> Tensor:
    """All numbers of some arrays in one row."""
    return torch.cat([array.double().flatten() for array in arrays.values()])
