"""What the official files of all data sets share: splits, ids and names of pictures."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainers.scenes.asking import Question
from trainers.scenes.scene import Scene

SPLITS = ("train", "val", "test")
PARTS = {"train": "train2014", "val": "val2014", "test": "test2015"}  # COCO's folders

Scenes = Mapping[str, Sequence[Scene]]  # by split
Asked = Mapping[str, Sequence[Sequence[Question]]]  # likewise, of each scene


@dataclass(frozen=True)
class Written:
    """What was written of one data set: examples by split; of questions, what guessing from the text alone gets of the
    validation split, in percent."""

    examples: dict[str, int]
    guessed: float | None = None


def image_id(scene: Scene) -> int:
    return scene.number + 1


def coco_path(scene: Scene, split: str) -> str:
    """Where a scene's picture lies below the images of COCO."""
    return f"{PARTS[split]}/COCO_{PARTS[split]}_{image_id(scene):012d}.jpg"


def coco_image(scene: Scene, split: str) -> dict[str, Any]:
    name = coco_path(scene, split).split("/")[1]
    return {"id": image_id(scene), "file_name": name, "height": scene.height, "width": scene.width}


def linked(source: Path, target: Path) -> None:
    """The same picture under another name."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    os.link(source, target)
