"""Conceptual Captions and SBU, as published or as ViLT lists them.

    Train_GCC-training.tsv      caption, tab, address; the key of an image is its row, from 0, as the source `cc3m`
                                and img2dataset (which pads it with zeros) number them
    SBU's two text files        captions and addresses, a line each; the key is the row, from 0
    train_annot.json, annot.json   [[path, caption], ...] of ViLT (DATA.md); the key is the path without extension

Many addresses are dead: `trainers.data.keys.present` leaves out the pairs without an image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from trainers.data.captions import Captions
from trainers.data.files import DataError, each, listed, read_json, readable, without_extension

TABLE = "a table of caption, tab, address"
LINES = "SBU_captioned_photo_dataset_captions.txt: a caption a line, as many as addresses"
LIST = 'ViLT\'s list: [["folder/name.jpg", "caption"], ...]'


def read(split: str, paths: Sequence[Path]) -> Captions:
    """Every pair of a table, a list, or a file of captions and one of addresses; ids are row numbers.

    Raises:
        DataError: a file is absent or of another format.
    """
    path = paths[0]
    if path.suffix == ".json":
        pairs = each(path, listed(path, read_json(path, LIST), LIST), _listed, LIST)
        return Captions.of((str(row), key, caption) for row, (key, caption) in enumerate(pairs))
    texts = _lines(path) if path.suffix == ".txt" else each(path, _lines(path), _caption, TABLE)
    return Captions.of((str(row), str(row), text) for row, text in enumerate(texts))


def _lines(path: Path) -> Iterator[str]:
    # Lines end and damaged text is read as in pipeline/sources/layouts.py, which gives the images their row numbers.
    with readable(path, TABLE), path.open(encoding="utf-8-sig", errors="replace", newline="\n") as lines:
        for line in lines:
            yield line.rstrip("\r\n")


def _caption(line: str) -> str:
    caption, tab, address = line.rpartition("\t")
    if not tab or "://" not in address:
        raise ValueError(f"it is {line[:80]!r}")
    return caption.strip()


def _listed(row: Any) -> tuple[str, str]:
    if not isinstance(row, list) or len(row) != 2 or not all(isinstance(part, str) for part in row):
        raise ValueError(f"it is {row!r:.80}")
    return without_extension(row[0]), row[1].strip()


def read_sbu(split: str, paths: Sequence[Path]) -> Captions:
    """`read`, and a look whether captions and addresses belong together."""
    found = read(split, paths)
    if paths[0].suffix == ".txt":
        addresses = paths[0].with_name(paths[0].name.replace("captions.txt", "urls.txt"))
        lines = sum(1 for _ in _lines(addresses))
        if lines != len(found):
            raise DataError(f"{paths[0]} has {len(found):,} lines, {addresses} {lines:,}; wanted {LINES}.")
    return found
