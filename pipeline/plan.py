"""The work of a job, cut before it runs: what is committed is taken off, the rest becomes units of fixed content."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import ceil

from pipeline.sources import ImageRef, Listing
from storage.codecs import NUMPY
from storage.spec import Spec

SHARD_BYTES = 256 << 20
CPU_SHARD_IMAGES = 64  # a CPU needs minutes for so many; a killed job repeats at most one unit a worker
USUAL_BOXES = 45  # mean of the 10-100 rule on COCO


@dataclass(frozen=True)
class Unit:
    """Images that become one shard and one commit."""

    refs: tuple[ImageRef, ...]

    @property
    def keys(self) -> list[str]:
        return [ref.key for ref in self.refs]


@dataclass(frozen=True)
class Plan:
    """units to run, `images` of the source in all, and how many of them are committed already."""

    units: list[Unit]
    images: int
    done: int

    @property
    def to_do(self) -> int:
        return self.images - self.done


def make_plan(
    listing: Listing, done: Callable[[Sequence[str]], Iterable[bool]], per_unit: int, limit: int | None = None
) -> Plan:
    """Cut what is left of a source into units.

    Args:
        done: tells of each key whether its image needs no more work.
        per_unit: images a unit, at most.
        limit: take the source's first so many images only.
    """
    refs = listing.refs[:limit]
    flags = done([ref.key for ref in refs])
    left = [ref for ref, is_done in zip(refs, flags, strict=True) if not is_done]
    units = [Unit(tuple(left[start : start + per_unit])) for start in range(0, len(left), per_unit)]
    return Plan(units, len(refs), len(refs) - len(left))


def images_per_unit(spec: Spec, on_cpu: bool) -> int:
    """How many images make about 256 MiB of features; on a CPU no more than it does in minutes."""
    fitting = max(1, SHARD_BYTES // bytes_per_image(spec))
    return min(fitting, CPU_SHARD_IMAGES) if on_cpu else fitting


def bytes_per_image(spec: Spec) -> int:
    """Size of a usual image's record: 45 boxes, or the grid of a 4:3 photograph."""
    value = NUMPY[spec.layout.dtype].itemsize
    if spec.view == "regions":
        rule = spec.selection.get("rule")
        boxes = spec.selection["max_boxes"] if rule in ("class-aware", "class-agnostic") else USUAL_BOXES
        return int(boxes * (spec.layout.dim * value + 32 + 2 * spec.layout.class_probs) + spec.layout.dim * value)
    shorter, longer = spec.preprocess["shorter"], spec.preprocess["longer"]
    cells = ceil(shorter / 32) * ceil(min(longer, shorter * 4 / 3) / 32)
    return int(cells * spec.layout.dim * value)
