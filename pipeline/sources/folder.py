"""Images in a folder and the folders below it, on this machine or at an address that can be listed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

from pipeline.sources.addresses import is_address, listed
from pipeline.sources.checked import EXCLUDED, NO_EXTENSION, CheckedSource, key_of_path, printable_name
from pipeline.sources.contract import ImageRef, SourceError
from pipeline.sources.files import absolute, exclusion, has_image_extension, path_uri, source_errors
from storage.secrets import shown

LINKED_FOLDER = "linked folders, not followed"


class FolderSource(CheckedSource):
    """Every image below a folder, sorted by key: its path from there, without the extension."""

    no_extension_advice = (
        "--all-files takes every file, whatever its extension; tables at an address need a glob (*.parquet)."
    )

    def find(self, keep_extension: bool) -> Iterator[ImageRef | str]:
        """Yield each image below the folder, or why a file is passed over."""
        config = self.config
        keep = keep_extension or config.all_files
        excluded = exclusion(config.exclude)
        for file in walk(config.images, keep):
            if excluded(file.relative):
                yield EXCLUDED
            elif file.is_linked_folder:
                yield LINKED_FOLDER
            elif config.all_files or has_image_extension(file.relative):
                yield ImageRef(key_of_path(file.relative, keep), file.uri)
            else:
                yield NO_EXTENSION


class File(NamedTuple):
    """A file below a folder, or a linked folder, which is not entered: it may lead back."""

    relative: str
    uri: str
    is_linked_folder: bool


class _Entry(NamedTuple):
    name: str
    is_folder: bool
    is_linked_folder: bool
    order: str


def walk(folder: str, keep_extension: bool = True) -> Iterator[File]:
    """Every file below a folder, a path or an address, sorted by what will be its key.

    The names of one folder are held at a time, and of those above it. A store among them is left out.

    Raises:
        SourceError: the folder is a store, or one below it cannot be read.
    """
    remote = is_address(folder)
    top = folder.rstrip("/") if remote else str(absolute(folder))
    waiting = [_named(_entries(top, keep_extension), "")]
    while waiting:
        entry, relative = next(waiting[-1], (None, ""))
        if entry is None:
            waiting.pop()
        elif entry.is_folder:
            waiting.append(_named(_entries(f"{top}/{relative}", keep_extension, below=True), f"{relative}/"))
        else:
            where = f"{top}/{relative}"
            yield File(relative, where if remote else path_uri(Path(where)), entry.is_linked_folder)


def _named(entries: list[_Entry], prefix: str) -> Iterator[tuple[_Entry | None, str]]:
    return ((entry, prefix + entry.name) for entry in entries)


def _entries(folder: str, keep_extension: bool, below: bool = False) -> list[_Entry]:
    """What lies directly in a folder, in the order of keys: a folder counts as its name and a `/`."""
    with source_errors(folder, "a folder or prefix that this user may read"):
        if is_address(folder):
            found = [_entry(name, is_folder, False, keep_extension) for name, is_folder in listed(folder)]
        else:
            found = [_entry(*entry, keep_extension) for entry in _scanned(folder)]
    if any(entry.name == "store.json" for entry in found) and any(
        entry.name == "manifest" and entry.is_folder for entry in found
    ):
        if not below:
            raise SourceError(f"{shown(folder)} is a Triptych store; wanted the images it was made from, or others")
        return []  # a store may lie among the images it was made from
    return sorted(found, key=attrgetter("order", "name"))


def _entry(name: str, is_folder: bool, is_linked_folder: bool, keep_extension: bool) -> _Entry:
    order = f"{printable_name(name)}/" if is_folder else key_of_path(name, keep_extension)
    return _Entry(name, is_folder, is_linked_folder, order)


def _scanned(folder: str) -> Iterator[tuple[str, bool, bool]]:
    """Name, whether it is a folder, whether it is a linked one."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                is_folder = entry.is_dir()
                linked = is_folder and entry.is_symlink()
                yield entry.name, is_folder and not linked, linked
    except OSError as error:  # left out, its images would be missed without a word
        raise SourceError(
            f"folder {folder!r} cannot be read ({error.strerror}); give this user the right to read it, or move it"
        ) from error
