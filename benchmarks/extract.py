"""How fast the convolutional extractors are, against the loop that the official scripts run.

    uv run python -m benchmarks.extract                     # all but r50, float32 and what else is fast here
    uv run python -m benchmarks.extract --models x101 --dtypes float32 bfloat16 --rounds 5
    uv run python -m benchmarks.extract --models x101 x152pp --steps        # what each optimisation gives, one by one

Protocol. Photographs of ../shared/data/photos, or the four of workflows/photos, resized to 600/1000; reading, decoding
and resizing are timed apart. Weights are random (seed 0), full width, scaled so that activations stay near 1 at any
depth (`extractors/weights.py`): speed does not depend on values, but for denormals, of which there are none. Time is
from resized pixels to records in memory. On a CPU as many images run at once as there are cores, one thread each, as in
the pipeline; on a GPU in batches of --batch. The reference loop is the same network as the official scripts run it: one
image at a time, all cores in each layer, float32, planes (NCHW), norms as modules of their own, all RoIs through the
box head at once, suppression one class after the other in Python. Rounds of all rows of a model are interleaved and
the fastest round counts: others may use the machine. With --steps each row has all of those above it; with folded
norms a deformable convolution is a gather and a plain one, before that torchvision's. FLOPs are counted by
torch.utils.flop_counter, two a multiply-addition; MFU is their rate over that of a square matrix product of the same
type, measured in the same run. Stage times are of one image alone, by one core of a CPU, from hooks; peak memory is of
the process (CPU), or what tensors took (GPU).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.machine import (
    asked,
    device,
    hardware,
    matmul_flops,
    peak_gib,
    positive,
    reset_peak,
    table,
    wait,
    write_results,
)
from benchmarks.reference_loop import ReferenceLoop
from extractors import GridConfig, RegionConfig, amx, fused, make_extractor, read_image, resnet, roi_pool
from extractors.base import Prepared, float32_multiplied
from extractors.faster_rcnn import BottomUpDetector, RoIHeads
from extractors.fused import sample_taps
from extractors.regions import RegionExtractor
from extractors.resnet import ResNet, fold
from extractors.trunk import TrunkExtractor
from extractors.weights import randomise

MODELS = ("r50", "x101", "x152", "x152pp", "butd-r101")
STEPS = (
    "a thread an image", "channels last", "norms folded", "samples in pieces", "fused steps", "float32 by AMX",
    "its weights and memory kept", "bfloat16",
)  # fmt: skip
DTYPES = ("float32", "bfloat16", "float16", "tf32", "bfloat16-heads")
HEAD_STEPS = (
    "those of the grid networks, in the box head", "fewer multiplications in the box head", "RoI pooling by tables",
)  # fmt: skip
REFERENCE = "reference loop"
PHOTOS = (Path("../shared/data/photos"), Path("workflows/photos"))


@dataclass
class Row:
    """One way to run one model; `run` takes images and gives nothing."""

    model: str
    way: str
    dtype: str
    run: Callable[[Sequence[Prepared]], object]
    best: float = float("inf")  # seconds an image
    peak: float = 0.0  # GiB


def photos(count: int) -> list[Path]:
    """The first photographs by name, again from the start where there are fewer."""
    folder = next(each for each in PHOTOS if each.is_dir())
    return list(islice(cycle(sorted(folder.glob("*.jpg"))), count))


def make(model: str, dtype: str, device: str, store_dtype: str = "float16") -> TrunkExtractor:
    """An extractor with random weights, at full width."""
    same: dict[str, Any] = {"weights": "random:0", "dtype": dtype, "device": device, "store_dtype": store_dtype}
    kind = RegionConfig if model == "butd-r101" else GridConfig
    extractor = make_extractor(kind(model=model, **same))
    assert isinstance(extractor, TrunkExtractor)
    return extractor


def runner(extractor: TrunkExtractor, batch: int, cores: int) -> Callable[[Sequence[Prepared]], object]:
    """As the pipeline runs an extractor."""
    if extractor.device.type == "cuda":

        def batches(images: Sequence[Prepared]) -> None:
            for start in range(0, len(images), batch):
                extractor.extract(images[start : start + batch])
            torch.cuda.synchronize()

        return batches
    threads = ThreadPoolExecutor(cores, initializer=torch.set_num_threads, initargs=(1,))
    return lambda images: list(threads.map(lambda image: extractor.extract([image]), images))


def peak_flops(dtype: str, device: torch.device) -> float:
    """Of a square matrix product on all cores, per second."""
    kind = fused.compute_dtype(dtype.removesuffix("-heads"))
    with float32_multiplied(dtype, device):
        return matmul_flops(kind, device)


def flops(extractor: TrunkExtractor, image: Prepared) -> int:
    """Of one image; the fused operators are not counted by torch, the steps they stand for are."""
    with mock.patch.object(fused, "has_fused", lambda dtype: False), FlopCounterMode(display=False) as counter:
        extractor.extract([image])
    return counter.get_total_flops()


def stages(way: TrunkExtractor | ReferenceLoop, image: Prepared, device: torch.device) -> dict[str, float]:
    """Milliseconds of one image by stage; "rest" is what is between them."""
    network = way.detector if isinstance(way, RegionExtractor) else way.network
    modules = list(network.named_children())
    if isinstance(network, BottomUpDetector):
        heads = network.roi_heads
        assert isinstance(heads, RoIHeads)
        modules = list(network.backbone.named_children())
        head = network.proposal_generator.rpn_head
        modules += [("RPN head", each) for each in ([head] if isinstance(way, RegionExtractor) else head.children())]
        modules += [("box head", heads.phased or heads.res5), ("predictor", heads.box_predictor)]
    with hooked(modules, device) as spent:
        began = time.perf_counter()
        way.extract([image])
        wait(device)
        total = time.perf_counter() - began
    return {**{name: 1e3 * each for name, each in spent.items()}, "rest": 1e3 * (total - sum(spent.values()))}


@contextmanager
def hooked(modules: Sequence[tuple[str, nn.Module]], device: torch.device) -> Iterator[dict[str, float]]:
    """Seconds by module while the block runs; those of one name are added up."""
    spent, starts = {name: 0.0 for name, _ in modules}, {name: 0.0 for name, _ in modules}

    def start(name: str) -> None:
        wait(device)
        starts[name] = time.perf_counter()

    def stop(name: str) -> None:
        wait(device)
        spent[name] += time.perf_counter() - starts[name]

    handles = []
    for name, module in modules:
        handles.append(module.register_forward_pre_hook(lambda *_, name=name: start(name)))
        handles.append(module.register_forward_hook(lambda *_, name=name: stop(name)))
    yield spent
    for handle in handles:
        handle.remove()


def measure(row: Row, images: Sequence[Prepared], device: torch.device) -> None:
    """One more round."""
    reset_peak(device)
    began = time.perf_counter()
    row.run(images)
    wait(device)
    row.best = min(row.best, (time.perf_counter() - began) / len(images))
    row.peak = max(row.peak, peak_gib(device))


def bench(model: str, args: argparse.Namespace, files: Sequence[Path]) -> list[dict[str, Any]]:
    """All rows of one model."""
    cores, facts = torch.get_num_threads(), []
    first = make(model, "float32", args.device)
    images, preparing = prepare(first, files)
    count, ways = flops(first, images[0]), [] if args.no_reference else [ReferenceLoop(first)]
    rows = [Row(model, REFERENCE, "float32", way.extract) for way in ways]
    for dtype in args.dtypes:
        if dtype == "bfloat16-heads" and model != "butd-r101":
            continue
        ways.append(first if dtype == "float32" else make(model, dtype, args.device))
        rows.append(Row(model, "ours", dtype, runner(ways[-1], args.batch, cores)))
    for row in rows:  # warm up
        row.run(images[: 1 if row.way != "ours" else cores])
    for _ in range(args.rounds):
        for row in rows:
            torch.set_num_threads(cores)
            measure(row, images, first.device)
    torch.set_num_threads(1)
    for row, way in zip(rows, ways, strict=True):
        of_image = stages(way, images[0], first.device)
        facts.append({**facts_of(row, count, args.peaks), "stages": of_image, "prepare_ms": 1e3 * preparing})
    torch.set_num_threads(cores)
    return facts


def steps(model: str, args: argparse.Namespace, files: Sequence[Path]) -> list[dict[str, Any]]:
    """One row an optimisation, each on top of those before; the rows run the network only."""
    cores, first = torch.get_num_threads(), make(model, "float32", args.device)
    images, preparing = prepare(first, files)
    count = flops(first, images[0])
    rows = [Row(model, REFERENCE, "float32", ReferenceLoop(first).extract)]
    if isinstance(first, RegionExtractor):
        rows += [Row(model, way, "float32", head_runner(first, way, cores)) for way in HEAD_STEPS]
    else:
        possible = dict.fromkeys(STEPS, True)
        possible["samples in pieces"] = bool(first.network.config.deform_stages)
        possible["float32 by AMX"] = possible["its weights and memory kept"] = amx.library() is not None
        possible["bfloat16"] = "bfloat16" in args.dtypes
        ways = [way for way in STEPS if possible[way]]
        rows += [
            Row(model, way, "bfloat16" if way == "bfloat16" else "float32", step_runner(first, way, cores))
            for way in ways
        ]
    for row in rows:
        row.run(images[:1])
    for _ in range(args.rounds):
        for row in rows:
            torch.set_num_threads(cores)
            measure(row, images, first.device)
    return [{**facts_of(row, count, args.peaks), "stages": {}, "prepare_ms": 1e3 * preparing} for row in rows]


def step_runner(extractor: TrunkExtractor, way: str, cores: int) -> Callable[[Sequence[Prepared]], object]:
    """Runs the network of an extractor with the optimisations of STEPS up to `way`."""
    taken = STEPS[: STEPS.index(way) + 1]
    network = ResNet(extractor.network.config).eval()
    randomise(network, 0)
    if "norms folded" in taken:
        fold(network)
    if "channels last" in taken:
        network.to(memory_format=torch.channels_last)
    network.to(torch.bfloat16 if "bfloat16" in taken else torch.float32)
    threads = ThreadPoolExecutor(cores, initializer=torch.set_num_threads, initargs=(1,))

    def run_one(image: Prepared) -> None:
        with torch.inference_mode():
            x = (image.pixels[None].float() - extractor.mean) / extractor.std
            network(x.to(next(network.parameters()).dtype))

    def run(images: Sequence[Prepared]) -> None:
        with ExitStack() as undone:
            if "samples in pieces" not in taken:
                undone.enter_context(mock.patch.object(resnet, "sample_taps", partial(sample_taps, at_once=2**40)))
            if "fused steps" not in taken:
                undone.enter_context(mock.patch.object(fused, "has_fused", lambda dtype: False))
            if "float32 by AMX" not in taken:
                undone.enter_context(mock.patch.object(amx, "takes", lambda x, conv: False))
            if "its weights and memory kept" not in taken:
                undone.enter_context(mock.patch.object(amx, "_packed", amx._pack))
                undone.enter_context(mock.patch.object(amx._outputs, "empty", torch.empty))
            list(threads.map(run_one, images))

    return run


def head_runner(extractor: RegionExtractor, way: str, cores: int) -> Callable[[Sequence[Prepared]], object]:
    """Runs a bottom-up detector with HEAD_STEPS up to `way`."""
    run, heads = runner(extractor, 1, cores), extractor.detector.roi_heads
    assert isinstance(heads, RoIHeads)
    kept = heads.phased

    def run_so(images: Sequence[Prepared]) -> object:
        heads.phased = kept if HEAD_STEPS.index(way) > 0 else None
        with mock.patch.object(roi_pool, "has_gradient", lambda x: HEAD_STEPS.index(way) < 2):  # else torchvision's
            return run(images)

    return run_so


def prepare(extractor: TrunkExtractor, files: Sequence[Path]) -> tuple[list[Prepared], float]:
    """Images as the network takes them, and seconds of one core for each; libraries load and settle before."""
    extractor.prepare("0", read_image(str(files[0])))
    began = time.perf_counter()
    images = [extractor.prepare(str(row), read_image(str(file))) for row, file in enumerate(files)]
    return images, (time.perf_counter() - began) / len(files)


def facts_of(row: Row, count: int, peaks: dict[str, float]) -> dict[str, Any]:
    rate = count / row.best
    return {
        "model": row.model, "way": row.way, "dtype": row.dtype, "images_per_second": 1 / row.best,
        "gflop": count / 1e9, "mfu": rate / peaks[row.dtype], "peak_gib": row.peak,
    }  # fmt: skip


def report(facts: Sequence[dict[str, Any]], args: argparse.Namespace) -> str:
    """The results as Markdown."""
    references = {each["model"]: each["images_per_second"] for each in facts if each["way"] == REFERENCE}
    cells = [
        [
            each["model"],
            each["way"],
            each["dtype"],
            f"{each['images_per_second']:.3f}",
            f"{each['images_per_second'] / references[each['model']]:.2f}" if references else "",
            f"{each['gflop']:.0f}",
            f"{each['mfu']:.0%}",
            f"{each['peak_gib']:.1f} GiB",
            ", ".join(f"{name} {ms:.0f}" for name, ms in each["stages"].items()),
        ]
        for each in facts
    ]
    header = ["model", "way", "dtype", "images/s", "factor", "GFLOP an image", "MFU", "peak memory", "ms, one image"]
    peaks = ", ".join(f"{name} {flop / 1e9:.0f} GFLOP/s" for name, flop in args.peaks.items())
    return (
        "\n\n".join(
            [
                f"# Extraction, {time.strftime('%Y-%m-%d')}",
                f"{hardware()}, {args.images} images, {args.rounds} rounds. Matrix products: {peaks}. "
                f"Reading, decoding and resizing take {facts[-1]['prepare_ms']:.0f} ms of one core an image. {asked()}",
                table(header, cells),
            ]
        )
        + "\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    gpu = torch.cuda.is_available()
    parser.add_argument("--device", type=device, default="cuda" if gpu else "cpu")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS[1:]))
    lower = ["bfloat16", "bfloat16-heads"] if gpu or fused.has_fused(torch.bfloat16) else []  # else slower than float32
    dtypes = ["float32", *lower] + gpu * ["tf32"]
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=dtypes)
    parser.add_argument("--batch", type=positive, default=16, help="of a GPU")
    parser.add_argument("--images", type=positive, default=128 if gpu else torch.get_num_threads())
    parser.add_argument("--rounds", type=positive, default=3 if gpu else 2)
    parser.add_argument("--steps", action="store_true", help="what each optimisation gives, one by one")
    parser.add_argument("--no-reference", action="store_true", help="leave the reference loop out")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    if "tf32" in args.dtypes and args.device == "cpu":
        parser.error("tf32 is a GPU's")
    if set(args.dtypes) == {"bfloat16-heads"} and set(args.models) != {"butd-r101"}:
        parser.error("bfloat16-heads is for butd-r101 alone")
    if args.steps and args.device != "cpu":
        parser.error("--steps are those of a CPU")
    args.peaks = {
        dtype: peak_flops(dtype, torch.device(args.device)) for dtype in dict.fromkeys(["float32", *args.dtypes])
    }
    files, facts = photos(args.images), []
    for model in args.models:
        facts += (steps if args.steps else bench)(model, args, files)
        print(report(facts, args), flush=True)
    write_results(args.out, "extract_steps" if args.steps else "extract", report(facts, args), facts)


if __name__ == "__main__":
    main()
