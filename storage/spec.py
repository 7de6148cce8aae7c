"""What made a store's features: the spec, and the fingerprint by which two specs are told apart."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from storage.errors import StoreError

VIEWS = ("regions", "grid", "patches", "pixels")
DTYPES = ("float16", "float32", "bfloat16", "uint8", "bytes")
PROBS_DTYPES = ("float16", "float32")
MOST_COLUMNS = 1 << 31  # what Arrow counts in
OPTIONAL = ("whole_image", "class_ids", "class_scores", "attribute_ids", "attribute_scores")
BOX_UNITS = ("pixels", "fractions")
_CARRIED = {"regions": OPTIONAL, "patches": ("whole_image",)}


@dataclass(frozen=True)
class FeatureLayout:
    """How features lie in a record.

    dim          width D of one feature
    dtype        stored dtype: "float16", "float32", "bfloat16"; "uint8", which is 8 bits a value with a square-root
                 scale a row (storage/codecs.py); or "bytes", pixels as they are, for their view and no other
    class_probs  columns of the class probabilities, background included; 0 where they are not stored
    probs_dtype  stored dtype of the class probabilities, "float16" or "float32"
    without      fields of a record that this store does not have, out of OPTIONAL; foreign files lack some, and some
                 towers of patches have no class token for whole_image
    box_units    "pixels" of the upright original; or "fractions" of its width and height, where a foreign file does not
                 tell the size
    """

    dim: int
    dtype: str = "float16"
    class_probs: int = 0
    probs_dtype: str = "float16"
    without: tuple[str, ...] = ()
    box_units: str = "pixels"

    def __post_init__(self) -> None:
        object.__setattr__(self, "without", tuple(sorted(self.without)))
        _check_choice("stored dtype", self.dtype, DTYPES)
        _check_choice("dtype of class probabilities", self.probs_dtype, PROBS_DTYPES)
        _check_choice("unit of boxes", self.box_units, BOX_UNITS)
        for name in self.without:
            _check_choice("field left out", name, OPTIONAL)
        if not 1 <= self.dim < MOST_COLUMNS:
            raise StoreError(f"feature width {self.dim} must be at least 1, and below {MOST_COLUMNS:,}")
        if not 0 <= self.class_probs < MOST_COLUMNS:
            raise StoreError(f"{self.class_probs} class probabilities must be at least 0, and below {MOST_COLUMNS:,}")


@dataclass(frozen=True)
class Spec:
    """Everything that decides the numbers in a store, as plain JSON values.

    view        "regions", "grid", "patches" or "pixels"
    layout      how features lie in a record
    model       name, weights (origin and sha256), dtype computed in, and what else shapes the network
    preprocess  resize, colour order, mean, std
    selection   which boxes are kept; empty for other views than regions
    """

    view: str
    layout: FeatureLayout
    model: Mapping[str, Any] = field(default_factory=dict)
    preprocess: Mapping[str, Any] = field(default_factory=dict)
    selection: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_choice("view", self.view, VIEWS)
        if (self.view == "pixels") != (self.layout.dtype == "bytes"):
            raise StoreError(f"{self.view} cannot be stored as {self.layout.dtype}: pixels are bytes, features never.")

    @property
    def values(self) -> str:
        """The column, and the field of a record, that holds its rows: "pixels" or "features"."""
        return "pixels" if self.view == "pixels" else "features"

    @property
    def carried(self) -> tuple[str, ...]:
        """The fields out of OPTIONAL that every record of this store has."""
        return tuple(name for name in _CARRIED.get(self.view, ()) if name not in self.layout.without)

    @property
    def id(self) -> str:
        """SHA-256 of the canonical JSON: equal ids mean equal features."""
        return hashlib.sha256(canonical_json(self.to_dict())).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        # A round trip through JSON, so that a spec built here equals one read back (tuples become lists).
        plain: dict[str, Any] = json.loads(canonical_json(asdict(self)))
        for name, usual in _ADDED.items():  # a spec that needs none of them keeps the id that it had before they came
            if plain["layout"][name] == usual:
                del plain["layout"][name]
        return plain

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Spec:
        layout = dict(values["layout"])
        return cls(**{**values, "layout": FeatureLayout(**{**layout, "without": tuple(layout.get("without", ()))})})


_ADDED = {"probs_dtype": "float16", "without": [], "box_units": "pixels"}  # to format version 2
assert _ADDED.keys() <= {each.name for each in fields(FeatureLayout)}


def _check_choice(what: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise StoreError(f"{what} {value!r} is not known; choose one of {', '.join(choices)}")


def canonical_json(value: Any) -> bytes:
    """One byte string per value: sorted keys, no spaces, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")
