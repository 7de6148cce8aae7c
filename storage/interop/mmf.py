"""MMF's region features: two .npy files an image, or an LMDB made of them; ViLBERT's, of the same family, are read too.

{key}.npy is features (N, D) float32, {key}_info.npy a pickled dict: bbox (N, 4) in pixels, num_boxes, image_width,
image_height, objects (N,), cls_prob. An entry of the LMDB is a pickled dict of all that, `keys` a pickled list. ViLBERT
keeps one dict in one .npy, and boxes, image_w, image_h in its LMDB; there, features and boxes may be base64.

cls_prob is all class probabilities: without the background by default, with the background in column 0, and `objects`
counting it, where it was made with --background (and always in ViLBERT's). VinVL's script writes features of 2054
columns, whose last six are the box, bbox (N, 6) as fractions, and labels and scores for objects.

Sources in facebookresearch/mmf: tools/scripts/features/extract_features_vmb.py, extract_features_vinvl.py,
frcnn/extract_features_frcnn.py (whose cls_prob is one score a box) and lmdb_conversion.py write,
mmf/datasets/databases/readers/feature_readers.py reads; in facebookresearch/vilbert-multi-task:
script/extract_features.py, script/convert_to_lmdb.py, vilbert/datasets/_image_features_reader.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from storage.codecs import cast
from storage.errors import StoreError
from storage.interop import unpickling
from storage.interop.base import BadRow, ExportReport, Foreign, Import, ImportOptions
from storage.interop.folders import (
    FileFormat,
    WrongFormatError,
    demand,
    demand_pixels,
    exactly,
    known_size,
    left_out,
    new_folder,
    npy_array,
    npy_header,
    read_folder,
    safe_name,
    write_folder,
)
from storage.interop.lmdbs import Rows, entry, entry_key, import_entries, reading, value_of, write_entries
from storage.interop.mcan import check_floats
from storage.interop.text import floats
from storage.records import Record, RegionRecord
from storage.store import FeatureStore

NPY, LMDB = "mmf-npy", "mmf-lmdb"
SUFFIX, INFO, KEYS = ".npy", "_info", b"keys"
WITHOUT, WITH = 1600, 1601  # columns for Visual Genome's classes, without and with the background
PIXELS = "boxes are x1 y1 x2 y2 in pixels of the original image"
READ_NOTES = (
    PIXELS,
    "cls_prob of 1601 columns, or whose rows add up to 1, has the background in column 0: class_ids are the best of "
    "the others. Else it leaves the background out: class_probs get a last column, what the others leave to 1",
    "objects without cls_prob are taken as 0-based without background; those of files made with --background are not",
    "all rows are read; num_boxes is not kept, for MMF's scripts do not count in it the rows that they write",
    "what MMF's lmdb_conversion.py unpacked has the width in image_height: give the .npy files it was made of",
)
WRITE_NOTES = (
    PIXELS,
    "objects are 0-based without background and cls_prob leaves the background out, as MMF's script does by default; "
    "class_scores are in it; of stores without class_probs it is the score of each box, as MMF's frcnn script has it",
    "features are float32 in this format; those of another type were widened, which changes no value",
)
LMDB_NAME = "MMF takes a path for an LMDB only where it ends in .lmdb"


def read_npy(folder: Path, options: ImportOptions) -> Import:
    """Region features of a folder of {key}.npy and {key}_info.npy, or of ViLBERT's {key}.npy; sub-folders are entered.

    Raises:
        StoreError: the folder is of another format.
    """
    found = read_folder(folder, FileFormat(NPY, SUFFIX, _load, lambda _: READ_NOTES), options)
    return replace(found, rows=(row for row in found.rows if not (isinstance(row, BadRow) and row.message == INFO)))


def read_lmdb(path: Path, options: ImportOptions) -> Import:
    """Region features of an LMDB of MMF or ViLBERT, a folder or a single file; its keys are ours.

    Raises:
        StoreError: it is of another format, or none of its first entries can be read.
    """
    with reading(path, LMDB) as transaction:
        keys = _listed(path, transaction)
    return import_entries(path, partial(_rows, path, keys, options), "pixels", READ_NOTES)


def write_npy(store: FeatureStore, out: Path) -> ExportReport:
    """{key}.npy and {key}_info.npy for each record.

    Raises:
        StoreError: the store has no regions in pixels, an image's size is not known, a key does not fit, or `out`
            cannot be made.
    """
    _demand(store, NPY)
    count = write_folder(store, out, SUFFIX, _save)
    return ExportReport(count, 2 * count, (*WRITE_NOTES, *_left_out(store)))


def write_lmdb(store: FeatureStore, out: Path) -> ExportReport:
    """An LMDB in the folder `out`, an entry for each record; errors as of `write_npy`."""
    _demand(store, LMDB)
    with new_folder(out) as folder:
        write_entries(folder, _entries(store))
    name = () if out.name.endswith(".lmdb") else (LMDB_NAME,)
    return ExportReport(len(store), 1, (*WRITE_NOTES, *_left_out(store), *name))


# Reading


def _load(path: Path, key: str, options: ImportOptions) -> RegionRecord:
    if key.endswith(INFO):
        features = path.with_name(f"{path.name.removesuffix(INFO + SUFFIX)}{SUFFIX}")
        raise StoreError(INFO if features.exists() else f"there is no {features.name} that it belongs to.")
    with path.open("rb") as handle:
        found = _array(handle)
    if found.dtype == object:
        return _record(key, _dict(found), options)
    beside = path.with_name(f"{path.name.removesuffix(SUFFIX)}{INFO}{SUFFIX}")
    if not beside.exists():
        raise StoreError(f"there is no {beside.name} beside it, which would tell its boxes.")
    with beside.open("rb") as handle:
        return _record(key, {**_dict(_array(handle)), "features": found}, options)


def _array(handle: BinaryIO) -> np.ndarray:
    """What an .npy file holds; objects are plain ones only."""
    try:
        objects = npy_header(handle)[1].hasobject
        if not objects:
            handle.seek(0)
            found = npy_array(handle.read())
    except Exception as error:  # torn headers raise nearly any type
        raise StoreError(f"it is torn or no .npy file ({unpickling.first_line(error)}).") from error
    if objects:
        found = np.asarray(unpickling.loads(handle.read(), Path(handle.name).name))
    return found


def _dict(array: np.ndarray) -> dict[str, Any]:
    content = array.item() if array.shape == () else None
    if not isinstance(content, dict):
        raise WrongFormatError(f"it holds {array.dtype} {array.shape}, wanted a dict of boxes.")
    return content


def _listed(path: Path, transaction: Any) -> list[bytes]:
    listed = transaction.get(KEYS)
    if listed is None:
        first = next(iter(transaction.cursor()), (b"", b""))
        why = ""
        try:
            unpickling.loads(first[1], "its first entry")
        except StoreError as error:
            why = f"; {error}"
        raise StoreError(f"{path} has no entry 'keys', the list of its keys, and is no {LMDB}{why or '.'}")
    keys = unpickling.loads(listed, f"{path}: keys")
    if not isinstance(keys, list) or not all(isinstance(key, bytes | str) for key in keys):
        raise StoreError(f"{path}: its entry 'keys' is no list of keys; it is no {LMDB}.")
    return list(dict.fromkeys(key if isinstance(key, bytes) else key.encode("latin1") for key in keys))


def _rows(path: Path, keys: list[bytes], options: ImportOptions) -> Rows:
    with reading(path, LMDB) as transaction:
        for key in keys:
            name = key.decode("utf-8", "replace")
            yield entry(name, f"{path}: {name}", partial(_entry, transaction, key, options))


def _entry(transaction: Any, key: bytes, options: ImportOptions) -> RegionRecord:
    content = unpickling.loads(value_of(transaction, key), "it")
    if not isinstance(content, dict):
        raise StoreError(f"it holds {type(content).__name__}, wanted a dict of features and boxes.")
    return _record(key.decode(), content, options)


def _record(key: str, item: Mapping[str, Any], options: ImportOptions) -> RegionRecord:
    try:
        return _regions(key, item, options)
    except (KeyError, TypeError, AttributeError, IndexError, OverflowError) as error:
        raise StoreError(
            f"its dict is not one of MMF ({type(error).__name__}: {unpickling.first_line(error)})."
        ) from error


def _regions(key: str, item: Mapping[str, Any], options: ImportOptions) -> RegionRecord:
    size = _size(key, item, options)
    features, boxes = _numbers(item, "features", None), _numbers(item, "boxes" if "boxes" in item else "bbox", 4)
    check_floats(features, "features")
    if features.ndim != 2:
        raise WrongFormatError(f"features are {features.shape}, wanted (N, D): grids of MMF are not read.")
    if boxes.ndim == 2 and boxes.shape[1] == 6:  # VinVL's script writes fractions
        if min(size) < 1:
            raise StoreError("its boxes are fractions, and it does not tell the image's size.")
        boxes = boxes[:, :4] * np.array([size[1], size[0], size[1], size[0]], np.float32)
    return RegionRecord(key, size, exactly(boxes, np.float32, "boxes"), features, **_classes(item))


def _size(key: str, item: Mapping[str, Any], options: ImportOptions) -> tuple[int, int]:
    found = tuple(item.get(f"image_{side}", item.get(f"image_{side[0]}")) for side in ("height", "width"))
    if None in found:
        return options.sizes.get(key, (0, 0))
    height, width = map(float, found)
    if not (height.is_integer() and width.is_integer() and height >= 1 and width >= 1):
        raise StoreError(f"the image is {height:g} high and {width:g} wide; wanted pixels.")
    return int(height), int(width)


def _numbers(item: Mapping[str, Any], name: str, width: int | None) -> np.ndarray:
    """An array, as it is or, in ViLBERT's LMDBs, in base64 (num_boxes, width) float32."""
    found = item.get(name)
    if isinstance(found, bytes | str):
        return floats(name, found, int(item["num_boxes"]), width)
    if not isinstance(found, np.ndarray):
        raise StoreError(f"it has no {name}.")
    return found


def _classes(item: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Fields of a record: class_ids, class_scores and class_probs, as far as the item tells."""
    probs, objects = item.get("cls_prob"), item.get("objects")
    if probs is None and isinstance(item.get("labels"), np.ndarray):  # VinVL's: 0 is the background
        return {"class_ids": _ids(item["labels"]) - 1, "class_scores": exactly(item["scores"], np.float32, "scores")}
    ids = {} if objects is None else {"class_ids": _ids(objects)}
    if probs is None:
        return ids
    check_floats(probs, "cls_prob")
    if probs.ndim == 1:
        return {**ids, "class_scores": probs.astype(np.float32)}
    if _has_background(probs):
        probs, ids = np.roll(probs, -1, axis=1), {}  # objects may be the background, or be cut short, as ViLBERT's are
    else:
        probs = np.concatenate([probs, _rest(probs)], axis=1)
    best = ids.get("class_ids", probs[:, :-1].argmax(axis=1).astype(np.int32))
    if len(best) != len(probs) or not (best < probs.shape[1] - 1).all():
        raise StoreError(f"objects {best.shape} do not go with cls_prob {probs.shape}.")
    scores = probs[np.arange(len(best)), best].astype(np.float32)
    return {"class_ids": best, "class_scores": scores, "class_probs": probs}


def _ids(objects: np.ndarray) -> np.ndarray:
    ids = exactly(np.asarray(objects), np.int32, "objects")
    if (ids < 0).any():
        raise StoreError(f"objects hold {ids.min()}, which is no class.")
    return ids


def _has_background(probs: np.ndarray) -> bool:
    if probs.shape[1] in (WITHOUT, WITH):
        return bool(probs.shape[1] == WITH)
    return bool((np.abs(probs.sum(axis=1, dtype=np.float64) - 1) < 1e-3).all())


def _rest(probs: np.ndarray) -> np.ndarray:
    """(N, 1): what the columns leave to 1."""
    rest = 1 - probs.sum(axis=1, keepdims=True, dtype=np.float64)
    if (rest < -0.01).any():
        raise StoreError(f"cls_prob of a box adds up to {1 - rest.min():g}, wanted probabilities.")
    return rest.clip(0).astype(probs.dtype)


# Writing


def _demand(store: FeatureStore, name: str) -> None:
    demand(store, name, "regions")
    demand_pixels(store, name)


def _left_out(store: FeatureStore) -> tuple[str, ...]:
    return left_out(store, ("class_ids", "class_scores", "class_probs"))


def _save(path: Path, record: Record) -> None:
    assert isinstance(record, RegionRecord)
    _check_key(record.key)
    np.save(path, cast(record.features, "float32"))
    array = np.array(_info(record), dtype=object)
    with path.with_name(f"{path.name.removesuffix(SUFFIX)}{INFO}{SUFFIX}").open("wb") as handle:
        np.lib.format.write_array_header_1_0(handle, np.lib.format.header_data_from_array_1_0(array))
        handle.write(unpickling.dumps(array))


def _entries(store: FeatureStore) -> Iterator[tuple[bytes, bytes]]:
    keys = []
    for position in range(len(store)):
        record = store.at(position)
        assert isinstance(record, RegionRecord)
        _check_key(record.key)
        keys.append(entry_key(record.key, KEYS))
        info = {"objects": None, "cls_prob": None, **_info(record)}
        item = {"feature_path": record.key, "features": cast(record.features, "float32"), **info}
        yield keys[-1], unpickling.dumps(item)
    yield KEYS, unpickling.dumps(keys)


def _check_key(key: str) -> None:
    if SUFFIX in safe_name(key, "") or key.endswith(INFO):
        raise StoreError(f"the key {key!r} has {SUFFIX} in it or ends in {INFO}, which MMF takes for its own endings.")


def _info(record: RegionRecord) -> dict[str, Any]:
    height, width = known_size(record)
    info: dict[str, Any] = {"bbox": record.boxes, "num_boxes": len(record.boxes)}
    if record.class_ids is not None:
        info["objects"] = record.class_ids.astype(np.int64)
    if record.class_probs is not None:
        info["cls_prob"] = np.ascontiguousarray(record.class_probs[:, :-1])
    elif record.class_scores is not None:
        info["cls_prob"] = record.class_scores
    return {**info, "image_width": width, "image_height": height}


MMF_NPY = Foreign(
    "MMF: a folder of {key}.npy and {key}_info.npy (ViLBERT's .npy too)", ("regions",), read_npy, write_npy
)
MMF_LMDB = Foreign("MMF: an LMDB of pickled dicts (ViLBERT's too)", ("regions",), read_lmdb, write_lmdb)
