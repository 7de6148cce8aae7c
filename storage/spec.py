"""What made a store's features: the spec, and the fingerprint by which two specs are told apart."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from storage.errors import StoreError

VIEWS = ("regions", "grid")
DTYPES = ("float16", "float32")


@dataclass(frozen=True)
class FeatureLayout:
    """How features lie in a record.

    dim          width D of one feature
    dtype        stored dtype, "float16" or "float32"
    class_probs  columns of the class probabilities, background included; 0 where they are not stored
    """

    dim: int
    dtype: str = "float16"
    class_probs: int = 0

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise StoreError(f"stored dtype {self.dtype!r} is not known; choose one of {', '.join(DTYPES)}")
        if self.dim < 1:
            raise StoreError(f"feature width {self.dim} must be at least 1")


@dataclass(frozen=True)
class Spec:
    """Everything that decides the numbers in a store, as plain JSON values.

    view        "regions" or "grid"
    layout      how features lie in a record
    model       name, weights (origin and sha256), dtype computed in, and what else shapes the network
    preprocess  resize, colour order, mean, std
    selection   which boxes are kept; empty for a grid
    """

    view: str
    layout: FeatureLayout
    model: Mapping[str, Any] = field(default_factory=dict)
    preprocess: Mapping[str, Any] = field(default_factory=dict)
    selection: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.view not in VIEWS:
            raise StoreError(f"view {self.view!r} is not known; choose one of {', '.join(VIEWS)}")

    @property
    def id(self) -> str:
        """SHA-256 of the canonical JSON: equal ids mean equal features."""
        return hashlib.sha256(canonical_json(self.to_dict())).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        # A round trip through JSON, so that a spec built here equals one read back (tuples become lists).
        plain: dict[str, Any] = json.loads(canonical_json(asdict(self)))
        return plain

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Spec:
        return cls(**{**values, "layout": FeatureLayout(**values["layout"])})


def canonical_json(value: Any) -> bytes:
    """One byte string per value: sorted keys, no spaces, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")
