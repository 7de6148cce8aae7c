"""The user's own boxes: read from JSON, checked against what they were declared to be, turned into x1 y1 x2 y2.

The file maps keys to lists of four numbers: `{"000000039769": [[10, 20, 110, 220], ...], ...}`.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from extractors.configs import ConfigError
from extractors.images import ImageError

SLACK = 1.0  # pixels by which a box may pass the image's edge, as rounded annotations do; it is cut to the image


@dataclass(frozen=True)
class BoxTable:
    """Boxes by key, (N, 4) float32 x1 y1 x2 y2, normalised or in original pixels; `sha256` is of the file."""

    path: Path
    boxes: dict[str, np.ndarray]
    normalised: bool
    sha256: str

    def of(self, key: str, image_size: tuple[int, int]) -> Tensor:
        """One image's boxes in its pixels, cut to the image.

        Raises:
            ImageError: the file has no boxes for the image, or they do not lie in it.
        """
        if key not in self.boxes:
            raise ImageError("no_boxes", f"{self.path.name} has no entry for the key {key!r}", "prepare")
        height, width = image_size
        limit = np.array([width, height, width, height], np.float32)
        boxes = self.boxes[key] * limit if self.normalised else self.boxes[key]
        outside = (boxes < -SLACK) | (boxes > limit + SLACK)
        if outside.any():
            row = int(outside.any(axis=1).argmax())
            raise ImageError(
                "bad_boxes",
                f"box {row} {boxes[row].tolist()} passes the image, {width} x {height} upright pixels; "
                "check --box-format, --box-units and the image's rotation",
                "prepare",
            )
        return torch.from_numpy(np.clip(boxes, 0, limit))


def read_boxes(path: str, box_format: str, units: str) -> BoxTable:
    """Read and check a file of boxes.

    Args:
        box_format: "xyxy" or "xywh".
        units: "pixels" or "normalized".

    Raises:
        ConfigError: the file is not of that form; the first offending box is shown.
    """
    file = Path(path).expanduser()
    try:
        data = file.read_bytes()
        content = json.loads(data)
    except OSError as error:
        raise ConfigError(f"--boxes {path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"--boxes {path} is not JSON ({error}); wanted {{key: [[a, b, c, d], ...]}}.") from error
    if not isinstance(content, dict):
        raise ConfigError(f"--boxes {path} holds a {type(content).__name__}; wanted {{key: [[a, b, c, d], ...]}}.")
    boxes = {key: _to_xyxy(path, key, rows, box_format) for key, rows in content.items()}
    _check_units(path, boxes, units)
    return BoxTable(file, boxes, units == "normalized", hashlib.sha256(data).hexdigest())


def _to_xyxy(path: str, key: str, rows: object, box_format: str) -> np.ndarray:
    wrong = f"--boxes {path}: {key!r} is not a list of four numbers a box."
    try:
        boxes = np.asarray(rows, np.float32) if rows != [] else np.empty((0, 4), np.float32)
    except (ValueError, TypeError, OverflowError) as error:
        raise ConfigError(wrong) from error
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ConfigError(wrong)
    if box_format == "xywh":
        boxes = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    bad = ~((boxes[:, 2:] > boxes[:, :2]).all(axis=1) & np.isfinite(boxes).all(axis=1))
    if bad.any():
        row = int(bad.argmax())
        found = np.asarray(rows, np.float32)[row].tolist()
        other = "xywh" if box_format == "xyxy" else "xyxy"
        raise ConfigError(
            f"--boxes {path}: box {row} of {key!r} is {found}, which as {box_format} has no area; is it {other}?"
        )
    return boxes


def _check_units(path: str, boxes: dict[str, np.ndarray], units: str) -> None:
    largest = max((float(rows.max()) for rows in boxes.values() if len(rows)), default=None)
    if largest is None:
        return
    if units == "normalized" and largest > 1 + 1e-6:
        raise ConfigError(f"--boxes {path}: a coordinate is {largest:g}, above 1; are these --box-units pixels?")
    if units == "pixels" and largest <= 1:
        raise ConfigError(f"--boxes {path}: no coordinate is above 1; are these --box-units normalized?")
