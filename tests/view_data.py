"""Small stores to look at, of every view and format, and the images that they are of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from starlette.testclient import TestClient

from storage import ErrorRow, FeatureLayout, Record, RegionRecord, Spec, StoreWriter
from tests.unit.storage.samples import GRID, PATCHES, PIXELS, grid_record, make_store, patch_record, pixel_record
from workflows.viewing.opened import Opened
from workflows.viewing.pictures import ImageFlags, Pictures
from workflows.viewing.server import make_app

HOSTILE = "<img src=x onerror=alert(1)>"
KEYS = ("cats/one", "cats/two", "dogs/one", "dogs/two", HOSTILE)
CLASSES, ATTRIBUTES = ["cat", "dog", "eyes,eye", HOSTILE], ["red", "blue"]
SIZE = (60, 80)
REGIONS = Spec("regions", FeatureLayout(8), {"name": "by hand"})


def region_record(key: str, spec: Spec = REGIONS) -> RegionRecord:
    """Three boxes: a cat or a dog by the key, an eye, and one of a hostile name; scores fall."""
    animal = 0 if key.startswith("cats") else 1
    own = np.random.default_rng(KEYS.index(key)).normal(0, 0.1, (3, 8))
    features = np.eye(8)[[animal, 2, 3]] + own
    return RegionRecord(
        key,
        SIZE,
        np.array([[0, 0, 40, 30], [10, 10, 20, 20], [40, 30, 80, 60]], np.float32),
        features.astype(np.float32 if spec.layout.dtype == "uint8" else np.float16),
        features.mean(axis=0).astype(np.float32 if spec.layout.dtype == "uint8" else np.float16),
        np.array([animal, 2, 3], np.int32),
        np.array([0.9, 0.5, 0.25], np.float32) - np.float32(0.01 * KEYS.index(key)),
        np.array([KEYS.index(key) % 2, -1, -1], np.int32),
        np.array([0.8, 0.1, 0.1], np.float32),
    )


def region_store(path: Path, spec: Spec = REGIONS, format: str = "arrow", keys: tuple[str, ...] = KEYS) -> Path:
    """The images of KEYS in two units, and two that failed."""
    writer = StoreWriter(path, spec, {"classes": CLASSES, "attributes": ATTRIBUTES}, format)
    failed = {"bad/text": ("decode", "not_an_image"), "bad/late": ("prepare", "no_boxes")}
    for part in (keys[:2], keys[2:]):
        with writer.unit([*part, *failed]) as unit:
            for key in part:
                unit.append(region_record(key, spec))
            for key, (stage, reason) in failed.items():
                unit.fail(ErrorRow(key, f"images/{key}.jpg", stage, reason, f"found {key}, wanted better"))
            unit.commit()
        failed = {}
    return path


@dataclass(frozen=True)
class Stores:
    """Where they are. All have the key cats/one."""

    regions: Path
    hdf5: Path
    narrow: Path
    archive: Path
    grid: Path
    patches: Path
    pixels: Path
    images: Path

    @property
    def all(self) -> list[Path]:
        return [self.regions, self.hdf5, self.narrow, self.archive, self.grid, self.patches, self.pixels]


def make_stores(root: Path) -> Stores:
    """Everything, in a folder."""
    images = root / "images"
    for number, key in enumerate((*KEYS[:4], "bad/late")):
        path = images / f"{key}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (SIZE[1], SIZE[0]), (40 * number, 100, 200)).save(path)
    (images / "bad/text.jpg").write_text("no image")
    cells = {"grid": (GRID, grid_record), "patches": (PATCHES, patch_record), "pixels": (PIXELS, pixel_record)}
    paths = {}
    for view, (spec, make) in cells.items():
        records: list[Record] = [make(key, (3, 4)) for key in ("cats/one", "cats/two")]
        paths[view] = root / view
        writer = StoreWriter(root / view, spec)
        with writer.unit([record.key for record in records]) as unit:
            for record in records:
                unit.append(record)
            unit.commit()
    return Stores(
        region_store(root / "regions"),
        region_store(root / "hdf5", format="hdf5"),
        region_store(root / "narrow", Spec("regions", FeatureLayout(8, "uint8"), {"name": "by hand"})),
        region_store(root / "archive", format="arrow-zstd"),
        **paths,
        images=images,
    )


def client(stores: list[Path], images: Path | None = None, **flags: bool) -> TestClient:
    """The server over some stores, without a network; the images are listed."""
    pictures = Pictures(ImageFlags(str(images) if images else "", **flags))
    if pictures.listing:
        pictures.listing.wait()
    return TestClient(make_app([Opened(path) for path in stores], pictures), base_url="http://127.0.0.1")


__all__ = ["CLASSES", "HOSTILE", "KEYS", "SIZE", "Stores", "client", "make_store", "make_stores", "region_store"]
