"""Images named by a text file: one path or address a line, or a key, a tab and a path or address."""

from __future__ import annotations

from collections.abc import Iterator
from io import TextIOWrapper

from pipeline.sources.checked import EXCLUDED, CheckedSource
from pipeline.sources.contract import ImageRef, Listing, SourceError
from pipeline.sources.files import (
    Place,
    exclusion,
    open_file,
    place_of,
    relative_root,
    source_errors,
    with_some_there,
)
from pipeline.sources.named import Names
from storage.secrets import shown


class ListFileSource(CheckedSource):
    """The images a list file names, in its order, whatever their extension; a missing one fails when it is read."""

    def list(self) -> Listing:
        """Name the images; see `Source.list`. Not one of them being there is an error of the job, not of the images."""
        return with_some_there(super().list(), self.config)

    key_advice = "Give it a key of its own (key<TAB>path), or name a folder above all images with --image-root."

    def find(self, keep_extension: bool) -> Iterator[ImageRef | str]:
        """Yield each image the file names, or why one is passed over."""
        names = Names(relative_root(self.config, place_of(self.config.images)))
        excluded = exclusion(self.config.exclude)
        for key, path in _entries(place_of(self.config.images)):
            if excluded(path):
                yield EXCLUDED
            else:
                yield ImageRef(key or names.key(path, keep_extension), names.uri(path))


def _entries(place: Place) -> Iterator[tuple[str | None, str]]:
    """Key, if given, and path of each line that is neither blank nor a comment."""
    wanted = "a text file with one path, or key<TAB>path, a line"
    name = shown(str(place))
    commas = not name.removesuffix("?...").lower().endswith(".csv")
    with source_errors(place, wanted), open_file(place) as file:
        # surrogateescape: names that are not valid UTF-8 still lead to their files; utf-8-sig: some editors add a mark
        for number, line in enumerate(TextIOWrapper(file, "utf-8-sig", "surrogateescape"), start=1):
            text = line.strip()
            if text and text[0] != "#":
                plain = "\t" not in line and (commas or "," not in line)
                yield (None, text) if plain else _entry(line, f"{name}, line {number}", commas)


def _entry(line: str, where: str, commas: bool) -> tuple[str | None, str]:
    fields = [field.strip() for field in line.split("\t")]
    if len(fields) > 2 or not all(fields):
        raise SourceError(f"{where} is {line.strip()[:80]!r}; wanted one path, or key<TAB>path")
    if len(fields) == 1 and "," in line and not commas:
        raise SourceError(
            f"{where} is {line.strip()[:80]!r}, with a comma; wanted one path, or key<TAB>path. "
            "Save the table with tabs, or name the file .txt if the comma belongs to the path"
        )
    return (fields[0], fields[1]) if len(fields) == 2 else (None, fields[0])
