"""Which images of a store the page lists: all, or those that a search finds, in the order of the store.

A search goes through keys, and where it asks for boxes, through their ids and scores; features are not read. It runs on
a thread, and what it has found so far is shown.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from storage import FeatureStore
from workflows.viewing.jobs import Job
from workflows.viewing.opened import Opened, ViewError

CHUNK = 4096  # images that are looked at together


@dataclass(frozen=True)
class Wanted:
    """What an image must have to be listed.

    text        part of its key, in any case
    classes, attributes  one box of one of each, None where any will do
    least       score of that box, at least
    """

    text: str = ""
    classes: tuple[int, ...] | None = None
    attributes: tuple[int, ...] | None = None
    least: float = 0.0

    @property
    def fields(self) -> list[str]:
        """What has to be read of each box."""
        asked = {
            "class_ids": self.classes is not None,
            "attribute_ids": self.attributes is not None,
            "class_scores": self.least > 0,
        }
        return [name for name, needed in asked.items() if needed]

    @property
    def is_all(self) -> bool:
        return not self.text and not self.fields


def wanted_of(opened: Opened, text: str, class_name: str, attribute: str, least: float) -> Wanted:
    """A search by names.

    Raises:
        ViewError: the store has no such class or attribute, or no scores.
    """
    wanted = Wanted(
        text.casefold(),
        opened.ids("class", class_name) if class_name else None,
        opened.ids("attribute", attribute) if attribute else None,
        least,
    )
    missing = [name for name in wanted.fields if name not in opened.store.spec.carried]
    if missing:
        raise ViewError(f"{opened.name} holds {opened.view} without {', '.join(missing)}: search by key only.")
    return wanted


def search(store: FeatureStore, wanted: Wanted) -> Job:
    """Start a search; its result is a list of positions that grows."""

    def work(job: Job) -> None:
        job.result = []
        for start, keys in _chunks(store):
            found = np.array([start + at for at, key in enumerate(keys) if wanted.text in key.casefold()], np.int64)
            if wanted.fields and len(found):
                found = found[_have_box(store, found, wanted)]
            job.result.extend(found.tolist())
            job.tell(start + len(keys))

    return Job(work, len(store))


def _chunks(store: FeatureStore) -> Iterator[tuple[int, Sequence[str]]]:
    keys, start = iter(store), 0
    while some := list(islice(keys, CHUNK)):
        yield start, some
        start += len(some)


def _have_box(store: FeatureStore, positions: np.ndarray, wanted: Wanted) -> np.ndarray:
    """(B,) bool: True where one box of the image has all that is wanted."""
    offsets, found = store.columns(positions, wanted.fields)
    fits = np.ones(int(offsets[-1]), bool)
    for name, ids in (("class_ids", wanted.classes), ("attribute_ids", wanted.attributes)):
        if ids is not None:
            fits &= np.isin(found[name], ids)
    if wanted.least > 0:
        fits &= found["class_scores"] >= wanted.least
    before = np.concatenate([[0], np.cumsum(fits)])[offsets]
    return np.diff(before) > 0
