"""Where images come from: folders, list files, webdataset tars, COCO-style JSON and tables, behind one contract."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from pipeline.sources.addresses import is_address, kind_of
from pipeline.sources.arrow import ARROW, is_saved_data_set, open_arrow
from pipeline.sources.coco import CocoSource
from pipeline.sources.contract import ImageRef, Listing, Source, SourceConfig, SourceError
from pipeline.sources.files import source_errors, with_absolute_paths
from pipeline.sources.folder import FolderSource
from pipeline.sources.layouts import open_layout
from pipeline.sources.list_file import ListFileSource
from pipeline.sources.parquet import open_parquet
from pipeline.sources.refs import Refs
from pipeline.sources.tar import COMPRESSED_TARS, TarSource
from storage.secrets import shown

__all__ = [
    "ImageRef",
    "Listing",
    "Refs",
    "Source",
    "SourceConfig",
    "SourceError",
    "open_source",
    "shown",
    "with_absolute_paths",
]

_TABLES: dict[str, Callable[[SourceConfig], Source]] = {".parquet": open_parquet, **dict.fromkeys(ARROW, open_arrow)}
_BY_EXTENSION: dict[str, Callable[[SourceConfig], Source]] = {
    ".txt": ListFileSource,
    ".lst": ListFileSource,
    ".csv": ListFileSource,
    ".tsv": ListFileSource,
    ".tar": TarSource.open,
    ".json": CocoSource,
    **_TABLES,
}

_UNDERSTOOD = (
    "a folder, a list file (.txt .lst .csv .tsv), webdataset tars (.tar, a glob or {000..010}), "
    "COCO-style JSON (.json), Parquet or Arrow (.parquet .arrow .feather, a glob or a folder of them)"
)


def open_source(config: SourceConfig) -> Source:
    """Choose the source by what `config.images` is; nothing is listed yet.

    Raises:
        SourceError: there is nothing at `config.images`, or it is of no kind that is understood.
    """
    with source_errors(config.images, _UNDERSTOOD):
        kind = open_layout if config.layout else _kind_of(config.images)
    return kind(config)


def _kind_of(images: str) -> Callable[[SourceConfig], Source]:
    if images and not is_address(images) and Path(images).is_dir():
        return _kind_of_folder(Path(images))
    if images.lower().endswith(COMPRESSED_TARS):
        raise SourceError(
            f"--images {shown(images)!r} is a compressed tar, which cannot be read at random; unpack it to .tar"
        )
    kind = _BY_EXTENSION.get(PurePosixPath(images.partition("?")[0] if is_address(images) else images).suffix.lower())
    if kind is not None:
        return kind
    if is_address(images):
        kind_of(images)
        return FolderSource  # nothing is listed to see what lies there: every actor opens the source
    there = images and Path(images).exists()
    trouble = "is a file of no kind that is understood" if there else "does not exist"
    raise SourceError(f"--images {images!r} {trouble}; wanted {_UNDERSTOOD}")


def _kind_of_folder(folder: Path) -> Callable[[SourceConfig], Source]:
    """Tables if it holds nothing else, hidden files and those marked with `_` aside; most folders show at once."""
    if is_saved_data_set(folder):
        return open_arrow
    kinds: set[Callable[[SourceConfig], Source]] = set()
    with os.scandir(folder) as entries:
        for entry in entries:
            kind = _TABLES.get(PurePosixPath(entry.name).suffix.lower(), FolderSource)
            if not entry.name.startswith((".", "_")):
                kinds.add(kind if entry.is_file() else FolderSource)
            if len(kinds) > 1 or FolderSource in kinds:
                return FolderSource
    return kinds.pop() if kinds else FolderSource
