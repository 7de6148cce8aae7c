"""The contract of an image source: what it is asked for, what it lists, what it raises."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from storage.errors import TriptychError


class SourceError(TriptychError):
    """The whole source is unusable; the message says what was found, what was wanted and what to do."""


@dataclass(frozen=True, slots=True)
class ImageRef:
    """One image before it is read.

    key  names the image in the store
    uri  says where its bytes are; printable; understood by `read` of the source that listed it
    """

    key: str
    uri: str


@dataclass(frozen=True)
class Listing:
    """The images of a source, in an order that is the same on every run.

    refs         sorted by key for a folder; in file order for tars, tables, COCO-style JSON and list files. What a
                 source lists is a `Refs`, which may have any number of them
    passed_over  files seen but not taken: no image extension, excluded, unsafe in a tar; and folders behind a link
    repeated     exact repeats of the same image, dropped
    """

    refs: Sequence[ImageRef]
    passed_over: int = 0
    repeated: int = 0


@dataclass(frozen=True)
class SourceConfig:
    """What --images and its companions say."""

    images: str
    """A folder, a list file, webdataset tars, COCO-style JSON, Parquet or Arrow: a path, or an address such as s3://."""
    layout: Literal["coco", "vg", "flickr30k", "cc3m"] | None = None
    """A folder laid out as that data set's own: keys are its official ids, whatever is not its own is passed over."""
    keys: str | None = None
    """Take only these keys: a text file with one a line, a JSON list, or a data set's annotations in JSON."""
    image_root: str | None = None
    """COCO-style JSON, list file or table: folder that relative paths start from (default: that of the file)."""
    all_files: bool = False
    """Folder: take every file, whatever its extension; keys then keep the extension."""
    keep_extension: bool = False
    """Keys keep the file extension."""
    exclude: str = ""
    """Comma-separated globs, matched against the relative path and the file name; case does not matter."""
    image_column: str | None = None
    """Parquet, Arrow: column with paths or bytes (default: found by name and type)."""
    key_column: str | None = None
    """Parquet, Arrow: column with keys (default: found by name, else the path column, else <file stem>-<row>)."""
    max_files: int = 1_000_000_000
    """Stop where the source has more files than this, images or not."""


class Source(Protocol):
    """Lists images and reads them, one at a time. Picklable; `read` may be called from many threads."""

    def list(self) -> Listing:
        """Name the images; no image bytes are read.

        Raises:
            SourceError: the source is unreadable or empty, or its keys are unsafe or not unique.
        """
        ...

    def read(self, uri: str) -> bytes:
        """The encoded bytes of one listed image.

        Raises:
            ImageError: this one image is missing, forbidden or unreadable.
        """
        ...
