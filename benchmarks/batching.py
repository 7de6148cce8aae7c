"""How full batches of photographs are on a GPU, and how busy it is kept, by a stand-in that only takes its time.

    uv run python -m benchmarks.batching

Protocol. The sizes of --photos at 600/1000, or 640 x 480 for all, again and again, --images of them in units of --unit,
go through the feeder of the local engine as on a GPU, LARGEST images a batch. Images take their time to be loaded, as
LOADERS threads would, --load milliseconds each. As in the engine, each batch has a thread of a few, which lays it out
for --lay milliseconds, waits for the device, and makes records for --records; one thread gives the device its batches,
for --launch milliseconds each and --shape more where a batch's shape is new, which a GPU's library plans; the device
has one batch at a time, --nanoseconds for each pixel of it with its padding, as an H200 needs for X-152 in bfloat16. A
unit takes --commit seconds to be committed, one after the other. "Busy" is the device's share of the time from when a
fifth of the images are done to when nine tenths are. Pixels are those of padded and filled batches over those of the
images in them, and shapes their different ones. Left out is that threads keep one another from running, and disks.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image as Photo

from benchmarks.end_to_end import SIZE, STEADY
from benchmarks.extract import PHOTOS
from benchmarks.machine import asked, hardware, jpegs, positive, table, write_results
from extractors.base import Prepared
from extractors.images import resized_shape
from extractors.ragged import Size, common_size, padded_count
from pipeline.batching import LARGEST, BatchSize
from pipeline.feeding import Batch, Done, Feeder, Image, Loaded
from pipeline.sources import ImageRef
from pipeline.unit import batches_at_once, units_at_once

LOADERS = 16


def sizes_of(photos: Path, count: int, one_size: bool) -> list[Size]:
    found = []
    for file in sorted(photos.glob("*.jpg")):
        with Photo.open(file) as image:
            width, height = SIZE if one_size else image.size
        found.append(resized_shape(height, width, 600, 1000))
    return list(islice(cycle(found), count))


class StandIn:
    """A GPU, and what loads images for it: both sleep."""

    def __init__(self, sizes: list[Size], args: argparse.Namespace) -> None:
        self._sizes, self._args = sizes, args
        self._loaders, self._networks = ThreadPoolExecutor(LOADERS), ThreadPoolExecutor(batches_at_once(True, 1))
        self._launcher, self._device = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self._known: set[tuple[int, int, int]] = set()
        self.batches: list[tuple[float, float, list[Size]]] = []  # begin and end in seconds, sizes

    def load(self, ref: ImageRef) -> Future[Loaded]:
        size = self._sizes[int(ref.key)]

        def wait() -> Loaded:
            time.sleep(self._args.load / 1e3)
            return Loaded(ref, {"grid": Prepared(ref.key, size, torch.empty(0), 1.0, resized=size)}, {})

        return self._loaders.submit(wait)

    def run(self, images: list[Image]) -> Future[Batch]:
        def wait() -> Batch:
            began = time.perf_counter()
            time.sleep(self._args.lay / 1e3)
            self._launcher.submit(self._launched, [image.loaded.size or (0, 0) for image in images]).result().result()
            time.sleep(self._args.records / 1e3)
            done = [Done(image.number, {}, {}, image.unit) for image in images]
            return Batch(done, time.perf_counter() - began)

        return self._networks.submit(wait)

    def _launched(self, sizes: list[Size]) -> Future[None]:
        """In the thread that gives the device its work."""
        shape = padded_count(len(sizes)), *common_size(sizes)
        time.sleep((self._args.launch + (0 if shape in self._known else self._args.shape)) / 1e3)
        self._known.add(shape)

        def work() -> None:
            began = time.perf_counter()
            time.sleep(shape[0] * shape[1] * shape[2] * self._args.nanoseconds / 1e9)
            self.batches.append((began, time.perf_counter(), sizes))

        return self._device.submit(work)

    def close(self) -> None:
        for threads in (self._loaders, self._networks, self._launcher, self._device):
            threads.shutdown()


def go(sizes: list[Size], stand_in: StandIn, args: argparse.Namespace) -> None:
    """Run units as the local engine does."""
    feeder = Feeder(stand_in.load, stand_in.run, BatchSize(LARGEST, None), LOADERS, batches_at_once(True, 1))
    committing = threading.Lock()
    refs = [ImageRef(str(row), "") for row in range(len(sizes))]

    def run(unit: list[ImageRef]) -> None:
        flow = feeder.add(unit)
        for _ in flow:
            continue
        feeder.leave(flow)
        with committing:
            time.sleep(args.commit)

    with ThreadPoolExecutor(units_at_once(True)) as threads:
        list(threads.map(run, (refs[at : at + args.unit] for at in range(0, len(refs), args.unit))))
    feeder.close()
    stand_in.close()


def steady(batches: list[tuple[float, float, list[Size]]], images: int) -> Iterator[tuple[float, float, list[Size]]]:
    done = 0
    for each in batches:
        done += len(each[2])
        if STEADY[0] <= done / images <= STEADY[1]:
            yield each


def measure(one_size: bool, args: argparse.Namespace) -> dict[str, Any]:
    sizes = sizes_of(args.photos, args.images, one_size)
    stand_in = StandIn(sizes, args)
    go(sizes, stand_in, args)
    kept = list(steady(stand_in.batches, len(sizes)))
    seconds, images = kept[-1][1] - kept[0][1], sum(len(each) for _, _, each in kept[1:])
    shapes = [(padded_count(len(each)), *common_size(each)) for _, _, each in stand_in.batches]
    pixels = sum(height * width for height, width in sizes)
    return {
        "sizes": "one" if one_size else "many",
        "images_a_batch": len(sizes) / len(shapes),
        "pixels": sum(count * height * width for count, height, width in shapes) / pixels,
        "shapes": len(set(shapes)),
        "busy": sum(end - began for began, end, _ in kept[1:]) / seconds,
        "images_per_second": images / seconds,
        "megapixels_per_second": sum(high * wide for _, _, each in kept[1:] for high, wide in each) / 1e6 / seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=jpegs, default=next(each for each in PHOTOS if each.is_dir()))
    parser.add_argument("--images", type=positive, default=6000)
    parser.add_argument("--unit", type=positive, default=129, help="images: so many of X-152's grids are one")
    parser.add_argument("--load", type=float, default=10.0, help="milliseconds an image, of each loader")
    parser.add_argument("--lay", type=float, default=20.0, help="milliseconds a batch to lay it out")
    parser.add_argument("--launch", type=float, default=10.0, help="milliseconds to give it to the device")
    parser.add_argument("--shape", type=float, default=60.0, help="milliseconds more where its shape is new")
    parser.add_argument("--records", type=float, default=20.0, help="milliseconds to make records of it")
    parser.add_argument("--nanoseconds", type=float, default=2.5, help="a pixel")
    parser.add_argument("--commit", type=float, default=0.1, help="seconds a unit")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    facts = [measure(one_size, args) for one_size in (True, False)]
    cells = [
        [
            each["sizes"], f"{each['images_a_batch']:.1f}", f"{each['pixels']:.3f}", str(each["shapes"]),
            f"{each['busy']:.1%}", f"{each['images_per_second']:.0f}", f"{each['megapixels_per_second']:.0f}",
        ]
        for each in facts
    ]  # fmt: skip
    report = (
        f"# Batches, and how busy they keep a device that only takes its time, {time.strftime('%Y-%m-%d')}\n\n"
        f"{hardware()}, {args.images:,} images in units of {args.unit}, {args.load:g} ms to load one in {LOADERS} "
        f"threads, {args.lay:g} ms to lay a batch out, {args.launch:g} to launch it and {args.shape:g} more for a new "
        f"shape, {args.nanoseconds:g} ns a pixel, {args.records:g} ms for a batch's records, {args.commit:g} s to "
        f"commit a unit. {asked()}\n\n"
        + table(["sizes", "images a batch", "pixels", "shapes", "busy", "images/s", "megapixels/s"], cells)
        + "\n"
    )
    print(report)
    write_results(args.out, "batching", report, facts)


if __name__ == "__main__":
    main()
