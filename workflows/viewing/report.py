"""Some images of stores with everything that the page shows of them, as one HTML file."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from storage import FeatureStore, PixelRecord, Record, RegionRecord
from workflows.viewing.described import described
from workflows.viewing.maps import as_float32, map_facts, units
from workflows.viewing.opened import Opened, ViewError
from workflows.viewing.page import page_with
from workflows.viewing.pictures import PictureError, Pictures, jpeg

SIDE = 800  # pixels of a picture's longer side
MOST_CELLS = 640  # of an image whose cells' likeness is kept: its square in bytes, 0.5 MB of text
MOST_ERRORS = 500


@dataclass(frozen=True)
class Made:
    """A report.

    unpictured  why images have no picture, a line each
    """

    html: str
    images: int
    unpictured: list[str] = field(default_factory=list)


def report(stores: Sequence[Opened], pictures: Pictures, number: int) -> Made:
    """The page over `number` images, evenly spread over the first store, in all of the stores.

    Raises:
        ViewError: a store has no records, or the images cannot be listed.
        StoreError: a shard is missing or damaged.
    """
    for opened in stores:
        if not len(opened.store):
            raise ViewError(f"{opened.name} has no records to show; `triptych errors` lists what failed.")
    if pictures.listing:
        pictures.listing.wait()
        if pictures.listing.error:
            raise ViewError(pictures.listing.error)
    keys = _spread(stores[0].store, number)
    shown, unpictured = _pictures(keys, pictures) if pictures.images else ({}, [])
    data = {"stores": [_of_store(each, keys) for each in stores], "pictures": shown}
    title = f"{', '.join(each.name for each in stores)} - Triptych"
    return Made(page_with(title, data), len(keys), unpictured)


def _spread(store: FeatureStore, number: int) -> list[str]:
    places = np.linspace(0, len(store) - 1, min(number, len(store))).round().astype(int)
    return [store.at(at).key for at in places]


def _pictures(keys: Sequence[str], pictures: Pictures) -> tuple[dict[str, str], list[str]]:
    """Pictures by key, as data; and why there is none of the others, a line each."""
    found, missing = {}, []
    for key in keys:
        try:
            found[key] = _data(pictures.pixels(key))
        except PictureError as error:
            missing.append(f"{key}: {error}")
    return found, missing


def _of_store(opened: Opened, keys: Sequence[str]) -> dict[str, Any]:
    """What the page has of one store: facts, the images of these keys that it holds, and errors."""
    store = opened.store
    images = [kept(opened, store[key]) for key in keys if key in store]
    facts = {**opened.facts, "name": opened.name, "kept_of": [len(images), len(store)]}
    return {"store": facts, "images": images, "errors": [asdict(row) for row in opened.errors[:MOST_ERRORS]]}


def kept(opened: Opened, record: Record) -> dict[str, Any]:
    """An image as the page has it, and of cells all maps: the server that would make them is not there."""
    facts = described(opened, record)
    if isinstance(record, PixelRecord):
        return {**facts, "picture": _data(record.pixels)}
    if isinstance(record, RegionRecord):
        return facts
    facts["kinds"] = ["norm", "pca"]
    facts["maps"] = {kind: map_facts(record.features, kind) for kind in facts["kinds"]}
    if np.prod(record.features.shape[:2]) <= MOST_CELLS:
        facts["kinds"] = [*facts["kinds"], "similar"]
        facts["likeness"] = likeness(record.features)
    return facts


def likeness(features: np.ndarray) -> str:
    """The cosines of all pairs of cells of (H, W, D), row by row: base64 of int8, in steps of 1/127."""
    unit = units(as_float32(np.nan_to_num(features)).reshape(-1, features.shape[-1]))
    codes = np.rint(np.clip(unit @ unit.T, -1, 1) * 127).astype(np.int8)
    return base64.b64encode(codes.tobytes()).decode()


def _data(pixels: np.ndarray) -> str:
    """(H, W, 3) uint8 RGB as a small JPEG in a page."""
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg(pixels, SIDE)).decode()}"
