"""Hengyuan Hu's bottom-up attention features for VQA: one HDF5 file of 36 boxes an image, a pickled map beside it.

image_features (I, 36, D) float32; image_bb (I, 36, 4) float32, x1 y1 x2 y2 in pixels; spatial_features (I, 36, 6)
float32, x1 y1 x2 y2 w h as fractions of the image's width and height. `train36_imgid2idx.pkl` beside `train36.hdf5` is
a dict {image id: row}, written by Python 2; rows that it does not name were never filled.
Sources: hengyuan-hu/bottom-up-attention-vqa tools/detection_features_converter.py writes, dataset.py reads.

Shapes in this file: I images, N boxes, D feature width.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from storage.atomic import discard, partial_path, publish, writing
from storage.codecs import cast
from storage.errors import StoreError
from storage.interop import unpickling
from storage.interop.base import BadRow, ExportReport, Foreign, Import, ImportOptions, write_beside
from storage.interop.folders import LARGEST, demand, demand_pixels, known_size, left_out
from storage.interop.lmdbs import Rows, entry
from storage.records import RegionRecord
from storage.spec import OPTIONAL, FeatureLayout
from storage.store import FeatureStore

NAME, BOXES = "hu-hdf5", 36
FEATURES, PIXELS, FRACTIONS = DATASETS = ("image_features", "image_bb", "spatial_features")
READ_NOTES = (
    "boxes are x1 y1 x2 y2 in pixels; image sizes are worked out from spatial_features, which hold them as fractions",
    "not in this format: classes, attributes, scores, the feature of the whole image",
)
WRITE_NOTES = (
    "boxes are x1 y1 x2 y2 in pixels in image_bb, and fractions in spatial_features",
    "features are float32 in this format; those of another type were widened, which changes no value",
)
Slice = Callable[[Any, int], slice | int]  # (file, row of an image) -> where it lies in the data sets


def read(path: Path, options: ImportOptions) -> Import:
    """Open the HDF5 file; its map must lie beside it. Keys are the image ids as text, in the order of their rows.

    Raises:
        StoreError: the file or its map is missing, damaged or of another format.
    """
    with opened(path, NAME) as file:
        layout = layout_of_file(file, path, NAME, 3)
    rows = read_images(path, NAME, lambda _, row: row, options)
    return Import("regions", layout, rows, READ_NOTES)


def write(store: FeatureStore, out: Path) -> ExportReport:
    """Write the HDF5 file `out` and its map beside it, rows in the store's order.

    Raises:
        StoreError: the store has no regions in pixels, an image has another number of boxes than 36 or no known size, a
            key is no whole number, a file is there already, or the disk refuses.
    """
    demand(store, NAME, "regions")
    demand_pixels(store, NAME)
    ids = [image_id(key, NAME) for key in store]
    with new_file(out, ids) as file:
        shapes = ((len(ids), BOXES, width) for width in (store.spec.layout.dim, 4, 6))
        sets = [file.create_dataset(name, shape, "f4") for name, shape in zip(DATASETS, shapes, strict=True)]
        for row in range(len(ids)):
            arrays = arrays_of(store, row)
            if len(arrays[0]) != BOXES:
                key = store.at(row).key
                raise StoreError(f"{NAME} holds {BOXES} boxes an image, {key!r} has {len(arrays[0])}; choose ban-hdf5.")
            for data, array in zip(sets, arrays, strict=True):
                data[row] = array
    return ExportReport(len(ids), 2, (*WRITE_NOTES, *left_out(store)))


@contextmanager
def opened(path: Path, name: str) -> Iterator[Any]:
    """The HDF5 file, open for reading.

    Raises:
        StoreError: it is none, or is cut short.
    """
    import h5py  # takes memory and time to import; who reads other formats needs none

    try:
        file = h5py.File(path, "r", locking=False)
    except OSError as error:
        raise StoreError(
            f"{path} cannot be opened as HDF5 ({unpickling.first_line(error)}); give {name}'s file."
        ) from error
    with file:
        yield file


def layout_of_file(file: Any, path: Path, name: str, axes: int) -> FeatureLayout:
    """The layout of its records, once the data sets are seen to be those of the format, features of so many axes.

    Raises:
        StoreError: they are not.
    """
    found = {each: file[each] for each in DATASETS if isinstance(getattr(file.get(each), "shape", None), tuple)}
    missing = [each for each in DATASETS if each not in found]
    if missing:
        raise StoreError(f"{path} has no data set {' and no '.join(missing)}; it is no {name}.")
    shapes = {each: data.shape for each, data in found.items()}
    if len(shapes[FEATURES]) != axes:
        other = {2: "ban-hdf5", 3: "hu-hdf5"}.get(len(shapes[FEATURES]), "another format")
        raise StoreError(f"{path} has {FEATURES} of {shapes[FEATURES]}, as {other} has; import it under that name.")
    start = shapes[FEATURES][:-1]
    if shapes[PIXELS] != (*start, 4) or shapes[FRACTIONS] != (*start, 6):
        raise StoreError(f"{path} has data sets whose shapes do not go together ({shapes}); it is no {name}.")
    if any(data.dtype != np.float32 for data in found.values()):
        raise StoreError(f"{path} has data sets of {[str(data.dtype) for data in found.values()]}, wanted float32.")
    return FeatureLayout(shapes[FEATURES][-1], "float32", without=OPTIONAL)


def read_images(path: Path, name: str, place: Slice, options: ImportOptions) -> Iterator[RegionRecord | BadRow]:
    """The images that the map beside the file names, in the order of their rows."""
    rows = _rows_by_key(path)

    def images() -> Rows:
        with opened(path, name) as file:
            for row, key in rows:
                yield entry(key, f"{path}: row {row}", partial(_record, file, key, row, place, options))

    return images()


def map_path(path: Path) -> Path:
    """Where the map {image id: row} of a file lies."""
    return path.with_name(f"{path.stem}_imgid2idx.pkl")


def _rows_by_key(path: Path) -> list[tuple[int, str]]:
    beside = map_path(path)
    if not beside.is_file():
        raise StoreError(f"{path} needs {beside.name} beside it, the map from image ids to rows; put it there.")
    found = unpickling.loads(beside.read_bytes(), str(beside))
    keys = {str(key) for key in found} if isinstance(found, dict) else set()
    if not keys or len(keys) != len(found) or not all(isinstance(row, int | np.integer) for row in found.values()):
        raise StoreError(f"{beside} is not a map from image ids to rows.")
    return sorted((int(row), str(key)) for key, row in found.items())


def _record(file: Any, key: str, row: int, place: Slice, options: ImportOptions) -> RegionRecord:
    if row < 0:  # which would count from the end
        raise StoreError("there is no such row.")
    try:
        at = place(file, row)
        _check_size(file, at)
        features, boxes, fractions = (file[each][at] for each in DATASETS)
    except (OSError, IndexError, OverflowError) as error:
        raise StoreError(f"it cannot be read ({unpickling.first_line(error)}).") from error
    size = image_size(boxes, fractions)
    return RegionRecord(key, options.sizes.get(key, size) if size == (0, 0) else size, boxes, features)


def _check_size(file: Any, at: slice | int) -> None:
    """A data set that was never filled takes no room in the file, whatever its shape."""
    shape = file[FEATURES].shape
    rows = at.stop - at.start if isinstance(at, slice) else shape[1]
    if rows * shape[-1] * 4 > LARGEST:
        raise StoreError(f"an image with {rows:,} boxes of {shape[-1]:,} numbers is larger than {LARGEST:,} bytes.")


def image_size(boxes: np.ndarray, fractions: np.ndarray) -> tuple[int, int]:
    """(height, width) of the image, of which `fractions` (N, 6) are the boxes (N, 4); (0, 0) where no box tells.

    The rightmost and the lowest edge tell best: float32 leaves the quotient within a hundredth of a pixel.

    Raises:
        StoreError: no size in whole pixels makes these fractions of these boxes.
    """
    edges = [(boxes[:, axis].max(initial=0), fractions[:, axis].max(initial=0)) for axis in (3, 2)]
    if any(pixels <= 0 and part <= 0 for pixels, part in edges):
        return 0, 0
    sides = [float(pixels) / float(part) if part > 0 else np.inf for pixels, part in edges]
    if all(0.5 < side < 1e6 and abs(side - round(side)) < 0.05 for side in sides):
        size = round(sides[0]), round(sides[1])
        if np.allclose(fractions_of(boxes, size), fractions, rtol=1e-4, atol=1e-5):
            return size
    raise StoreError(f"{FRACTIONS} are not {PIXELS} over an image's size (height {sides[0]:g}, width {sides[1]:g}).")


def fractions_of(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(N, 6) float32, x1 y1 x2 y2 w h over width and height, by upstream's arithmetic to the last bit."""
    scale = np.array(size[::-1], np.float32)
    corners, sides = boxes[:, :2] / scale, (boxes[:, 2:] - boxes[:, :2]) / scale
    return np.concatenate([corners, corners + sides, sides], axis=1)


def image_id(key: str, name: str) -> int:
    """The number that a key is.

    Raises:
        StoreError: it is none, or would come back as another key.
    """
    if not (key.isascii() and key.isdecimal() and str(int(key)) == key):
        raise StoreError(f"{name} names images by whole numbers, the key {key!r} is none; give the images such keys.")
    return int(key)


def arrays_of(store: FeatureStore, position: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features (N, D), boxes (N, 4) and fractions (N, 6) of a record, float32.

    Raises:
        StoreError: the image's size is not known.
    """
    record = store.at(position)
    assert isinstance(record, RegionRecord)
    return cast(record.features, "float32"), record.boxes, fractions_of(record.boxes, known_size(record))


@contextmanager
def new_file(out: Path, ids: Sequence[int]) -> Iterator[Any]:
    """An HDF5 file to fill; it and the map of its rows take their names when the block ends well.

    Raises:
        StoreError: a file of that name is there, another map is, or the disk refuses.
    """
    import h5py

    if out.exists():
        raise StoreError(f"{out} exists already; choose another name, or remove it.")
    partial = partial_path(out)
    try:
        with writing(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            with h5py.File(partial, "w", locking=False) as file:
                yield file
            with partial.open("rb") as handle:
                os.fsync(handle.fileno())
            # Protocol 2 is the newest that Python 2, which upstream needs, can read.
            write_beside(map_path(out), pickle.dumps({each: row for row, each in enumerate(ids)}, 2))
            publish(partial, out)
    finally:
        discard(partial)


HU_HDF5 = Foreign(
    "bottom-up-attention-vqa: an HDF5 file of 36 boxes an image, and its _imgid2idx.pkl", ("regions",), read, write
)
