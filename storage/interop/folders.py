"""Foreign formats that are a folder with one file an image: the files and their keys, .npz files, whole folders.

A file's key is its path below the folder without the format's suffix, so that files come back under their own names.
Sub-folders are entered: released features lie in one a split (train2014, val2014).
"""

from __future__ import annotations

import math
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np

from storage.atomic import PARTIAL, partial_path, publish, writing
from storage.errors import StoreError
from storage.interop.base import BadRow, Import, ImportOptions
from storage.interop.unpickling import first_line
from storage.records import Record, RegionRecord
from storage.spec import OPTIONAL, FeatureLayout
from storage.store import FeatureStore

LARGEST = 1 << 28  # bytes that a part of an image's file may unpack to: 100 boxes of 2048 numbers take 1 MiB


class WrongFormatError(StoreError):
    """A file that can be read but is of another format: it speaks for the whole folder where it is the first."""


@dataclass(frozen=True)
class FileFormat:
    """A format with one file an image.

    name    of the format, for messages
    suffix  that every file's name ends in; what stands before it is the key
    load    the record in a file: its path, its key, what the user said; a StoreError is about this file alone
    notes   what to say of a folder whose first record is this
    units   of boxes
    """

    name: str
    suffix: str
    load: Callable[[Path, str, ImportOptions], Record]
    notes: Callable[[Record], tuple[str, ...]]
    units: str = "pixels"


def read_folder(folder: Path, kind: FileFormat, options: ImportOptions) -> Import:
    """Open a folder; its first readable file decides the layout, and files of another layout become bad rows.

    Raises:
        StoreError: there is no such folder, it has no such file, or its first readable file is of another format.
    """
    files = _files(folder, kind)
    first = _first(folder, files, kind, options)
    facts = _facts(first, kind.units)
    rows = (_row(folder, file, kind, options, facts) for file in files)
    return Import(facts["view"], layout_of(first, kind.units), rows, kind.notes(first))


def layout_of(record: Record, units: str = "pixels") -> FeatureLayout:
    """The layout of a store that holds this record and others like it."""
    dim, dtype = record.features.shape[-1], str(record.features.dtype)
    if not isinstance(record, RegionRecord):
        return FeatureLayout(dim, dtype)
    without = tuple(name for name in OPTIONAL if getattr(record, name) is None)
    probs = record.class_probs
    if probs is None:
        return FeatureLayout(dim, dtype, without=without, box_units=units)
    return FeatureLayout(dim, dtype, probs.shape[1], str(probs.dtype), without, units)


def _files(folder: Path, kind: FileFormat) -> list[str]:
    """Every file with the last part of the suffix, and every linked folder, by path from the folder."""
    if not folder.is_dir():
        raise StoreError(f"{folder} is not a folder; {kind.name} is a folder of *{kind.suffix} files.")
    ending, found = PurePosixPath(kind.suffix).suffix or kind.suffix, []
    for here, subfolders, names in os.walk(folder, onerror=_stop):
        subfolders[:] = sorted(name for name in subfolders if not name.endswith(PARTIAL))  # an export that was stopped
        # os.walk does not enter linked folders (they may form a loop); listed here, they become bad rows.
        names += [name for name in subfolders if Path(here, name).is_symlink()]
        wanted = (name for name in sorted(names) if name.endswith(ending) or name in subfolders)
        found += [Path(here, name).relative_to(folder).as_posix() for name in wanted]
    if not found:
        raise StoreError(f"{folder} holds no *{kind.suffix} file; give the folder of {kind.name} files.")
    return found


def _stop(error: OSError) -> None:
    """Without this, os.walk would leave out the folders that it cannot read and say nothing."""
    raise StoreError(f"folder {error.filename!r} cannot be read: {error.strerror}.") from error


def _first(folder: Path, files: list[str], kind: FileFormat, options: ImportOptions) -> Record:
    why = ""
    for file in files:
        try:
            return _load(folder, file, kind, options)
        except WrongFormatError as error:
            raise StoreError(f"{folder / file} is not {kind.name}: {error}") from error
        except StoreError as error:
            why = why or f"{file}: {error}"
    raise StoreError(f"{folder}: none of its {len(files):,} files can be read as {kind.name}; the first is {why}")


def _load(folder: Path, file: str, kind: FileFormat, options: ImportOptions) -> Record:
    path = folder / file
    if path.is_dir():
        raise StoreError("it is a linked folder and is not entered; import what it leads to by itself.")
    if not file.endswith(kind.suffix) or path.name == kind.suffix:
        raise StoreError(f"its name is not one of {kind.name}, which are a key and {kind.suffix}.")
    if file != _printable(file):
        raise StoreError("its name is not UTF-8; rename it.")
    try:
        return kind.load(path, file[: -len(kind.suffix)], options)
    except ValueError as error:  # arrays that disagree with each other
        raise StoreError(f"{error}.") from error


def _row(folder: Path, file: str, kind: FileFormat, options: ImportOptions, first: dict[str, Any]) -> Record | BadRow:
    try:
        record = _load(folder, file, kind, options)
        found = _facts(record, kind.units)
        other = [f"{name}: {found[name]!r}, not {first[name]!r}" for name in first if found[name] != first[name]]
        if other:
            raise StoreError(f"it differs from the first file ({'; '.join(other)}).")
    except StoreError as error:
        return BadRow(_printable(file.removesuffix(kind.suffix)), _printable(str(folder / file)), str(error))
    return record


def _facts(record: Record, units: str) -> dict[str, Any]:
    """What all records of a folder must share."""
    view = "regions" if isinstance(record, RegionRecord) else "grid"
    return {"view": view, **asdict(layout_of(record, units))}


def _printable(name: str) -> str:
    return os.fsencode(name).decode("utf-8", "replace")


def write_folder(store: FeatureStore, out: Path, suffix: str, save: Callable[[Path, Record], None]) -> int:
    """Write one file a record, in a folder that appears whole or not at all; a "/" in a key makes a sub-folder.

    Returns:
        The number of files.

    Raises:
        StoreError: `out` is there already, a key would leave the folder, a record lacks something, the disk refuses.
    """
    count = 0
    with new_folder(out) as folder:
        for key in store:
            path = folder / safe_name(key, suffix)
            path.parent.mkdir(parents=True, exist_ok=True)
            save(path, store[key])
            count += 1
    return count


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to write to beside `out`; it takes that name when the block ends well, and goes when it does not.

    Raises:
        StoreError: `out` is there already and is not an empty folder, or the disk refuses.
    """
    out = out.absolute()
    if out.is_symlink() or (out.exists() and not (out.is_dir() and not any(out.iterdir()))):
        raise StoreError(f"{out} exists and is not an empty folder; choose a new one.")
    partial = partial_path(out)
    try:
        with writing(out):
            partial.mkdir(parents=True)
            yield partial
            os.sync()  # once for all: to sync each of a hundred thousand small files takes many minutes
            publish(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def safe_name(key: str, suffix: str) -> str:
    """The file of a key, as a path below the folder.

    Raises:
        StoreError: the key is absolute, or has a part that is empty, "." or "..", or that no file can have as its name.
    """
    if "\0" in key or any(part in ("", ".", "..") for part in key.split("/")):
        raise StoreError(f"{key!r} cannot name a file below the folder; give the image another key.")
    return key + suffix


def demand(store: FeatureStore, name: str, view: str, fields: tuple[str, ...] = (), dim: int | None = None) -> None:
    """Check that a format can hold a store.

    Args:
        name: of the format, for messages.
        fields: that the format needs.
        dim: the only feature width that the format has.

    Raises:
        StoreError: the store is of another view or width, or lacks a field.
    """
    layout = store.spec.layout
    missing = [field for field in fields if field in layout.without]
    if store.spec.view != view:
        raise StoreError(f"{name} holds {view}, this store holds {store.spec.view}; choose another format.")
    if dim not in (None, layout.dim):
        raise StoreError(f"{name} holds features of width {dim}, this store's are {layout.dim} wide.")
    if missing:
        raise StoreError(f"{name} needs {', '.join(missing)}, which this store does not have; choose another format.")


def demand_pixels(store: FeatureStore, name: str) -> None:
    """Refuse boxes whose pixels are not known.

    Raises:
        StoreError: the boxes of this store are fractions of an image's size.
    """
    if store.spec.layout.box_units != "pixels":
        raise StoreError(
            f"{name} holds boxes in pixels, this store's are fractions of sizes that it does not know; "
            "import its source again with the images' sizes."
        )


def known_size(record: Record) -> tuple[int, int]:
    """(height, width) in pixels.

    Raises:
        StoreError: the record does not tell.
    """
    if min(record.image_size) < 1:
        raise StoreError(f"{record.key!r} does not tell its image's size, which the format needs.")
    return record.image_size


def left_out(store: FeatureStore, kept: tuple[str, ...] = ()) -> tuple[str, ...]:
    """A note on the fields of a region store that a format has no place for; none where there are none."""
    layout = store.spec.layout
    fields = [name for name in OPTIONAL if name not in layout.without] + ["class_probs"] * bool(layout.class_probs)
    lost = [name for name in fields if name not in kept]
    return (f"left out, for the format has no place for them: {', '.join(lost)}",) if lost else ()


def exactly(array: np.ndarray, dtype: type[np.generic], what: str) -> np.ndarray:
    """An array in another number type, where that changes no value.

    Raises:
        StoreError: it would.
    """
    if array.dtype.kind not in "iuf":
        raise StoreError(f"{what} is {array.dtype}, not numbers.")
    with np.errstate(invalid="ignore", over="ignore"):
        found = array.astype(dtype)
    if not np.array_equal(found, array, equal_nan=True):
        raise StoreError(f"{what} is {array.dtype} and does not fit {np.dtype(dtype)}.")
    return found


def read_npz(source: Path | BinaryIO, wanted: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Those of the wanted arrays that an .npz file has; others in it are not looked at, and nothing is unpickled.

    Raises:
        StoreError: the file is torn, or one of these arrays holds objects.
    """
    found = {}
    try:
        with zipfile.ZipFile(source) as archive:
            names = set(archive.namelist())
            for name in (each for each in wanted if f"{each}.npy" in names):
                found[name] = npy_array(_unpacked(archive, f"{name}.npy"))
    except Exception as error:  # torn archives raise nearly any type, from zlib.error to NotImplementedError
        raise StoreError(f"it is torn or no .npz file ({first_line(error)}).") from error
    return found


def npy_array(data: bytes) -> np.ndarray:
    """The array of an .npy file; nothing is unpickled.

    Raises:
        ValueError: it is none, holds objects, or has not just the bytes that its shape takes; room for an array is made
            only once that is known.
    """
    stream = BytesIO(data)
    shape, dtype = npy_header(stream)
    wanted, has = math.prod(shape) * dtype.itemsize, len(data) - stream.tell()
    if wanted != has and not dtype.hasobject:
        raise ValueError(f"{dtype} {shape} takes {wanted:,} bytes, it has {has:,}")
    stream.seek(0)
    array: np.ndarray = np.lib.format.read_array(stream, allow_pickle=False)
    return array


def npy_header(stream: BinaryIO) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and dtype of an .npy file, whose numbers follow in the stream; torn headers raise nearly any type."""
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(stream)
    return shape, dtype


def _unpacked(archive: zipfile.ZipFile, name: str) -> bytes:
    size = archive.getinfo(name).file_size
    if size > LARGEST:
        raise ValueError(f"{name} unpacks to {size:,} bytes, more than {LARGEST:,}")
    return archive.read(name)


def read_member(source: Path | BinaryIO, name: str) -> bytes:
    """The bytes of one member of an .npz file, as they are.

    Raises:
        WrongFormatError: the file has no such member.
        StoreError: the file is torn.
    """
    try:
        with zipfile.ZipFile(source) as archive:
            return _unpacked(archive, name)
    except KeyError as error:
        raise WrongFormatError(f"it has no {name.removesuffix('.npy')}.") from error
    except Exception as error:
        raise StoreError(f"its {name} cannot be read ({first_line(error)}).") from error


def write_npz(
    target: Path | BinaryIO,
    arrays: Mapping[str, np.ndarray],
    raw: Mapping[str, bytes] | None = None,
    compressed: bool = True,
) -> None:
    """Write what `np.savez_compressed` or `np.savez` writes, but without the hour: equal arrays give equal files.

    Args:
        raw: members whose .npy bytes are ready.
    """
    method = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    with zipfile.ZipFile(target, "w") as archive:
        for name, array in arrays.items():
            with archive.open(_member(name, method), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
        for name, data in (raw or {}).items():
            archive.writestr(_member(name, method), data)


def _member(name: str, method: int) -> zipfile.ZipInfo:
    member = zipfile.ZipInfo(f"{name}.npy")
    member.compress_type = method
    return member
