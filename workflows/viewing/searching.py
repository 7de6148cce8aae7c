"""Which images of a store the page lists: all, or those that a search finds, in the order of the store.

A search goes through keys, and where it asks for boxes, through their ids and scores; features are not read. It runs on
a thread, and what it has found so far is shown.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from storage import FeatureStore, Record, RegionRecord
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

    def fits(self, boxes: Mapping[str, np.ndarray], count: int) -> np.ndarray:
        """(count,) bool: which boxes have all that is asked of one, by their `fields`."""
        found = np.ones(count, bool)
        for name, ids in (("class_ids", self.classes), ("attribute_ids", self.attributes)):
            if ids is not None:
                found &= np.isin(boxes[name], ids)
        return found & (boxes["class_scores"] >= self.least) if self.least > 0 else found

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
    before = np.concatenate([[0], np.cumsum(wanted.fits(found, int(offsets[-1])))])[offsets]
    return np.diff(before) > 0


def shown_rows(record: Record, wanted: Wanted, most: int) -> list[int]:
    """The first boxes of a record that have what is wanted; none of a record without boxes."""
    if not isinstance(record, RegionRecord):
        return []
    boxes = {name: getattr(record, name) for name in wanted.fields}
    found: list[int] = np.flatnonzero(wanted.fits(boxes, len(record.boxes)))[:most].tolist()
    return found
