"""Images in uncompressed webdataset tars, listed by their headers and read by their place in the file.

A tar at an address is read from front to back: once to be listed, of which `tar_members` keeps what it found, and once
as its images are extracted. Neighbouring images are in one unit, so whoever runs the unit asks for 16 MiB from the
image it needs on, and for the next 16 MiB where those end: some hundred images a request, hardly a byte twice, none on
the disk.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

from extractors.images import ImageError
from pipeline.sources.addresses import BLOCK, read_address
from pipeline.sources.checked import EXCLUDED, NO_EXTENSION, CheckedSource, printable_name
from pipeline.sources.contract import ImageRef, SourceConfig
from pipeline.sources.files import (
    Place,
    check_size,
    exclusion,
    has_image_extension,
    image_errors,
    matching_files,
    place_uri,
    uri_place,
)
from pipeline.sources.tar_members import Member, members_of
from storage.secrets import shown

COMPRESSED_TARS = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tar.lz4")
UNSAFE_MEMBER = "links or of unsafe names"

_KEPT = 4  # pieces of tars at addresses: threads ask for neighbours, not always in their order


@dataclass(frozen=True)
class TarSource(CheckedSource):
    """The image members of one or more tars, shard by shard; keys are those that webdataset gives."""

    paths: tuple[Place, ...]
    pieces: Pieces = field(default_factory=lambda: Pieces())

    key_advice = "Leave one out with --exclude, or extract the tars into a store each."

    @classmethod
    def open(cls, config: SourceConfig) -> TarSource:
        """Find the tars that `config.images` names.

        Raises:
            SourceError: some part of the pattern names no file.
        """
        return cls(config, matching_files(config.images))

    def find(self, keep_extension: bool) -> Iterator[ImageRef | str]:
        """Yield each image member, or why a member is passed over."""
        excluded = exclusion(self.config.exclude)
        for path in self.paths:
            for member in members_of(path):
                if not member.is_safe:
                    yield UNSAFE_MEMBER
                elif excluded(member.name):
                    yield EXCLUDED
                elif key := _key(member.name, keep_extension):
                    yield ImageRef(key, _uri(path, member))
                else:
                    yield NO_EXTENSION

    def read(self, uri: str) -> bytes:
        """The bytes of one member, without a look at those before it; see `Source.read`."""
        place, offset, size = _parsed(uri)
        check_size(uri, size)
        if isinstance(place, str):
            data = self.pieces.read(place, offset, size)
        else:
            with image_errors(uri), place.open("rb") as tar:
                tar.seek(offset)
                data = tar.read(size)
        if len(data) < size:
            raise ImageError("unreadable", f"{shown(uri)}: the tar ends before the image does", stage="read")
        return data


class Pieces:
    """Reads parts of files at addresses, with what follows them: neighbours are asked for next.

    Threads may share one, and one of them fetches at a time: the others mostly wait for the same piece. A copy sent to
    another process starts empty.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, int], bytes] = OrderedDict()

    def __reduce__(self) -> tuple[type[Pieces], tuple[()]]:
        return Pieces, ()

    def read(self, address: str, start: int, size: int) -> bytes:
        """Bytes of a file; fewer where it ends.

        Raises:
            ImageError: see `read_address`; also where a server cannot send a part of a file.
        """
        with self._lock:
            for (file, first), data in self._kept.items():
                if file == address and first <= start and start + size <= first + len(data):
                    self._kept.move_to_end((file, first))
                    return data[start - first : start - first + size]
            data = read_address(address, start, start + max(size, BLOCK))
            if len(data) > max(size, BLOCK):
                told = f"{shown(address)}: the server sends whole files only; copy the tar here, or to an object store"
                raise ImageError("unreadable", told, stage="read")
            self._kept[address, start] = data
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
            return data[:size]


def _uri(place: Place, member: Member) -> str:
    name = "".join(letter if letter.isprintable() else "?" for letter in printable_name(member.name))
    return f"{place_uri(place)}#{name}@{member.offset}+{member.size}"


def _parsed(uri: str) -> tuple[Place, int, int]:
    """The tar, and where in it the image is."""
    file, _, place = uri.partition("#")
    offset, _, size = place.rpartition("@")[2].partition("+")
    with image_errors(uri):
        return uri_place(file), int(offset), int(size)


def _key(name: str, keep_extension: bool) -> str | None:
    from webdataset.tariterators import base_plus_ext  # here, because it takes seconds to import

    sample, _ = base_plus_ext(name)
    if sample is None or not has_image_extension(name):
        return None
    return printable_name(name if keep_extension else sample)
