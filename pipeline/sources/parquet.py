"""Images in Parquet: a column of paths, of encoded bytes, or of Hugging Face `Image` structs."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from extractors.images import ImageError
from pipeline.sources.checked import EXCLUDED, CheckedSource, key_of_listed_path, printable_name
from pipeline.sources.contract import ImageRef, SourceConfig, SourceError
from pipeline.sources.files import (
    absolute,
    exclusion,
    image_errors,
    matching_files,
    path_uri,
    read_file,
    relative_root,
    source_errors,
    uri_path,
)

IMAGE_NAMES = ("image", "img", "image_bytes", "bytes", "jpg", "jpeg", "png", "webp", "content", "data")
PATH_NAMES = ("image_path", "path", "file_path", "filepath", "file_name", "filename", "file", "image", "img")
KEY_NAMES = ("key", "__key__", "image_id", "img_id", "id")

Types = Mapping[str, pa.DataType]  # of the columns, by name

_WANTED = "a Parquet file with images or their paths"
_CACHED_ROW_GROUPS = 2  # readers go through the rows in order: the group they are in, and the next


@dataclass(frozen=True)
class Columns:
    """Which column says what.

    image  the encoded bytes, alone or in a Hugging Face `Image` struct; None where the path leads to them
    path   where the image is, or where it was before its bytes moved in here
    key    what names it in the store; None to name it by its path, or else by its row
    """

    image: str | None
    path: str | None
    key: str | None


@dataclass(frozen=True)
class ParquetSource(CheckedSource):
    """The rows of one or more Parquet files, in file order."""

    paths: tuple[Path, ...]
    columns: Columns
    row_groups: RowGroups

    key_advice = "Name a column with one key for each image with --key-column."

    @classmethod
    def open(cls, config: SourceConfig) -> ParquetSource:
        """Find the files that `config.images` names, and the columns to use in the first of them.

        Raises:
            SourceError: no such file, no Parquet, or no such column.
        """
        folder = Path(config.images)
        paths = tuple(_visible_files(folder)) if folder.is_dir() else matching_files(config.images)
        with source_errors(paths[0], _WANTED):
            schema = pq.read_schema(paths[0])
        columns = choose_columns(schema, config, paths[0])
        return cls(config, paths, columns, RowGroups(columns.image))

    def find(self, keep_extension: bool) -> Iterator[ImageRef | str]:
        """Yield each row with its image, or why one is passed over."""
        excluded = exclusion(self.config.exclude)
        for path in self.paths:
            root = relative_root(self.config, path)
            for row, (key, name) in enumerate(self._keys_and_names(path)):
                if key is None and name:
                    key = key_of_listed_path(name, root, keep_extension)
                elif key is None:
                    key = f"{printable_name(path.stem)}-{row}"
                uri = f"{path_uri(path)}#{row}" if self.columns.image or not name else path_uri(root / name)
                yield EXCLUDED if excluded(name or key) else ImageRef(key, uri)

    def read(self, uri: str) -> bytes:
        """The bytes of one row's image; see `Source.read`."""
        file, inside, row = uri.partition("#")
        if not inside:
            return read_file(uri)
        with image_errors(uri):
            value = self.row_groups.value(uri_path(file), int(row)) if self.columns.image else None
        if isinstance(value, dict):
            if value["bytes"] is None and value.get("path"):
                return read_file(path_uri(relative_root(self.config, uri_path(file)) / value["path"]))
            value = value["bytes"]
        if value is None:
            raise ImageError("missing", f"{uri}: the row holds no image", stage="read")
        return value

    def _keys_and_names(self, path: Path) -> Iterator[tuple[str | None, str | None]]:
        """What the key and path columns say, row by row; None where there is no such column. Images stay unread."""
        columns = self.columns
        wanted = [name for name in dict.fromkeys((columns.key, columns.path)) if name]
        with source_errors(path, _WANTED), pq.ParquetFile(path) as parquet:
            if choose_columns(parquet.schema_arrow, self.config, path) != columns:
                raise SourceError(f"{path} has other columns than {self.paths[0]}; extract it as a source of its own")
            if not wanted:
                yield from ((None, None) for _ in range(parquet.metadata.num_rows))
                return
            for batch in parquet.iter_batches(columns=wanted):
                table = pa.Table.from_batches([batch]).flatten()  # so that image.path is a column
                nothing = [None] * len(table)
                keys = self._filled(table[columns.key], path) if columns.key else nothing
                yield from zip(keys, table[columns.path].to_pylist() if columns.path else nothing, strict=True)

    def _filled(self, keys: pa.ChunkedArray, path: Path) -> list[str]:
        if keys.null_count:
            raise SourceError(f"{path} has rows without a key in column {self.columns.key!r}. {self.key_advice}")
        return [str(key) for key in keys.to_pylist()]


class RowGroups:
    """Reads a column's values by row number, and keeps the last row groups read, since neighbours are asked for next.

    Threads may share one. A copy sent to another process starts empty.
    """

    def __init__(self, column: str | None) -> None:
        self._column = column
        self._lock = threading.Lock()
        self._loaded: OrderedDict[tuple[Path, int], pa.ChunkedArray] = OrderedDict()
        self._ends: dict[Path, list[int]] = {}

    def __reduce__(self) -> tuple[type[RowGroups], tuple[str | None]]:
        return RowGroups, (self._column,)

    def value(self, path: Path, row: int) -> Any:
        """The value in one row; a struct comes as a dictionary.

        Raises:
            OSError, ValueError: the file is unreadable, or it has no such row.
        """
        with self._lock:  # held while reading: the threads behind mostly wait for the same row group
            ends = self._ends_in(path)
            if not 0 <= row < (ends[-1] if ends else 0):
                raise ValueError(f"there is no row {row}")
            group = bisect_right(ends, row)
            values = self._group(path, group)
        return values[row - ends[group] + len(values)].as_py()

    def _ends_in(self, path: Path) -> list[int]:
        """For each row group, the number of the row after its last."""
        if path not in self._ends:
            metadata = pq.read_metadata(path)
            sizes = (metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))
            self._ends[path] = list(accumulate(sizes))
        return self._ends[path]

    def _group(self, path: Path, group: int) -> pa.ChunkedArray:
        place = (path, group)
        if place not in self._loaded:
            with pq.ParquetFile(path) as parquet:
                self._loaded[place] = parquet.read_row_group(group, columns=[self._column]).column(0)
        self._loaded.move_to_end(place)
        while len(self._loaded) > _CACHED_ROW_GROUPS:
            self._loaded.popitem(last=False)
        return self._loaded[place]


def holds_only_parquet(folder: Path) -> bool:
    """Whether a folder is a data set in Parquet: such files, nothing else but hidden or `_`-marked ones.

    Raises:
        SourceError: the folder cannot be read.
    """
    visible = _visible_files(folder)
    return bool(visible) and all(path.suffix.lower() == ".parquet" and path.is_file() for path in visible)


def choose_columns(schema: pa.Schema, config: SourceConfig, path: Path) -> Columns:
    """Take the columns that `config` names, or find them by name and type.

    Raises:
        SourceError: a named column is absent or of the wrong type, or no column, or several, could hold the images.
    """
    types: dict[str, pa.DataType] = {column.name: column.type for column in schema}
    nested = {column.name: column.type for column in schema.empty_table().flatten().schema}
    where = f"{path} has the columns " + ", ".join(f"{name} ({kind})" for name, kind in types.items())[:400]
    image = config.image_column or _find_image_column(types, where)
    if not (image in types and (_is_bytes(types[image]) or _is_text(types[image]))):
        raise SourceError(f"{where}; wanted paths or bytes in --image-column {image!r}")
    path_column = image if _is_text(types[image]) else _first(PATH_NAMES, types, _is_text)
    key = config.key_column or _first(KEY_NAMES, types, _is_key)
    if key and not _is_key((types | nested).get(key, pa.null())):
        raise SourceError(f"{where}; wanted text or whole numbers in --key-column {key!r}")
    return Columns(None if path_column == image else image, path_column, key)


def _find_image_column(types: Types, where: str) -> str:
    """By name; failing that, the only column with bytes."""
    named = _first(IMAGE_NAMES, types, _is_bytes) or _first(PATH_NAMES, types, _is_text)
    if named:
        return named
    unnamed = [name for name, kind in types.items() if _is_bytes(kind)]
    if len(unnamed) != 1:
        which = "more than one of them may" if unnamed else "none of them seems to"
        raise SourceError(f"{where}; {which} hold the images, so name the column with --image-column")
    return unnamed[0]


def _first(names: tuple[str, ...], types: Types, fits: Callable[[pa.DataType], bool]) -> str | None:
    return next((name for name in names if name in types and fits(types[name])), None)


def _is_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(child.name == "bytes" and _is_bytes(child.type) for child in kind)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _is_key(kind: pa.DataType) -> bool:
    return _is_text(kind) or pa.types.is_integer(kind)


def _visible_files(folder: Path) -> list[Path]:
    with source_errors(folder, "a folder this user may read"):
        return sorted(absolute(path) for path in folder.iterdir() if not path.name.startswith((".", "_")))
