"""From records to the columns of a shard: checked against the spec, laid end to end, and encoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from storage.codecs import encode, record_dtype
from storage.columns import PER_BOX_COLUMNS, Column, columns
from storage.errors import StoreError
from storage.records import RECORD_OF, Record, RegionRecord
from storage.spec import OPTIONAL, Spec


@dataclass(frozen=True)
class Gathered:
    """Columns of several images.

    offsets   (images + 1,) int64
    sizes     (images, 4) int32, as in `storage.columns.SIZES`
    features  each image's rows as they are stored; not laid end to end, since they are nearly all there is
    arrays    the other columns, all images end to end
    """

    keys: list[str]
    offsets: np.ndarray
    sizes: np.ndarray
    features: list[np.ndarray]
    arrays: dict[str, np.ndarray]


def gather(records: Sequence[Record], spec: Spec) -> Gathered:
    """Lay records end to end.

    Raises:
        StoreError: a value that the store's dtype cannot hold.
    """
    dim = spec.layout.dim
    rows = [record.features.reshape(-1, dim) for record in records]
    offsets = np.zeros(len(records) + 1, np.int64)
    np.cumsum([len(each) for each in rows], out=offsets[1:])
    shapes = [(0, 0) if isinstance(each, RegionRecord) else each.features.shape[:2] for each in records]
    pairs = zip(records, shapes, strict=True)
    sizes = [(each.image_size[1], each.image_size[0], shape[0], shape[1]) for each, shape in pairs]
    arrays: dict[str, np.ndarray] = {}
    if spec.layout.dtype == "uint8":
        coded = [encode(each) for each in rows]
        rows = [codes for codes, _ in coded]
        scales = [each for _, each in coded]
        arrays["features_scale"] = np.concatenate(scales) if scales else np.empty(0, np.float32)
    for column in columns(spec):
        if column.field in (spec.values, "whole_image"):
            continue
        parts = [getattr(record, column.field) for record in records]
        arrays[column.name] = np.concatenate(parts) if parts else _none(column)
    if "whole_image" in spec.carried:
        whole = [getattr(record, "whole_image")[None] for record in records]  # noqa: B009
        joined = np.concatenate(whole) if whole else np.empty((0, dim), record_dtype(spec.layout.dtype))
        if spec.layout.dtype == "uint8":
            joined, arrays["whole_image_scale"] = encode(joined)
        arrays["whole_image"] = joined
    keys = [record.key for record in records]
    return Gathered(keys, offsets, np.array(sizes, np.int32).reshape(-1, 4), rows, arrays)


def _none(column: Column) -> np.ndarray:
    return np.empty((0, column.width) if column.width else 0, column.dtype)


def check_fits(record: Record, spec: Spec) -> None:
    """Refuse a record that is of another view, width, dtype or set of fields than the store.

    Raises:
        StoreError: it is.
    """
    wanted = RECORD_OF[spec.view]
    dtype = record_dtype(spec.layout.dtype).name
    found = (record.features.shape[-1], record.features.dtype.name)
    if not isinstance(record, wanted) or found != (spec.layout.dim, dtype):
        raise StoreError(
            f"record {record.key!r} ({type(record).__name__}, width {found[0]}, {found[1]}) does not fit the store: "
            f"{spec.view}, width {spec.layout.dim}, {dtype}."
        )
    for name in OPTIONAL:
        carries = getattr(record, name, None) is not None
        if carries != (name in spec.carried):
            has = "carries" if carries else "lacks"
            raise StoreError(f"record {record.key!r} {has} {name}, unlike the store's records.")
    if isinstance(record, RegionRecord):
        _check_probs(record, spec)


def _check_probs(record: RegionRecord, spec: Spec) -> None:
    probs = record.class_probs
    count, dtype = (0, spec.layout.probs_dtype) if probs is None else (probs.shape[1], probs.dtype.name)
    if (count, dtype) != (spec.layout.class_probs, spec.layout.probs_dtype):
        raise StoreError(
            f"record {record.key!r} must carry {spec.layout.class_probs} class probabilities a box, "
            f"in {spec.layout.probs_dtype}."
        )


assert {field for field, _ in PER_BOX_COLUMNS.values()} < set(OPTIONAL)
