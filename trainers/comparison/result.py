"""What is known of one cell of a comparison: a frozen row, its JSON file, and the typed columns of `results.parquet`.

OUT/cells/<cell>/result.json   one row, written once the cell is finished
OUT/results.parquet            all rows of a comparison, failed cells among them
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from storage.atomic import write_whole

FILE = "result.json"
_CURVE = pa.list_(pa.struct([("step", pa.int64()), ("loss", pa.float64()), ("score", pa.float64())]))


def column(kind: pa.DataType, about: str, default: Any = None) -> Any:
    """A field of `CellResult`, and the column that it becomes."""
    return field(default=default, metadata={"kind": kind, "about": about})


@dataclass(frozen=True)
class CellResult:
    """One row. What was not measured, or does not apply, is None; a failed cell has its `error` and little else."""

    cell: str = column(pa.string(), "hash of all that decides the cell: 16 hex digits; its folder below cells/", "")
    label: str = column(pa.string(), "line of the tables; its cells differ in their seed only", "")
    recipe: str = column(pa.string(), "as of `triptych train --list`", "")
    model: str = column(pa.string(), "the model's name", "")
    task: str = column(pa.string(), "what is learnt: vqa, nlvr2, retrieval, ...", "")
    data: str = column(pa.string(), "data sets, joined by +", "")
    visual: str = column(pa.string(), "where images come from: store (cached features) or pixels", "")
    view: str = column(pa.string(), "what the model sees: regions, grid, patches or pixels", "")
    seed: int = column(pa.int64(), "of all chance", 0)
    tiny: bool = column(pa.bool_(), "whether it is the recipe's tiny twin, with random weights", False)
    steps: int = column(pa.int64(), "updates", 0)
    batch_size: int = column(pa.int64(), "examples an update", 0)
    before: str | None = column(
        pa.string(), "the cell whose weights it starts from; none: random ones, or the recipe's"
    )
    metric: str | None = column(pa.string(), "name of the score")
    score: float | None = column(pa.float64(), "on the validation split at the end of training, percent")
    blind: float | None = column(pa.float64(), "the same score without looking at images, percent")
    scores: Mapping[str, float] = column(pa.map_(pa.string(), pa.float64()), "all scores of the split, by name")
    examples: int | None = column(pa.int64(), "examples that were scored")
    parameters: int | None = column(pa.int64(), "of the model that was trained")
    extractor_parameters: int | None = column(pa.int64(), "of the network that made its cached features")
    images: int | None = column(pa.int64(), "images whose features are cached, for it or for what it starts from")
    extraction_ms: float | None = column(pa.float64(), "an image: read, decode, extract, write; 0 without a cache")
    extraction_hours: float | None = column(pa.float64(), "of one device for all these images")
    feature_bytes: int | None = column(pa.int64(), "of the cached features on disk")
    pretraining_hours: float | None = column(pa.float64(), "of one device; 0 where nothing was pre-trained here")
    step_ms: float | None = column(pa.float64(), "an update, waiting for data included: the median over the run")
    training_hours: float | None = column(pa.float64(), "of one device, for all updates")
    cache_visual_ms: float | None = column(pa.float64(), "inference of one example from the cache: visual embedding")
    cache_transformer_ms: float | None = column(pa.float64(), "the same: transformer")
    cache_heads_ms: float | None = column(pa.float64(), "the same: poolers and heads")
    cache_rest_ms: float | None = column(pa.float64(), "the same: cutting the text into tokens, laying them out")
    pixels_visual_ms: float | None = column(pa.float64(), "inference of one example from its image file: as above")
    pixels_transformer_ms: float | None = column(pa.float64(), "the same: transformer")
    pixels_heads_ms: float | None = column(pa.float64(), "the same: poolers and heads")
    pixels_rest_ms: float | None = column(pa.float64(), "the same: cutting the text into tokens, laying them out")
    peak_bytes: int | None = column(pa.int64(), "of memory at most in training: of a GPU, or what the process grew by")
    device: str = column(pa.string(), "cpu or cuda", "")
    hardware: str | None = column(pa.string(), "processor, threads, memory, GPU, version of torch")
    date: str | None = column(pa.string(), "day on which the cell ended, UTC")
    specs: Sequence[str] = column(pa.list_(pa.string()), "ids of the specs of its cached features", ())
    curve: Sequence[Mapping[str, Any]] = column(_CURVE, "loss and score after so many updates", ())
    error: str | None = column(pa.string(), "why it failed, in one line; none: it is finished")

    @property
    def called(self) -> str:
        """What tells it from all others of a comparison, in words; a label has several tasks."""
        return f"{self.label}, seed {self.seed}, {self.task}"

    @property
    def cost_hours(self) -> float | None:
        """Extraction, pre-training and training together, in hours of one device."""
        parts = (self.extraction_hours, self.pretraining_hours, self.training_hours)
        return None if None in parts else sum(each for each in parts if each is not None)

    def latency(self, source: str) -> dict[str, float] | None:
        """Milliseconds by part, from "cache" or from "pixels"; None where it was not measured."""
        found = {part: getattr(self, f"{source}_{part}_ms") for part in PARTS}
        return None if None in found.values() else found


PARTS = ("visual", "transformer", "heads", "rest")
SCHEMA = pa.schema(
    pa.field(each.name, each.metadata["kind"], metadata={"about": each.metadata["about"]})
    for each in fields(CellResult)
)


def save(result: CellResult, folder: Path) -> None:
    """Write a finished cell's row; it is there whole, or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / FILE, json.dumps(asdict(result), indent=1, allow_nan=False).encode())


def saved(folder: Path) -> CellResult | None:
    """The row of a finished cell; None where it is not finished.

    A file that holds no row is set aside, which standard error tells, and the cell counts as not finished.
    """
    path = folder / FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        result = CellResult(**content)
        pa.Table.from_pylist([_row(result)], SCHEMA)  # numbers are numbers
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, pa.ArrowException) as error:
        aside = path.with_suffix(".damaged")
        path.replace(aside)
        found = str(error).splitlines()[0]
        print(f"{path} holds no result ({found}): it is {aside.name} now, and is measured anew", file=sys.stderr)
        return None
    return result


def _row(result: CellResult) -> dict[str, Any]:
    return {**asdict(result), "scores": list((result.scores or {}).items())}


def write_table(results: Sequence[CellResult], path: Path) -> None:
    """All rows as Parquet."""
    draft = path.with_name(f".{path.name}.partial")
    pq.write_table(pa.Table.from_pylist([_row(each) for each in results], SCHEMA), draft)
    draft.replace(path)
