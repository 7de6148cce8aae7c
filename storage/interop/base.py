"""What every foreign format gives and takes: records in, files out, and what could not be read or said."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from storage.atomic import write_whole
from storage.errors import StoreError
from storage.records import Record
from storage.spec import FeatureLayout
from storage.store import FeatureStore


@dataclass(frozen=True)
class ImportOptions:
    """What the user says about a foreign file.

    sizes  (height, width) in pixels by key, for formats that do not tell an image's size
    """

    sizes: Mapping[str, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be read: its key as far as it is known, where it stands, and why it is refused."""

    key: str
    where: str
    message: str


@dataclass(frozen=True)
class Import:
    """A foreign file being read.

    view    "regions" or "grid"
    layout  of its records, dtype as in the file
    rows    the records, one after the other, and the rows that cannot be read
    notes   what a user should know of the format's conventions
    """

    view: str
    layout: FeatureLayout
    rows: Iterator[Record | BadRow]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ExportReport:
    """What was written: records, files, and notes, one of which tells the convention of boxes."""

    records: int
    files: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Foreign:
    """One foreign format.

    about  what it is and which project writes it, in a line
    views  what it can hold: "regions", "grid"
    read   opens a file or folder; raises StoreError where it is something else
    write  writes a whole store; raises StoreError where the store lacks what the format needs
    """

    about: str
    views: tuple[str, ...]
    read: Callable[[Path, ImportOptions], Import]
    write: Callable[[FeatureStore, Path], ExportReport]


def write_beside(path: Path, data: bytes) -> None:
    """Write a small file that a format keeps beside the large one; one that is there already must hold the same.

    Raises:
        StoreError: it holds something else, or the disk refuses.
    """
    if path.exists() and path.read_bytes() != data:
        raise StoreError(f"{path} is there already and belongs to other features; choose another folder for --out.")
    write_whole(path, data)
