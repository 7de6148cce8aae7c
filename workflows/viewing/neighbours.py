"""The regions of a store whose features are most like those of one of them: a scan in bounded memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from storage import FeatureStore
from workflows.viewing.described import described, number
from workflows.viewing.jobs import Job
from workflows.viewing.maps import as_float32, units
from workflows.viewing.opened import Opened

USUAL = 10_000  # images that are looked through unless the page asks for more
IMAGES, ROWS = 64, 128  # that are copied, and made float32, at once: 10 MB, and 1 MB, which stays in a core's cache
KEPT = 18


@dataclass(frozen=True)
class Near:
    """One region: the position of its image, its row there, and the cosine of its feature with the one asked about."""

    position: int
    row: int
    cosine: float


def search_near(store: FeatureStore, position: int, row: int, images: int) -> Job:
    """Start to look for the regions nearest to one, among the first `images`; the result is the best so far."""

    def work(job: Job) -> None:
        job.result = []
        asked = units(as_float32(store.at(position).features[row : row + 1]))[0]
        buffer = np.empty((0, store.spec.layout.dim), store.at(position).features.dtype)
        for start in range(0, job.of, IMAGES):
            positions = np.arange(start, min(start + IMAGES, job.of))
            job.tell(start)
            store.advise(np.arange(start, min(start + 4 * IMAGES, job.of)))
            rows = store.rows(positions)
            if rows > len(buffer):
                buffer = np.empty((rows, buffer.shape[1]), buffer.dtype)
            batch = store.batch(positions, out=buffer)
            cosines = _cosines(batch.values, asked)
            job.result = _best(job.result, cosines, batch.offsets, start, (position, row))

    return Job(work, min(images, len(store)))


def _cosines(values: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """(N,) float32 of values (N, D), a block at a time; what has no length, or is not finite, has -2: behind all."""
    found = np.empty(len(values), np.float32)
    for start in range(0, len(values), ROWS):
        block = as_float32(values[start : start + ROWS])
        lengths = np.sqrt(np.einsum("nd,nd->n", block, block))
        with np.errstate(divide="ignore", invalid="ignore"):
            found[start : start + ROWS] = block @ asked / lengths
    found[~np.isfinite(found)] = -2
    return found


def _best(
    before: Sequence[Near], cosines: np.ndarray, offsets: np.ndarray, first: int, itself: tuple[int, int]
) -> list[Near]:
    """The best of those known before and of some more images, the first of which has position `first`."""
    found = list(before)
    for flat in np.argsort(-cosines, kind="stable")[: KEPT + 1].tolist():
        image = int(np.searchsorted(offsets, flat, side="right")) - 1
        near = Near(first + image, flat - int(offsets[image]), float(cosines[flat]))
        if (near.position, near.row) != itself and near.cosine >= -1.001:
            found.append(near)
    return sorted(found, key=lambda near: -near.cosine)[:KEPT]


def near_facts(opened: Opened, found: Sequence[Near]) -> list[dict[str, Any]]:
    """The regions for the page: each its image without other boxes, its row, and its cosine."""
    facts = []
    for near in found:
        image = described(opened, opened.store.at(near.position), [near.row])
        facts.append({**image, "row": near.row, "cosine": number(near.cosine)})
    return facts
