"""How full batches of photographs are on a GPU, and how busy it is kept, by a stand-in that only takes its time.

    uv run python -m benchmarks.batching

Protocol. The sizes of --photos at 600/1000, or 640 x 480 for all, again and again, --images of them, go through the
feeder of the local engine as on a GPU, LARGEST images a batch, in units as X-152's grids make. All that happens to them
is a sleep, as long as the report says. As in the engine, images are loaded by threads; each batch has a thread of a
few, which lays it out, waits for the device, and makes records; one thread gives the device its batches, longer where a
batch's shape is new, which a GPU's library plans; the device has one batch at a time, and each pixel of it with its
padding takes as long as an H200 needs for X-152 in bfloat16; units are committed one after the other. "Busy" is the
device's share of the time from when a fifth of the images are done to when nine tenths are. Pixels are those of padded
and filled batches over those of the images in them, and shapes their different ones. Left out is that threads keep one
another from running, and disks.
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

LOADERS = 16  # threads
UNIT = 129  # images
LOAD = 0.01  # seconds: an image, in each loader
LAY_OUT, LAUNCH, NEW_SHAPE, RECORDS = 0.02, 0.01, 0.06, 0.02  # a batch
PIXEL, COMMIT = 2.5e-9, 0.1  # a pixel, a unit


def sizes_of(photos: Path, count: int, one_size: bool) -> list[Size]:
    found = []
    for file in sorted(photos.glob("*.jpg")):
        with Photo.open(file) as image:
            width, height = SIZE if one_size else image.size
        found.append(resized_shape(height, width, 600, 1000))
    return list(islice(cycle(found), count))


class StandIn:
    """A GPU, and what loads images for it: both sleep."""

    def __init__(self, sizes: list[Size]) -> None:
        self._sizes = sizes
        self._loaders, self._networks = ThreadPoolExecutor(LOADERS), ThreadPoolExecutor(batches_at_once(True, 1))
        self._launcher, self._device = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self._known: set[tuple[int, int, int]] = set()
        self.batches: list[tuple[float, float, list[Size]]] = []  # begin and end in seconds, sizes

    def load(self, ref: ImageRef) -> Future[Loaded]:
        size = self._sizes[int(ref.key)]

        def wait() -> Loaded:
            time.sleep(LOAD)
            return Loaded(ref, {"grid": Prepared(ref.key, size, torch.empty(0), 1.0, resized=size)}, {})

        return self._loaders.submit(wait)

    def run(self, images: list[Image]) -> Future[Batch]:
        def wait() -> Batch:
            began = time.perf_counter()
            time.sleep(LAY_OUT)
            self._launcher.submit(self._launched, [image.loaded.size or (0, 0) for image in images]).result().result()
            time.sleep(RECORDS)
            done = [Done(image.number, {}, {}, image.unit) for image in images]
            return Batch(done, time.perf_counter() - began)

        return self._networks.submit(wait)

    def _launched(self, sizes: list[Size]) -> Future[None]:
        """In the thread that gives the device its work."""
        shape = padded_count(len(sizes)), *common_size(sizes)
        time.sleep(LAUNCH + (0 if shape in self._known else NEW_SHAPE))
        self._known.add(shape)

        def work() -> None:
            began = time.perf_counter()
            time.sleep(shape[0] * shape[1] * shape[2] * PIXEL)
            self.batches.append((began, time.perf_counter(), sizes))

        return self._device.submit(work)

    def close(self) -> None:
        for threads in (self._loaders, self._networks, self._launcher, self._device):
            threads.shutdown()


def go(sizes: list[Size], stand_in: StandIn) -> None:
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
            time.sleep(COMMIT)

    with ThreadPoolExecutor(units_at_once(True)) as threads:
        list(threads.map(run, (refs[at : at + UNIT] for at in range(0, len(refs), UNIT))))
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
    stand_in = StandIn(sizes)
    go(sizes, stand_in)
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
        f"{hardware()}, {args.images:,} images in units of {UNIT}, {1e3 * LOAD:g} ms to load one in {LOADERS} "
        f"threads, {1e3 * LAY_OUT:g} ms to lay a batch out, {1e3 * LAUNCH:g} to launch it and {1e3 * NEW_SHAPE:g} more "
        f"for a new shape, {1e9 * PIXEL:g} ns a pixel, {1e3 * RECORDS:g} ms for a batch's records, {COMMIT:g} s to "
        f"commit a unit. {asked()}\n\n"
        + table(["sizes", "images a batch", "pixels", "shapes", "busy", "images/s", "megapixels/s"], cells)
        + "\n"
    )
    print(report)
    write_results(args.out, "batching", report, facts)


if __name__ == "__main__":
    main()
