"""SNLI-VE: what an image says of a hypothesis. Keys of images: Flickr30k's ids. The premise's text is left out.

truth: {"label": the number of contradiction, neutral, entailment}.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainers.data.base import Example
from trainers.data.files import each, read_json_lines, text, without_extension

LABELS = ("contradiction", "neutral", "entailment")
NO_AGREEMENT = "-"
ID_NAMES = ("Flickr30K_ID", "Flikr30kID", "Flickr30kID")  # all three are in published files
WANTED = 'SNLI-VE\'s JSON lines: {"Flickr30K_ID": "2248275918", "pairID": "", "sentence2": "", "gold_label": "neutral"}'


def read(split: str, paths: Sequence[Path]) -> list[Example]:
    """The hypotheses of a file, in its order, but those labelled "-", on which people did not agree; ids are pairIDs.

    Raises:
        DataError: the file is absent or of another format.
    """
    [path] = paths
    return [made for made in each(path, read_json_lines(path, WANTED), _example, WANTED) if made]


def _example(row: Any) -> Example | None:
    name = next((name for name in ID_NAMES if name in row), ID_NAMES[0])
    label = text(row, "gold_label")
    if label == NO_AGREEMENT:
        return None
    if label not in LABELS:
        raise ValueError(f"'gold_label' is {label!r}, not one of {', '.join(LABELS)}")
    key = without_extension(text(row, name))
    return Example(text(row, "pairID"), (key,), (text(row, "sentence2").strip(),), {"label": LABELS.index(label)})
