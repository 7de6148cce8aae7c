"""What every source does with what it finds: safe keys, no key twice, nothing empty, everything counted."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar

import numpy as np
import pyarrow.compute as pc

from pipeline.sources.contract import ImageRef, Listing, SourceConfig, SourceError
from pipeline.sources.files import has_image_extension, read_file
from pipeline.sources.refs import PAGE, Pages
from pipeline.sources.twins import Twins
from pipeline.sources.wanted import open_wanted
from storage.arrow import text_column
from storage.secrets import shown

MAX_KEY_BYTES = 1024

# Why a file is passed over, worded to follow a number.
NO_EXTENSION = "without an image extension"
EXCLUDED = "excluded by --exclude"

KEEP_EXTENSION = "Pass --keep-extension to tell them apart."

_KEY_FAULTS = (
    (re.compile(r"^$"), "it is empty"),
    (re.compile(r"^[/\\]|^[A-Za-z]:"), "it starts like an absolute path"),
    (re.compile(r"(^|[/\\])\.\.([/\\]|$)"), "it has a '..' part"),
    (re.compile(r"[\x00-\x1f\x7f-\x9f]"), "it has a control character"),
    (re.compile(r"[\ud800-\udfff]"), "it is not valid Unicode"),
)
# All of them at once, for the columns of a page; surrogates never get into a column.
_SOME_FAULT = r"^(?:$|[/\\]|[A-Za-z]:)|(?:^|[/\\])\.\.(?:[/\\]|$)|[\x00-\x1f\x7f-\x{9f}]"
_UNDECODED_BYTE = re.compile(r"[\udc80-\udcff]")


def printable_name(name: str) -> str:
    """The name with each byte that is not valid UTF-8 written as `%E9`; other names stay as they are."""
    return name if name.isascii() else _UNDECODED_BYTE.sub(lambda byte: f"%{ord(byte[0]) - 0xDC00:02X}", name)


def key_of_path(path: str, keep_extension: bool) -> str:
    """The key of an image known by its relative path: the path, without the image extension unless it is kept."""
    kept = keep_extension or not has_image_extension(path)
    return printable_name(path if kept else path.rpartition(".")[0])


def key_fault(key: str) -> str | None:
    """Why this key could escape a folder or break a table, or None if it is safe."""
    for pattern, fault in _KEY_FAULTS:
        if pattern.search(key):
            return fault
    return f"it is longer than {MAX_KEY_BYTES:,} bytes" if len(key.encode()) > MAX_KEY_BYTES else None


def all_safe(keys: list[str]) -> bool:
    """Whether `key_fault` finds fault with none of many keys."""
    try:
        column = text_column(keys)
    except UnicodeEncodeError:
        return False
    longest = pc.max(pc.binary_length(column)).as_py() or 0
    return longest <= MAX_KEY_BYTES and not pc.any(pc.match_substring_regex(column, _SOME_FAULT)).as_py()


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
        """Name the images; see `Source.list`. Memory stays the same however many there are."""
        return self._listed(self.config.keep_extension)

    def _listed(self, keep_extension: bool) -> Listing:
        passed_over, pages, twins = Counter[str](), Pages(), Twins()
        wanted = open_wanted(self.config.keys)
        for page in self._pages(keep_extension, passed_over):
            keys = [ref.key for ref in page]
            if not all_safe(keys):
                raise self._unsafe(page)
            if wanted:
                page = [ref for ref, take in zip(page, wanted.among(keys), strict=True) if take]
                keys = [ref.key for ref in page]
            uris = [ref.uri for ref in page]
            pages.add(keys, uris)
            twins.add(keys, uris)
        refs = pages.finish()
        if wanted:
            wanted.check_all_found(shown(self.config.images))
        if not refs:
            raise self._nothing_in(passed_over)
        unique = refs.select(_unset(twins.repeats()))
        if clash := twins.clash(refs):
            raise self._clash(*clash, keep_extension)
        return Listing(unique, passed_over.total(), len(refs) - len(unique))

    def _pages(self, keep_extension: bool, passed_over: Counter[str]) -> Iterator[Sequence[ImageRef]]:
        """What is found, many at a time; the reasons of what is passed over are counted."""
        found, files = self.find(keep_extension), 0
        while some := list(islice(found, PAGE)):
            files += len(some)
            if files > self.config.max_files:
                raise SourceError(
                    f"{shown(self.config.images)} holds more than {self.config.max_files:,} files; "
                    "raise --max-files if that is meant, or name a part of them."
                )
            passed_over.update(item for item in some if isinstance(item, str))
            if page := [item for item in some if isinstance(item, ImageRef)]:
                yield page

    def read(self, uri: str) -> bytes:
        """The bytes of one image; see `Source.read`."""
        return read_file(uri)

    def _unsafe(self, page: Sequence[ImageRef]) -> SourceError:
        ref, fault = next((ref, fault) for ref in page if (fault := key_fault(ref.key)))
        return SourceError(f"the key {ref.key[:80]!r} of {shown(ref.uri)} cannot be used: {fault}. {self.key_advice}")

    def _nothing_in(self, reasons: Counter[str]) -> SourceError:
        counts = "; ".join(f"{count:,} {reason}" for reason, count in reasons.items())
        seen = f"; {reasons.total():,} files passed over ({counts})" if reasons else ""
        advice = self.no_extension_advice if NO_EXTENSION in reasons else "Check --images and --exclude."
        return SourceError(f"{shown(self.config.images)} holds no images{seen}. {advice}")

    def _clash(self, first: ImageRef, second: ImageRef, others: int, keep_extension: bool) -> SourceError:
        more = f" (and {others:,} more such pairs)" if others else ""
        advice = self.key_advice if keep_extension or not self._is_unique_with_extensions() else KEEP_EXTENSION
        return SourceError(
            f"{shown(first.uri)} and {shown(second.uri)} have the same key {first.key!r}{more}. {advice}"
        )

    def _is_unique_with_extensions(self) -> bool:
        try:
            self._listed(keep_extension=True)
        except SourceError:
            return False
        return True


def _unset(bits: np.ndarray) -> Callable[[list[str]], np.ndarray]:
    """Choose the images, page by page, whose bit is not set."""
    start = 0

    def choose(keys: list[str]) -> np.ndarray:
        nonlocal start
        first, start = start, start + len(keys)
        some = np.unpackbits(bits[first >> 3 : (start >> 3) + 1], bitorder="little")
        return some[first & 7 :][: len(keys)] == 0

    return choose
