"""The columns of a Parquet export as features of Hugging Face `datasets`, in the JSON that it keeps in a schema.

As huggingface/datasets writes them, `src/datasets/features/features.py`. Shapes in this file: N boxes, H x W cells, D
feature width, C classes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from storage.records import PER_BOX
from storage.store import FeatureStore

Feature = dict[str, Any]

_VOCABULARY = {"class_ids": "classes", "attribute_ids": "attributes"}
IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})


def features_of(store: FeatureStore) -> dict[str, Feature]:
    """The columns of an export, by name, as features of `datasets`."""
    layout = store.spec.layout
    found = {"key": _value("string"), "height": _value("int32"), "width": _value("int32")}
    if store.spec.view == "pixels":
        return {**found, "image": {"_type": "Image"}}
    row = _list(_value(feature_dtype(store)), layout.dim)
    found["features"] = _list(row) if store.spec.view == "regions" else _list(_list(row))
    if store.spec.view == "regions":
        found["boxes"] = _list(_list(_value("float32"), 4))
    for name in store.spec.carried:
        found[name] = row if name == "whole_image" else _list(_per_box(store, name))
    if layout.class_probs:
        found["class_probs"] = _list(_list(_value(layout.probs_dtype), layout.class_probs))
    return found


def feature_dtype(store: FeatureStore) -> str:
    """Of the features in Parquet, which has no bfloat16; each of its values is one of float32."""
    return "float32" if store.dtype == "bfloat16" else store.dtype


def _per_box(store: FeatureStore, name: str) -> Feature:
    names = label_names(store, name)
    return {"_type": "ClassLabel", "names": names} if names else _value(np.dtype(PER_BOX[name]).name)


def label_names(store: FeatureStore, name: str) -> list[str]:
    """What a column's numbers are called; nothing where the store does not know, or two have the same name, which
    `datasets` does not take."""
    names = list(store.vocabulary.get(_VOCABULARY.get(name, ""), ()))
    return names if len(set(names)) == len(names) else []


def _value(dtype: str) -> Feature:
    return {"_type": "Value", "dtype": dtype}


def _list(feature: Feature, length: int = -1) -> Feature:
    return {"_type": "Sequence", "feature": feature, "length": length}  # as version 3 calls it; 4 makes a List of it


def arrow_type(feature: Feature) -> pa.DataType:
    """The type that `datasets` keeps a feature in."""
    kind = feature["_type"]
    if kind == "Sequence":
        return pa.list_(arrow_type(feature["feature"]), feature["length"])
    if kind == "Value":
        return pa.type_for_alias(feature["dtype"])
    return pa.int64() if kind == "ClassLabel" else IMAGE
