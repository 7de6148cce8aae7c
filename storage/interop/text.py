"""What formats made of text share: base64 arrays of checked length, TSV read with patience, files that appear whole.

Shapes in this file: N boxes, D feature width.
"""

from __future__ import annotations

import binascii
import os
import statistics
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import xxhash

from storage.atomic import discard, partial_path, publish, writing
from storage.codecs import cast
from storage.errors import StoreError
from storage.interop.base import BadRow
from storage.interop.folders import demand, known_size
from storage.records import Record, RegionRecord
from storage.store import FeatureStore

ENOUGH, PATIENCE = 8, 100  # readable rows that decide a layout, among so many at the beginning of a file
LONGEST = 1 << 28  # bytes of a line: 100 boxes of 2048 numbers take about 1 MiB

Row = RegionRecord | BadRow
Rows = Generator[Row, None, None]
Parse = Callable[[list[bytes]], RegionRecord]  # columns of a line -> record; raises ValueError for a torn one


def floats(name: str, text: bytes | str, rows: int, width: int | None) -> np.ndarray:
    """The base64 of a little-endian float32 array (rows, width); width None takes what the length gives.

    Raises:
        ValueError: the text is not base64, or holds another number of bytes.
    """
    data = _decoded(name, text)
    if width is None:
        width = len(data) // (4 * rows) if rows else 0
    return _shaped(name, data, np.dtype("<f4"), (rows, width))


def integers(name: str, text: bytes | str, rows: int) -> np.ndarray:
    """The base64 of little-endian int64 numbers, as (rows,) int32.

    Raises:
        ValueError: as of `floats`, or a number does not fit 32 bits.
    """
    values = _shaped(name, _decoded(name, text), np.dtype("<i8"), (rows,))
    found = values.astype(np.int32)
    if not np.array_equal(found, values):
        raise ValueError(f"{name} holds {int(values[found != values][0])}, which is no class number")
    return found


def _decoded(name: str, text: bytes | str) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    if b"\n" in data:  # Python 2's base64.encodestring broke lines
        data = data.replace(b"\n", b"")
    try:
        return binascii.a2b_base64(data, strict_mode=True)
    except binascii.Error as error:
        raise ValueError(f"{name} is not whole base64 ({len(data):,} characters: {str(error).lower()})") from error


def _shaped(name: str, data: bytes, dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.ndarray:
    wanted = int(np.prod(shape)) * dtype.itemsize
    if len(data) != wanted:
        raise ValueError(f"{name} holds {len(data):,} bytes, {shape} {dtype.name} take {wanted:,}")
    return np.frombuffer(data, dtype).reshape(shape)


def encoded(array: np.ndarray, dtype: str = "<f4") -> str:
    """Base64 of an array in a little-endian number type, without line breaks."""
    if dtype == "<f4":
        array = cast(array, "float32")
    return binascii.b2a_base64(np.ascontiguousarray(array, dtype).data, newline=False).decode()


def whole_number(name: str, text: bytes, least: int = 0) -> int:
    """A decimal number.

    Raises:
        ValueError: it is something else, or smaller than `least`.
    """
    if not text.isdigit() or len(text) > 9 or int(text) < least:
        raise ValueError(f"{name} is {_shown(text)}, not a whole number from {least}")
    return int(text)


def expect_columns(columns: Sequence[bytes], wanted: Sequence[str]) -> None:
    if len(columns) != len(wanted):
        raise ValueError(f"{len(columns)} tab-separated columns, wanted {len(wanted)} ({', '.join(wanted)})")


def text_key(text: bytes) -> str:
    """A key out of a line.

    Raises:
        ValueError: it could not be written to a line again.
    """
    key = text.decode()
    if len(text) > 1000 or not fits_line(key):
        raise ValueError(f"the key {_shown(text)} is empty, quoted, or has characters that do not belong in a line")
    return key


def fits_line(key: str) -> bool:
    """Whether csv and Oscar's readers give this key back as it was written."""
    return bool(key) and key.isprintable() and key == key.strip() and '"' not in key


def _shown(text: bytes) -> str:
    return repr(text[:20].decode("utf-8", "replace") + ("..." if len(text) > 20 else ""))


def tsv_paths(path: Path) -> list[Path]:
    """The file, or the parts `*.tsv*` of a folder in order of their names.

    Raises:
        StoreError: nothing of the kind is there.
    """
    if path.is_dir():
        parts = sorted(each for each in path.glob("*.tsv*") if each.is_file() and not each.name.startswith("."))
        if not parts:
            raise StoreError(f"{path} holds no *.tsv* file; give the file, or the folder with its parts.")
        return parts
    if not path.is_file():
        raise StoreError(f"there is no file {path}; give a .tsv file, or a folder with its parts.")
    return [path]


def read_tsv(paths: Iterable[Path], parse: Parse) -> Rows:
    """The records of lines, one after the other, and what cannot be read.

    A key that comes again with the same bytes is the same record: extractors that resumed badly wrote everything twice.
    """
    seen: dict[str, int] = {}
    for where, line in lines(paths):
        columns = line.split(b"\t")
        try:
            record = parse(columns)
        except ValueError as error:
            yield BadRow(_known_key(columns), where, str(error))
            continue
        digest = xxhash.xxh3_64_intdigest(line)
        if record.key not in seen:
            seen[record.key] = digest
            yield record
        elif seen[record.key] != digest:
            yield BadRow(record.key, where, "the key came before with other values; the first is kept")


def lines(paths: Iterable[Path]) -> Iterator[tuple[str, bytes]]:
    for path in paths:
        with path.open("rb", buffering=1 << 20) as handle:
            for number, line in enumerate(iter(lambda: handle.readline(LONGEST), b""), 1):
                if len(line) == LONGEST:
                    raise StoreError(
                        f"{path}: line {number} is longer than {LONGEST:,} bytes; this is no TSV of features."
                    )
                if stripped := line.rstrip(b"\r\n"):
                    yield f"{path.name}, line {number}", stripped


def _known_key(columns: Sequence[bytes]) -> str:
    with suppress(ValueError):
        return text_key(columns[0]) if len(columns) > 1 else ""
    return ""


def first_records(rows: Rows, path: Path) -> list[RegionRecord]:
    """Some records with boxes from the beginning of a file, to tell its layout from; closes the file.

    Raises:
        StoreError: none of the first rows can be read, or none has a box.
    """
    found: list[RegionRecord] = []
    bad: list[BadRow] = []
    for row in islice(rows, PATIENCE):
        if isinstance(row, BadRow):
            bad.append(row)
        elif len(row.boxes):
            found.append(row)
        if len(found) == ENOUGH:
            break
    rows.close()
    if not found:
        why = f"{bad[0].where}: {bad[0].message}" if bad else "it has no rows with boxes"
        raise StoreError(f"{path} cannot be read in this format ({why}); name the format that it has.")
    return found


def usual_width(records: Sequence[RegionRecord]) -> int:
    """D of most records: a torn row may have any."""
    return statistics.mode(record.features.shape[1] for record in records)


def regions_of(store: FeatureStore, format: str, needed: tuple[str, ...] = ()) -> Iterator[RegionRecord]:
    """All records of a store, in its order; raises StoreError where it holds no regions, or lacks a needed field."""
    demand(store, format, "regions", needed)
    return map(_as_regions, map(store.at, range(len(store))))


def _as_regions(record: Record) -> RegionRecord:
    assert isinstance(record, RegionRecord)  # the store's view says so
    return record


def pixel_boxes(record: RegionRecord, units: str) -> np.ndarray:
    """Boxes (N, 4) float32 in pixels; raises StoreError where they are fractions of a size that is not known."""
    if units == "pixels":
        return record.boxes
    height, width = known_size(record)
    return record.boxes * np.array([width, height, width, height], np.float32)


def line_key(key: str) -> str:
    """A key to write in a line; raises StoreError where a reader would not get it back."""
    if not fits_line(key):
        raise StoreError(
            f"{key!r} cannot stand in a line (quotes, line breaks, outer spaces); give the image another key."
        )
    return key


@contextmanager
def new_file(out: Path) -> Iterator[BinaryIO]:
    """A file to write that takes its name when the block ends well, and goes when it does not.

    Raises:
        StoreError: `out` is there already, or the disk refuses.
    """
    refuse_existing(out)
    partial = partial_path(out)
    try:
        with writing(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("w+b", buffering=1 << 20) as handle:
                yield handle
                handle.flush()
                os.fsync(handle.fileno())
            publish(partial, out)
    finally:
        discard(partial)


def refuse_existing(out: Path) -> None:
    if out.is_symlink() or out.exists():
        raise StoreError(f"{out} exists; choose a new name.")


def write_lines(out: Path, lines: Iterable[Sequence[str]], end: bytes) -> int:
    """Write tab-separated lines to a new file; returns their number."""
    count = 0
    with new_file(out) as handle:
        for columns in lines:
            handle.write("\t".join(columns).encode() + end)
            count += 1
    return count
