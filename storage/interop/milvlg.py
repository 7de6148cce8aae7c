"""Region features of MILVLG's bottom-up-attention.pytorch: one {stem}.npz an image, `info` a pickled dict.

Class and attribute ids are 0-based and do not count background or "no attribute", as ours. (Releases before the folder
`bua/` counted both, as id 0; a file does not tell which release wrote it.)
Sources: MILVLG/bottom-up-attention.pytorch utils/extract_utils.py (Caffe models), utils/extract_d2features.py
(detectron2 models).
"""

from __future__ import annotations

import io
import pickle
import pickletools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from storage.errors import StoreError
from storage.interop import unpickling
from storage.interop.base import ExportReport, Foreign, Import, ImportOptions
from storage.interop.folders import (
    FileFormat,
    WrongFormatError,
    demand,
    demand_pixels,
    exactly,
    known_size,
    left_out,
    npy_header,
    read_folder,
    read_member,
    read_npz,
    write_folder,
    write_npz,
)
from storage.interop.mcan import FLOAT32, PIXELS, WIDTH, as_float32, regions
from storage.records import Record, RegionRecord
from storage.store import FeatureStore

NAME, SUFFIX = "milvlg-npz", ".npz"
ARRAYS = ("x", "bbox", "num_bbox", "image_h", "image_w")
CLASSES, ATTRIBUTES = ("class_ids", "class_scores"), ("attribute_ids", "attribute_scores")
OLD_RELEASES = (
    "class and attribute ids are taken as 0-based without background; MILVLG's releases before the folder bua/ counted "
    "background as class 0, which a file does not tell"
)
TENSORS = "info holds tensors of torch, which are not unpickled: classes and attributes are left out"
DETECTRON2 = (
    "of detectron2 models, cls_prob has no background column, so that only the probability of each box's class is kept"
)


def read(folder: Path, options: ImportOptions) -> Import:
    """Region features of a folder of {stem}.npz; keys are the stems.

    x (N, 2048) float32, bbox (N, 4), num_bbox, image_h, image_w, and info: a dict with objects_id, objects_conf, and
    attrs_id, attrs_conf where the model has attributes. Files of detectron2 models also have image_h_inner, and their
    info has objects and cls_prob; upstream puts tensors of torch beside them, and then info is left out altogether.

    Raises:
        StoreError: the folder is of another format.
    """
    return read_folder(folder, FileFormat(NAME, SUFFIX, _load, _notes), options)


def write(store: FeatureStore, out: Path) -> ExportReport:
    """{key}.npz for each record, compressed as upstream does, with the info of upstream's Caffe models.

    Raises:
        StoreError: the store has no regions 2048 wide in pixels, or no classes, or `out` cannot be made.
    """
    demand(store, NAME, "regions", CLASSES, WIDTH)
    demand_pixels(store, NAME)
    files = write_folder(store, out, SUFFIX, _save)
    kept = (*CLASSES, *(ATTRIBUTES if _has_attributes(store) else ()))
    ids = "objects_id and attrs_id are 0-based without background, as upstream writes them now"
    return ExportReport(files, files, (PIXELS, FLOAT32, ids, *left_out(store, kept)))


def _load(path: Path, key: str, _: ImportOptions) -> RegionRecord:
    arrays = read_npz(path, (*ARRAYS, "image_h_inner", "width"))
    if "bbox" in arrays and "x" not in arrays:
        raise WrongFormatError("it holds boxes without features; extract again with --extract-mode roi_feats.")
    record = regions(key, arrays, 1, ("image_h", "image_w"))
    fields: dict[str, Any] = _detectron2_fields(path) if "image_h_inner" in arrays else _fields(_info(path))
    return replace(record, **fields)


def _fields(info: dict[str, Any]) -> dict[str, np.ndarray]:
    """What the info of a Caffe model says of each box."""
    names = {"class_ids": "objects_id", "class_scores": "objects_conf"}
    if "attrs_id" in info:
        names |= {"attribute_ids": "attrs_id", "attribute_scores": "attrs_conf"}
    return {field: _vector(info, name, field.endswith("ids")) for field, name in names.items()}


def _detectron2_fields(path: Path) -> dict[str, np.ndarray]:
    try:
        info = _info(path)
    except StoreError as error:
        if "torch" not in str(error):
            raise
        return {}  # attributes are tensors, and the rest of the dict cannot be had without them; TENSORS says so
    ids = _vector(info, "objects", ids=True)
    probs = info.get("cls_prob")
    if not isinstance(probs, np.ndarray) or probs.ndim != 2 or len(probs) != len(ids):
        raise StoreError("cls_prob of info does not go with its objects.")
    if len(ids) and not 0 <= ids.min() <= ids.max() < probs.shape[1]:
        raise StoreError(f"objects of info go from {ids.min()} to {ids.max()}, cls_prob has {probs.shape[1]} classes.")
    return {"class_ids": ids, "class_scores": exactly(probs[np.arange(len(ids)), ids], np.float32, "cls_prob")}


def _vector(info: dict[str, Any], name: str, ids: bool) -> np.ndarray:
    found = info.get(name)
    if not isinstance(found, np.ndarray) or found.ndim != 1:
        raise StoreError(f"its info has no {name} of one value a box.")
    return exactly(found, np.int32 if ids else np.float32, name)


def _info(path: Path) -> dict[str, Any]:
    """The dict in `info`, which numpy saved as an array that holds one object."""
    stream = io.BytesIO(read_member(path, "info.npy"))
    try:
        shape, dtype = npy_header(stream)
    except ValueError as error:
        raise StoreError(f"its info is torn ({error}).") from error
    if shape != () or dtype.kind != "O":
        raise StoreError(f"its info is {dtype} {shape}; wanted one dict.")
    found = unpickling.loads(stream.read(), "its info")
    found = found.item() if isinstance(found, np.ndarray) and found.shape == () else found
    if not isinstance(found, dict):
        raise StoreError(f"its info is {type(found).__name__}; wanted one dict.")
    return found


def _notes(first: Record) -> tuple[str, ...]:
    assert isinstance(first, RegionRecord)
    if first.class_ids is None:
        return PIXELS, TENSORS
    return PIXELS, OLD_RELEASES, DETECTRON2


def _save(path: Path, record: Record) -> None:
    assert isinstance(record, RegionRecord)
    height, width = known_size(record)
    count = len(record.boxes)
    scalars = {"num_bbox": count, "image_h": height, "image_w": width}
    arrays = {"x": as_float32(record.features), "bbox": record.boxes, **scalars}
    ready = {name: np.asarray(value) for name, value in arrays.items()}
    write_npz(path, ready, {"info": _info_bytes(path.name.removesuffix(SUFFIX), record)})


def _info_bytes(image_id: str, record: RegionRecord) -> bytes:
    """info.npy, in the pickle protocol and with the names that numpy before 1.26 knows."""
    assert record.class_ids is not None and record.class_scores is not None
    info: dict[str, Any] = {"image_id": image_id, "image_h": record.image_size[0], "image_w": record.image_size[1]}
    info |= {"num_boxes": len(record.boxes)}
    info |= {"objects_id": record.class_ids.astype(np.int64), "objects_conf": np.array(record.class_scores)}
    if record.attribute_ids is not None and record.attribute_scores is not None:
        info["attrs_id"] = record.attribute_ids.astype(np.int64)
        info["attrs_conf"] = np.array(record.attribute_scores)
    array = np.empty((), object)
    array[()] = info
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, np.lib.format.header_data_from_array_1_0(array))
    return stream.getvalue() + _old_names(pickle.dumps(array, protocol=3))


def _old_names(data: bytes) -> bytes:
    """A pickle of protocol 3 that calls numpy's functions by names that every numpy knows."""
    calls = [(str(name), at or 0) for code, name, at in pickletools.genops(data) if code.name == "GLOBAL"]
    for at in reversed([at for name, at in calls if name.startswith("numpy._core.")]):
        data = data[:at] + data[at:].replace(b"numpy._core.", b"numpy.core.", 1)
    return data


def _has_attributes(store: FeatureStore) -> bool:
    return not set(ATTRIBUTES) & set(store.spec.layout.without)


MILVLG_NPZ = Foreign(
    "MILVLG's bottom-up-attention.pytorch: a folder of {stem}.npz, x (N, 2048) and a pickled info",
    ("regions",),
    read,
    write,
)
