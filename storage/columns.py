"""The columns of a shard, by name, for each spec: what Arrow and HDF5 shards both keep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from storage.codecs import NUMPY
from storage.spec import Spec

SIZES = ("width", "height", "grid_h", "grid_w")
PER_BOX_COLUMNS = {
    "cls_id": ("class_ids", np.dtype(np.int32)),
    "cls_score": ("class_scores", np.dtype(np.float32)),
    "attr_id": ("attribute_ids", np.dtype(np.int32)),
    "attr_score": ("attribute_scores", np.dtype(np.float32)),
}


@dataclass(frozen=True)
class Column:
    """One column: its name on disk, the field of a record it holds, its dtype, and what it has a value for.

    width    values a row, 0 for a plain number
    per_row  True: a value for each box, cell or pixel; False: one for each image
    """

    name: str
    field: str
    dtype: np.dtype[Any]
    width: int
    per_row: bool


def columns(spec: Spec) -> list[Column]:
    """All columns but the key and the sizes, in their order on disk."""
    layout = spec.layout
    stored, single, scaled = NUMPY[layout.dtype], np.dtype(np.float32), layout.dtype == "uint8"
    found = [Column(spec.values, spec.values, stored, layout.dim, True)]
    found += [Column("features_scale", "features", single, 0, True)] if scaled else []
    if spec.view == "regions":
        found.append(Column("boxes", "boxes", single, 4, True))
        kept = {name: each for name, each in PER_BOX_COLUMNS.items() if each[0] in spec.carried}
        found += [Column(name, field, dtype, 0, True) for name, (field, dtype) in kept.items()]
    if "whole_image" in spec.carried:
        found.append(Column("whole_image", "whole_image", stored, layout.dim, False))
        found += [Column("whole_image_scale", "whole_image", single, 0, False)] if scaled else []
    if layout.class_probs:
        found.append(Column("class_probs", "class_probs", NUMPY[layout.probs_dtype], layout.class_probs, True))
    return found
