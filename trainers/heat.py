"""Pictures of maps over their images: cells as heat, regions as boxes.

Shapes in this file: H x W pixels of the image, h x w cells, R regions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from storage.frames import Frame

HOT, GREY = np.array([235, 60, 0], np.float32), np.array([0.299, 0.587, 0.114], np.float32)
BLACK = np.zeros(3)
MOST = 0.8  # how much of the hottest place's picture the colour covers
FAINT = 0.25  # how strong the lightest box is
NUMBERED = 3  # boxes whose weight is written in them
LETTERS: dict[str, Any] = {"font_size": 14, "stroke_width": 2, "stroke_fill": (0, 0, 0)}


def heat(image: np.ndarray, cells: np.ndarray, frame: Frame) -> np.ndarray:
    """A map over a grey picture of its image, from nothing at the map's smallest value to deep red at its largest.

    Args:
        image: (H, W, 3) uint8 RGB.
        cells: (h, w).
        frame: what all cells together cover of the image. It may reach beyond; what it leaves out stays plain.

    Returns:
        (H, W, 3) uint8.
    """
    height, width = image.shape[:2]
    down = _between(height, frame[1], frame[3], cells.shape[0])
    across = _between(width, frame[0], frame[2], cells.shape[1])
    shown = down @ _scaled(cells) @ across.T * MOST
    grey = np.repeat((image @ GREY)[..., None], 3, axis=-1)
    found: np.ndarray = (grey + shown[..., None] * (HOT - grey)).round().astype(np.uint8)
    return found


def boxes(image: np.ndarray, regions: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Regions over their image, from faint to strong as they weigh; the heaviest with their weight.

    Args:
        image: (H, W, 3) uint8 RGB.
        regions: (R, 4) x1 y1 x2 y2 in pixels of the image.
        weights: (R,).

    Returns:
        (H, W, 3) uint8.
    """
    shades = FAINT + (1 - FAINT) * _scaled(weights)
    found = Image.fromarray(image).convert("RGBA")
    order = np.argsort(shades, kind="stable")  # the heaviest is drawn last, on top
    for row in order:
        drawn, shade, corners = Image.new("RGBA", found.size), float(shades[row]), regions[row].tolist()
        pen, opaque, width = ImageDraw.Draw(drawn), round(255 * shade), round(4 * shade) or 1
        for colour, wider in ((BLACK, 1), (HOT, 0)):  # with a dark rim: the picture may be red, too
            edges = [corners[0] - wider, corners[1] - wider, corners[2] + wider, corners[3] + wider]
            pen.rectangle(edges, outline=(*colour.astype(int).tolist(), opaque), width=width + 2 * wider)
        if row in order[-NUMBERED:]:
            pen.text((corners[0] + 6, corners[1] + 5), f"{weights[row]:.3g}", fill=(255, 255, 255), **LETTERS)
        found = Image.alpha_composite(found, drawn)
    return np.array(found.convert("RGB"))


def _between(pixels: int, first: float, last: float, cells: int) -> np.ndarray:
    """(pixels, cells): how much of each cell a pixel shows, linear between the cells' middles, none outside of them."""
    middle = np.arange(pixels) + 0.5
    place = ((middle - first) / (last - first) * cells - 0.5).clip(0, cells - 1)
    shares = (1 - np.abs(place[:, None] - np.arange(cells))).clip(min=0)
    found: np.ndarray = shares * ((middle >= first) & (middle < last))[:, None]
    return found.astype(np.float32)


def _scaled(values: np.ndarray) -> np.ndarray:
    """From 0, the smallest, to 1, the largest; all 0 where they are equal."""
    span = float(values.max() - values.min())
    found: np.ndarray = (values - values.min()) / (span or 1.0)
    return found
