"""Images named by a text file: one path a line, or a key, a tab and a path."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pipeline.sources.checked import EXCLUDED, CheckedSource, key_of_listed_path, with_some_there
from pipeline.sources.contract import ImageRef, Listing, SourceError
from pipeline.sources.files import exclusion, path_uri, relative_root, source_errors


class ListFileSource(CheckedSource):
    """The images a list file names, in its order, whatever their extension; a missing one fails when it is read."""

    def list(self) -> Listing:
        """Name the images; see `Source.list`. Not one of them being there is an error of the job, not of the images."""
        return with_some_there(super().list(), self.config)

    key_advice = "Give it a key of its own (key<TAB>path), or name a folder above all images with --image-root."

    def find(self, keep_extension: bool) -> Iterator[ImageRef | str]:
        """Yield each image the file names, or why one is passed over."""
        root = relative_root(self.config, Path(self.config.images))
        excluded = exclusion(self.config.exclude)
        for key, path in _entries(Path(self.config.images)):
            if excluded(path):
                yield EXCLUDED
            else:
                yield ImageRef(key or key_of_listed_path(path, root, keep_extension), path_uri(root / path))


def _entries(list_file: Path) -> Iterator[tuple[str | None, str]]:
    """Key, if given, and path of each line that is neither blank nor a comment."""
    wanted = "a text file with one path, or key<TAB>path, a line"
    # surrogateescape: names that are not valid UTF-8 still lead to their files; utf-8-sig: some editors add a mark
    with source_errors(list_file, wanted), list_file.open(encoding="utf-8-sig", errors="surrogateescape") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip() and not line.lstrip().startswith("#"):
                yield _entry(line, f"{list_file}, line {number}", commas=list_file.suffix.lower() != ".csv")


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
