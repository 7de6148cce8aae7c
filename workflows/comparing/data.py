"""What a comparison is made on: `DIR/images` and `DIR/annotations`, as `triptych scenes make` writes them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from extractors import ConfigError
from extractors.weights import shipped_file
from pipeline.sources import SourceConfig, open_source
from storage.atomic import write_whole
from storage.spec import canonical_json
from trainers.data.sets import DATASETS, data_set, find, load
from workflows.recipes.sources import group_of

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"[unused{number}]" for number in range(1, 40)))


@dataclass(frozen=True)
class Data:
    """The data of a comparison.

    Raises:
        ConfigError: it is no such folder.
    """

    root: str

    def __post_init__(self) -> None:
        for folder in (self.images, self.annotations):
            if not folder.is_dir():
                raise ConfigError(
                    f"--data {self.root} has no folder {folder.name}; name one with images and annotations, as "
                    "`triptych scenes make` writes it."
                )

    @property
    def images(self) -> Path:
        return Path(self.root) / "images"

    @property
    def annotations(self) -> Path:
        return Path(self.root) / "annotations"

    def has(self, name: str) -> bool:
        """Whether the training split of a data set is there."""
        return all(find(name, file, self.annotations) for file in data_set(name).files["train"])

    def digest(self, names: Sequence[str]) -> str:
        """Hash of some data sets: the bytes of their annotations, and the keys of their images."""
        facts = []
        for name in sorted(name for name in names if name in DATASETS):
            facts += [[path.name, file_digest(str(path))] for path in self._files(name)]
            facts.append(sorted(self._keys(group_of(name))))
        return hashlib.sha256(canonical_json(facts)).hexdigest()

    def _files(self, name: str) -> Iterator[Path]:
        files = sorted({file for split in data_set(name).files.values() for file in split})
        there = (find(name, file, self.annotations) for file in files)
        return (path for path in there if path is not None and path.is_file())

    def _keys(self, group: str) -> list[str]:
        below = self.images / group
        listing = open_source(SourceConfig(str(below if below.is_dir() else self.images))).list()
        return [ref.key for ref in listing.refs]

    def write_words(self, path: Path) -> None:
        """A vocabulary of the words of all texts: what tiny twins, which start from nothing, read with."""
        words = sorted({word for text in self._texts() for word in re.findall(r"\w+|[^\w\s]", text.lower())})
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, "\n".join([*SPECIAL, *words]).encode())

    def _texts(self) -> Iterator[str]:
        for name, known in DATASETS.items():
            for split, files in known.files.items():
                if all(find(name, file, self.annotations) for file in files):
                    for example in load(name, split, self.annotations).examples:
                        yield from example.texts


def file_digest(name: str | None) -> str:
    """Hash of the bytes of a file, or of weights that come with the package; of whatever is neither its name."""
    path = None if name is None else shipped_file(name) or Path(name)
    if path is None or not path.is_file():
        return str(name)
    told = path.stat()
    return _digest(path, told.st_size, told.st_mtime_ns)


@cache
def _digest(path: Path, size: int, changed: int) -> str:
    """Read once as long as a file stays as it is: cells and stores ask for the same large weights again and again."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
