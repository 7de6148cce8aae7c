"""Some images of a store with everything that the page shows of them, as one HTML file."""

from __future__ import annotations

import base64
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from storage import PixelRecord, Record, RegionRecord
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


def report(opened: Opened, pictures: Pictures, number: int) -> Made:
    """The page over `number` images, evenly spread over the store.

    Raises:
        ViewError: the store has no records, or the images cannot be listed.
        StoreError: a shard is missing or damaged.
    """
    store = opened.store
    if not len(store):
        raise ViewError(f"{opened.name} has no records to show; `triptych errors` lists what failed.")
    if pictures.listing:
        pictures.listing.wait()
        if pictures.listing.error:
            raise ViewError(pictures.listing.error)
    records = [store.at(at) for at in np.linspace(0, len(store) - 1, min(number, len(store))).round().astype(int)]
    images, unpictured = [], []
    for record in records:
        image = kept(opened, record)
        try:
            image["picture"] = _picture(record, pictures)
        except PictureError as error:
            unpictured.append(f"{record.key}: {error}")
        images.append(image)
    facts = {**opened.facts, "name": opened.name, "kept_of": [len(images), len(store)]}
    errors = [asdict(row) for row in opened.errors[:MOST_ERRORS]]
    data = {"store": facts, "images": images, "errors": errors, "pictured": bool(pictures.images)}
    return Made(page_with(f"{opened.name} - Triptych", data), len(images), unpictured if pictures.images else [])


def kept(opened: Opened, record: Record) -> dict[str, Any]:
    """An image as the page has it, and of cells all maps: the server that would make them is not there."""
    facts = described(opened, record)
    if isinstance(record, RegionRecord | PixelRecord):
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


def _picture(record: Record, pictures: Pictures) -> str:
    pixels = record.pixels if isinstance(record, PixelRecord) else pictures.pixels(record.key)
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg(pixels, SIDE)).decode()}"
