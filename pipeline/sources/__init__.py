"""Where images come from: a folder, a list file, webdataset tars, COCO-style JSON or Parquet, behind one contract."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pipeline.sources.coco import CocoSource
from pipeline.sources.contract import ImageRef, Listing, Source, SourceConfig, SourceError
from pipeline.sources.files import source_errors
from pipeline.sources.folder import FolderSource
from pipeline.sources.list_file import ListFileSource
from pipeline.sources.parquet import ParquetSource, holds_only_parquet
from pipeline.sources.tar import COMPRESSED_TARS, TarSource

__all__ = ["ImageRef", "Listing", "Source", "SourceConfig", "SourceError", "open_source"]

_BY_EXTENSION: dict[str, Callable[[SourceConfig], Source]] = {
    ".txt": ListFileSource,
    ".lst": ListFileSource,
    ".csv": ListFileSource,
    ".tsv": ListFileSource,
    ".tar": TarSource.open,
    ".json": CocoSource,
    ".parquet": ParquetSource.open,
}

_UNDERSTOOD = (
    "a folder, a list file (.txt .lst .csv .tsv), webdataset tars (.tar, a glob or {000..010}), "
    "COCO-style JSON (.json) or Parquet (.parquet, a glob or a folder of them)"
)


def open_source(config: SourceConfig) -> Source:
    """Choose the source by what `config.images` is; nothing is listed yet.

    Raises:
        SourceError: there is nothing at `config.images`, or it is of no kind that is understood.
    """
    with source_errors(config.images, _UNDERSTOOD):
        kind = _kind_of(config.images)
    return kind(config)


def _kind_of(images: str) -> Callable[[SourceConfig], Source]:
    path = Path(images)
    if images and path.is_dir():
        return ParquetSource.open if holds_only_parquet(path) else FolderSource
    if images.lower().endswith(COMPRESSED_TARS):
        raise SourceError(f"--images {images!r} is a compressed tar, which cannot be read at random; unpack it to .tar")
    kind = _BY_EXTENSION.get(path.suffix.lower())
    if kind is None:
        raise SourceError(f"--images {images!r} {_trouble(images)}; wanted {_UNDERSTOOD}")
    return kind


def _trouble(images: str) -> str:
    if "://" in images:
        return "is an address, and only local files are read"
    if images and Path(images).exists():
        return "is a file of no kind that is understood"
    return "does not exist"
