"""UNITER's region features in an LMDB: the arrays of its .npz files, an entry an image, in msgpack or in an .npz.

The folder's name tells how UNITER chose boxes: feat_th0.2_max100_min10 (a threshold of conf, at most and at least so
many boxes; a file nbb_th0.2_max100_min10.json beside it tells how many boxes of each image count), feat_numbb36 (the
first 36), or all. `_compressed` at its end means entries of .npz. Entries are named as the .npz files were, `__keys__`
is their list in JSON. Sources: ChenRocks/UNITER scripts/convert_imgdir.py writes, data/data.py reads;
lebedov/msgpack-numpy.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from storage.errors import StoreError
from storage.interop.base import ExportReport, Foreign, Import, ImportOptions, write_beside
from storage.interop.folders import new_folder, read_npz, safe_name, write_npz
from storage.interop.lmdbs import Rows, entry, entry_key, import_entries, reading, value_of, write_entries
from storage.interop.uniter_npz import (
    ARRAYS,
    arrays_from_record,
    demand_uniter,
    read_notes,
    record_from_arrays,
    units_of,
    write_notes,
)
from storage.interop.unpickling import first_line
from storage.records import RegionRecord
from storage.store import FeatureStore

NAME, SUFFIX, KEYS = "uniter-lmdb", ".npz", b"__keys__"
FOLDER = re.compile(
    r"(?:all|feat_numbb\d+|feat_th(?P<conf>\d*\.?\d+)_max(?P<most>\d+)_min(?P<least>\d+))(?P<compressed>_compressed)?"
)
ALL_KEPT = "the LMDB has every box; UNITER takes the first ones, as many as the folder's name and the nbb file say"
ALL_BROKEN = (
    "UNITER's own loader fails on folders named all, for it uses a threshold that it never sets; others read them"
)


def read(path: Path, options: ImportOptions) -> Import:
    """Open the LMDB's folder. Keys are the names of its entries without .npz; every box of an entry is read.

    Raises:
        StoreError: it is no such LMDB, or none of its first entries can be read.
    """
    with reading(path, NAME) as transaction:
        names = _names(path, transaction)
    return import_entries(path, partial(_rows, path, names, options), units_of(options), read_notes(options))


def _names(path: Path, transaction: Any) -> list[str]:
    try:
        names = json.loads(transaction.get(KEYS) or b"null")
    except ValueError:
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise StoreError(f"{path} has no entry {KEYS.decode()} with a JSON list of its keys; it is no {NAME}.")
    return list(dict.fromkeys(names))


def _rows(path: Path, names: list[str], options: ImportOptions) -> Rows:
    with reading(path, NAME) as transaction:
        for name in names:
            key = name.removesuffix(SUFFIX)
            yield entry(key, f"{path}: {name}", partial(_record, transaction, name, key, options))


def _record(transaction: Any, name: str, key: str, options: ImportOptions) -> RegionRecord:
    if key == name:
        raise StoreError(f"its name does not end in {SUFFIX}.")
    value = value_of(transaction, name.encode())
    arrays = read_npz(BytesIO(value), ARRAYS) if value.startswith(b"PK") else _unpacked(value)
    return record_from_arrays(key, arrays, options)


def _unpacked(value: bytes) -> dict[str, np.ndarray]:
    """The arrays of an entry in msgpack. msgpack-numpy itself would unpickle what it takes for objects."""
    try:
        content = msgpack.unpackb(value, raw=False)
        return {name: _array(name, content[name]) for name in ARRAYS if name in content}
    except StoreError:
        raise
    except Exception as error:  # torn ones raise nearly any type
        raise StoreError(f"it is torn or no msgpack of arrays ({first_line(error)}).") from error


def _array(name: str, packed: Mapping[Any, Any]) -> np.ndarray:
    fields = {each.decode() if isinstance(each, bytes) else each: value for each, value in packed.items()}
    if fields["nd"] is not True or fields.get("kind") or np.dtype(fields["type"]).kind not in "biuf":
        raise StoreError(f"{name} holds other than numbers; nothing is unpickled.")
    return np.frombuffer(fields["data"], fields["type"]).reshape(fields["shape"])


def _packed(arrays: Mapping[str, np.ndarray]) -> bytes:
    """The bytes that msgpack-numpy makes of them."""
    content = {
        name: {b"nd": True, b"type": each.dtype.str, b"kind": b"", b"shape": each.shape, b"data": each.tobytes()}
        for name, each in arrays.items()
    }
    packed: bytes = msgpack.packb(content, use_bin_type=True)
    return packed


def write(store: FeatureStore, out: Path) -> ExportReport:
    """Write an LMDB to the folder `out`, whose name tells UNITER how to read it; {key}.npz names an entry.

    Raises:
        StoreError: the name is not one of UNITER's, the store has no class_scores, `out` or another nbb file is there
            already, a key does not fit, or the disk refuses.
    """
    name = FOLDER.fullmatch(out.name)
    if not name:
        raise StoreError(
            "UNITER opens folders named as feat_th0.2_max100_min10, feat_numbb36 or all (with _compressed at the end "
            f"for entries of .npz), not {out.name!r}; name --out so."
        )
    demand_uniter(store, NAME)
    numbers: dict[str, int] = {}
    with new_folder(out) as folder:
        write_entries(folder, _entries(store, name, numbers))
        if name["conf"]:
            beside = f"nbb_th{name['conf']}_max{name['most']}_min{name['least']}.json"
            write_beside(out.absolute().with_name(beside), json.dumps(numbers).encode())
    notes = (*write_notes(store), ALL_KEPT, *([ALL_BROKEN] if out.name.startswith("all") else []))
    return ExportReport(len(numbers), 2 if name["conf"] else 1, notes)


def _entries(store: FeatureStore, name: re.Match[str], numbers: dict[str, int]) -> Iterator[tuple[bytes, bytes]]:
    """Entries, the list of their keys last; `numbers` takes how many boxes of each UNITER is to read."""
    for position in range(len(store)):
        record = store.at(position)
        assert isinstance(record, RegionRecord)
        arrays = arrays_from_record(record, store.spec.layout)
        file = safe_name(record.key, SUFFIX)
        numbers[file] = _boxes_read(arrays["conf"], name) if name["conf"] else len(record.boxes)
        yield entry_key(file, KEYS), _npz(arrays) if name["compressed"] else _packed(arrays)
    yield KEYS, json.dumps(list(numbers)).encode()


def _boxes_read(conf: np.ndarray, name: re.Match[str]) -> int:
    above = int((conf > float(name["conf"])).sum())
    return min(int(name["most"]), max(int(name["least"]), above))


def _npz(arrays: Mapping[str, np.ndarray]) -> bytes:
    target = BytesIO()
    write_npz(target, arrays)
    return target.getvalue()


UNITER_LMDB = Foreign(
    "UNITER: an LMDB in feat_th0.2_max100_min10, feat_numbb36 or all, the arrays of its .npz files",
    ("regions",),
    read,
    write,
)
