"""Images in uncompressed webdataset tars, listed by their headers and read by their place in the file."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from extractors.images import ImageError
from pipeline.sources.checked import EXCLUDED, NO_EXTENSION, CheckedSource, printable_name
from pipeline.sources.contract import ImageRef, SourceConfig, SourceError
from pipeline.sources.files import (
    exclusion,
    has_image_extension,
    image_errors,
    matching_files,
    path_uri,
    source_errors,
    uri_path,
)

COMPRESSED_TARS = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tar.lz4")
UNSAFE_MEMBER = "links or of unsafe names"

_WANTED = "an uncompressed tar; unpack a compressed one, make a damaged one again"


@dataclass(frozen=True)
class TarSource(CheckedSource):
    """The image members of one or more tars, shard by shard; keys are those that webdataset gives."""

    paths: tuple[Path, ...]

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
            for member in _files_in(path):
                if not _is_safe(member):
                    yield UNSAFE_MEMBER
                elif excluded(member.name):
                    yield EXCLUDED
                elif key := _key(member.name, keep_extension):
                    yield ImageRef(key, _uri(path, member))
                else:
                    yield NO_EXTENSION

    def read(self, uri: str) -> bytes:
        """The bytes of one member, without a look at those before it; see `Source.read`."""
        path, _, place = uri.partition("#")
        offset, _, size = place.rpartition("@")[2].partition("+")
        with image_errors(uri), uri_path(path).open("rb") as tar:
            tar.seek(int(offset))
            data = tar.read(int(size))
        if len(data) < int(size):
            raise ImageError("unreadable", f"{uri}: the tar ends before the image does", stage="read")
        return data


def _uri(path: Path, member: tarfile.TarInfo) -> str:
    name = "".join(letter if letter.isprintable() else "?" for letter in printable_name(member.name))
    return f"{path_uri(path)}#{name}@{member.offset_data}+{member.size}"


def _key(name: str, keep_extension: bool) -> str | None:
    from webdataset.tariterators import base_plus_ext  # here, because it takes seconds to import

    sample, _ = base_plus_ext(name)
    if sample is None or not has_image_extension(name):
        return None
    return printable_name(name if keep_extension else sample)


def _is_safe(member: tarfile.TarInfo) -> bool:
    """Whether the member is a plain run of bytes (no link, device or sparse file) under a name inside the tar."""
    name = PurePosixPath(member.name)
    return member.isreg() and not member.issparse() and not name.is_absolute() and ".." not in name.parts


def _files_in(path: Path) -> Iterator[tarfile.TarInfo]:
    """Every member but the folders; only headers are read.

    Raises:
        SourceError: the file is no uncompressed tar, or the tar is damaged.
    """
    try:
        with source_errors(path, _WANTED), tarfile.open(path, "r:") as tar:
            yield from (member for member in tar if not member.isdir())
            _check_end(path, tar)
    except tarfile.TarError as error:
        raise SourceError(f"{path} cannot be listed ({error}); wanted {_WANTED}") from error


def _check_end(path: Path, tar: tarfile.TarFile) -> None:
    """tarfile takes a damaged header for the end; a true end is a block of zeros, or that of the file."""
    with path.open("rb") as raw:
        raw.seek(tar.offset)
        block = raw.read(tarfile.BLOCKSIZE)
    if block.strip(b"\0"):
        raise SourceError(f"{path} is damaged at byte {tar.offset:,}; wanted {_WANTED}")
