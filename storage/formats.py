"""The shard formats, by the name that manifest entries carry."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from storage import arrow
from storage.errors import StoreError
from storage.records import Record
from storage.shard import Layout, MappedFile, Shard, read_segment
from storage.spec import Spec


class ShardWriter(Protocol):
    """Takes records, and makes one file of them when it is closed; `rows` and `keys` are what it has taken so far."""

    rows: int
    keys: list[str]

    def append(self, record: Record) -> None: ...
    def close(self) -> tuple[int, str]: ...
    def abort(self) -> None: ...


@dataclass(frozen=True)
class ShardFormat:
    """One way of keeping records in a file.

    writer   makes a ShardWriter for a path and a spec
    layouts  tells where the columns of such a file lie; None where the file has to be unpacked to be read
    """

    suffix: str
    writer: Callable[[Path, Spec], ShardWriter]
    layouts: Callable[[Path, Spec], list[Layout]] | None


def _hdf5_writer(path: Path, spec: Spec) -> ShardWriter:
    from storage.hdf5 import Hdf5ShardWriter  # h5py takes memory and time to import; most stores need none

    return Hdf5ShardWriter(path, spec)


def _hdf5_layouts(path: Path, spec: Spec) -> list[Layout]:
    from storage.hdf5 import hdf5_layouts

    return hdf5_layouts(path, spec)


FORMATS = {
    "arrow": ShardFormat(arrow.SUFFIX, arrow.ArrowShardWriter, arrow.arrow_layouts),
    "hdf5": ShardFormat(".h5", _hdf5_writer, _hdf5_layouts),
    "arrow-zstd": ShardFormat(arrow.SUFFIX, partial(arrow.ArrowShardWriter, archive=True), None),
}
_DAMAGE: tuple[type[Exception], ...] = (OSError, ValueError, KeyError, RuntimeError, TypeError, arrow.pa.ArrowException)


def open_shard_file(path: Path, spec: Spec, format: str) -> Shard:
    """Map a shard.

    Raises:
        StoreError: the file is not a shard of this spec, or is damaged.
    """
    kind = format_of(format)
    try:
        if kind.layouts is None:
            return arrow.ArchiveShard(path, spec)
        mapped = MappedFile(path)
        return Shard(spec, [read_segment(layout, spec, mapped) for layout in kind.layouts(path, spec)], path)
    except _DAMAGE as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError(f"{path} cannot be read ({_first_line(error)}); `triptych verify` tells more.") from error


def plain_layouts(path: Path, spec: Spec, format: str) -> list[dict[str, Any]] | None:
    """Where the columns of a shard lie, as a manifest entry keeps it."""
    layouts = format_of(format).layouts
    found: list[dict[str, Any]] | None = None
    if layouts:
        found = json.loads(json.dumps([asdict(each) for each in layouts(path, spec)]))
    return found


def format_of(name: str) -> ShardFormat:
    """The format of this name.

    Raises:
        StoreError: there is none.
    """
    if name not in FORMATS:
        raise StoreError(f"shard format {name!r} is not known; choose one of {', '.join(FORMATS)}.")
    return FORMATS[name]


def _first_line(error: Exception) -> Any:
    return (str(error).splitlines() or [type(error).__name__])[0]
