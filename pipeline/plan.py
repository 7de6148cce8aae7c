"""The work of a job, cut before it runs: what is committed is taken off, the rest becomes units of fixed content."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from math import ceil, inf
from typing import overload

import numpy as np

from pipeline.sources import ImageRef, Listing, Refs
from storage.codecs import NUMPY
from storage.spec import Spec

SHARD_BYTES = 256 << 20
CPU_SHARD_IMAGES = 64  # a CPU needs minutes for so many; a killed job repeats at most one unit a worker
USUAL_BOXES = 45  # mean of the 10-100 rule on COCO


@dataclass(frozen=True)
class Unit:
    """Images that become one shard and one commit a view.

    again  they failed before, and what becomes of them now takes the place of their error rows
    """

    refs: tuple[ImageRef, ...]
    again: bool = False

    @property
    def keys(self) -> list[str]:
        return [ref.key for ref in self.refs]


class Units(Sequence[Unit]):
    """What is left of a source, cut into units when they are asked for. Its memory does not grow with their number."""

    def __init__(self, left: Refs, per_unit: int, again: bool = False) -> None:
        self.left, self.per_unit, self.again = left, per_unit, again

    def __len__(self) -> int:
        return ceil(len(self.left) / self.per_unit)

    @overload
    def __getitem__(self, at: int) -> Unit: ...
    @overload
    def __getitem__(self, at: slice) -> list[Unit]: ...
    def __getitem__(self, at: int | slice) -> Unit | list[Unit]:
        numbers = range(len(self))[at]
        return [self._unit(number) for number in numbers] if isinstance(numbers, range) else self._unit(numbers)

    def _unit(self, number: int) -> Unit:
        return Unit(tuple(self.left[number * self.per_unit : (number + 1) * self.per_unit]), self.again)


@dataclass(frozen=True)
class Plan:
    """units to run, all images of the job, and how many of them are committed already."""

    units: Units
    refs: Refs
    done: int

    @property
    def images(self) -> int:
        return len(self.refs)

    @property
    def to_do(self) -> int:
        return self.images - self.done

    def cut(self, per_unit: int) -> Plan:
        """The same work in units of another size."""
        return replace(self, units=Units(self.units.left, per_unit, self.units.again))


def make_plan(
    listing: Listing, done: Callable[[Sequence[str]], Iterable[bool]], per_unit: int, limit: int | None = None
) -> Plan:
    """Cut what is left of a source into units.

    Args:
        done: tells of each key whether its image needs no more work; asked page by page.
        per_unit: images a unit, at most.
        limit: take the source's first so many images only.
    """
    refs = Refs.of(listing.refs).first(limit)
    left = refs.select(lambda keys: ~np.asarray(done(keys), bool))
    return Plan(Units(left, per_unit), refs, len(refs) - len(left))


def images_per_unit(spec: Spec, on_cpu: bool) -> int:
    """How many images make about 256 MiB of features; on a CPU no more than its network does in minutes."""
    fitting = max(1, SHARD_BYTES // bytes_per_image(spec))
    return min(fitting, CPU_SHARD_IMAGES) if on_cpu and spec.view != "pixels" else fitting


def bytes_per_image(spec: Spec) -> int:
    """Size of a usual image's record: 45 boxes, a tower's patches, or the cells or pixels of a 4:3 photograph; where an
    extractor of someone's own does not tell how it resizes, as our own would have it."""
    value = NUMPY[spec.layout.dtype].itemsize
    if spec.view == "regions":
        rule = spec.selection.get("rule")
        boxes = spec.selection["max_boxes"] if rule in ("class-aware", "class-agnostic") else USUAL_BOXES
        return int(boxes * (spec.layout.dim * value + 32 + 2 * spec.layout.class_probs) + spec.layout.dim * value)
    if spec.view == "patches":
        cells = (spec.preprocess.get("size", 224) // spec.model.get("stride", 16)) ** 2 + len(spec.carried)
    else:
        shorter = spec.preprocess.get("shorter", 600)
        longer = spec.preprocess.get("longer", inf)  # ViLT's rule for pixels has a limit of its own, above 4:3
        cell = 1 if spec.view == "pixels" else spec.model.get("stride", 32)
        cells = ceil(shorter / cell) * ceil(min(longer, shorter * 4 / 3) / cell)
    return int(cells * spec.layout.dim * value)
