"""What every source does with what it finds: safe keys, no key twice, nothing empty, everything counted."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from pipeline.sources.contract import ImageRef, Listing, SourceConfig, SourceError
from pipeline.sources.files import has_image_extension, none_exists, read_file, relative_root, uri_path

MAX_KEY_BYTES = 1024

# Why a file is passed over, worded to follow a number.
NO_EXTENSION = "without an image extension"
EXCLUDED = "excluded by --exclude"

_KEY_FAULTS = (
    (re.compile(r"^$"), "it is empty"),
    (re.compile(r"^[/\\]|^[A-Za-z]:"), "it starts like an absolute path"),
    (re.compile(r"(^|[/\\])\.\.([/\\]|$)"), "it has a '..' part"),
    (re.compile(r"[\x00-\x1f\x7f-\x9f]"), "it has a control character"),
    (re.compile(r"[\ud800-\udfff]"), "it is not valid Unicode"),
)
_UNDECODED_BYTE = re.compile(r"[\udc80-\udcff]")


def printable_name(name: str) -> str:
    """The name with each byte that is not valid UTF-8 written as `%E9`; other names stay as they are."""
    return _UNDECODED_BYTE.sub(lambda byte: f"%{ord(byte[0]) - 0xDC00:02X}", name)


def key_of_path(path: str, keep_extension: bool) -> str:
    """The key of an image known by its relative path: the path, without the image extension unless it is kept."""
    kept = keep_extension or not has_image_extension(path)
    return printable_name(path if kept else path.rpartition(".")[0])


def key_of_listed_path(text: str, root: Path, keep_extension: bool) -> str:
    """The key of an image that a file names by `text`; an absolute path below `root` counts as relative to it."""
    path = Path(text)
    relative = path.relative_to(root) if path.is_relative_to(root) else path
    return key_of_path(relative.as_posix(), keep_extension)


def key_fault(key: str) -> str | None:
    """Why this key could escape a folder or break a table, or None if it is safe."""
    for pattern, fault in _KEY_FAULTS:
        if pattern.search(key):
            return fault
    return f"it is longer than {MAX_KEY_BYTES:,} bytes" if len(key.encode()) > MAX_KEY_BYTES else None


def with_some_there(listing: Listing, config: SourceConfig) -> Listing:
    """The listing, if a single one of its files exists.

    Raises:
        SourceError: none does: the root is wrong, and every image would fail.
    """
    if none_exists(uri_path(ref.uri) for ref in listing.refs):
        raise SourceError(
            f"{config.images} names {len(listing.refs):,} images, and none of them is in "
            f"{relative_root(config, Path(config.images))}; name their folder with --image-root"
        )
    return listing


def clashes(refs: Iterable[ImageRef]) -> list[tuple[ImageRef, ImageRef]]:
    """Every image whose key an earlier one has, together with the first that had it."""
    first: dict[str, ImageRef] = {}
    return [(first[ref.key], ref) for ref in refs if first.setdefault(ref.key, ref) is not ref]


@dataclass(frozen=True)
class CheckedSource(ABC):
    """A source that only has to find images; what it finds is checked here, in the same way for every kind."""

    config: SourceConfig

    key_advice: ClassVar[str] = "Rename it, or leave it out with --exclude."
    no_extension_advice: ClassVar[str] = "Check --images and --exclude."

    @abstractmethod
    def find(self, keep_extension: bool) -> Iterator[ImageRef | str]:
        """Yield each image, or for a file that is passed over the reason why."""

    def list(self) -> Listing:
        """Name the images; see `Source.list`."""
        found = list(self.find(self.config.keep_extension))
        refs = [item for item in found if isinstance(item, ImageRef)]
        unique = list(dict.fromkeys(refs))
        if not unique:
            raise self._nothing_in([item for item in found if isinstance(item, str)])
        for ref in unique:
            self._check_key(ref)
        if pairs := clashes(unique):
            raise self._clash(pairs)
        return Listing(unique, passed_over=len(found) - len(refs), repeated=len(refs) - len(unique))

    def read(self, uri: str) -> bytes:
        """The bytes of one image; see `Source.read`."""
        return read_file(uri)

    def _check_key(self, ref: ImageRef) -> None:
        if fault := key_fault(ref.key):
            raise SourceError(f"the key {ref.key[:80]!r} of {ref.uri} cannot be used: {fault}. {self.key_advice}")

    def _nothing_in(self, reasons: Sequence[str]) -> SourceError:
        counts = "; ".join(f"{count:,} {reason}" for reason, count in Counter(reasons).items())
        seen = f"; {len(reasons):,} files passed over ({counts})" if reasons else ""
        advice = self.no_extension_advice if NO_EXTENSION in reasons else "Check --images and --exclude."
        return SourceError(f"{self.config.images} holds no images{seen}. {advice}")

    def _clash(self, pairs: Sequence[tuple[ImageRef, ImageRef]]) -> SourceError:
        first, second = pairs[0]
        more = f" (and {len(pairs) - 1:,} more such pairs)" if len(pairs) > 1 else ""
        longer = dict.fromkeys(item for item in self.find(keep_extension=True) if isinstance(item, ImageRef))
        advice = self.key_advice if clashes(longer) else "Pass --keep-extension to tell them apart."
        return SourceError(f"{first.uri} and {second.uri} have the same key {first.key!r}{more}. {advice}")
