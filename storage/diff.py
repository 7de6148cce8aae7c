"""How far two stores are apart, field by field: are these the published features?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from storage.errors import StoreError, spec_differences
from storage.records import PixelRecord, Record, RegionRecord
from storage.store import FeatureStore

MATCH_IOU = 0.5
NEAR = {"pixels": 1.0, "fractions": 0.002}  # boxes no further apart than this stand in the same order
REGION_FIELDS = (
    "boxes", "features", "whole_image", "class_ids", "class_scores", "attribute_ids", "attribute_scores", "class_probs",
)  # fmt: skip


@dataclass
class FieldDistance:
    """How far one field is apart over all records that both stores have.

    records, equal  compared, and equal to the last bit
    largest, mean   absolute difference of values; of ids, the share that differs stands in `mean`
    lowest_cosine, mean_cosine  of feature rows, where both are finite and not zero
    """

    records: int = 0
    equal: int = 0
    largest: float = 0.0
    lowest_cosine: float = 1.0
    _total: float = 0.0
    _values: int = 0
    _cosines: float = 0.0
    _rows: int = 0

    @property
    def mean(self) -> float:
        return self._total / self._values if self._values else 0.0

    @property
    def mean_cosine(self) -> float:
        return self._cosines / self._rows if self._rows else 1.0

    def add(self, one: np.ndarray, other: np.ndarray, ids: bool, vectors: bool) -> None:
        """Take in one record's arrays, of equal shapes."""
        self.records += 1
        if one.dtype == other.dtype and one.tobytes() == other.tobytes():
            self.equal += 1
        left, right = one.astype(np.float64), other.astype(np.float64)
        with np.errstate(invalid="ignore"):  # of equal infinities
            gap = (left != right).astype(np.float64) if ids else np.abs(left - right)
        alike = (left == right) | (np.isnan(left) & np.isnan(right))
        gap = np.where(alike, 0, np.where(np.isnan(gap), np.inf, gap))
        self.largest = max(self.largest, float(gap.max(initial=0)))
        self._total += float(gap.sum())
        self._values += gap.size
        if vectors:
            self._add_cosines(left.reshape(-1, left.shape[-1]), right.reshape(-1, right.shape[-1]))

    def _add_cosines(self, left: np.ndarray, right: np.ndarray) -> None:
        lengths = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
        usual = (lengths > 0) & np.isfinite(lengths)
        cosines = np.einsum("nd,nd->n", left[usual], right[usual]) / lengths[usual]
        if len(cosines):
            self.lowest_cosine = min(self.lowest_cosine, float(cosines.min()))
            self._cosines += float(cosines.sum())
            self._rows += len(cosines)

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        names = ("records", "equal", "largest", "mean", "lowest_cosine", "mean_cosine")
        return {name: getattr(self, name) for name in names}


@dataclass
class Difference:
    """What tells two stores apart.

    only_in_first, only_in_second  keys
    identical     records equal to the last bit in every field that both stores have, their boxes in the same order
    resized       keys whose image size differs
    reshaped      keys whose boxes differ in number, place or order, or whose cells or pixels are other numbers
    boxes         (matched, in the first, in the second): boxes of records whose numbers or places of boxes differ are
                  matched by IoU, best first, from 0.5; their fields are then compared between matched boxes
    """

    spec: list[str] = field(default_factory=list)
    only_in_first: list[str] = field(default_factory=list)
    only_in_second: list[str] = field(default_factory=list)
    records: int = 0
    identical: int = 0
    resized: list[str] = field(default_factory=list)
    reshaped: list[str] = field(default_factory=list)
    boxes: tuple[int, int, int] = (0, 0, 0)
    fields: dict[str, FieldDistance] = field(default_factory=dict)

    @property
    def same(self) -> bool:
        """True where the stores hold the same keys, and every record is identical."""
        return not self.only_in_first and not self.only_in_second and self.identical == self.records


def diff_stores(
    first: FeatureStore, second: FeatureStore, on_record: Callable[[int], None] | None = None
) -> Difference:
    """Compare two stores of one view, record by record; `on_record` is told how many of the first were looked at.

    Raises:
        StoreError: they are of different views or widths, or damaged.
    """
    found, near = _begun(first, second)
    found.only_in_second = sorted(key for key in second if key not in first)
    for done, key in enumerate(first):
        if on_record:
            on_record(done)
        if key not in second:
            found.only_in_first.append(key)
            continue
        _compare(first[key], second[key], found, near)
    found.only_in_first.sort()
    return found


def diff_record(first: FeatureStore, second: FeatureStore, key: str) -> Difference:
    """Compare one record that both stores have.

    Raises:
        KeyError: one has no such record.
        StoreError: as of `diff_stores`.
    """
    found, near = _begun(first, second)
    _compare(first[key], second[key], found, near)
    return found


def _begun(first: FeatureStore, second: FeatureStore) -> tuple[Difference, float]:
    """A difference without records yet, and how far apart boxes that stand in the same order may lie."""
    if (first.spec.view, first.spec.layout.dim) != (second.spec.view, second.spec.layout.dim):
        views = [f"{each.spec.view} of width {each.spec.layout.dim}" for each in (first, second)]
        raise StoreError(f"{first.place.name} holds {views[0]}, {second.place.name} {views[1]}: nothing to compare.")
    differences = spec_differences(first.spec.to_dict(), second.spec.to_dict(), names=("first", "second"))
    return Difference(differences), NEAR[first.spec.layout.box_units]


def _compare(one: Record, other: Record, found: Difference, near: float) -> None:
    found.records += 1
    reshaped = len(found.reshaped)
    same = one.image_size == other.image_size
    if not same:
        found.resized.append(one.key)
    for name, left, right in _pairs(one, other, found, near):
        distance = found.fields.setdefault(name, FieldDistance())
        before = distance.equal
        distance.add(left, right, ids=name.endswith("_ids"), vectors=name in ("features", "whole_image"))
        same = same and distance.equal > before
    found.identical += same and len(found.reshaped) == reshaped


def _pairs(one: Record, other: Record, found: Difference, near: float) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Arrays to compare, by field; boxes that do not stand in the same order are matched first."""
    if not isinstance(one, RegionRecord) or not isinstance(other, RegionRecord):
        if one.features.shape != other.features.shape:
            found.reshaped.append(one.key)
            return
        yield "pixels" if isinstance(one, PixelRecord) else "features", one.features, other.features
        whole = [getattr(each, "whole_image", None) for each in (one, other)]
        if whole[0] is not None and whole[1] is not None:
            yield "whole_image", whole[0], whole[1]
        return
    left, right = _matched(one, other, found, near)
    for name in REGION_FIELDS:
        a, b = getattr(one, name), getattr(other, name)
        if a is None or b is None or a.shape[1:] != b.shape[1:]:
            continue
        yield (name, a, b) if name == "whole_image" else (name, a[left], b[right])


def _matched(one: RegionRecord, other: RegionRecord, found: Difference, near: float) -> tuple[Any, Any]:
    """Rows of both records that show the same box."""
    if len(one.boxes) == len(other.boxes) and np.allclose(one.boxes, other.boxes, atol=near, equal_nan=True):
        left = right = np.arange(len(one.boxes))
    else:
        found.reshaped.append(one.key)
        left, right = match_boxes(one.boxes, other.boxes)
    matched, first, second = found.boxes
    found.boxes = (matched + len(left), first + len(one.boxes), second + len(other.boxes))
    return left, right


def match_boxes(one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pair boxes (N, 4) and (M, 4), x1 y1 x2 y2, each used once: the best IoU first, none below 0.5."""
    corner = np.maximum(one[:, None, :2], other[None, :, :2])
    inner = np.clip(np.minimum(one[:, None, 2:], other[None, :, 2:]) - corner, 0, None).prod(axis=2)
    areas = [(each[:, 2:] - each[:, :2]).prod(axis=1) for each in (one, other)]
    union = areas[0][:, None] + areas[1][None] - inner
    iou = np.divide(inner, union, out=np.zeros_like(inner), where=union > 0)
    left, right = [], []
    for flat in np.argsort(-iou, axis=None, kind="stable"):
        row, column = divmod(int(flat), max(1, len(other)))
        if iou[row, column] < MATCH_IOU:
            break
        if row not in left and column not in right:
            left.append(row)
            right.append(column)
    return np.array(left, np.int64), np.array(right, np.int64)


def open_both(first: str | Path, second: str | Path) -> tuple[FeatureStore, FeatureStore]:
    """Two stores to compare, at the precision of what they store."""
    stores = [FeatureStore(path) for path in (first, second)]
    exact = ["float32" if each.spec.layout.dtype == "uint8" else None for each in stores]
    return FeatureStore(first, exact[0]), FeatureStore(second, exact[1])
