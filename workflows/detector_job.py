"""A run of `triptych train-detector` with its data read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from trainers.detection.building import Built, build
from trainers.detection.data import Detections, held_out, label
from trainers.detection.images import FolderImages
from trainers.detection.readers import all_attributes, all_names, read_things
from trainers.detection.task import DetectionTask
from trainers.detection.vocabulary import MOST_ATTRIBUTES, MOST_CLASSES, Names, Vocabulary
from trainers.tasks.base import Task

HELD_OUT = 0.1  # of the images, where no --test data is named


if TYPE_CHECKING:
    from workflows.train_detector import TrainDetector


@dataclass(frozen=True)
class Job:
    """A run with its data read: what is trained on, what is scored on, and the detector."""

    train: Detections
    test: Detections
    images: FolderImages
    built: Built
    seed: int

    def told(self) -> Iterator[str]:
        names = self.built.vocabulary
        yield f"train   {self.train}"
        yield f"test    {self.test}"
        yield f"detector  {self.built.model}, {len(names.classes):,} classes, {len(names.attributes):,} attributes"
        yield f"it {self.built.started}"

    def parts(self) -> tuple[nn.Module, Task, Task]:
        """What the loop takes."""
        colours = self.built.colours
        learns = DetectionTask(self.train, self.images, colours, self.seed, training=True)
        return self.built.detector, learns, DetectionTask(self.test, self.images, colours, self.seed)


def parts(flags: TrainDetector) -> tuple[nn.Module, Task, Task]:
    """What the loop takes, made anew in each process."""
    return prepared(flags).parts()


def prepared(flags: TrainDetector) -> Job:
    """Read the data, and make the detector.

    Raises:
        ConfigError, DataError, WeightsError: what is named is not there, or does not fit.
    """
    described = read_things(flags.data)
    test = None if flags.test is None else read_things(flags.test)
    if test is None:
        described, test = held_out(described, HELD_OUT, flags.seed)
    vocabulary = Vocabulary(
        _names(flags.classes, all_names(described), MOST_CLASSES),
        _names(flags.attributes, all_attributes(described), MOST_ATTRIBUTES),
    )
    images = FolderImages(flags.images or _folder(flags.data), flags.shorter, flags.longer)
    learns, scored = (label(each, vocabulary, images) for each in (described, test))
    return Job(learns, scored, images, build(flags.plan, vocabulary), flags.seed)


def _names(file: str | None, found: Iterable[str], most: int) -> Names:
    return Names.most_frequent(found, most) if file is None else Names.read(Path(file))


def _folder(data: str) -> Path:
    path = Path(data)
    return path if path.is_dir() else path.parent
