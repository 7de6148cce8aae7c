"""What reading an image costs: JPEG decoders side by side, and the rest of the way to the network.

    uv run --with simplejpeg python -m benchmarks.decode --images ../shared/data/photos --out benchmarks/results

Protocol. The JPEGs of a folder in memory, one thread, CPU milliseconds an image, the best of --rounds rounds over all
of them, decoders in turn. "equal": how many images have the very pixels of `extractors.decode`, orientation left aside.
"cut": how many of the same files, cut at 90 % of their bytes, are refused; a decoder that paints the rest grey cannot
be used where nothing may be half-decoded. "scaled" is Pillow's draft mode for a target of 600/1000: 1/2, 1/4 or 1/8 of
the size, where that is still as large as the target; its difference to the exact pixels is taken after the resize.
Decoders that are not there are left out and named; nvJPEG needs a GPU. Writes decode_<hardware>_<date>.md and .json.
"""

from __future__ import annotations

import argparse
import importlib
import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image

from benchmarks.machine import asked, hardware, jpegs, positive, table, write_results
from extractors import GridConfig, RegionConfig, decode
from extractors.base import prepare_pil
from extractors.images import resize_shortest_edge, resized_shape
from extractors.networks import BUTD_MEAN
from extractors.trunk import Colours, _prepare_caffe

SHORTER, LONGER = 600, 1000


def by_pillow(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def by_torchvision(data: bytes) -> np.ndarray:
    io_ = importlib.import_module("torchvision.io")
    found = io_.decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), io_.ImageReadMode.RGB)
    pixels: np.ndarray = found.permute(1, 2, 0).numpy()
    return pixels


def by_nvjpeg(data: bytes) -> np.ndarray:
    if not torch.cuda.is_available():
        raise ImportError
    io_ = importlib.import_module("torchvision.io")
    found = io_.decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), io_.ImageReadMode.RGB, "cuda")
    pixels: np.ndarray = found.permute(1, 2, 0).cpu().numpy()
    return pixels


def by_opencv(data: bytes) -> np.ndarray:
    found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if found is None:
        raise ValueError("OpenCV gives no image")
    return cv2.cvtColor(found, cv2.COLOR_BGR2RGB)


def by_simplejpeg(data: bytes) -> np.ndarray:
    pixels: np.ndarray = importlib.import_module("simplejpeg").decode_jpeg(data, "RGB")
    return pixels


def by_draft(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        height, width = resized_shape(image.height, image.width, SHORTER, LONGER)
        image.draft("RGB", (width, height))
        image.load()
        return np.array(image if image.mode == "RGB" else image.convert("RGB"))


DECODERS: dict[str, Callable[[bytes], np.ndarray]] = {
    "Pillow": by_pillow,
    "torchvision": by_torchvision,
    "torchvision, by nvJPEG": by_nvjpeg,
    "OpenCV": by_opencv,
    "simplejpeg": by_simplejpeg,
    "Pillow, scaled (draft)": by_draft,
}


def milliseconds(runs: dict[str, Callable[[], object]], images: int, rounds: int) -> dict[str, float]:
    """CPU milliseconds an image of each, the best of some rounds in which they take turns."""
    best = dict.fromkeys(runs, float("inf"))
    for _ in range(rounds):
        for name, run in runs.items():
            began = time.process_time()
            run()
            best[name] = min(best[name], time.process_time() - began)
    return {name: seconds / images * 1e3 for name, seconds in best.items()}


def gap(found: np.ndarray, exact: np.ndarray) -> tuple[int, float]:
    """Largest and mean difference of two images once both are resized."""
    shape = resized_shape(*exact.shape[:2], SHORTER, LONGER)
    resized = np.array(Image.fromarray(found).resize(shape[::-1], Image.Resampling.BILINEAR)).astype(int)
    apart = np.abs(resized - resize_shortest_edge(exact, SHORTER, LONGER).astype(int))
    return int(apart.max()), float(apart.mean())


def measure_decoders(data: list[bytes], rounds: int) -> list[dict[str, Any]]:
    """A row a decoder."""
    there: dict[str, Callable[[bytes], np.ndarray]] = {}
    for name, run in DECODERS.items():
        try:
            run(data[0])
            there[name] = run
        except ImportError:
            print(f"{name} is not there and left out")
    took = milliseconds({name: _over(run, data) for name, run in there.items()}, len(data), rounds)
    exact = [by_pillow(each) for each in data]
    rows = []
    for name, run in there.items():
        found = [run(each) for each in data]
        gaps = [gap(each, true) for each, true in zip(found, exact, strict=True)]
        rows.append(
            {
                "decoder": name,
                "ms": took[name],
                "equal": sum(np.array_equal(each, true) for each, true in zip(found, exact, strict=True)),
                "cut": sum(_refuses(run, each[: int(0.9 * len(each))]) for each in data),
                "largest": max(largest for largest, _ in gaps),
                "mean": float(np.mean([mean for _, mean in gaps])),
            }
        )
    return rows


def _over(run: Callable[[Any], object], items: list[Any]) -> Callable[[], object]:
    return lambda: [run(each) for each in items]


def _refuses(run: Callable[[bytes], np.ndarray], data: bytes) -> bool:
    try:
        run(data)
    except Exception:
        return True
    return False


def measure_stages(data: list[bytes], rounds: int) -> dict[str, float]:
    """CPU milliseconds an image of what a decode thread does."""
    images = [decode(each) for each in data]
    grid, regions = GridConfig(device="cpu"), RegionConfig(device="cpu")
    colours = Colours(BUTD_MEAN, resize="cv2-linear")
    runs = {
        "decode (upright RGB)": _over(decode, data),
        "resize for grids (Pillow, uint8)": _over(lambda image: prepare_pil("key", image, grid), images),
        "resize for regions (OpenCV, float)": _over(
            lambda image: _prepare_caffe("key", image, regions, colours), images
        ),
    }
    return milliseconds(runs, len(data), rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=jpegs, required=True)
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    data = [path.read_bytes() for path in sorted(args.images.glob("*.jp*g"))]
    rows, stages = measure_decoders(data, args.rounds), measure_stages(data, args.rounds)
    text = report(rows, stages, data)
    write_results(args.out, "decode", text, {"decoders": rows, "stages": stages})
    print(text)


def report(rows: list[dict[str, Any]], stages: dict[str, float], data: list[bytes]) -> str:
    """The results as Markdown."""
    pixels = np.mean([Image.open(io.BytesIO(each)).width * Image.open(io.BytesIO(each)).height for each in data]) / 1e6
    cells = [
        [
            row["decoder"],
            f"{row['ms']:.2f}",
            f"{row['equal']} of {len(data)}",
            f"{row['largest']} / {row['mean']:.2f}",
            f"{row['cut']} of {len(data)}",
        ]
        for row in rows
    ]
    header = [
        "decoder",
        "CPU ms an image",
        "equal pixels",
        "largest / mean difference after the resize",
        "cut files refused",
    ]
    found = [table(header, cells), table(["stage", "CPU ms an image"], [[k, f"{v:.2f}"] for k, v in stages.items()])]
    lacking = [name for name in DECODERS if name not in [row["decoder"] for row in rows]]
    left_out = f" Not there: {', '.join(lacking)}." if lacking else ""
    about = f"{hardware()}. {len(data)} JPEGs of {pixels:.2f} megapixels on average.{left_out} "
    about += asked() if "simplejpeg" in lacking else asked("simplejpeg")
    title = f"# Decoding, {time.strftime('%Y-%m-%d')}"
    return "\n\n".join([title, about, *found]) + "\n"


if __name__ == "__main__":
    main()
