"""What every data set gives: examples in the order of its files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Example:
    """One thing to learn from: texts, the images that they are about, and what is known of them.

    id      as the official files and submissions have it (question_id, identifier, annot_id, ...)
    images  keys of the images, as a source of that data set names them; NLVR2 has two, a text corpus none
    texts   caption, question, hypothesis or expression; VCR: the question and then its choices
    truth   what the data set's module says it holds: answers and scores, a label, a box; empty where unpublished
    """

    id: str
    images: tuple[str, ...]
    texts: tuple[str, ...]
    truth: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Split:
    """One split of a data set.

    name      of the data set, as `triptych data check` takes it
    split     "train", "val", ...
    examples  in the order of the files
    """

    name: str
    split: str
    examples: Sequence[Example]

    def images(self) -> list[str]:
        """Keys of all images, each once, in the order of their first use."""
        return list(dict.fromkeys(key for example in self.examples for key in example.images))
