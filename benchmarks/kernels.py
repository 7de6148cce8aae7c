"""What a GPU does in one batch of an extraction, kernel by kernel, and how fast batches of one size and of many are.

    python -m benchmarks.kernels --models x152 butd-r101 --photos ../shared/data/photos

Protocol. Random weights (seed 0), photographs at 600/1000, in memory; `--images` of them in batches of like sizes, as a
job chooses them, from one thread: once to let the library choose its kernels for the shapes ("first pass"), then once
more ("again"). "one size" repeats the photographs of the commonest size. Then torch.profiler looks at one batch of one
size: milliseconds and calls by kernel. On a CPU it lists operators instead.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.extract import MODELS, PHOTOS
from benchmarks.machine import asked, device, hardware, jpegs, positive, table, wait, write_results
from extractors import GridConfig, RegionConfig, make_extractor, read_image
from extractors.base import Extractor, Prepared
from pipeline.batching import like_sized

SHOWN = 15  # kernels


def in_batches(extractor: Extractor, images: Sequence[Prepared], batch: int) -> float:
    """Seconds an image."""
    waiting, began = list(images), time.perf_counter()
    while waiting:
        chosen, waiting = like_sized(waiting, batch, _size)
        extractor.extract(chosen)
    wait(extractor.device)
    return (time.perf_counter() - began) / len(images)


def _size(image: Prepared) -> tuple[int, int]:
    return image.pixels.shape[1], image.pixels.shape[2]


def kernels(extractor: Extractor, batch: Sequence[Prepared]) -> list[tuple[str, float, int]]:
    """Name, milliseconds and calls of what ran, the longest first."""
    on_gpu = extractor.device.type == "cuda"
    extractor.extract(batch)
    wait(extractor.device)
    with profile(
        activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA] if on_gpu else [ProfilerActivity.CPU]
    ) as seen:
        extractor.extract(batch)
        wait(extractor.device)
    events: list[Any] = [each for each in seen.key_averages() if (each.device_type.name == "CUDA") == on_gpu]
    spent = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    found = [(each.key, getattr(each, spent) / 1e3, each.count) for each in events]
    return sorted(found, key=lambda each: -each[1])


def bench(model: str, args: argparse.Namespace) -> dict[str, Any]:
    kind: type[Any] = RegionConfig if model == "butd-r101" else GridConfig
    same = {"weights": "random:0", "dtype": args.dtype, "device": args.device, "width_divisor": args.width_divisor}
    extractor = make_extractor(kind(model=model, **same))
    files = islice(cycle(sorted(args.photos.glob("*.jpg"))), args.images)
    many = [extractor.prepare(str(row), read_image(str(file))) for row, file in enumerate(files)]
    commonest = Counter(map(_size, many)).most_common(1)[0][0]
    one = list(islice(cycle([each for each in many if _size(each) == commonest]), args.images))
    rates = {}
    for name, images in (("one size", one), ("many sizes", many)):
        for part in ("first pass", "again"):
            rates[f"{name}, {part}"] = 1 / in_batches(extractor, images, args.batch)
    listed = kernels(extractor, one[: args.batch])
    total = sum(each[1] for each in listed)
    return {"model": model, "images_per_second": rates, "batch_ms": total, "kernels": listed}


def report(facts: Sequence[dict[str, Any]], args: argparse.Namespace) -> str:
    parts = [
        f"# Batches kernel by kernel, {time.strftime('%Y-%m-%d')}",
        f"{hardware()}, {args.dtype}, batches of {args.batch}, {args.images} images. {asked()}",
    ]
    for each in facts:
        rates = "; ".join(f"{name} {rate:.0f}" for name, rate in each["images_per_second"].items())
        calls = sum(count for *_, count in each["kernels"])
        parts.append(f"## {each['model']}\n\nImages a second, one thread: {rates}.")
        parts.append(f"One batch: {each['batch_ms']:.1f} ms in {calls} calls.")
        rows = [[f"`{name[:90]}`", f"{ms:.2f}", str(count)] for name, ms, count in each["kernels"][:SHOWN]]
        parts.append(table(["kernel", "ms", "calls"], rows))
    return "\n\n".join(parts) + "\n"


def main() -> None:
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["x152", "butd-r101"])
    parser.add_argument("--dtype", default="bfloat16" if gpu else "float32")
    parser.add_argument("--batch", type=positive, default=16)
    parser.add_argument("--images", type=positive, default=160)
    parser.add_argument("--device", type=device, default="cuda" if gpu else "cpu")
    parser.add_argument("--width-divisor", type=positive, default=1, help="above 1: to try this script out")
    parser.add_argument("--photos", type=jpegs, default=next(each for each in PHOTOS if each.is_dir()))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    facts = [bench(model, args) for model in args.models]
    print(report(facts, args))
    write_results(args.out, "kernels", report(facts, args), facts)


if __name__ == "__main__":
    main()
