"""What the formats that keep an image under a name share, above all LMDBs: reading entry by entry, writing a new LMDB.

LMDB trusts its own file: one made to do harm can crash the process that opens it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from storage.errors import StoreError
from storage.interop.base import BadRow, Import
from storage.interop.folders import layout_of
from storage.records import RegionRecord
from storage.spec import FeatureLayout

FILE = "data.mdb"
LONGEST_KEY = 511  # bytes
PATIENCE = 100  # entries at the beginning, one of which must be readable
BATCH, BATCH_BYTES = 512, 1 << 27  # entries written in one transaction, which are in memory twice
ROOM = 1 << 26  # bytes that a new LMDB may take at first

Row = RegionRecord | BadRow
Rows = Generator[Row, None, None]


def import_entries(path: Path, start: Callable[[], Rows], units: str, notes: tuple[str, ...]) -> Import:
    """Everything that `start` yields; the first readable record decides the layout, others of another are bad rows.

    Args:
        start: goes through the entries from the first one, each time it is called.

    Raises:
        StoreError: none of the first entries can be read.
    """
    layout = layout_of(_first(path, start()), units)

    return Import("regions", layout, (_fitting(row, layout, path) for row in start()), notes)


def _fitting(row: Row, layout: FeatureLayout, path: Path) -> Row:
    if isinstance(row, BadRow) or layout_of(row, layout.box_units) == layout:
        return row
    here, first = asdict(layout_of(row, layout.box_units)), asdict(layout)
    differences = "; ".join(
        f"{name}: {here[name]!r}, not {first[name]!r}" for name in here if here[name] != first[name]
    )
    return BadRow(row.key, f"{path}: {row.key}", f"it differs from the first entry ({differences}).")


def _first(path: Path, rows: Rows) -> RegionRecord:
    why = "it has no entry"
    for row in islice(rows, PATIENCE):
        if not isinstance(row, BadRow):
            rows.close()
            return row
        why = f"{row.where}: {row.message}" if why == "it has no entry" else why
    rows.close()
    raise StoreError(f"{path} cannot be read in this format ({why.rstrip('.')}); name the format that it has.")


def entry(key: str, where: str, load: Callable[[], RegionRecord]) -> Row:
    """What `load` gives, or why it cannot."""
    try:
        return load()
    except StoreError as error:
        return BadRow(key, where, str(error))
    except ValueError as error:  # arrays that disagree with each other
        return BadRow(key, where, f"{error}.")


@contextmanager
def reading(path: Path, name: str) -> Iterator[Any]:
    """A read-only transaction on an LMDB: a folder with data.mdb, or a single file.

    Args:
        name: of the format, for messages.

    Raises:
        StoreError: there is no LMDB, it is cut short, or this process has it open already.
    """
    import lmdb  # loads a library of its own; who reads other formats needs none

    file = path / FILE if path.is_dir() else path
    if not file.is_file():
        inside = sorted(each.parent.name for each in path.glob(f"*/{FILE}"))
        hint = f"it holds {', '.join(inside)}: give one of them" if inside else f"{name} is a folder with {FILE}"
        raise StoreError(f"{file} is not there; {hint}.")
    environment = None
    try:
        environment = lmdb.open(str(path), subdir=path.is_dir(), readonly=True, lock=False)
        _check_length(file, environment)
        with environment.begin() as transaction:
            yield transaction
    except lmdb.Error as error:
        raise StoreError(f"{file} cannot be read as an LMDB ({error}); {name} is a folder with {FILE}.") from error
    finally:
        if environment:
            environment.close()


def _check_length(file: Path, environment: Any) -> None:
    """LMDB maps the file: to read past its end would end the process."""
    wanted = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    found = file.stat().st_size
    if found < wanted:
        raise StoreError(f"{file} is cut short: it has {found:,} bytes of {wanted:,}; copy it again.")


def value_of(transaction: Any, key: bytes) -> bytes:
    """The value of a key that is in the list of keys.

    Raises:
        StoreError: there is none, or the LMDB is damaged there.
    """
    import lmdb

    try:
        value: bytes | None = transaction.get(key)
    except lmdb.Error as error:
        raise StoreError(f"the LMDB is damaged there ({error}).") from error
    if value is None:
        raise StoreError("it is in the list of keys, but has no entry.")
    return value


def write_entries(folder: Path, entries: Iterable[tuple[bytes, bytes]]) -> None:
    """Put entries into a new LMDB in an empty folder, which grows as they come.

    Raises:
        StoreError: a key is too long, or the disk refuses.
    """
    import lmdb

    try:
        environment = lmdb.open(str(folder), map_size=ROOM, lock=False)
        try:
            for batch in _batches(entries):
                _put(environment, batch)
            environment.sync(True)
        finally:
            environment.close()
    except lmdb.Error as error:
        raise StoreError(
            f"the LMDB cannot be written ({error}); make room, then run the same command again."
        ) from error


def _batches(entries: Iterable[tuple[bytes, bytes]]) -> Iterator[list[tuple[bytes, bytes]]]:
    batch: list[tuple[bytes, bytes]] = []
    size = 0
    for each in entries:
        batch.append(each)
        size += len(each[1])
        if len(batch) == BATCH or size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _put(environment: Any, batch: list[tuple[bytes, bytes]]) -> None:
    import lmdb

    while True:
        try:
            with environment.begin(write=True) as transaction:
                for key, value in batch:
                    transaction.put(key, value)
            return
        except lmdb.MapFullError:
            environment.set_mapsize(2 * environment.info()["map_size"])


def entry_key(name: str, taken: bytes) -> bytes:
    """A name as the key of an entry.

    Args:
        taken: the key under which the format keeps its list of keys.

    Raises:
        StoreError: it is that one, or too long for LMDB.
    """
    key = name.encode()
    if key == taken:
        raise StoreError(f"the key {name!r} is the one under which this format keeps its list of keys; rename it.")
    if len(key) > LONGEST_KEY:
        raise StoreError(f"the key {name[:40]!r}.. has {len(key)} bytes, an LMDB takes {LONGEST_KEY}; shorten it.")
    return key
