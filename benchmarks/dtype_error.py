"""How far features in lower number types are from those in float32, on photographs.

    uv run python -m benchmarks.dtype_error --images 2

Protocol. Photographs of ../shared/data/photos, or the four of workflows/photos, at 600/1000; weights are random (seed
0), full width, scaled so that activations stay near 1 at any depth: trained weights, which have other distributions,
will differ. `scenes-grid` is trained: the small detector that comes along, on 100 generated scenes of a seed that it
has not seen. Features are kept in float32. For each model and type: largest and mean absolute difference over the
largest float32 value, lowest and mean cosine of rows (a grid cell, a region). Regions are matched by place: a box of
float32 has moved if the other type keeps none within a pixel of it, and is gone if it keeps none with an overlap (IoU)
of 0.7; features of those that have not moved are compared, and whether they are still of the same class.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.extract import MODELS, make, photos
from benchmarks.machine import asked, device, hardware, positive, table, write_results
from extractors import Extractor, RegionConfig, make_extractor, read_image
from extractors.configs import SHIPPED, SHIPPED_DETECTOR, SHIPPED_SIZE
from storage import RegionRecord
from storage.records import Record
from trainers.metrics import box_iou
from trainers.scenes.making import make_scenes
from workflows.scenes import BUNDLED

SCENES, SEED, SAME = 100, 7, 0.7
MERGES: dict[str, Any] = {
    "max": max, "mean": np.mean, "lowest": min, "cosine": np.mean,
    "moved": sum, "gone": sum, "renamed": sum, "rows": sum,
}  # fmt: skip


def compare(exact: Record, found: Record) -> dict[str, Any]:
    """Rows of two records of one image, and what of the first one is missing in the second."""
    wanted, other = (each.features.reshape(-1, each.features.shape[-1]) for each in (exact, found))  # type: ignore[union-attr]
    moved = gone = renamed = 0
    if isinstance(exact, RegionRecord) and isinstance(found, RegionRecord):
        gaps = np.abs(exact.boxes[:, None] - found.boxes[None]).max(axis=2)
        rows, kept = gaps.argmin(axis=1), gaps.min(axis=1) <= 1
        wanted, other, moved = wanted[kept], other[rows[kept]], int((~kept).sum())
        gone = sum(box_iou(box[None], found.boxes).max() < SAME for box in exact.boxes)
        renamed = int((exact.class_ids[kept] != found.class_ids[rows[kept]]).sum())
    wanted, other = wanted.astype(np.float64), other.astype(np.float64)
    gap, scale = np.abs(wanted - other), np.abs(wanted).max()
    lengths = np.linalg.norm(wanted, axis=1) * np.linalg.norm(other, axis=1)
    cosine = (wanted * other).sum(axis=1) / np.maximum(lengths, 1e-30)
    return {
        "max": gap.max() / scale, "mean": gap.mean() / scale, "lowest": cosine.min(), "cosine": cosine.mean(),
        "moved": moved, "gone": gone, "renamed": renamed, "rows": len(wanted) + moved,
    }  # fmt: skip


def small(weights: str, dtype: str, device: str, store_dtype: str) -> Extractor:
    """The detector that comes along."""
    shorter, longer = SHIPPED_SIZE
    same: dict[str, Any] = {"dtype": dtype, "device": device, "store_dtype": store_dtype}
    return make_extractor(RegionConfig(model=SHIPPED_DETECTOR, weights=weights, shorter=shorter, longer=longer, **same))


def scenes() -> Iterator[np.ndarray]:
    """Pictures that it has not seen."""
    with tempfile.TemporaryDirectory() as folder:
        make_scenes(Path(folder), SCENES, SEED, BUNDLED, 1)
        for file in sorted(Path(folder, "images/coco").rglob("*.jpg")):
            yield read_image(str(file))


def measure(model: str, dtypes: Sequence[str], device: str, count: int) -> list[dict[str, Any]]:
    """A row a number type."""
    trained = model == SHIPPED
    made = {dtype: (small if trained else make)(model, dtype, device, "float32") for dtype in ("float32", *dtypes)}
    pictures = scenes() if trained else (read_image(str(file)) for file in photos(count))
    images = [made["float32"].prepare(str(row), picture) for row, picture in enumerate(pictures)]
    records = {dtype: each.extract(images) for dtype, each in made.items()}
    rows = []
    for dtype in dtypes:
        pairs = zip(records["float32"], records[dtype], strict=True)
        of_images = [compare(*pair) for pair in pairs]  # type: ignore[arg-type]
        row: dict[str, Any] = {"model": model, "dtype": dtype}
        for name, merge in MERGES.items():
            row[name] = float(merge([each[name] for each in of_images]))
        rows.append(row)
    return rows


def boxes(row: dict[str, Any]) -> list[str]:
    if row["model"] not in ("butd-r101", SHIPPED):
        return ["", "", ""]
    return [f"{row['moved']:.0f} of {row['rows']:,.0f}", f"{row['gone']:.0f}", f"{row['renamed']:.0f}"]


def report(rows: Sequence[dict[str, Any]], count: int) -> str:
    """The results as Markdown."""
    cells = [
        [
            row["model"], row["dtype"], f"{row['max']:.2g}", f"{row['mean']:.2g}", f"{row['lowest']:.5f}",
            f"{row['cosine']:.6f}", *boxes(row),
        ]
        for row in rows
    ]  # fmt: skip
    header = [
        "model",
        "dtype",
        "max error",
        "mean error",
        "lowest cosine",
        "mean cosine",
        "boxes moved",
        "gone",
        "of another class",
    ]
    title = f"# Number types that networks compute in, {time.strftime('%Y-%m-%d')}"
    seen = f"{count} photographs" + f"; {SHIPPED}: {SCENES} scenes" * (SHIPPED in [row["model"] for row in rows])
    return "\n\n".join([title, f"{hardware()}, {seen}. {asked()}", table(header, cells)]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    gpu = torch.cuda.is_available()
    parser.add_argument("--device", type=device, default="cuda" if gpu else "cpu")
    parser.add_argument("--models", nargs="+", choices=[*MODELS, SHIPPED], default=[*MODELS, SHIPPED])
    parser.add_argument("--images", type=positive, default=32 if gpu else 2)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for model in args.models:
        dtypes = ["bfloat16"] + ["float16", "tf32"] * gpu + ["bfloat16-heads"] * (model == "butd-r101")
        rows += measure(model, dtypes, args.device, args.images)
        print(report(rows, args.images), flush=True)
    write_results(args.out, "dtype_error", report(rows, args.images), rows)


if __name__ == "__main__":
    main()
