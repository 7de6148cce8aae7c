"""NLVR2: is a sentence true of two images? Keys: dev-850-0-img0 (left) and dev-850-0-img1, as files are named.

truth: {"label": whether it is true}; empty where unpublished.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainers.data.base import Example
from trainers.data.files import each, read_json_lines, text

WANTED = 'NLVR2\'s JSON lines: {"identifier": "dev-850-0-0", "sentence": "...", "label": "True", ...}'
_IDENTIFIER = re.compile(r"(\w+-\d+-\d+)-\d+")  # split-set-pair-sentence
_LABELS = {"True": True, "False": False}


def read(split: str, paths: Sequence[Path]) -> list[Example]:
    """The sentences of a file, in its order.

    Raises:
        DataError: the file is absent or of another format.
    """
    [path] = paths
    return list(each(path, read_json_lines(path, WANTED), _example, WANTED))


def _example(row: Any) -> Example:
    identifier = text(row, "identifier")
    pair = _IDENTIFIER.fullmatch(identifier)
    if not pair:
        raise ValueError(f"'identifier' is {identifier!r}")
    truth = {"label": _LABELS[text(row, "label")]} if "label" in row else {}
    return Example(identifier, (f"{pair[1]}-img0", f"{pair[1]}-img1"), (text(row, "sentence").strip(),), truth)


def sentence_of(identifier: str) -> str:
    """What all pairs of one sentence share: dev-850-0-0 and dev-850-1-0 are both dev-850-0."""
    split, number, _, sentence = identifier.rsplit("-", 3)
    return f"{split}-{number}-{sentence}"
