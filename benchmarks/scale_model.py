"""What images cost at any number: bytes, shards, index, requests, planning and GPU-hours, from what was measured.

    uv run python -m benchmarks.scale_model

Nothing runs here: constants come from the newest results of `plan_scale` and `store_scale`, and from the sizes that
`pipeline.plan` cuts units by. GPU-hours are for images/s a GPU that you give (--images-per-second), since they are the
one thing that depends on your hardware. Prints the tables of docs/scale.md.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.machine import table
from pipeline.plan import SHARD_BYTES, bytes_per_image
from storage.spec import FeatureLayout, Spec

RESULTS = Path(__file__).parent / "results"
COUNTS = {"100 thousand": 10**5, "10 million": 10**7, "100 million": 10**8, "1 billion": 10**9, "5 billion": 5 * 10**9}
PHOTOGRAPH = {"shorter": 600, "longer": 1000}
VIEWS = {
    "regions, 10-100 boxes": Spec("regions", FeatureLayout(2048), selection={"rule": "10-100"}),
    "grid, 600 x 1000": Spec("grid", FeatureLayout(2048), preprocess=PHOTOGRAPH),
    "patches, 14 x 14 of 768": Spec("patches", FeatureLayout(768), {"stride": 16}, {"size": 224}),
    "pixels, 384 x 640": Spec("pixels", FeatureLayout(3, "bytes"), preprocess={"shorter": 384, "longer": 640}),
}


def measured(what: str) -> list[dict[str, Any]]:
    """The facts of a benchmark's results, the newest last."""
    return [fact for path in sorted(RESULTS.glob(f"{what}_*.json")) for fact in json.loads(path.read_text())["facts"]]


def constants() -> dict[str, float]:
    """Measured, an image each: seconds of CPU to plan and to ask, bytes of index and of temporary disk."""
    planned = {row["store"]: row for row in measured("plan_scale")}
    empty, partly, index = planned["empty"], planned["40 % done"], measured("store_scale")[-1]
    return {
        "plan_s": sum(cpu for _, cpu in empty["seconds"]) / empty["images"],
        "ask_s": partly["seconds"][1][1] / partly["images"],
        "disk_bytes": empty["disk_mb"] * 1e6 / empty["images"],
        "index_bytes": index["index_mb"] * 1e6 / index["records"],
    }


def sizes(view: str) -> list[str]:
    """A row for each number of images: terabytes, shards, requests."""
    spec = VIEWS[view]
    each = bytes_per_image(spec)
    per_unit = max(1, SHARD_BYTES // each)
    cells = []
    for count in COUNTS.values():
        units = -(-count // per_unit)
        cells.append(f"{_bytes(count * each)} in {_short(units)}")
    return [view, _bytes(each), f"{per_unit:,}", *cells]


def _bytes(count: float) -> str:
    for unit in ("B", "KB", "MB", "GB", "TB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} PB"


def _short(count: int) -> str:
    return f"{count:,}" if count < 10**6 else f"{count / 10**6:.3g} M"


def _clock(seconds: float) -> str:
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.2g} s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images-per-second", type=float, default=10.0, help="of one GPU")
    rate = parser.parse_args().images_per_second
    known, counts = constants(), list(COUNTS.values())
    print(table(["view", "an image", "images a shard", *COUNTS], [sizes(view) for view in VIEWS]))
    print()
    rows = [
        ["planning an empty store, one core", *(_clock(known["plan_s"] * count) for count in counts)],
        ["asking a store that is 40 % done", *(_clock(known["ask_s"] * count) for count in counts)],
        ["temporary disk while planning", *(_bytes(known["disk_bytes"] * count) for count in counts)],
        ["folded index of the store", *(_bytes(known["index_bytes"] * count) for count in counts)],
        [f"GPU-hours at {rate:g} images/s a GPU", *(f"{count / rate / 3600:,.3g}" for count in counts)],
        [f"days on 64 GPUs at {rate:g} images/s", *(f"{count / rate / 86400 / 64:.3g}" for count in counts)],
    ]
    print(table(["", *COUNTS], rows))


if __name__ == "__main__":
    main()
