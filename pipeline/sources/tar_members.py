"""What is in a tar: read from its headers, and for a tar at an address remembered, as its headers lie all over it.

Going on with a job lists its source again. What was found in a tar at an address is therefore kept in the cache of this
user ($TRIPTYCH_CACHE, else ~/.cache/triptych), for as long as size and tag of the tar stay the same.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import xxhash

from pipeline.sources.addresses import version_of
from pipeline.sources.contract import SourceError
from pipeline.sources.files import Place, open_file, source_errors
from storage.atomic import cache_folder, write_whole
from storage.errors import StoreError
from storage.secrets import shown

REMEMBERED = 200_000  # members of a tar; usual shards have ten thousand

_WANTED = "an uncompressed tar; unpack a compressed one, make a damaged one again"


class Member(NamedTuple):
    """A file in a tar, from byte `offset` on. Safe is a plain run of bytes under a name inside the tar."""

    name: str
    offset: int
    size: int
    is_safe: bool


def members_of(place: Place) -> Iterator[Member]:
    """Every member but the folders.

    Raises:
        SourceError: the file is no uncompressed tar, or the tar is damaged.
    """
    if not isinstance(place, str):
        yield from _read(place)
        return
    with source_errors(place, _WANTED):
        version = version_of(place)
    path = _cache_file(place, version) if version else None
    if path:
        with suppress(OSError, ValueError, TypeError):
            yield from [Member(*each) for each in json.loads(path.read_bytes())]
            return
    found: list[Member] = []
    for member in _read(place):
        yield member
        if len(found) <= REMEMBERED:
            found.append(member)
    if path and len(found) <= REMEMBERED:
        with suppress(OSError, StoreError):  # a full disk only makes the next listing slower
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, json.dumps(found).encode())


def _cache_file(address: str, version: str) -> Path:
    """Named by a hash, as addresses may hold secrets."""
    return cache_folder("tars") / f"{xxhash.xxh3_128_hexdigest(json.dumps([address.partition('?')[0], version]))}.json"


def _read(place: Place) -> Iterator[Member]:
    try:
        with source_errors(place, _WANTED), open_file(place) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            while member := tar.next():
                tar.members = []  # type: ignore[attr-defined]  # else tarfile keeps them all
                if not member.isdir():
                    yield Member(member.name, member.offset_data, member.size, _is_safe(member))
            _check_end(place, file, tar.offset)
    except tarfile.TarError as error:
        raise SourceError(f"{shown(str(place))} cannot be listed ({error}); wanted {_WANTED}") from error


def _is_safe(member: tarfile.TarInfo) -> bool:
    """Whether the member is no link, device or sparse file, and its name stays inside the tar."""
    name = PurePosixPath(member.name)
    return member.isreg() and not member.issparse() and not name.is_absolute() and ".." not in name.parts


def _check_end(place: Place, file: Any, end: int) -> None:
    """tarfile takes a damaged header for the end; a true end is a block of zeros, or that of the file."""
    file.seek(end)
    if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
        raise SourceError(f"{shown(str(place))} is damaged at byte {end:,}; wanted {_WANTED}")
