"""Grid features of grid-feats-vqa: one {id}.pth an image, a tensor (1, 2048, H, W) that torch.save wrote.

The file tells neither the image's size nor anything else. Source: facebookresearch/grid-feats-vqa
extract_grid_feature.py.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from storage.codecs import cast
from storage.errors import StoreError
from storage.interop.base import ExportReport, Foreign, Import, ImportOptions
from storage.interop.folders import LARGEST, FileFormat, WrongFormatError, demand, read_folder, write_folder
from storage.interop.unpickling import first_line
from storage.records import GridRecord, Record
from storage.store import FeatureStore

NAME, SUFFIX, WIDTH = "grid-feats-pth", ".pth", 2048
NO_SIZES = "the format does not tell sizes of images"
WRITTEN = "there are no boxes in a grid; left out: sizes of images; tensors are (1, 2048, H, W) float32"


def read(folder: Path, options: ImportOptions) -> Import:
    """Grid features of a folder of {id}.pth; keys are the ids. Sizes are those of `options`, (0, 0) where it has none.

    Tensors are float32, or float16 where somebody halved them.

    Raises:
        StoreError: the folder is of another format.
    """
    return read_folder(folder, FileFormat(NAME, SUFFIX, _load, lambda _: (NO_SIZES,)), options)


def write(store: FeatureStore, out: Path) -> ExportReport:
    """{key}.pth for each record; a key that is no plain number is written under its name, and noted.

    Raises:
        StoreError: the store holds no grids 2048 wide, or `out` cannot be made.
    """
    demand(store, NAME, "grid", dim=WIDTH)
    files = write_folder(store, out, SUFFIX, _save)
    return ExportReport(files, files, (WRITTEN, *_odd_names(store)))


def _load(path: Path, key: str, options: ImportOptions) -> GridRecord:
    values = _tensor(path)
    if values.ndim != 4 or values.shape[:2] != (1, WIDTH):
        raise WrongFormatError(f"its tensor is {values.shape}; wanted (1, {WIDTH}, H, W).")
    cells_first = np.ascontiguousarray(values[0].transpose(1, 2, 0))
    return GridRecord(key, options.sizes.get(key, (0, 0)), cells_first)


def _tensor(path: Path) -> np.ndarray:
    import torch

    try:
        _check_sums(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torn files raise nearly any type, and torch writes pages about some of them
        why = first_line(error).partition(". ")[0]
        raise StoreError(f"it is torn, or holds more than tensors ({why}).") from error
    if not isinstance(found, torch.Tensor):
        raise WrongFormatError(f"it holds {type(found).__name__}; wanted one tensor.")
    if found.layout != torch.strided:
        raise WrongFormatError(f"its tensor is {str(found.layout).removeprefix('torch.')}; wanted a dense one.")
    if found.dtype not in (torch.float32, torch.float16):
        raise WrongFormatError(f"its tensor is {str(found.dtype).removeprefix('torch.')}; wanted float32 or float16.")
    if found.nbytes > found.untyped_storage().nbytes():
        raise StoreError(f"its tensor {tuple(found.shape)} has more numbers than the file; it was not saved whole.")
    values: np.ndarray = found.detach().numpy()
    return values


def _check_sums(path: Path) -> None:
    """Compare the checksums of a zip file, as torch does not; files of torch before 1.6 have none."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
            if unpacked > LARGEST:
                raise ValueError(f"it unpacks to {unpacked:,} bytes, more than {LARGEST:,}")
            damaged = archive.testzip()
        if damaged:
            raise ValueError(f"the checksum of {damaged} does not fit")


def _save(path: Path, record: Record) -> None:
    import torch

    channels_first = cast(record.features, "float32").transpose(2, 0, 1)[None]
    with path.open("wb") as handle:  # as upstream: given a path, torch would put its name into the file
        torch.save(torch.from_numpy(np.array(channels_first, order="C")), handle)


def _odd_names(store: FeatureStore) -> tuple[str, ...]:
    """Upstream names files by whole numbers, without leading zeros."""
    names = ((key, key.rpartition("/")[2]) for key in store)
    odd = [key for key, name in names if not (name.isascii() and name.isdecimal() and str(int(name)) == name)]
    if not odd:
        return ()
    return (f"upstream names files by whole numbers; {len(odd):,} keys are none, such as {odd[0]!r}",)


GRID_FEATS_PTH = Foreign(
    "grid-feats-vqa: a folder of {id}.pth, tensors (1, 2048, H, W) float32", ("grid",), read, write
)
