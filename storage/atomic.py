"""Files that appear whole or not at all, small sealed JSON documents, and the lock around a commit."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import uuid
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, BinaryIO

import xxhash

from storage.errors import StoreError
from storage.spec import canonical_json

PARTIAL = ".partial"
PIECE = 4 << 20  # bytes that are written and hashed at once; small writes end in slow page caches


def cache_folder(name: str) -> Path:
    """Where what can be made again is kept for the next time: under $TRIPTYCH_CACHE, else ~/.cache/triptych."""
    return Path(os.environ.get("TRIPTYCH_CACHE", Path.home() / ".cache" / "triptych")) / name


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an operating-system error into one line that says what is safe and what to do."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else error
        raise StoreError(
            f"cannot write {path}: {reason}. What was committed before is kept; "
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

    Writing and hashing run in threads beside each other, and beside whoever puts the next piece together. `size` counts
    the bytes taken so far; what the disk refuses is raised by a later call.
    """

    def __init__(self, path: Path, checksum: bool = True) -> None:
        self.handle: BinaryIO = path.open("wb", buffering=0)
        self.size = 0
        self._digest = xxhash.xxh3_128() if checksum else None
        self._threads = ThreadPoolExecutor(2)
        self._running: list[Future[None]] = []
        self._pieces = [bytearray(PIECE), bytearray(PIECE)]  # one to fill while the other is written
        self._filled = self._place = 0

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        if self._filled + len(view) > PIECE:
            self._drain()
        if len(view) >= PIECE // 2:
            self._drain()
            self._put(view)
            self._settle()  # the memory is the caller's
        else:
            self._pieces[0][self._filled : self._filled + len(view)] = view
            self._filled += len(view)
        self.size += len(view)
        return len(view)

    def finish(self) -> tuple[int, str]:
        """Sync and close; returns the size in bytes and the XXH3-128 in hex."""
        self._drain()
        self._settle()
        os.fsync(self.handle.fileno())
        self.abort()
        return self.size, self._digest.hexdigest() if self._digest else ""

    def abort(self) -> None:
        with contextlib.suppress(OSError):  # on a full disk, closing may fail once more
            self._settle()
        with contextlib.suppress(OSError):
            self.handle.close()
        self._threads.shutdown()

    def _drain(self) -> None:
        filled, self._filled = self._filled, 0
        if filled:
            self._put(memoryview(self._pieces[0])[:filled])
            self._pieces.reverse()

    def _put(self, view: memoryview) -> None:
        self._settle()
        self._running = [self._threads.submit(self._write_out, view)]
        if self._digest:
            self._running.append(self._threads.submit(self._digest.update, view))

    def _settle(self) -> None:
        """Wait for what is being written and hashed."""
        running, self._running = self._running, []
        for each in wait(running).done:
            each.result()

    def _write_out(self, view: memoryview) -> None:
        written = 0
        while written < len(view):
            size = self.handle.write(view[written : written + 2 * PIECE])
            # Let the disk begin with it, so that the sync at the end has little left to wait for.
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(self.handle.fileno(), self._place, size, os.POSIX_FADV_DONTNEED)
            self._place += size
            written += size

    def flush(self) -> None:
        """Nothing needs what is written before it is finished."""

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
        if len(parts) == 4 and parts[1] == socket.gethostname() and not alive(int(parts[2])):
            discard(path)
            stale.append(path)
    return stale


def alive(pid: int) -> bool:
    """True where a process of this number runs on this host."""
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
        intact = isinstance(content, dict) and document["xxh3_128"] == _digest(content) and seal(content) == data
    except (ValueError, KeyError, TypeError, RecursionError):
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
