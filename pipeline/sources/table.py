"""Images in the rows of tables: a column of paths, of encoded bytes, or of Hugging Face `Image` structs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, ClassVar

import pyarrow as pa

from extractors.images import ImageError
from pipeline.sources.addresses import is_address
from pipeline.sources.checked import EXCLUDED, CheckedSource, printable_name
from pipeline.sources.contract import ImageRef, SourceConfig, SourceError
from pipeline.sources.files import (
    Place,
    exclusion,
    place_errors,
    place_uri,
    read_file,
    relative_root,
    source_errors,
    uri_place,
)
from pipeline.sources.named import Names
from storage.secrets import shown

IMAGE_NAMES = ("image", "img", "image_bytes", "bytes", "jpg", "jpeg", "png", "webp", "content", "data")
PATH_NAMES = ("image_path", "path", "file_path", "filepath", "file_name", "filename", "file", "image", "img")
KEY_NAMES = ("key", "__key__", "image_id", "img_id", "id")

Types = Mapping[str, pa.DataType]  # of the columns, by name


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


class Tables(ABC):
    """Reads tables of one kind, row by row where the images are, else some columns of them.

    Threads may share one. A copy sent to another process starts empty.
    """

    wanted: ClassVar[str]

    def __init__(self, column: str | None = None) -> None:
        self.column = column

    def __reduce__(self) -> tuple[type[Tables], tuple[str | None]]:
        return type(self), (self.column,)

    @abstractmethod
    def schema(self, place: Place) -> pa.Schema:
        """The columns of a table; whatever is wrong with the file is raised."""

    @abstractmethod
    def batches(self, place: Place, names: list[str]) -> Iterator[pa.RecordBatch]:
        """All rows, of some columns only; of none, batches without columns that know how many rows they have."""

    @abstractmethod
    def value(self, place: Place, row: int) -> Any:
        """The value of `column` in one row; a struct comes as a dictionary.

        Raises:
            OSError, ValueError: the file is unreadable, or it has no such row.
        """


@dataclass(frozen=True)
class TableSource(CheckedSource):
    """The rows of one or more tables, in file order."""

    paths: tuple[Place, ...]
    columns: Columns
    tables: Tables

    key_advice = "Name a column with one key for each image with --key-column."

    @classmethod
    def of(cls, config: SourceConfig, paths: tuple[Place, ...], kind: type[Tables]) -> TableSource:
        """Choose the columns to use, by the first of the files.

        Raises:
            SourceError: the file is unreadable, or has no such column.
        """
        with source_errors(paths[0], kind.wanted):
            schema = kind().schema(paths[0])
        columns = choose_columns(schema, config, paths[0])
        return cls(config, paths, columns, kind(columns.image))

    def find(self, keep_extension: bool) -> Iterator[ImageRef | str]:
        """Yield each row with its image, or why one is passed over."""
        excluded = exclusion(self.config.exclude)
        for path in self.paths:
            names = Names(relative_root(self.config, path))
            stem, prefix = printable_name(PurePosixPath(shown(str(path))).stem), place_uri(path)
            for row, (key, name) in enumerate(self._keys_and_names(path)):
                if key is None:
                    key = names.key(name, keep_extension) if name else f"{stem}-{row}"
                uri = f"{prefix}#{row}" if self.columns.image or not name else names.uri(name)
                yield EXCLUDED if excluded(name or key) else ImageRef(key, uri)

    def read(self, uri: str) -> bytes:
        """The bytes of one row's image; see `Source.read`."""
        file, inside, row = uri.rpartition("#")
        if not inside or (self.columns.image is None and is_address(uri)):
            return read_file(uri)
        place = uri_place(file)
        with place_errors(uri):
            value = self.tables.value(place, int(row)) if self.columns.image else None
        if isinstance(value, dict):
            if value["bytes"] is None and value.get("path"):
                return read_file(Names(relative_root(self.config, place)).uri(value["path"]))
            value = value["bytes"]
        if value is None:
            raise ImageError("missing", f"{shown(uri)}: the row holds no image", stage="read")
        return value

    def _keys_and_names(self, path: Place) -> Iterator[tuple[str | None, str | None]]:
        """What the key and path columns say, row by row; None where there is no such column. Images stay unread."""
        columns = self.columns
        wanted = [name for name in dict.fromkeys((columns.key, columns.path)) if name]
        with source_errors(path, self.tables.wanted):
            if choose_columns(self.tables.schema(path), self.config, path) != columns:
                raise SourceError(
                    f"{shown(str(path))} has other columns than {shown(str(self.paths[0]))}; "
                    "extract it as a source of its own"
                )
            for batch in self.tables.batches(path, wanted):
                table = pa.Table.from_batches([batch]).flatten()  # so that image.path is a column
                nothing = [None] * batch.num_rows
                keys = self._filled(table[columns.key], path) if columns.key else nothing
                yield from zip(keys, table[columns.path].to_pylist() if columns.path else nothing, strict=True)

    def _filled(self, keys: pa.ChunkedArray, path: Place) -> list[str]:
        if keys.null_count:
            found = f"{shown(str(path))} has rows without a key in column {self.columns.key!r}"
            raise SourceError(f"{found}. {self.key_advice}")
        return [str(key) for key in keys.to_pylist()]


def choose_columns(schema: pa.Schema, config: SourceConfig, path: Place) -> Columns:
    """Take the columns that `config` names, or find them by name and type.

    Raises:
        SourceError: a named column is absent or of the wrong type, or no column, or several, could hold the images.
    """
    types: dict[str, pa.DataType] = {column.name: column.type for column in schema}
    nested = {column.name: column.type for column in schema.empty_table().flatten().schema}
    where = f"{shown(str(path))} has the columns " + ", ".join(f"{name} ({kind})" for name, kind in types.items())[:400]
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
