"""A store under a prefix of an object store, by fsspec: whole objects, ranges of them, and what goes wrong."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import socket
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from storage.atomic import alive, writing
from storage.errors import StoreError
from storage.places import FOLDING, BusyError, UnreachableError, inside
from storage.secrets import shown

DRAFTS = "triptych"  # how the names of folders begin in which files for object stores are made
WAITS = (0.2, 1.0)  # seconds before trying once more, beyond what a file system tries by itself
GAP, LONGEST = 64 << 10, 16 << 20  # bytes: parts of one object closer than this are fetched as one, but none longer
PASSING = {None, errno.EIO, errno.EREMOTEIO, errno.EBUSY, errno.EAGAIN}  # of errors that another try may not meet
T = TypeVar("T")


class Bucket:
    """A store under a prefix of an object store, by fsspec.

    Listings are never taken from fsspec's memory, as other writers add files; what this one wrote itself it knows,
    should a listing lag behind. Connections are opened anew in forked processes.

    Raises:
        StoreError: no file system is installed for the address, or its settings are wrong.
    """

    def __init__(self, url: str) -> None:
        self.local: Path | None = None
        self.address = url.rstrip("/")
        self.name = shown(self.address)
        self._connect()

    def _connect(self) -> None:
        self._process = os.getpid()
        self._unlisted: dict[str, set[str]] = {}
        try:
            self._fs, self.root = file_system(self.address)
        except Exception as error:
            raise _unreachable(self.name, error) from error

    @property
    def fs(self) -> Any:
        """The file system; those that work asynchronously do not survive a fork."""
        if self._process != os.getpid():
            self._connect()
        return self._fs

    def __getstate__(self) -> dict[str, Any]:
        return {"address": self.address}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["address"])  # type: ignore[misc]

    def read(self, file: str) -> bytes:
        return bytes(self._try("read", file, lambda: self.fs.cat_file(self._path(file), start=0)))

    def read_ranges(self, ranges: Sequence[tuple[str, int, int]]) -> list[bytes]:
        """Parts of files, fetched at once; those that lie close together in one request.

        Raises:
            StoreError: a file is missing or shorter, or cannot be read.
        """
        runs = _runs(ranges)
        found: list[bytes] = [b""] * len(ranges)
        if not runs:
            return found
        paths = [self._path(file) for file, _, _, _ in runs]
        starts, stops = [start for _, start, _, _ in runs], [stop for _, _, stop, _ in runs]
        first = runs[0][0]
        try:
            fetched = self._try("read", first, lambda: _raised(self.fs.cat_ranges(paths, starts, stops)))
        except FileNotFoundError as error:
            raise StoreError(
                f"{self.name}/{first} or another shard is missing; `triptych verify` lists all damage."
            ) from error
        for (file, start, stop, members), data in zip(runs, fetched, strict=True):
            if len(data) != stop - start:
                raise UnreachableError(
                    f"{self.name}/{file} gave {len(data):,} bytes instead of {stop - start:,}; try again."
                )
            for at in members:
                begin = ranges[at][1] - start
                found[at] = bytes(data[begin : begin + ranges[at][2]])
        return found

    def names(self, folder: str) -> list[str]:
        found = {name for name, kind in self._listed(folder) if kind == "file"}
        unlisted = self._unlisted.get(folder, set())
        unlisted -= found
        for name in sorted(unlisted):
            if self.size(f"{folder}/{name}") is None:  # another process removed it
                unlisted.discard(name)
        return sorted(found | unlisted)

    def size(self, file: str) -> int | None:
        try:
            facts = self._try("read", file, lambda: self.fs.info(self._path(file)))
        except FileNotFoundError:
            return None
        return int(facts["size"]) if facts["type"] == "file" else None

    def make(self, folders: Sequence[str]) -> None:
        """Prefixes need no making; but what dead processes of this host were making goes."""
        remove_stale_drafts()

    def write(self, file: str, data: bytes) -> None:
        self._try("written", file, lambda: self.fs.pipe_file(self._path(file), data))
        self._note(file)

    def create(self, file: str, data: bytes) -> None:
        """Write a file unless there is one; where the object store can, even against a writer at the same moment."""
        if self.size(file) is None:
            self._try("written", file, lambda: self._create(file, data))
            self._note(file)

    def _create(self, file: str, data: bytes) -> None:
        try:
            self.fs.pipe_file(self._path(file), data, mode="create")
        except FileExistsError:
            return
        except (TypeError, NotImplementedError):
            self.fs.pipe_file(self._path(file), data)
        except OSError as error:
            if error.errno == errno.ENOSYS:
                self.fs.pipe_file(self._path(file), data)
            elif self.size(file) is None:  # else somebody came first, whatever the server calls that
                raise

    def draft(self, file: str) -> Path:
        """A path to write a file to before `publish`, in a temporary folder of its own."""
        with writing(Path(tempfile.gettempdir())):
            folder = tempfile.mkdtemp(prefix=f"{DRAFTS}~{socket.gethostname()}~{os.getpid()}~")
        return Path(folder) / Path(file).name

    def publish(self, draft: Path, file: str) -> None:
        """Upload; the object appears when its last byte is there."""
        try:
            wanted = draft.stat().st_size
            self._try("written", file, lambda: self.fs.put_file(str(draft), self._path(file)))
            found = self.size(file)
            if found != wanted:
                raise UnreachableError(
                    f"{self.name}/{file} has {found} bytes after uploading {wanted:,}; run the same command again."
                )
            self._note(file)
        finally:
            self.discard(draft)

    def discard(self, draft: Path) -> None:
        if draft.parent.name.startswith(f"{DRAFTS}~"):
            shutil.rmtree(draft.parent, ignore_errors=True)

    def remove(self, *files: str) -> None:
        for file in files:
            with contextlib.suppress(FileNotFoundError):
                self._try("removed", file, partial(self.fs.rm_file, self._path(file)))
            folder, _, name = file.rpartition("/")
            self._unlisted.get(folder, set()).discard(name)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """No lock: units have names of their own, and where two hold one key, readers take the first."""
        yield

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Let one process at a time replace the index; an object that only one can make stands for it.

        Raises:
            BusyError: another process is at it.
        """
        mark = json.dumps({"host": socket.gethostname(), "process": os.getpid(), "id": uuid.uuid4().hex}).encode()
        self.create(FOLDING, mark)
        found = self.read(FOLDING)
        if found != mark:
            raise BusyError(
                f"{self.name} is being folded or compacted by another process ({found.decode(errors='replace')}); "
                f"try again later, or, if that one died, remove {self.name}/{FOLDING}."
            )
        try:
            yield
        finally:
            self.remove(FOLDING)

    def is_something_else(self, head: str, ours: set[str]) -> bool:
        if self.size(head) is not None:
            return False
        return any(name not in {*ours, head} for name, _ in self._listed(""))

    def _path(self, file: str) -> str:
        return f"{self.root}/{inside(file)}" if file else self.root

    def _listed(self, folder: str) -> list[tuple[str, str]]:
        """Names and types of what lies in a folder, without the empty object that some tools make for a folder."""
        path = self._path(folder)

        def listed() -> list[dict[str, Any]]:
            self.fs.invalidate_cache(path)
            found: list[dict[str, Any]] = self.fs.ls(path, detail=True)
            return found

        try:
            found = self._try("listed", folder, listed)
        except FileNotFoundError:
            return []
        own = path.strip("/")
        names = [(each["name"].strip("/"), each["type"]) for each in found]
        return [(name.rpartition("/")[2], kind) for name, kind in names if name != own]

    def _note(self, file: str) -> None:
        folder, _, name = file.rpartition("/")
        self._unlisted.setdefault(folder, set()).add(name)

    def _try(self, verb: str, file: str, action: Callable[[], T]) -> T:
        """Do it, more than once where an error may pass, and tell what remains in one line.

        Raises:
            FileNotFoundError: there is no such object to read, list or remove.
            StoreError: it cannot be done.
        """
        for wait in (*WAITS, None):
            try:
                return action()
            except StoreError:
                raise
            except Exception as error:
                if wait is None or not _may_pass(error):
                    if isinstance(error, FileNotFoundError) and verb != "written" and not _no_bucket(error):
                        raise
                    raise UnreachableError(_told(f"{self.name}/{file}".rstrip("/"), verb, error)) from error
                time.sleep(wait)
        raise AssertionError("the last try returns or raises")


def file_system(url: str) -> tuple[Any, str]:
    import fsspec

    options: dict[str, Any] = {"use_listings_cache": False}
    kind = url.partition("://")[0].rpartition("::")[2]
    if kind in ("s3", "s3a"):
        options["config_kwargs"] = _s3_settings() | fsspec.config.conf.get(kind, {}).get("config_kwargs", {})
    fs, root = fsspec.core.url_to_fs(url, **options)
    if "config_kwargs" in options:
        fs.retries = 2  # s3fs's own, each of which is several of botocore's
    return fs, str(root)


def _s3_settings() -> dict[str, Any]:
    """Patience with a busy service, but an end to it; the usual environment variables have the last word."""
    found: dict[str, Any] = {"connect_timeout": 5, "read_timeout": 30}
    if not {"AWS_MAX_ATTEMPTS", "AWS_RETRY_MODE"} & os.environ.keys():
        found["retries"] = {"mode": "standard", "total_max_attempts": 4}
    return found


def _unreachable(url: str, error: Exception) -> UnreachableError:
    kind = url.partition("://")[0]
    if isinstance(error, ImportError):
        package = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "az": "adlfs"}.get(kind)
        install = f"install {package} (`uv pip install {package}`)" if package else "install what fsspec needs for it"
        return UnreachableError(
            f"{url} cannot be reached without a package that is missing ({_line(error)}); {install}."
        )
    return UnreachableError(f"{url} cannot be reached ({_line(error)}); check the address and its settings.")


def _may_pass(error: Exception) -> bool:
    if isinstance(error, (TimeoutError, ConnectionError)):
        return True
    return isinstance(error, OSError) and type(error) is OSError and error.errno in PASSING


def _no_bucket(error: Exception) -> bool:
    return "bucket does not exist" in str(error)


def _told(what: str, verb: str, error: Exception) -> str:
    """One line of what failed, why, and what to do."""
    kind = type(error).__name__
    if isinstance(error, FileNotFoundError):
        advice = "make the bucket, or correct the address"
    elif isinstance(error, PermissionError) or "Credentials" in kind:
        advice = "check the credentials (for s3: AWS_PROFILE, or AWS_ACCESS_KEY_ID and its like) and what they may do"
    elif kind in ("EndpointConnectionError", "ConnectTimeoutError", "ProxyConnectionError", "SSLError"):
        advice = "check the address of the service (for s3: AWS_ENDPOINT_URL) and the network"
    elif verb in ("written", "removed"):
        advice = "what was committed before is kept, and the same command goes on from there"
    else:
        advice = "try again"
    return f"{what} cannot be {verb} ({_line(error)}); {advice}."


def _line(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return shown((str(text).strip().splitlines() or [type(error).__name__])[0].rstrip("."))


def _raised(found: Sequence[Any]) -> list[bytes]:
    """Some file systems return errors instead of raising them."""
    for each in found:
        if isinstance(each, Exception):
            raise each
    return [bytes(each) for each in found]


def _runs(ranges: Sequence[tuple[str, int, int]]) -> list[tuple[str, int, int, list[int]]]:
    """Ranges that lie close together in one file as one: file, start, stop, and the numbers of those in it."""
    found: list[tuple[str, int, int, list[int]]] = []
    for at in sorted((at for at, each in enumerate(ranges) if each[2]), key=lambda at: ranges[at]):
        file, start, size = ranges[at]
        if found:
            last, first, stop, members = found[-1]
            whole = max(stop, start + size)
            if last == file and start <= stop + GAP and (whole == stop or whole - first <= LONGEST):
                found[-1] = (last, first, whole, [*members, at])
                continue
        found.append((file, start, start + size, [at]))
    return found


def remove_stale_drafts() -> None:
    """Delete what processes of this host left in the temporary folder when they died; files of live ones stay."""
    for folder in Path(tempfile.gettempdir()).glob(f"{DRAFTS}~*~*~*"):
        _, host, process, *_ = folder.name.split("~")
        if host == socket.gethostname() and process.isdigit() and not alive(int(process)):
            shutil.rmtree(folder, ignore_errors=True)
