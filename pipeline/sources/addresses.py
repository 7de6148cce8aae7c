"""Images and lists at addresses (s3://, gs://, https://, ...), by fsspec: reading, listing, trying again, errors."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, TypeVar
from urllib.parse import urlsplit

from extractors.images import ImageError
from pipeline.sources.contract import SourceError
from storage.bucket import file_system
from storage.secrets import shown

KINDS = ("s3", "s3a", "gs", "gcs", "abfs", "az", "hf", "http", "https", "memory")
WEB = ("http", "https")
WAITS = (0.5, 2.0)  # seconds before trying once more, beyond what a file system tries by itself
BLOCK = 16 << 20  # bytes that are asked for at once where a file is read from front to back

_PASSING = {408, 425, 429, 500, 502, 503, 504}  # of HTTP
_OFFLINE = {"ClientConnectionError", "ClientPayloadError", "HTTPClientError", "EndpointConnectionError"}
_TAGS = ("ETag", "etag", "md5Hash", "generation", "LastModified", "last_modified", "mtime", "created")
_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "az": "adlfs"}
_PACKAGES |= {"hf": "huggingface_hub", "http": "aiohttp", "https": "aiohttp"}
T = TypeVar("T")


def is_address(text: str) -> bool:
    """Whether a text is an address and no path; `file://` is a path."""
    return "://" in text and not text.startswith("file://")


def kind_of(address: str) -> str:
    """What stands before the `://`.

    Raises:
        SourceError: nothing here reads such addresses.
    """
    kind = address.partition("://")[0]
    if kind not in KINDS:
        raise SourceError(f"{shown(address)} is an address of the kind {kind[:20]!r}; wanted one of {', '.join(KINDS)}")
    return kind


def address_path(address: str) -> str:
    """The path in an address, without a `/` before it: `a/b.jpg` of `s3://bucket/a/b.jpg` and `https://host/a/b.jpg`."""
    return urlsplit(address).path.lstrip("/") if kind_of(address) in WEB else address.split("/", 3)[-1]


def parent_address(address: str) -> str:
    return address.partition("?")[0].rpartition("/")[0]


def read_address(address: str, start: int | None = None, stop: int | None = None) -> bytes:
    """The bytes at an address, all or a part.

    Raises:
        ImageError: missing, no_permission, timeout, unreachable or unreadable, after some tries where it may pass.
    """
    with address_errors(address):
        fs, path = _opened(address)
        return patiently(lambda: bytes(fs.cat_file(path, start=start, end=stop)))


def open_address(address: str, ahead: bool = True) -> Any:
    """A binary file, to read from front to back in large pieces, or here and there.

    Raises:
        SourceError: there is none, or no package for addresses of its kind.
        Exception: whatever else the file system raises.
    """
    fs, path = _opened(address)
    cache_type = "readahead" if ahead else "none"
    return patiently(lambda: fs.open(path, "rb", block_size=BLOCK, cache_type=cache_type))


def version_of(address: str) -> str | None:
    """What changes with the bytes at an address: size, and tag or time; None where the file system tells only a size.

    Raises:
        Exception: whatever the file system raises.
    """
    fs, path = _opened(address)
    facts = patiently(lambda: fs.info(path))
    tags = [str(facts[name]) for name in _TAGS if facts.get(name)]
    return " ".join([str(facts.get("size")), *tags]) if tags else None


def listed(address: str) -> Iterator[tuple[str, bool]]:
    """Name of everything directly below an address, and whether more lies below it.

    Raises:
        SourceError: addresses of this kind have no listing.
        Exception: whatever the file system raises; FileNotFoundError where there is nothing.
    """
    if kind_of(address) in WEB:
        raise SourceError(
            f"{shown(address)} is a web address, and those cannot be listed; name the images in a list file, "
            "or a file at the address (.txt .csv .json .parquet .tar)"
        )
    fs, path = _opened(address)
    own = path.strip("/")
    for entry in patiently(lambda: fs.ls(path, detail=True)):
        name = entry["name"].strip("/")
        if name != own:  # the empty object that some tools make for a folder
            yield name.rpartition("/")[2], entry["type"] == "directory"


def matching_addresses(pattern: str) -> list[str]:
    """The addresses that a glob names, sorted; a web address, and one that is no glob, names itself."""
    if kind_of(pattern) in WEB or not re.search(r"[*?\[]", pattern):
        return [pattern]
    fs, path = _opened(pattern)
    found: list[str] = patiently(lambda: fs.glob(path))
    return [f"{kind_of(pattern)}://{name.lstrip('/')}" for name in sorted(found)]


@contextmanager
def address_errors(address: str) -> Iterator[None]:
    """Whatever goes wrong inside is the fault of the image at this address."""
    try:
        yield
    except (ImageError, SourceError):
        raise
    except Exception as error:
        reason, told = _reason(error)
        raise ImageError(reason, f"{shown(address)} {told} ({one_line(error)})", stage="read") from error


def patiently(action: Callable[[], T]) -> T:
    """Do it, once more and again where the error may pass."""
    for wait in WAITS:
        try:
            return action()
        except Exception as error:
            if not _may_pass(error):
                raise
        time.sleep(wait)
    return action()


def one_line(error: BaseException) -> str:
    """What an error says, without the secrets of addresses in it."""
    status = getattr(error, "status", None)
    if isinstance(status, int):
        return f"HTTP {status} {getattr(error, 'message', '')}".strip()
    return shown(" ".join(str(getattr(error, "strerror", None) or error).split())) or type(error).__name__


def _reason(error: Exception) -> tuple[str, str]:
    """The reason for the errors table, and words for it."""
    status = getattr(error, "status", None)
    if isinstance(error, FileNotFoundError) or status in (404, 410):
        return "missing", "does not exist"
    if isinstance(error, PermissionError) or status in (401, 403) or "Credentials" in type(error).__name__:
        return "no_permission", "may not be read by this user"
    if isinstance(error, TimeoutError):
        return "timeout", "did not answer in time"
    if _may_pass(error):
        return "unreachable", "cannot be reached"
    return "unreadable", "cannot be read"


def _may_pass(error: Exception) -> bool:
    if isinstance(error, (TimeoutError, ConnectionError)) or getattr(error, "status", None) in _PASSING:
        return True
    if any(base.__name__ in _OFFLINE for base in type(error).__mro__):
        return True
    return type(error) is OSError  # what s3fs and others make of a service's hiccups


def _opened(address: str) -> tuple[Any, str]:
    fs = _file_system(kind_of(address), os.getpid())
    return fs, fs._strip_protocol(address)


@cache
def _file_system(kind: str, process: int) -> Any:
    """One for all threads; asynchronous ones do not survive a fork, hence the process.

    Raises:
        SourceError: the package for it is missing.
    """
    try:
        return file_system(f"{kind}://")[0]
    except ImportError as error:
        package = _PACKAGES.get(kind, "what fsspec needs for it")
        told = f"a package that is missing; install {package} (`uv pip install {package}`)"
        raise SourceError(f"{kind}:// needs {told}") from error
