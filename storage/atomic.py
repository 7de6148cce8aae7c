"""Files that appear whole or not at all, small sealed JSON documents, and the lock around a commit."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, Literal

import xxhash

from storage.errors import StoreError
from storage.spec import canonical_json

PARTIAL = ".partial"
HASH_ASIDE = 1 << 20  # bytes from which on a thread of its own pays


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an operating-system error into one line that says what is safe and what to do."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"cannot write {path}: {error.strerror or error}. What was committed before is kept; "
            "make room or set the permission, then run the same command again."
        ) from error


def partial_path(final: Path) -> Path:
    """A sibling to write to; its name tells which process on which host is writing it."""
    return final.with_name(f".{final.name}~{socket.gethostname()}~{os.getpid()}~{uuid.uuid4().hex[:8]}{PARTIAL}")


def discard(path: Path) -> None:
    """Delete a file if that is possible; what made it superfluous is the error to tell, not this."""
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


class HashedFile:
    """A file to write from front to back; its XXH3-128 is taken on the way, so that no byte is read twice.

    Hashing runs in a thread beside the writing: both leave the interpreter to others, and hashing is the faster one.
    `size` counts the bytes written so far.
    """

    def __init__(self, path: Path, checksum: bool = True, mode: Literal["wb", "r+b"] = "wb") -> None:
        self.handle: BinaryIO = path.open(mode, buffering=1 << 20)
        self.size = 0
        self._digest = xxhash.xxh3_128()
        self._hasher = ThreadPoolExecutor(1) if checksum else None

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        hashing = self._hasher.submit(self._digest.update, view) if self._hasher and len(view) >= HASH_ASIDE else None
        if hashing is None and self._hasher:
            self._digest.update(view)
        written = self.handle.write(view)
        if hashing:
            hashing.result()
        self.size += written
        return written

    def finish(self) -> tuple[int, str]:
        """Sync and close; returns the size in bytes and the XXH3-128 in hex."""
        self.handle.flush()
        os.fsync(self.handle.fileno())
        self.abort()
        return self.size, self._digest.hexdigest()

    def abort(self) -> None:
        with contextlib.suppress(OSError):  # on a full disk, closing may fail once more
            self.handle.close()
        if self._hasher:
            self._hasher.shutdown()

    def flush(self) -> None:
        self.handle.flush()

    @property
    def closed(self) -> bool:
        return self.handle.closed

    def close(self) -> None:
        """Arrow closes what it is given; the handle stays open until `finish` has synced it."""


def publish(partial: Path, final: Path) -> None:
    """Give a finished, synced file its final name, and make the name itself survive a power cut."""
    partial.replace(final)
    sync_folder(final.parent)


def sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_stale_partials(folder: Path) -> list[Path]:
    """Delete what processes of this host left half-written when they died; files of live ones stay."""
    stale = []
    for path in folder.glob(f".*{PARTIAL}"):
        parts = path.name.split("~")
        if len(parts) == 4 and parts[1] == socket.gethostname() and not _alive(int(parts[2])):
            discard(path)
            stale.append(path)
    return stale


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it runs, as another user
        return True
    return True


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on `path` while the block runs; it goes with the process, however that ends."""
    with writing(path), path.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def seal(content: dict[str, Any]) -> bytes:
    """A JSON document that carries the XXH3-128 of its own content, one line each."""
    return b'{"xxh3_128":"%s",\n"content":%s}\n' % (_digest(content).encode(), canonical_json(content))


def unseal(data: bytes, path: object) -> dict[str, Any]:
    """The content of a sealed document.

    Raises:
        StoreError: the document is not what was written.
    """
    try:
        document = json.loads(data)
        content: dict[str, Any] = document["content"]
        intact = document["xxh3_128"] == _digest(content) and seal(content) == data
    except (ValueError, KeyError, TypeError):
        intact = False
    if not intact:
        raise StoreError(f"{path} is damaged (its checksum does not fit); `triptych verify` lists what else is.")
    return content


def write_whole(path: Path, data: bytes) -> None:
    """Write a file that appears whole, and survives a power cut, or not at all.

    Raises:
        StoreError: the disk refuses.
    """
    partial = partial_path(path)
    try:
        with writing(path):
            with partial.open("wb") as handle:
                handle.write(data)
                handle.flush()
                os.fsync(handle.fileno())
            publish(partial, path)
    finally:
        discard(partial)


def write_sealed(path: Path, content: dict[str, Any]) -> None:
    """Write a sealed document atomically.

    Raises:
        StoreError: the disk refuses.
    """
    write_whole(path, seal(content))


def read_sealed(path: Path) -> dict[str, Any]:
    return unseal(path.read_bytes(), path)


def _digest(content: dict[str, Any]) -> str:
    return str(xxhash.xxh3_128_hexdigest(canonical_json(content)))
