"""What is there of a data set, and what is missing: files, examples, images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from trainers.data.files import DataError
from trainers.data.keys import matched
from trainers.data.sets import OR, data_set, find, load


@dataclass
class SplitFound:
    """One split: what is missing, or how much is in it.

    missing  its files that are not there, each with the names it may have
    wrong    what is wrong with the files that are there
    images   different ones
    """

    split: str
    optional: bool
    missing: list[str] = field(default_factory=list)
    wrong: str | None = None
    examples: int = 0
    images: int = 0

    @property
    def complete(self) -> bool:
        return not self.missing and not self.wrong


@dataclass
class Found:
    """A data set below a root.

    keys    of the images that its splits name
    absent  of these, by where they were looked for
    """

    name: str
    root: str
    splits: list[SplitFound]
    keys: list[str]
    absent: dict[str, list[str]] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether all files but those of optional splits are there and sound, and no image is absent."""
        splits = all(split.complete or (split.optional and not split.wrong) for split in self.splits)
        return splits and not any(self.absent.values())

    def look_for_images(self, where: str, there: Iterable[str]) -> None:
        """Note which images are absent from a store or a folder with these keys."""
        known = matched(self.keys, there)
        self.absent[where] = [key for key in self.keys if key not in known]


def check(name: str, root: str | Path) -> Found:
    """Read whatever of a data set is below a root.

    Raises:
        DataError: there is no such data set or folder.
    """
    known, folder = data_set(name), Path(root)
    if not folder.is_dir():
        raise DataError(f"there is no folder {root}; wanted the annotations of {name}.")
    splits: list[SplitFound] = []
    keys: dict[str, None] = {}
    for split, files in known.files.items():
        found = SplitFound(split, split in known.optional)
        found.missing = [" or ".join(file.split(OR)) for file in files if find(name, file, folder) is None]
        if not found.missing:
            keys.update(dict.fromkeys(_read(name, found, folder)))
        splits.append(found)
    return Found(name, str(root), splits, list(keys))


def _read(name: str, found: SplitFound, root: Path) -> list[str]:
    """Keys of a split's images; notes how much is in it, or what is wrong."""
    try:
        split = load(name, found.split, root)
    except DataError as error:
        found.wrong = str(error)
        return []
    keys = split.images()
    found.examples, found.images = len(split.examples), len(keys)
    return keys


def layout(name: str) -> Iterator[str]:
    """What a data set should look like, line by line.

    Raises:
        DataError: there is no such data set.
    """
    known = data_set(name)
    yield known.about
    yield f"annotations, in the folder itself or in its {name}/:"
    for split, files in known.files.items():
        names = ", ".join(" or ".join(file.split(OR)) for file in files)
        yield f"  {split:<12}{names}{' (optional)' if split in known.optional else ''}"
    yield f"images: {known.images}"
