"""What the machinery costs: both engines against the bare model loop on images that are in memory already.

    uv run python -m benchmarks.engine_overhead --images 2048
    uv run python -m benchmarks.engine_overhead --images 192 --rounds 5 --shorter 600 --longer 1000 --engines local

Protocol. JPEGs of 640 x 480, cut from four photographs at random places; a ResNet-50 of full width, random weights,
fp32, batch of one, on the CPU. The smaller the images become, the larger is the part of what is not the network: 224
is for many images in bearable time, 600/1000 is what a job does. Every engine runs in a process of its own, rounds
interleaved; nothing else should run.

bare     as many threads as cores run the network over 64 resized images again and again; nothing is read or written.
decoding the same threads also read, decode and resize each image: what has to be done on the same cores where there is
         no GPU, so the part of an engine's loss that is not machinery.
local    `triptych extract grid`, warm: between the commits at a tenth and at the end.
ray      the same on two actors of one CPU each. Start-up is what passes before the first image.

Memory is that of all processes of a run together, its median over the second and over the last quarter.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image

from benchmarks.machine import asked, hardware, positive, table, write_results
from extractors import decode, load_extractor

PHOTOS = Path(__file__).parents[1] / "workflows" / "photos"
NETWORK = {"model": "r50", "weights": "random:0", "shorter": 224, "longer": 400, "device": "cpu"}  # but for the sizes
ENGINES = {"local": [], "ray": ["--engine", "ray", "--workers", str(os.cpu_count()), "--address", "local"]}
UNIT = 64


def write_images(folder: Path, count: int) -> None:
    """Cut-outs of 640 x 480 in folders of a thousand."""
    rng = np.random.default_rng(0)
    photos = [Image.open(path).convert("RGB") for path in sorted(PHOTOS.glob("*.jpg"))]
    photos = [photo.resize((max(900, photo.width), max(700, photo.height))) for photo in photos]
    for number in range(count):
        photo = photos[number % len(photos)]
        left, top = (int(rng.integers(0, most)) for most in (photo.width - 640, photo.height - 480))
        path = folder / f"{number // 1000:03}" / f"{number:07}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        photo.crop((left, top, left + 640, top + 480)).save(path, quality=90)


def bare(folder: Path, count: int, decoding: bool) -> float:
    """Images per second of the model loop."""
    extractor = load_extractor("grid", **NETWORK)
    paths = sorted(folder.rglob("*.jpg"))
    ready = [extractor.prepare(path.stem, decode(path.read_bytes())) for path in paths[:64]]
    cores = torch.get_num_threads()
    cv2.setNumThreads(1)

    def one(number: int) -> None:
        image = ready[number % len(ready)]
        if decoding:
            image = extractor.prepare("image", decode(paths[number % len(paths)].read_bytes()))
        extractor.extract([image])

    with ThreadPoolExecutor(cores, initializer=torch.set_num_threads, initargs=(1,)) as threads:
        list(threads.map(one, range(4 * cores)))
        began = time.perf_counter()
        list(threads.map(one, range(count)))
        return count / (time.perf_counter() - began)


def engine(more: list[str], folder: Path, out: Path) -> dict[str, Any]:
    """An extraction's images/s, warm and over all, start-up and memory, from its JSON lines."""
    flags = [part for key, value in NETWORK.items() for part in (f"--{key}", str(value))]
    command = [sys.executable, "-m", "workflows.cli", "extract", "grid", "--images", str(folder), "--out", str(out)]
    began, memory = time.perf_counter(), []
    process = subprocess.Popen(
        [*command, *flags, *more, "--json", "--images-per-shard", str(UNIT)], stdout=subprocess.PIPE, text=True
    )
    watching = threading.Thread(target=_watch, args=(process, memory), daemon=True)
    watching.start()
    assert process.stdout
    events = [json.loads(line) for line in process.stdout]
    if process.wait():
        raise SystemExit(f"{' '.join(command)} failed")
    told = [each for each in events if each["event"] == "progress" and each["images"]]
    first = next(each for each in told if each["images"] >= 0.1 * told[-1]["images"])
    passed = told[-1]["seconds"] - first["seconds"]
    warm = (told[-1]["images"] - first["images"]) / passed if passed else float("nan")  # a job of one unit
    quarters = np.array_split(np.array(memory or [0.0]), 4)
    return {
        "images_per_second": warm,
        "seconds_an_image": events[-1]["seconds"] / events[-1]["images"],
        "startup_seconds": events[-1]["startup_seconds"],
        "whole_seconds": time.perf_counter() - began,
        "memory_gib": [float(np.median(quarters[1])), float(np.median(quarters[3]))],
        "stage_seconds": events[-1]["stage_seconds"],
    }


def _watch(process: subprocess.Popen[str], memory: list[float]) -> None:
    """Every second, the resident GiB of a process and all it started."""
    while process.poll() is None:
        memory.append(_resident(process.pid) / 2**30)
        time.sleep(1)


def _resident(root: int) -> int:
    parents, sizes = {}, {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            pages = int((entry / "statm").read_text().split()[1]) - int((entry / "statm").read_text().split()[2])
        except (OSError, IndexError):
            continue
        parents[int(entry.name)], sizes[int(entry.name)] = int(fields[1]), pages * os.sysconf("SC_PAGE_SIZE")
    return sum(size for pid, size in sizes.items() if _is_below(pid, root, parents))


def _is_below(pid: int, root: int, parents: dict[int, int]) -> bool:
    while pid in parents and pid != root:
        pid = parents[pid]
    return pid == root


def _spread(ratios: list[float]) -> str:
    """The median, and between what the rounds were."""
    return f"{np.median(ratios):.3f} ({min(ratios):.2f} to {max(ratios):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=positive, default=2048)
    parser.add_argument("--rounds", type=positive, default=2)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--shorter", type=positive, default=224)
    parser.add_argument("--longer", type=positive, default=400)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--bare", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    NETWORK.update(shorter=args.shorter, longer=args.longer)
    if args.bare:
        print(bare(Path(args.bare[0]), int(args.bare[1]), args.bare[2] == "decoding"))
        return
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in ("bare", "decoding", *args.engines)}
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work) / "images"
        write_images(folder, args.images)
        for number in range(args.rounds):
            for name, count in (("bare", args.images), ("decoding", args.images // 4)):
                command = [sys.executable, "-m", "benchmarks.engine_overhead", "--shorter", str(args.shorter)]
                command += ["--longer", str(args.longer), "--bare", str(folder), str(count), name]
                told = subprocess.run(command, check=True, capture_output=True, text=True)
                found[name].append({"images_per_second": float(told.stdout)})
            for name in args.engines:
                found[name].append(engine(ENGINES[name], folder, Path(work) / f"{name}{number}"))
    text = report(found, args.images)
    write_results(args.out, f"engine_overhead_{args.shorter}", text, found)
    print(text)


def report(found: dict[str, list[dict[str, Any]]], images: int) -> str:
    """The results as Markdown."""
    rows = []
    for name, rounds in found.items():
        rate = [each["images_per_second"] for each in rounds]
        of = [[a / b["images_per_second"] for a, b in zip(rate, found[base], strict=True)] for base in found]
        last = rounds[-1]
        more = ["", ""]
        if "memory_gib" in last:
            more = [f"{last['startup_seconds']:.1f}", " / ".join(f"{each:.2f}" for each in last["memory_gib"])]
        rows.append([name, f"{np.median(rate):.2f}", *map(_spread, of[:3]), *more])
    header = ["", "images/s", "x bare", "x decoding", "x local", "start-up, s", "GiB in the 2nd / last quarter"]
    return f"""# What the machinery costs, {time.strftime("%Y-%m-%d")}

{hardware()}. {images} images, resized to {NETWORK["shorter"]}/{NETWORK["longer"]}, {len(found["local"])} rounds.
{asked()}

{table(header, rows)}
"""


if __name__ == "__main__":
    main()
