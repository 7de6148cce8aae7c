"""Plain text to pre-train on beside images: files with one document a line, read where they lie.

VL-BERT takes BooksCorpus and English Wikipedia so (`bc1g.doc`, `wiki.doc`).
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from storage.errors import TriptychError

CHUNK = 1 << 26  # bytes in which line ends are looked for


class CorpusError(TriptychError):
    """A text corpus that is not there, or is empty."""


class Corpus(Sequence[str]):
    """Lines of one or more files, by number; empty ones are passed over. 8 bytes of memory a line.

    Raises:
        CorpusError: a file is missing or has no text.
    """

    def __init__(self, *paths: str | Path) -> None:
        self._files = [_map(Path(path).expanduser()) for path in paths]
        self._lines = [_lines(file) for file in self._files]
        self._ends = np.cumsum([len(lines) for lines in self._lines])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, number: int) -> str:  # type: ignore[override]
        if not -len(self) <= number < len(self):
            raise IndexError(number)
        number %= len(self)
        file = int(np.searchsorted(self._ends, number, side="right"))
        start = int(self._lines[file][number - (self._ends[file - 1] if file else 0)])
        end = self._files[file].find(b"\n", start)
        line = self._files[file][start : None if end < 0 else end]
        return line.decode("utf-8", "replace").strip()


def _map(path: Path) -> mmap.mmap:
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise CorpusError(f"corpus {path} cannot be read ({error}); wanted text with one document a line.") from error


def _lines(file: mmap.mmap) -> np.ndarray:
    """Where each line that is not empty begins, (L,) int64."""
    ends = [
        np.flatnonzero(np.frombuffer(file[start : start + CHUNK], np.uint8) == ord("\n")) + start
        for start in range(0, len(file), CHUNK)
    ]
    starts = np.concatenate([[0], *(each + 1 for each in ends)])
    stops = np.append(starts[1:] - 1, len(file))
    return starts[stops > starts]
