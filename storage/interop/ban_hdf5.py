"""BAN's bottom-up attention features: Hu's HDF5 file, but with any number of boxes an image, all images end to end.

image_features (S, D), image_bb (S, 4) and spatial_features (S, 6) float32 as in `hu_hdf5`, and pos_boxes (I, 2) int32,
the first row of each image and the one after its last. The map is `train_imgid2idx.pkl` beside `train.hdf5`; upstream
makes room for numbers of boxes and images that it knows beforehand, so rows without an image may be left at the end.
Sources: jnhwkim/ban-vqa tools/adaptive_detection_features_converter.py writes, dataset.py reads.

Shapes in this file: I images, S boxes of all of them, D feature width.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from storage.errors import StoreError
from storage.interop.base import ExportReport, Foreign, Import, ImportOptions
from storage.interop.folders import demand, demand_pixels, left_out
from storage.interop.hu_hdf5 import (
    DATASETS,
    FEATURES,
    READ_NOTES,
    WRITE_NOTES,
    arrays_of,
    image_id,
    layout_of_file,
    new_file,
    opened,
    read_images,
)
from storage.store import FeatureStore

NAME, PLACES = "ban-hdf5", "pos_boxes"
CHUNK = 1 << 17  # numbers, half of what HDF5 keeps in memory of a data set


def read(path: Path, options: ImportOptions) -> Import:
    """Open the HDF5 file; its map must lie beside it. Keys are the image ids as text, in the order of their rows.

    Raises:
        StoreError: the file or its map is missing, damaged or of another format.
    """
    with opened(path, NAME) as file:
        layout = layout_of_file(file, path, NAME, 2)
        shape: Any = getattr(file.get(PLACES), "shape", None) or ()
        if shape[1:] != (2,) or file[PLACES].dtype.kind not in "iu":
            raise StoreError(f"{path} has no {PLACES} (images, 2) of whole numbers; it is no {NAME}.")
    return Import("regions", layout, read_images(path, NAME, _place, options), READ_NOTES)


def _place(file: Any, row: int) -> slice:
    start, end = map(int, file[PLACES][row])
    if not 0 <= start <= end <= len(file[FEATURES]):
        raise StoreError(f"its boxes are rows {start} to {end} of {len(file[FEATURES]):,}.")
    return slice(start, end)


def write(store: FeatureStore, out: Path) -> ExportReport:
    """Write the HDF5 file `out` and its map beside it, images in the store's order.

    Raises:
        StoreError: the store has no regions in pixels, an image's size is not known, a key is no whole number, a file
            is there already, or the disk refuses.
    """
    demand(store, NAME, "regions")
    demand_pixels(store, NAME)
    ids = [image_id(key, NAME) for key in store]
    with new_file(out, ids) as file:
        sets = [
            _growing(file, name, width) for name, width in zip(DATASETS, (store.spec.layout.dim, 4, 6), strict=True)
        ]
        ends = [0]
        for row in range(len(ids)):
            arrays = arrays_of(store, row)
            ends.append(ends[-1] + len(arrays[0]))
            for data, array in zip(sets, arrays, strict=True):
                data.resize(ends[-1], axis=0)
                data[ends[-2] :] = array
        file.create_dataset(PLACES, data=np.array([ends[:-1], ends[1:]], np.int32).T)
    return ExportReport(len(ids), 2, (*WRITE_NOTES, *left_out(store)))


def _growing(file: Any, name: str, width: int) -> Any:
    return file.create_dataset(name, (0, width), "f4", maxshape=(None, width), chunks=(max(1, CHUNK // width), width))


BAN_HDF5 = Foreign(
    "ban-vqa: an HDF5 file of any number of boxes an image, and its _imgid2idx.pkl", ("regions",), read, write
)
