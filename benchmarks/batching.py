"""What batches of photographs of many sizes are like on a GPU, which is not needed: how full, and how much is padding.

    uv run python -m benchmarks.batching

Protocol. The sizes of --photos at 600/1000, again and again, --images of them, cut into units of work that run alone:
129 images are a unit of X-152's grids. Batches are chosen as a worker chooses them, at most LARGEST images of
LOOK_AHEAD times as many. The row with all images in a unit is what units of any size have on a GPU, where one takes
along what the one before left over. Pixels are those of the padded and filled batch over those of the images in it;
shapes are the different ones of batches, each of which a GPU's library plans anew.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.extract import PHOTOS
from benchmarks.machine import hardware, table, write_results
from extractors.images import resized_shape
from extractors.ragged import Size, common_size, padded_count
from pipeline.batching import LARGEST, LOOK_AHEAD, like_sized


def sizes_of(photos: Path, count: int) -> list[Size]:
    found = []
    for file in sorted(photos.glob("*.jpg")):
        with Image.open(file) as image:
            found.append(resized_shape(image.height, image.width, 600, 1000))
    return list(islice(cycle(found), count))


def batches(unit: list[Size]) -> Iterator[list[Size]]:
    """A unit's batches, chosen as `Worker` does."""
    waiting: list[Size] = []
    for size in unit:
        waiting.append(size)
        if len(waiting) >= LOOK_AHEAD * LARGEST:
            batch, waiting = like_sized(waiting, LARGEST, lambda each: each)
            yield batch
    while waiting:
        batch, waiting = like_sized(waiting, LARGEST, lambda each: each)
        yield batch


def measure(sizes: list[Size], per_unit: int) -> dict[str, Any]:
    found = [batch for at in range(0, len(sizes), per_unit) for batch in batches(sizes[at : at + per_unit])]
    shapes = Counter((padded_count(len(batch)), *common_size(batch)) for batch in found)
    padded = sum(count * images * height * width for (images, height, width), count in shapes.items())
    pixels = sum(height * width for height, width in sizes)
    return {"unit": per_unit, "batches": len(found), "images": len(sizes) / len(found), "pixels": padded / pixels,
            "shapes": len(shapes)}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, default=next(each for each in PHOTOS if each.is_dir()))
    parser.add_argument("--images", type=int, default=6000)
    parser.add_argument("--units", type=int, nargs="+", default=[129, 6000])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    sizes = sizes_of(args.photos, args.images)
    facts = [measure(sizes, per_unit) for per_unit in args.units]
    cells = [
        [str(each["unit"]), str(each["batches"]), f"{each['images']:.1f}", f"{each['pixels']:.3f}", str(each["shapes"])]
        for each in facts
    ]
    report = (
        f"# Batches of photographs of many sizes, {time.strftime('%Y-%m-%d')}\n\n{hardware()}, {args.images:,} images. "
        "Command: `uv run python -m benchmarks.batching`; its docstring is the protocol.\n\n"
        + table(["images a unit", "batches", "images a batch", "pixels", "shapes"], cells)
        + "\n"
    )
    print(report)
    write_results(args.out, "batching", report, facts)


if __name__ == "__main__":
    main()
