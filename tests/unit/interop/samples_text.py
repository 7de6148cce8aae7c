"""Hand-made regions as foreign tools hold them, and the way from an import to a store, for the formats made of text."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np

from storage import FeatureLayout, FeatureStore, RegionRecord, Spec, StoreWriter, open_store
from storage.interop.base import BadRow, Import

DIM, CLASSES = 12, 5


def regions(seed: int, boxes: int) -> dict[str, np.ndarray]:
    """What a detector gives for one image of 640 x 480: float32 throughout, negative zeros among the features."""
    rng = np.random.default_rng(seed)
    low = rng.random((boxes, 2), np.float32) * np.float32(200)
    features = rng.standard_normal((boxes, DIM)).astype(np.float32)
    features[rng.random((boxes, DIM)) < 0.2] = -0.0
    return {
        "boxes": np.hstack([low, low + rng.random((boxes, 2), np.float32) * np.float32(200)]),
        "features": features,
        "whole_image": rng.random(DIM, np.float32),
        "probs": rng.dirichlet(np.ones(CLASSES), boxes).astype(np.float32),
        "ids": rng.integers(0, 1600, boxes),
        "scores": rng.random(boxes, np.float32),
    }


def b64(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array)).decode()


def into_store(found: Import, path: Path, **layout: Any) -> tuple[FeatureStore, list[BadRow]]:
    """Import everything to a store of the layout that was promised, or with some of its fields changed."""
    rows = list(found.rows)
    records = [row for row in rows if isinstance(row, RegionRecord)]
    spec = Spec(found.view, FeatureLayout(**{**vars(found.layout), **layout}))
    return store_of(records, spec, path), [row for row in rows if isinstance(row, BadRow)]


def store_of(records: list[RegionRecord], spec: Spec, path: Path) -> FeatureStore:
    writer = StoreWriter(path, spec)
    with writer.unit([record.key for record in records]) as unit:
        for record in records:
            unit.append(record)
        unit.commit()
    return open_store(path)
