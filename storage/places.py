"""Where a store lies: a folder, or a prefix on an object store. All its files are read and written through here.

Both kinds give the same promise: a file appears whole or not at all. A folder gets it from a rename, an object store
from the upload itself; a folder also has a lock around commits, which object stores do not.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from storage.atomic import (
    PARTIAL,
    discard,
    locked,
    partial_path,
    publish,
    remove_stale_partials,
    seal,
    sync_folder,
    unseal,
    write_whole,
    writing,
)
from storage.errors import StoreError
from storage.secrets import shown

LOCK, FOLDING = ".commit.lock", "folding.lock"


class UnreachableError(StoreError):
    """An object store did not do what it was asked; what lies there may well be sound."""


class BusyError(StoreError):
    """Another process is doing what only one may do at a time."""


class Place(Protocol):
    """A store's files, by name relative to it ("manifest/x.json").

    name     for people
    local    the folder, where it is one: files in it can be mapped
    address  what opens it again; it may hold secrets, and `name` does not
    """

    name: str
    address: str
    local: Path | None

    def read(self, file: str) -> bytes: ...
    def read_ranges(self, ranges: Sequence[tuple[str, int, int]]) -> list[bytes]: ...
    def names(self, folder: str) -> list[str]: ...
    def size(self, file: str) -> int | None: ...
    def make(self, folders: Sequence[str]) -> None: ...
    def write(self, file: str, data: bytes) -> None: ...
    def create(self, file: str, data: bytes) -> None: ...
    def draft(self, file: str) -> Path: ...
    def publish(self, draft: Path, file: str) -> None: ...
    def discard(self, draft: Path) -> None: ...
    def remove(self, *files: str) -> None: ...
    def locked(self) -> AbstractContextManager[None]: ...
    def alone(self) -> AbstractContextManager[None]: ...
    def is_something_else(self, head: str, ours: set[str]) -> bool: ...


def open_place(path: str | Path) -> Place:
    """The place that a path or address means.

    Raises:
        StoreError: an address of a kind that nothing here can reach.
    """
    text = str(path)
    if "://" not in text or text.startswith("file://"):
        return Folder(Path(text.removeprefix("file://")))
    from storage.bucket import Bucket  # fsspec and what it brings take time to import; most stores need none

    return Bucket(text)


def local_path(text: str) -> Path:
    """The path of a plain file or folder to write, which other than stores lies on this machine.

    Raises:
        StoreError: the text is an address: as a path it would be a folder called `s3:`.
    """
    if "://" in text:
        raise StoreError(f"--out {shown(text)} is an address; name a path on this machine, and copy it there.")
    return Path(text)


def inside(file: str) -> str:
    """The name of a file below a store.

    Raises:
        StoreError: it leads elsewhere, as the manifest of a store that was made to do harm could.
    """
    if not isinstance(file, str) or "\0" in file or file.startswith("/") or ".." in file.split("/"):
        raise StoreError(f"the store names a file {file!r:.80}, which does not lie in it; do not use this store.")
    return file


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except PermissionError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}; ask its owner, or for the permission.") from error


class Folder:
    """A store in a folder."""

    def __init__(self, root: Path) -> None:
        self.local: Path | None = root
        self.root = root
        self.address = self.name = str(root)

    def read(self, file: str) -> bytes:
        return self._path(file).read_bytes()

    def read_ranges(self, ranges: Sequence[tuple[str, int, int]]) -> list[bytes]:
        found = []
        for file, start, size in ranges:
            with self._path(file).open("rb") as handle:
                handle.seek(start)
                found.append(handle.read(size))
        return found

    def names(self, folder: str) -> list[str]:
        """Names of the finished files in a folder, sorted; none where it is missing."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), _readable(self._path(folder)):
            return sorted(each.name for each in self._path(folder).iterdir() if not each.name.startswith("."))
        return []

    def size(self, file: str) -> int | None:
        """Bytes of a file; None where it is missing."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), _readable(self._path(file)):
            return self._path(file).stat().st_size
        return None

    def make(self, folders: Sequence[str]) -> None:
        with writing(self.root):
            for folder in folders:
                self._path(folder).mkdir(parents=True, exist_ok=True)
        for folder in ("", *folders):
            remove_stale_partials(self._path(folder))

    def write(self, file: str, data: bytes) -> None:
        write_whole(self._path(file), data)

    def create(self, file: str, data: bytes) -> None:
        """Write a file unless there is one."""
        with self.locked():
            if self.size(file) is None:
                self.write(file, data)

    def draft(self, file: str) -> Path:
        """A path to write a file to before `publish`."""
        return partial_path(self._path(file))

    def publish(self, draft: Path, file: str) -> None:
        with writing(self._path(file)):
            publish(draft, self._path(file))

    def discard(self, draft: Path) -> None:
        discard(draft)

    def remove(self, *files: str) -> None:
        paths = [self._path(file) for file in files]
        for path in paths:
            with writing(path):
                path.unlink(missing_ok=True)
        for folder in {path.parent for path in paths if path.parent.is_dir()}:
            with writing(folder):
                sync_folder(folder)

    def locked(self) -> AbstractContextManager[None]:
        """Exclude other writers of this machine, and of others where the file system's locks reach that far."""
        return locked(self.root / LOCK)

    def alone(self) -> AbstractContextManager[None]:
        """Nothing to do: whoever replaces the index looks again, under the lock, at what he replaces."""
        return contextlib.nullcontext()

    def _path(self, file: str) -> Path:
        return self.root / inside(file)

    def is_something_else(self, head: str, ours: set[str]) -> bool:
        """True for a file, or a folder with foreign content; a store that another writer is just making is none."""
        if not self.root.exists() or (self.root / head).exists():
            return False
        known = {*ours, head, LOCK}
        return not self.root.is_dir() or any(
            each.name not in known and each.suffix != PARTIAL for each in self.root.iterdir()
        )


def read_document(place: Place, file: str) -> dict[str, Any]:
    """The content of a sealed document.

    Raises:
        FileNotFoundError: it is not there.
        StoreError: it is damaged.
    """
    return unseal(place.read(file), Path(place.name) / file if place.local else f"{place.name}/{file}")


def write_document(place: Place, file: str, content: dict[str, Any]) -> None:
    """Write a sealed document; it appears whole or not at all."""
    place.write(file, seal(content))
