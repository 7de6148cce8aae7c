"""Records as plain JSON values, for the page to draw. Numbers that JSON does not have become None."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from storage import Record, RegionRecord
from storage.frames import cached_frame
from workflows.viewing.opened import Opened

UNSIZED = (1000, 1000)  # the ground to draw on where neither the record nor its boxes tell a size


def described(opened: Opened, record: Record, rows: Sequence[int] | None = None) -> dict[str, Any]:
    """One image.

    key, view      of the record
    height, width  of the ground that boxes and cells lie on, in pixels; `sized` is False where the record has no size
    boxes          regions: each `box` (x1 y1 x2 y2 on that ground), `label`, `score`, `attribute`, `attribute_score`
    cells, frame   others: rows and columns, and what they cover (x1 y1 x2 y2)

    Args:
        rows: the boxes that are wanted, all by default; `kept` counts all.
    """
    height, width = ground(record, opened.store.spec.layout.box_units)
    facts = {
        "key": record.key,
        "view": opened.view,
        "height": height,
        "width": width,
        "sized": min(record.image_size) > 0,
    }
    if isinstance(record, RegionRecord):
        return {**facts, "kept": len(record.boxes), "boxes": _boxes(opened, record, (height, width), rows)}
    cells = (record.features.shape[0], record.features.shape[1])
    spec = opened.store.spec
    covered = cached_frame(spec.preprocess, spec.model, (height, width), cells) if facts["sized"] else None
    frame = (0, 0, width, height) if opened.view == "pixels" or covered is None else covered
    return {**facts, "cells": list(cells), "frame": [round(float(side), 2) for side in frame]}


def ground(record: Record, box_units: str = "pixels") -> tuple[int, int]:
    """Height and width to draw on: the image's own, or what holds all boxes where a foreign file did not tell it."""
    if min(record.image_size) > 0:
        return record.image_size
    if isinstance(record, RegionRecord) and box_units == "pixels" and len(record.boxes):
        right, bottom = np.nan_to_num(record.boxes[:, 2:].astype(np.float64), posinf=0).max(axis=0)
        if right >= 1 and bottom >= 1:
            return math.ceil(bottom), math.ceil(right)
    if not isinstance(record, RegionRecord):
        return 32 * record.features.shape[0], 32 * record.features.shape[1]
    return UNSIZED


def number(value: Any, digits: int = 4) -> float | None:
    """A float that JSON has, to so many significant digits; None for others."""
    return float(f"{float(value):.{digits}g}") if math.isfinite(value) else None


def _boxes(
    opened: Opened, record: RegionRecord, size: tuple[int, int], rows: Sequence[int] | None
) -> list[dict[str, Any]]:
    scale = (size[1], size[0], size[1], size[0]) if opened.store.spec.layout.box_units == "fractions" else (1, 1, 1, 1)
    found = []
    for row in range(len(record.boxes)) if rows is None else rows:
        box = record.boxes[row].tolist()
        facts: dict[str, Any] = {"box": [number(side * by, 6) for side, by in zip(box, scale, strict=True)]}
        facts["label"] = _name(opened, "class", record.class_ids, row)
        facts["score"] = _score(record.class_scores, row)
        facts["attribute"] = _name(opened, "attribute", record.attribute_ids, row)
        facts["attribute_score"] = _score(record.attribute_scores, row)
        found.append(facts)
    return found


def _name(opened: Opened, what: str, ids: np.ndarray | None, row: int) -> str | None:
    return None if ids is None else opened.named(what, int(ids[row]))


def _score(scores: np.ndarray | None, row: int) -> float | None:
    return None if scores is None else number(scores[row])
