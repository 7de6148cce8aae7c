"""Images in a folder and the folders below it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from operator import attrgetter
from pathlib import Path

from pipeline.sources.checked import EXCLUDED, NO_EXTENSION, CheckedSource, key_of_path
from pipeline.sources.contract import ImageRef, Listing, SourceError
from pipeline.sources.files import absolute, exclusion, has_image_extension, path_uri

LINKED_FOLDER = "linked folders, not followed"


class FolderSource(CheckedSource):
    """Every image below a folder; its key is the path from there, without the extension."""

    no_extension_advice = "--all-files takes every file, whatever its extension."

    def list(self) -> Listing:
        """Name the images, sorted by key; see `Source.list`."""
        listing = super().list()
        return replace(listing, refs=sorted(listing.refs, key=attrgetter("key")))

    def find(self, keep_extension: bool) -> Iterator[ImageRef | str]:
        """Yield each image below the folder, or why a file is passed over."""
        config = self.config
        excluded = exclusion(config.exclude)
        for path, relative, linked_folder in _walk(absolute(config.images)):
            if excluded(relative):
                yield EXCLUDED
            elif linked_folder:
                yield LINKED_FOLDER
            elif config.all_files or has_image_extension(relative):
                yield ImageRef(key_of_path(relative, keep_extension or config.all_files), path_uri(path))
            else:
                yield NO_EXTENSION


def _walk(root: Path) -> Iterator[tuple[Path, str, bool]]:
    """Every file and every linked folder below `root`: path, path from the root, whether it is a linked folder."""
    for folder, subfolders, names in os.walk(root, onerror=_stop):
        here = Path(folder)
        if "store.json" in names and "manifest" in subfolders:  # a store may lie among the images it was made from
            if here == root:
                raise SourceError(f"{root} is a Triptych store; wanted the images it was made from, or others")
            subfolders.clear()
            continue
        prefix = "" if here == root else f"{here.relative_to(root).as_posix()}/"
        # os.walk does not enter linked folders (they may form a loop); named here, they are at least counted.
        yield from ((here / name, prefix + name, True) for name in subfolders if (here / name).is_symlink())
        yield from ((here / name, prefix + name, False) for name in sorted(names))


def _stop(error: OSError) -> None:
    """Without this, os.walk would leave out the folders it cannot read and say nothing."""
    raise SourceError(
        f"folder {error.filename!r} cannot be read ({error.strerror}); give this user the right to read it, or move it"
    ) from error
