"""OpenVQA's features for GQA and CLEVR: one {id}.npz an image, `x` with boxes or cells first.

GQA has regions, x (N, 2048) with bbox, width, height, and grids, x (49, 2048); CLEVR has grids, x (196, 1024). Features
for VQA are MCAN's. Sources: MILVLG/openvqa data/gqa/gqa_feat_preproc.py, data/clevr/clevr_extract_feat.py.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from storage.errors import StoreError
from storage.interop.base import ExportReport, Foreign, Import, ImportOptions
from storage.interop.folders import (
    FileFormat,
    WrongFormatError,
    demand,
    demand_pixels,
    known_size,
    left_out,
    read_folder,
    read_npz,
    write_folder,
    write_npz,
)
from storage.interop.mcan import FLOAT32, PIXELS, WIDTH, as_float32, check_floats, demand_arrays, regions
from storage.records import GridRecord, Record, RegionRecord
from storage.store import FeatureStore

NAME, SUFFIX = "openvqa-npz", ".npz"
GRID_WIDTHS = (WIDTH, 1024)
SQUARE = "a grid's cells go row by row; the format does not tell its shape, which is always square (7 x 7, 14 x 14)"


def read(folder: Path, options: ImportOptions) -> Import:
    """Region or grid features of a folder of {id}.npz, keys are the ids; the first file tells which view it is.

    A file with `bbox` holds regions. Sizes of images come from `options.sizes` for grids, (0, 0) where it has none.

    Raises:
        StoreError: the folder is of another format.
    """
    return read_folder(folder, FileFormat(NAME, SUFFIX, _load, _notes), options)


def write(store: FeatureStore, out: Path) -> ExportReport:
    """{key}.npz for each record, not compressed, as upstream's.

    Raises:
        StoreError: the store has neither regions 2048 wide in pixels nor square grids 2048 or 1024 wide, or `out`
            cannot be made.
    """
    if store.spec.view == "regions":
        demand(store, NAME, "regions", dim=WIDTH)
        demand_pixels(store, NAME)
        files = write_folder(store, out, SUFFIX, _save_regions)
        return ExportReport(files, files, (PIXELS, FLOAT32, *left_out(store)))
    demand(store, NAME, "grid", dim=1024 if store.spec.layout.dim == 1024 else WIDTH)
    files = write_folder(store, out, SUFFIX, _save_grid)
    return ExportReport(files, files, ("there are no boxes in a grid", SQUARE, FLOAT32, "left out: sizes of images"))


def _load(path: Path, key: str, options: ImportOptions) -> Record:
    arrays = read_npz(path, ("x", "bbox", "width", "height", "image_h"))
    demand_arrays(arrays, ("x",))
    if "bbox" not in arrays:
        return GridRecord(key, options.sizes.get(key, (0, 0)), _square(arrays["x"]))
    return regions(key, arrays, 1, ("height", "width"))


def _square(x: np.ndarray) -> np.ndarray:
    """(side, side, D) from (side * side, D)."""
    if x.ndim != 2 or x.shape[1] not in GRID_WIDTHS or x.shape[0] in GRID_WIDTHS:
        raise WrongFormatError(f"x is {x.shape} and there is no bbox; wanted a grid (cells, 2048) or (cells, 1024).")
    side = math.isqrt(len(x))
    if side * side != len(x):
        raise WrongFormatError(f"x is {x.shape}; {len(x)} cells are no square grid, and the file tells no other shape.")
    check_floats(x, "x")
    return np.ascontiguousarray(x).reshape(side, side, -1)


def _notes(first: Record) -> tuple[str, ...]:
    return (PIXELS,) if isinstance(first, RegionRecord) else (SQUARE,)


def _save_regions(path: Path, record: Record) -> None:
    assert isinstance(record, RegionRecord)
    height, width = known_size(record)
    arrays = {"x": as_float32(record.features), "bbox": record.boxes, "width": width, "height": height}
    write_npz(path, {name: np.asarray(value) for name, value in arrays.items()}, compressed=False)


def _save_grid(path: Path, record: Record) -> None:
    down, across, dim = record.features.shape
    if down != across:
        raise StoreError(f"{record.key!r} has {down} x {across} cells; {NAME} holds square grids only.")
    write_npz(path, {"x": as_float32(record.features).reshape(-1, dim)}, compressed=False)


OPENVQA_NPZ = Foreign(
    "OpenVQA's GQA and CLEVR features: a folder of {id}.npz, regions x (N, 2048) or grids x (49, 2048), (196, 1024)",
    ("regions", "grid"),
    read,
    write,
)
