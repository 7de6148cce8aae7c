"""The classes and attributes that a detector tells apart: published lists, or the most frequent names of the data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from trainers.data.files import readable

MOST_CLASSES, MOST_ATTRIBUTES = 1600, 400  # as many as peteanderson80/bottom-up-attention `data/genome/1600-400-20` has
LIST = "one name a line, synonyms after it behind commas"


@dataclass(frozen=True)
class Names:
    """Names by id; line n of a list, counted from 0, has id n, and the first of its synonyms is the name.

    lines  the synonyms of each id
    """

    lines: tuple[tuple[str, ...], ...]

    @property
    def names(self) -> list[str]:
        return [synonyms[0] for synonyms in self.lines]

    def __len__(self) -> int:
        return len(self.lines)

    @cached_property
    def ids(self) -> dict[str, int]:
        """Ids by synonym; of one that stands twice, the first."""
        pairs = [(name, number) for number, synonyms in enumerate(self.lines) for name in synonyms]
        return dict(reversed(pairs))

    @classmethod
    def read(cls, path: Path) -> Names:
        """A list file, such as `extractors/vocabulary/objects_vocab.txt`.

        Raises:
            DataError: it is absent, or holds no names.
        """
        with readable(path, LIST):
            lines = path.read_text(encoding="utf-8").splitlines()
            found = [tuple(normal(name) for name in line.split(",")) for line in lines if line.strip()]
            if not found:
                raise ValueError("it is empty")
        return cls(tuple(found))

    @classmethod
    def of(cls, names: Sequence[str]) -> Names:
        return cls(tuple((name,) for name in names))

    @classmethod
    def most_frequent(cls, names: Iterable[str], most: int) -> Names:
        """The most frequent names, in the order of the alphabet; of equally frequent ones, the first in it."""
        ranked = sorted(Counter(names).items(), key=lambda each: (-each[1], each[0]))
        return cls.of(sorted(name for name, _ in ranked[:most]))


@dataclass(frozen=True)
class Vocabulary:
    """What a detector tells apart. Where there are no attributes its head has one, nameless, that is not trained."""

    classes: Names
    attributes: Names

    @property
    def attribute_count(self) -> int:
        """Attributes of the head."""
        return max(1, len(self.attributes))

    def as_json(self) -> dict[str, list[str]]:
        """Names by id, as extractors have them."""
        return {"classes": self.classes.names, "attributes": self.attributes.names or [""]}


def normal(name: str) -> str:
    """A name as lists have it: lower case, single spaces."""
    return " ".join(name.lower().split())
