"""Photographs for tests, as arrays and as bytes of files."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image


def photo(height: int = 24, width: int = 36) -> np.ndarray:
    """(H, W, 3) uint8, smooth enough for JPEG, with no symmetry that could hide a wrong turn."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    return np.stack([255 * y, 255 * x * x, 255 * (x + y) / 2], axis=-1).astype(np.uint8)


def noisy_photo(height: int = 50, width: int = 70, seed: int = 0) -> np.ndarray:
    """(H, W, 3) uint8, random."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def saved(image: Image.Image | np.ndarray, file_format: str = "PNG", **options: Any) -> bytes:
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    image.save(target := io.BytesIO(), file_format, **options)
    return target.getvalue()


def png_chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png_header(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", b"")
