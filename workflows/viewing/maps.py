"""Features of cells as maps over the image: how long each is, what tells them apart, and which are like one of them.

Shapes in this file: H x W cells, D feature width.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from workflows.viewing.described import number

KINDS = ("norm", "pca", "similar")


def as_float32(values: np.ndarray) -> np.ndarray:
    """Features as float32. numpy converts half floats five times slower than OpenCV."""
    if values.dtype == np.float16 and values.size:
        flat = cv2.add(np.ascontiguousarray(values).reshape(-1, values.shape[-1]), 0, dtype=cv2.CV_32F)
        return flat.reshape(values.shape)
    return values.astype(np.float32)


def norms(features: np.ndarray) -> np.ndarray:
    """(H, W, D) to (H, W) float32: the Euclidean length of each cell's feature."""
    found: np.ndarray = np.linalg.norm(as_float32(features), axis=-1)
    return found


def similarity(features: np.ndarray, row: int, column: int) -> np.ndarray:
    """(H, W, D) to (H, W) float32: the cosine of each cell's feature with one cell's; 0 where one has no length."""
    unit = units(as_float32(features))
    found: np.ndarray = unit @ unit[row, column]
    return found


def units(rows: np.ndarray) -> np.ndarray:
    """(..., D) float32 at length 1; what has no length stays zero."""
    lengths = np.linalg.norm(rows, axis=-1, keepdims=True)
    return np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0)


def principal_colours(features: np.ndarray) -> tuple[np.ndarray, list[float]]:
    """The first three principal components of the cells as red, green and blue.

    Each component is stretched from its 1st to its 99th percentile. A component's sign is free; here its largest
    magnitude is positive, so that equal features have equal colours.

    Returns:
        (H, W, 3) uint8, and the share of the variance in each component.
    """
    shape = features.shape[:2]
    cells = as_float32(features).reshape(-1, features.shape[-1])
    cells = cells - cells.mean(axis=0)
    projected, variances = _projected(cells, 3)
    projected *= np.sign(projected[np.abs(projected).argmax(axis=0), range(3)])
    low, high = np.percentile(projected, [1, 99], axis=0)
    span = np.where(high > low, high - low, 1)
    colours = (np.clip((projected - low) / span, 0, 1) * 255).round().astype(np.uint8)
    total = float((cells**2).sum()) or 1.0
    return colours.reshape(*shape, 3), [round(float(each) / total, 4) for each in variances]


def _projected(cells: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Cells (N, D) on their first principal axes (N, count), and each axis's sum of squares.

    By the eigenvectors of whichever Gram matrix is smaller: their singular value decomposition in a fifth of its time.
    """
    few = len(cells) <= cells.shape[1]
    values, vectors = np.linalg.eigh(cells @ cells.T if few else cells.T @ cells)
    values, vectors = np.clip(values[::-1][:count], 0, None), vectors[:, ::-1][:, :count]
    projected = vectors * np.sqrt(values) if few else cells @ vectors
    missing = count - projected.shape[1]  # fewer cells, or narrower features, than colours
    return np.pad(projected, ((0, 0), (0, missing))), np.pad(values, (0, missing))


def map_facts(features: np.ndarray, kind: str, cell: tuple[int, int] = (0, 0)) -> dict[str, Any]:
    """One map as plain values: `values` row by row with `low` and `high`, or `colours` with the `shares` they tell.

    Args:
        features: (H, W, D).
        kind: "norm", "pca" or "similar", which is to `cell`, row and column.
    """
    features = np.nan_to_num(features)
    if kind == "pca":
        colours, shares = principal_colours(features)
        return {"kind": kind, "colours": colours.reshape(-1, 3).tolist(), "shares": shares}
    found = norms(features) if kind == "norm" else similarity(features, *cell)
    return {
        "kind": kind,
        "values": [number(value) for value in found.reshape(-1).tolist()],
        "low": number(found.min()),
        "high": number(found.max()),
    }
