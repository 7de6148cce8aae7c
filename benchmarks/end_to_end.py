"""How fast a job is from image files to committed shards, and how much of that time the GPU is busy.

    uv run python -m benchmarks.end_to_end   # X-152 and R101-C4 in bfloat16 on a GPU
    uv run python -m benchmarks.end_to_end --models r50 --dtypes float32 --images 40 --width-divisor 8   # a trial

Protocol. The photographs of --photos again and again as files of their own, as many as --images; "one size": the same
ones cut and resized to 640 x 480 before. One job of the local engine a row, weights random (seed 0), resized to
600/1000, `--batch-size auto`, `--decode-workers` as given or auto, units as a job chooses them. The clock runs from
when a fifth of the images are done to when nine tenths are: before, the GPU picks its kernels and batches grow; after,
nothing overlaps the last commit. "GPU busy" is NVML's utilisation, the share of time in which a kernel ran, every tenth
of a second in that time. Megapixels are those that the network sees. "Launch" is the time until a batch's operators are
all given to the GPU, on average: where it is as long as a batch takes, the thread that does so is the limit. The store
is removed after each row.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image, ImageOps

from benchmarks.extract import PHOTOS
from benchmarks.machine import asked, device, hardware, jpegs, positive, table, write_results
from extractors import ExtractorConfig, GridConfig, RegionConfig, trunk
from extractors.images import resized_shape
from pipeline.config import EngineConfig, ExtractJob
from pipeline.doctor import write_rate
from pipeline.job import JobStart, run_job
from pipeline.sources import SourceConfig
from pipeline.unit import UnitReport

SIZE = (640, 480)
STEADY = (0.2, 0.9)  # shares of the images that are done


class Launches:
    """Times how long batches take to be given to the GPU, first times of their shapes included."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.images = 0

    @contextmanager
    def timed(self) -> Iterator[None]:
        begin = trunk._begin

        def timed(family: Any, batch: Any, stacked: Any) -> Any:
            began = time.perf_counter()
            found = begin(family, batch, stacked)
            self.seconds.append(time.perf_counter() - began)
            self.images += len(batch)
            return found

        with patch.object(trunk, "_begin", timed):
            yield

    def facts(self) -> dict[str, float]:
        return {
            "images_a_batch": self.images / len(self.seconds),
            "launch_ms": 1e3 * float(np.mean(self.seconds)),
            "launch_ms_median": 1e3 * float(np.median(self.seconds)),
        }


class Clock:
    """Watches a job: seconds at which how many images were done, and how busy the GPU was meanwhile."""

    def __init__(self, images: int) -> None:
        self.images = images
        self.done = 0
        self.seen: list[tuple[float, int]] = []
        self.busy: list[tuple[float, float]] = []
        self.total = UnitReport()

    def started(self, start: JobStart) -> None: ...

    def advanced(self, images: int, failed: int) -> None:
        self.done += images
        self.seen.append((time.perf_counter(), self.done))

    def reported(self, total: UnitReport) -> None:
        self.total = total

    def stopped(self) -> None: ...

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Ask the GPU how busy it is, where there is one."""
        ended = threading.Event()
        threads = [threading.Thread(target=self._ask, args=(ended,))] if torch.cuda.is_available() else []
        for each in threads:
            each.start()
        try:
            yield
        finally:
            ended.set()
            for each in threads:
                each.join()

    def _ask(self, ended: threading.Event) -> None:
        while not ended.wait(0.1):
            self.busy.append((time.perf_counter(), torch.cuda.utilization()))

    def facts(self) -> dict[str, Any]:
        """Images a second and the share of time that the GPU was busy, once warm."""
        steady = [each for each in self.seen if STEADY[0] <= each[1] / self.images <= STEADY[1]]
        (began, first), (ended, last) = steady[0], steady[-1]
        busy = [share for at, share in self.busy if began <= at <= ended]
        return {
            "images_per_second": (last - first) / (ended - began),
            "gpu_busy": float(np.mean(busy)) / 100 if busy else None,
            "stages": self.total.seconds,
        }


def make_files(photos: Path, out: Path, images: int, one_size: bool) -> float:
    """Fill a folder; gives the megapixels that the network sees of an image, on average."""
    out.mkdir()
    originals = sorted(photos.glob("*.jpg"))
    if one_size:
        changed = out.parent / "resized"
        changed.mkdir()
        for each in originals:
            ImageOps.fit(Image.open(each).convert("RGB"), SIZE).save(changed / each.name, quality=90)
        originals = sorted(changed.glob("*.jpg"))
    sizes = {}
    for each in originals:
        with Image.open(each) as image:
            sizes[each] = float(np.prod(resized_shape(image.height, image.width, 600, 1000))) / 1e6
    chosen = list(islice(cycle(originals), images))
    for row, each in enumerate(chosen):
        shutil.copy(each, out / f"{row:06d}.jpg")
    return float(np.mean([sizes[each] for each in chosen]))


def config_of(model: str, dtype: str, args: argparse.Namespace) -> ExtractorConfig:
    kind: type[Any] = RegionConfig if model == "butd-r101" else GridConfig
    return kind(model=model, dtype=dtype, weights="random:0", device=args.device, width_divisor=args.width_divisor)


def bench(model: str, dtype: str, one_size: bool, args: argparse.Namespace) -> dict[str, Any]:
    """One job."""
    with tempfile.TemporaryDirectory(dir=args.work, prefix="end-to-end-") as name:
        folder = Path(name)
        pixels = make_files(args.photos, folder / "images", args.images, one_size)
        engine = EngineConfig(str(folder / "store"), decode_workers=args.decode_workers or "auto")
        clock, launches, began = Clock(args.images), Launches(), time.perf_counter()
        job = ExtractJob(SourceConfig(str(folder / "images")), config_of(model, dtype, args), engine)
        with clock.watching(), launches.timed():
            result = run_job(job, clock)
        whole = time.perf_counter() - began
        assert result.status == 0, result
        size = sum(each.stat().st_size for each in (folder / "store").rglob("*") if each.is_file())
    found = {**clock.facts(), **launches.facts()}
    return {
        "model": model, "dtype": dtype, "sizes": "one" if one_size else "many", **found, "whole_seconds": whole,
        "megapixels_per_second": pixels * found["images_per_second"], "bytes_an_image": size / args.images,
        "gpu_gib": torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0,
    }  # fmt: skip


def report(facts: list[dict[str, Any]], args: argparse.Namespace, disk: float) -> str:
    cells = [
        [
            each["model"], each["dtype"], each["sizes"], f"{each['images_per_second']:.1f}",
            f"{each['megapixels_per_second']:.0f}", "" if each["gpu_busy"] is None else f"{each['gpu_busy']:.0%}",
            f"{each['bytes_an_image'] / 1e6:.2f} MB", f"{each['gpu_gib']:.1f} GiB", f"{each['images_a_batch']:.1f}",
            f"{each['launch_ms']:.1f} ms, median {each['launch_ms_median']:.1f}", f"{each['whole_seconds']:.1f} s",
            ", ".join(f"{name} {seconds:.1f}" for name, seconds in each["stages"].items()),
        ]
        for each in facts
    ]  # fmt: skip
    header = ["model", "dtype", "sizes", "images/s", "megapixels/s", "GPU busy", "an image in the store", "GPU memory",
              "images a batch", "launch", "whole job", "seconds by stage, all threads"]  # fmt: skip
    return (
        f"# From files to committed shards, {time.strftime('%Y-%m-%d')}\n\n"
        f"{hardware()}, {args.images} images a row, a disk that takes {disk / 1e6:.0f} MB/s. "
        f"{asked()}\n\n" + table(header, cells) + "\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["x152", "butd-r101"])
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16"])
    parser.add_argument("--sizes", nargs="+", choices=["many", "one"], default=["many", "one"])
    parser.add_argument("--images", type=positive, default=4000)
    parser.add_argument("--decode-workers", type=positive)
    parser.add_argument("--device", type=device, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--width-divisor", type=positive, default=1, help="above 1: to try this script out")
    parser.add_argument("--photos", type=jpegs, default=next(each for each in PHOTOS if each.is_dir()))
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()), help="disk for images and store")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    disk, facts = write_rate(args.work), []
    for model in args.models:
        for dtype in args.dtypes:
            for sizes in args.sizes:
                facts.append(bench(model, dtype, sizes == "one", args))
                print(report(facts, args, disk), flush=True)
    write_results(args.out, "end_to_end", report(facts, args, disk), facts)


if __name__ == "__main__":
    main()
