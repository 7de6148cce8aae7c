"""Where a store lies: a folder, or a prefix on an object store. All its files are read and written through here.

Both kinds give the same promise: a file appears whole or not at all. A folder gets it from a rename, an object store from
the upload itself; a folder also has a lock around commits, which object stores do not.
"""

from __future__ import annotations

import contextlib
import tempfile
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

LOCK = ".commit.lock"


class Place(Protocol):
    """A store's files, by name relative to it ("manifest/x.json").

    name   for people
    local  the folder, where it is one: files in it can be mapped
    """

    name: str
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
    def remove(self, file: str) -> None: ...
    def locked(self) -> AbstractContextManager[None]: ...
    def is_something_else(self, head: str, ours: set[str]) -> bool: ...


def open_place(path: str | Path) -> Place:
    """The place that a path or address means.

    Raises:
        StoreError: an address of a kind that nothing here can reach.
    """
    text = str(path)
    if "://" not in text or text.startswith("file://"):
        return Folder(Path(text.removeprefix("file://")))
    return Bucket(text)


class Folder:
    """A store in a folder."""

    def __init__(self, root: Path) -> None:
        self.local: Path | None = root
        self.root = root
        self.name = str(root)

    def read(self, file: str) -> bytes:
        return (self.root / file).read_bytes()

    def read_ranges(self, ranges: Sequence[tuple[str, int, int]]) -> list[bytes]:
        found = []
        for file, start, size in ranges:
            with (self.root / file).open("rb") as handle:
                handle.seek(start)
                found.append(handle.read(size))
        return found

    def names(self, folder: str) -> list[str]:
        """Names of the finished files in a folder, sorted; none where it is missing."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return sorted(each.name for each in (self.root / folder).iterdir() if not each.name.startswith("."))
        return []

    def size(self, file: str) -> int | None:
        """Bytes of a file; None where it is missing."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return (self.root / file).stat().st_size
        return None

    def make(self, folders: Sequence[str]) -> None:
        with writing(self.root):
            for folder in folders:
                (self.root / folder).mkdir(parents=True, exist_ok=True)
        for folder in ("", *folders):
            remove_stale_partials(self.root / folder)

    def write(self, file: str, data: bytes) -> None:
        write_whole(self.root / file, data)

    def create(self, file: str, data: bytes) -> None:
        """Write a file unless there is one."""
        with self.locked():
            if self.size(file) is None:
                self.write(file, data)

    def draft(self, file: str) -> Path:
        """A path to write a file to before `publish`."""
        return partial_path(self.root / file)

    def publish(self, draft: Path, file: str) -> None:
        with writing(self.root / file):
            publish(draft, self.root / file)

    def discard(self, draft: Path) -> None:
        discard(draft)

    def remove(self, file: str) -> None:
        path = self.root / file
        with writing(path):
            path.unlink(missing_ok=True)
            sync_folder(path.parent)

    def locked(self) -> AbstractContextManager[None]:
        """Exclude other writers of this machine, and of others where the file system's locks reach that far."""
        return locked(self.root / LOCK)

    def is_something_else(self, head: str, ours: set[str]) -> bool:
        """True for a file, or a folder with foreign content; a store that another writer is just making is none."""
        if not self.root.exists() or (self.root / head).exists():
            return False
        known = {*ours, head, LOCK}
        return not self.root.is_dir() or any(
            each.name not in known and each.suffix != PARTIAL for each in self.root.iterdir()
        )


class Bucket:
    """A store under a prefix of an object store, by fsspec.

    Listings are never taken from fsspec's memory: other writers add files.

    Raises:
        StoreError: no file system is installed for the address.
    """

    def __init__(self, url: str) -> None:
        self.local: Path | None = None
        self.name = url.rstrip("/")
        self.url = self.name
        self._connect()

    def _connect(self) -> None:
        import fsspec

        try:
            self.fs, self.root = fsspec.core.url_to_fs(self.url, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            kind = self.url.partition("://")[0]
            extra = ": `uv pip install s3fs`" if kind == "s3" else ""
            raise StoreError(
                f"{self.url} cannot be reached ({error}); install what fsspec needs for it{extra}."
            ) from error

    def __getstate__(self) -> dict[str, Any]:
        return {"name": self.name, "url": self.url, "local": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._connect()

    def read(self, file: str) -> bytes:
        with self._told(f"{self.name}/{file}", "read"):
            return bytes(self.fs.cat_file(self._path(file)))

    def read_ranges(self, ranges: Sequence[tuple[str, int, int]]) -> list[bytes]:
        """Parts of files, fetched at once."""
        if not ranges:
            return []
        paths = [self._path(file) for file, _, _ in ranges]
        starts = [start for _, start, _ in ranges]
        ends = [start + size for _, start, size in ranges]
        with self._told(self.name, "read"):
            found = [
                bytes(each) for each in self.fs.cat_ranges(paths, starts, ends, max_gap=64 << 10, on_error="raise")
            ]
        for (file, _, size), data in zip(ranges, found, strict=True):
            if len(data) != size:
                raise StoreError(f"{self.name}/{file} gave {len(data):,} bytes instead of {size:,}; try again.")
        return found

    def names(self, folder: str) -> list[str]:
        with self._told(f"{self.name}/{folder}", "listed"):
            self.fs.invalidate_cache(self._path(folder))
            try:
                found = self.fs.ls(self._path(folder), detail=True)
            except FileNotFoundError:
                return []
        return sorted(Path(each["name"]).name for each in found if each["type"] == "file" and each["size"] is not None)

    def size(self, file: str) -> int | None:
        with self._told(f"{self.name}/{file}", "read"):
            try:
                self.fs.invalidate_cache(self.fs._parent(self._path(file)))
                return int(self.fs.info(self._path(file))["size"])
            except FileNotFoundError:
                return None

    def make(self, folders: Sequence[str]) -> None:
        """Prefixes need no making."""

    def write(self, file: str, data: bytes) -> None:
        with self._told(f"{self.name}/{file}", "written"):
            self.fs.pipe_file(self._path(file), data)

    def create(self, file: str, data: bytes) -> None:
        """Write a file unless there is one; where the object store can, even against a writer at the same moment."""
        if self.size(file) is not None:
            return
        with self._told(f"{self.name}/{file}", "written"), contextlib.suppress(FileExistsError):
            try:
                self.fs.pipe_file(self._path(file), data, mode="create")
            except (TypeError, NotImplementedError):
                self.fs.pipe_file(self._path(file), data)

    def draft(self, file: str) -> Path:
        folder = Path(tempfile.mkdtemp(prefix="triptych-"))
        return folder / Path(file).name

    def publish(self, draft: Path, file: str) -> None:
        """Upload; the object appears when its last byte is there."""
        with self._told(f"{self.name}/{file}", "written"):
            self.fs.put_file(str(draft), self._path(file))
        wanted, found = draft.stat().st_size, self.size(file)
        if found != wanted:
            raise StoreError(f"{self.name}/{file} has {found} bytes after uploading {wanted:,}; run the job again.")
        self.discard(draft)

    def discard(self, draft: Path) -> None:
        discard(draft)
        with contextlib.suppress(OSError):
            draft.parent.rmdir()

    def remove(self, file: str) -> None:
        with self._told(f"{self.name}/{file}", "removed"), contextlib.suppress(FileNotFoundError):
            self.fs.rm_file(self._path(file))

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """No lock: units have names of their own, and where two hold one key, readers take the first."""
        yield

    def is_something_else(self, head: str, ours: set[str]) -> bool:
        if self.size(head) is not None:
            return False
        with self._told(self.name, "listed"):
            try:
                found = self.fs.ls(self.root, detail=False)
            except FileNotFoundError:
                return False
        return any(Path(each).name not in {*ours, head} for each in found)

    def _path(self, file: str) -> str:
        return f"{self.root}/{file}" if file else self.root

    @contextlib.contextmanager
    def _told(self, what: str, verb: str) -> Iterator[None]:
        """Turn what a file system raises into one line; a missing file stays what it is."""
        try:
            yield
        except (FileNotFoundError, StoreError):
            raise
        except Exception as error:
            if not isinstance(error, OSError) and "botocore" not in type(error).__module__:
                raise
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise StoreError(
                f"{what} cannot be {verb} ({reason}); what was committed before is kept, the same command goes on from there."
            ) from error


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
