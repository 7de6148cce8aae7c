"""What each stored number type costs in accuracy, and what it saves on disk, on features that networks really made.

    uv run python -m benchmarks.codecs --photos ../shared/data/photos --butd ../shared/data/features/butd_lxmert_tsv \\
        --out benchmarks/results

Protocol. Two sets: the published Caffe features of six COCO photographs (36 boxes each, trained weights, float32), and
region and grid features of photographs extracted here in float32 at full width (random weights, whose activations are
spread otherwise than trained ones'). Each store is converted to every type, `triptych convert --dtype`, and compared
with the float32 one: largest and mean absolute difference, cosine of rows; the row error is the length of a row's
difference over the row's. Size is of the shards. linear int8 is what a plain scale a row would do; no store is written
with it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import asked, hardware, table, write_results
from storage import open_store
from storage.convert import convert, shard_bytes
from storage.interop.transfer import import_store

CANDIDATES = {
    "float32": ("arrow", "float32"),
    "float32, zstd": ("arrow-zstd", "float32"),
    "float16": ("arrow", "float16"),
    "float16, zstd": ("arrow-zstd", "float16"),
    "bfloat16": ("arrow", "bfloat16"),
    "uint8, square-root scale": ("arrow", "uint8"),
    "uint8, square-root scale, zstd": ("arrow-zstd", "uint8"),
}


def rows_of(path: Path, dtype: str | None = None) -> np.ndarray:
    """All feature rows of a store, in its order of keys, as float32 (N, D)."""
    store = open_store(path, dtype)
    parts = [store[key].features for key in sorted(store)]
    return np.concatenate([part.reshape(-1, part.shape[-1]).astype(np.float32) for part in parts])


def errors(exact: np.ndarray, found: np.ndarray) -> dict[str, float]:
    """How far rows (N, D) are from the exact ones."""
    exact, found = exact.astype(np.float64), found.astype(np.float64)
    gap = np.abs(exact - found)
    lengths = np.linalg.norm(exact, axis=1)
    kept = lengths > 0
    product = lengths * np.linalg.norm(found, axis=1)
    cosine = np.einsum("nd,nd->n", exact, found)[kept] / product[kept]
    small = (exact > 0) & (exact < 0.05)
    return {
        "max": float(gap.max()),
        "mean": float(gap.mean()),
        "relative": float((np.linalg.norm(exact - found, axis=1)[kept] / lengths[kept]).mean()),
        "lowest_cosine": float(cosine.min()),
        "mean_cosine_gap": float(1 - cosine.mean()),
        "small_values_lost": float((found[small] == 0).mean()) if small.any() else 0.0,
    }


def linear_int8(exact: np.ndarray) -> np.ndarray:
    """Rows through a symmetric int8 scale a row."""
    scale = np.maximum(np.abs(exact).max(axis=1, keepdims=True), 1e-30) / 127
    return np.rint(exact / scale) * scale


def measure(source: Path, work: Path, name: str) -> list[dict[str, Any]]:
    """Convert a float32 store to every type; sizes and errors."""
    exact, found = rows_of(source), []
    for label, (format, dtype) in CANDIDATES.items():
        out = work / f"{name}-{label.replace(', ', '-').replace(' ', '-')}"
        convert(source, out, format, dtype)
        share = shard_bytes(open_store(out)) / shard_bytes(open_store(source))
        found.append({"set": name, "stored": label, "size": share, **errors(exact, rows_of(out, "float32"))})
    found.append({"set": name, "stored": "linear int8 (not offered)", **errors(exact, linear_int8(exact))})
    return found


def extract(view: str, photos: Path, out: Path, count: int) -> Path:
    """A store of a few photographs, float32, at full width."""
    command = [sys.executable, "-m", "workflows.cli", "extract", view, "--images", str(photos), "--out", str(out)]
    flags = ["--weights", "random:0", "--store-dtype", "float32", "--limit", str(count), "--device", "cpu"]
    subprocess.run([*command, *flags], check=True)
    return out


def report(rows: list[dict[str, Any]]) -> str:
    """The results as Markdown."""
    header = [
        "features",
        "stored as",
        "size",
        "max error",
        "mean error",
        "row error",
        "lowest cosine",
        "1 - mean cosine",
    ]
    header.append("values below 0.05 that become 0")
    cells = []
    for row in rows:
        size = f"{row['size']:.3f}" if "size" in row else ""
        gaps = [f"{row[name]:.2g}" for name in ("max", "mean", "relative")]
        cosines = [f"{row['lowest_cosine']:.6f}", f"{max(0, row['mean_cosine_gap']):.1e}"]
        cells.append([row["set"], row["stored"], size, *gaps, *cosines, f"{row['small_values_lost']:.1%}"])
    title = f"# Number types that features are stored in, {time.strftime('%Y-%m-%d')}"
    command = f"{hardware()}. {asked()}"
    return "\n\n".join([title, command, table(header, cells)]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--butd", type=Path, required=True)
    parser.add_argument("--count", type=int, default=6)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        import_store(args.butd / "train2014_obj36.tsv", work / "butd", "lxmert-tsv", "float32")
        rows += measure(work / "butd", work, "BUTD (Caffe), published")
        rows += measure(extract("regions", args.photos, work / "regions", args.count), work, "regions, random weights")
        rows += measure(extract("grid", args.photos, work / "grid", args.count), work, "grid x101, random weights")
    text = report(rows)
    write_results(args.out, "codecs", text, rows)
    print(text)


if __name__ == "__main__":
    main()
