"""MCAN's region features, one .npz an image, and what its relatives (MILVLG, OpenVQA) share with it.

`x` is (2048, N) in MCAN's files and (N, 2048) in its relatives', under one name; the axis of 2048 tells which it is.
Sources: yuzcccc/bottom-up-attention tools/extract_feat.py writes, MILVLG/mcan-vqa core/data/data_utils.py and
MILVLG/openvqa openvqa/datasets/vqa/vqa_loader.py read.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from storage.codecs import cast
from storage.errors import StoreError
from storage.interop.base import ExportReport, Foreign, Import, ImportOptions
from storage.interop.folders import (
    FileFormat,
    WrongFormatError,
    demand,
    demand_pixels,
    exactly,
    known_size,
    left_out,
    read_folder,
    read_npz,
    write_folder,
    write_npz,
)
from storage.records import Record, RegionRecord
from storage.store import FeatureStore

NAME, SUFFIX, WIDTH = "mcan-npz", ".jpg.npz", 2048
PIXELS = "boxes are x1 y1 x2 y2 in pixels of the original image"
FLOAT32 = "features are float32 in this format; those of another type were widened, which changes no value"
ARRAYS = ("x", "bbox", "num_bbox", "image_h", "image_w")


def read(folder: Path, options: ImportOptions) -> Import:
    """Region features of a folder of COCO_{split}_{id:012d}.jpg.npz; keys are the names without .jpg.npz.

    x (2048, N), bbox (N, 4), image_h, image_w, and num_bbox where it is there.

    Raises:
        StoreError: the folder is of another format.
    """
    return read_folder(folder, FileFormat(NAME, SUFFIX, _load, lambda _: (PIXELS,)), options)


def write(store: FeatureStore, out: Path) -> ExportReport:
    """{key}.jpg.npz for each record, compressed as upstream does; x is (2048, N) in Fortran order, as upstream's is.

    Raises:
        StoreError: the store has no regions 2048 wide in pixels, or `out` cannot be made.
    """
    demand(store, NAME, "regions", dim=WIDTH)
    demand_pixels(store, NAME)
    files = write_folder(store, out, SUFFIX, _save)
    return ExportReport(files, files, (PIXELS, FLOAT32, *left_out(store), *_odd_names(store)))


def regions(
    key: str, arrays: Mapping[str, np.ndarray], axis: int, sides: tuple[str, str], **fields: np.ndarray
) -> RegionRecord:
    """A record of `x` and `bbox`.

    Args:
        axis: of `x`, the one that must be of 2048.
        sides: what height and width are called.

    Raises:
        WrongFormatError: another axis is of 2048, or arrays are missing.
        StoreError: the arrays disagree.
    """
    demand_arrays(arrays, ("x",))
    features = boxes_first(arrays["x"], axis)
    demand_arrays(arrays, ("bbox", *sides))
    size = whole(arrays, sides[0]), whole(arrays, sides[1])
    if min(size) < 1:
        raise StoreError(f"the image is {size[0]} high and {size[1]} wide; wanted pixels.")
    if "num_bbox" in arrays and whole(arrays, "num_bbox") != len(features):
        raise StoreError(f"num_bbox is {whole(arrays, 'num_bbox')}, x has {len(features)} boxes.")
    return RegionRecord(key, size, exactly(arrays["bbox"], np.float32, "bbox"), features, **fields)


def boxes_first(x: np.ndarray, axis: int) -> np.ndarray:
    """Features (N, 2048) in C order, from an array whose `axis` must be the one of 2048.

    Raises:
        WrongFormatError: another axis is, none is, or both are: nothing is guessed.
        StoreError: the numbers are neither float32 nor float16.
    """
    if x.ndim != 2 or WIDTH not in x.shape:
        raise WrongFormatError(f"x is {x.shape}; no axis of {WIDTH} tells which one counts boxes.")
    if x.shape == (WIDTH, WIDTH):
        raise WrongFormatError(f"x is {x.shape}; which axis counts boxes cannot be told.")
    if x.shape[axis] != WIDTH:
        others = "mcan-npz" if axis else "milvlg-npz and openvqa-npz"
        raise WrongFormatError(f"x is {x.shape}, as in {others}; import it under that name.")
    check_floats(x, "x")
    return np.ascontiguousarray(x if axis else x.T)


def check_floats(features: np.ndarray, name: str) -> None:
    """Refuse what a store would have to round.

    Raises:
        StoreError: the numbers are neither float32 nor float16.
    """
    if features.dtype not in (np.float32, np.float16):
        raise StoreError(f"{name} is {features.dtype}; wanted float32 or float16.")


def demand_arrays(arrays: Mapping[str, np.ndarray], names: tuple[str, ...]) -> None:
    """Check that a file holds what its format has.

    Raises:
        WrongFormatError: it does not.
    """
    missing = [name for name in names if name not in arrays]
    if missing:
        hint = (
            ", as openvqa-npz" if "width" in arrays else ", as milvlg-npz and mcan-npz" if "image_h" in arrays else ""
        )
        raise WrongFormatError(f"it has no {', '.join(missing)}; it has {', '.join(arrays) or 'nothing known'}{hint}.")


def whole(arrays: Mapping[str, np.ndarray], name: str) -> int:
    """An array that holds one whole number.

    Raises:
        StoreError: it holds something else.
    """
    array = arrays[name]
    if array.size != 1 or array.dtype.kind not in "iu":
        raise StoreError(f"{name} is {array.dtype} {array.shape}; wanted one whole number.")
    return int(array.reshape(()))


def as_float32(values: np.ndarray) -> np.ndarray:
    """Features as the formats of this family have them; float16 and bfloat16 are widened."""
    return cast(values, "float32")


def _load(path: Path, key: str, _: ImportOptions) -> RegionRecord:
    return regions(key, read_npz(path, (*ARRAYS, "width")), 0, ("image_h", "image_w"))


def _save(path: Path, record: Record) -> None:
    assert isinstance(record, RegionRecord)
    height, width = known_size(record)
    arrays = {"x": as_float32(record.features).T, "bbox": record.boxes, "num_bbox": len(record.boxes)}
    sized = {**arrays, "image_h": height, "image_w": width}
    write_npz(path, {name: np.asarray(value) for name, value in sized.items()})


def _odd_names(store: FeatureStore) -> tuple[str, ...]:
    """MCAN takes what stands between a name's last "_" and the next "." for the image id, and stops at any other."""
    odd = [key for key in store if not key.rpartition("/")[2].rpartition("_")[2].partition(".")[0].isdecimal()]
    if not odd:
        return ()
    found = f"{len(odd):,} keys have none, such as {odd[0]!r}"
    return (f"MCAN's loader wants the image's number at the end of a name (.._42.jpg.npz); {found}",)


MCAN_NPZ = Foreign(
    "MCAN and OpenVQA's VQA loader: a folder of COCO_{split}_{id:012d}.jpg.npz, x (2048, N)", ("regions",), read, write
)
