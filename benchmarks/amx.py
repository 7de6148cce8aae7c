"""float32 convolutions by AMX beside oneDNN's: how long they take, and how much they round.

    uv run python -m benchmarks.amx

Protocol. The layers that ResNeXts and ResNet-101 take most of their time for, at 600 x 968 pixels, on one core. Inputs
are random, through a ReLU, and not in the caches: every layer has eight inputs and weights in turn. Ways alternate;
the fastest round counts, so that AMX finds its weights packed, as those of all images but the first are. Errors are of
the sums without bias and ReLU against float64, as a share of the deviation of the true values: the root of the mean
square, and the largest. "bf16 x 3" is what three products of two bfloat16 parts would round, computed in float64; torch
calls that precision "high". Then whole networks with random weights (seed 0): a photograph's cells, beside those of the
same network in float64.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.extract import MODELS, make, photos, prepare
from benchmarks.machine import asked, hardware, positive, table, write_results
from extractors import amx
from extractors.base import Prepared
from extractors.fused import convolve
from extractors.trunk import TrunkExtractor
from storage.records import GridRecord

COPIES = 8  # of a layer's input and weights
LAYERS = {  # name: channels in and out, height, width, size, stride, groups
    "res2 1x1": (256, 256, 150, 242, 1, 1, 1),
    "res2 3x3, 32 groups": (256, 256, 150, 242, 3, 1, 32),
    "res3 1x1": (512, 512, 75, 121, 1, 1, 1),
    "res3 3x3, 32 groups": (512, 512, 75, 121, 3, 1, 32),
    "res4 1x1": (1024, 1024, 38, 61, 1, 1, 1),
    "res4 3x3, 32 groups": (1024, 1024, 38, 61, 3, 1, 32),
    "res4 3x3, step of 2": (1024, 1024, 75, 121, 3, 2, 32),
    "res5 1x1": (2048, 2048, 19, 31, 1, 1, 1),
    "res5 3x3, 32 groups": (2048, 2048, 19, 31, 3, 1, 32),
    "RPN 3x3": (1024, 1024, 38, 61, 3, 1, 1),
}


class Layer:
    """Some copies of one convolution, and inputs for them."""

    def __init__(self, inputs: int, outputs: int, height: int, width: int, size: int, stride: int, groups: int):
        conv = [nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups) for _ in range(COPIES)]
        self.convs = [each.requires_grad_(False).to(memory_format=torch.channels_last) for each in conv]
        x = [torch.randn(1, inputs, height, width).relu() for _ in range(COPIES)]
        self.inputs = [each.contiguous(memory_format=torch.channels_last) for each in x]

    def seconds(self, rounds: int) -> tuple[float, float]:
        """Of one call, the fastest round: by AMX, and by oneDNN."""
        best = {True: float("inf"), False: float("inf")}
        for _ in range(rounds):
            for ours in best:
                with mock.patch.object(amx, "takes", amx.takes if ours else lambda x, conv: False):
                    for x, conv in zip(self.inputs, self.convs, strict=True):
                        began = time.perf_counter()
                        convolve(x, conv, relu=True)
                        best[ours] = min(best[ours], time.perf_counter() - began)
        return best[True], best[False]

    def errors(self) -> list[tuple[float, float]]:
        """By AMX, by oneDNN, and of three products."""
        x, conv = self.inputs[0], self.convs[0]
        conv.bias = None
        true = _by(conv, x.double(), conv.weight.double())
        with mock.patch.object(amx, "takes", lambda x, conv: False):
            plain = convolve(x, conv)
        (high, low), (weight, rest) = _parts(x), _parts(conv.weight)
        three = _by(conv, high + low, weight) + _by(conv, high, rest)
        return [_error(each, true) for each in (convolve(x, conv), plain, three)]


def _by(conv: nn.Conv2d, x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(x, weight, None, conv.stride, conv.padding, conv.dilation, conv.groups)


def _parts(x: Tensor) -> tuple[Tensor, Tensor]:
    """The two bfloat16 numbers nearest to it, in float64."""
    high = x.bfloat16()
    return high.double(), (x - high.float()).bfloat16().double()


def _error(found: Tensor, true: Tensor) -> tuple[float, float]:
    off = (found.double() - true).abs() / true.std()
    return off.square().mean().sqrt().item(), off.max().item()


@torch.no_grad()  # no tensors of inference mode: what is packed of such weights is not kept
def measure(name: str, rounds: int) -> list[str]:
    """A row of the report."""
    inputs, outputs, height, width, size, stride, groups = LAYERS[name]
    layer = Layer(*LAYERS[name])
    ours, plain = layer.seconds(rounds)
    cells = -(-height // stride) * -(-width // stride)
    operations = 2 * cells * inputs // groups * outputs * size**2
    rates = [f"{operations / each / 1e9:.0f}" for each in (ours, plain)]
    times = [f"{1e3 * ours:.2f}", f"{1e3 * plain:.2f}", f"{plain / ours:.2f}"]
    return [name, *times, *rates, *(f"{mean:.1e}, {most:.1e}" for mean, most in layer.errors())]


@torch.inference_mode()
def measure_network(model: str) -> list[str]:
    """A row of the second table."""
    extractor = make(model, "float32", "cpu", "float32")
    images, _ = prepare(extractor, photos(1))
    given: list[Tensor] = []
    hook = extractor.network.register_forward_pre_hook(lambda module, args: given.append(args[0]))
    ours = _cells(extractor, images)
    hook.remove()
    with mock.patch.object(amx, "takes", lambda x, conv: False):
        plain = _cells(extractor, images)
    true = copy.deepcopy(extractor.network).double()(given[0].double())[0].flatten(1).mT
    return [model, *(f"{mean:.1e}, {most:.1e}" for mean, most in (_error(ours, true), _error(plain, true)))]


def _cells(extractor: TrunkExtractor, images: Sequence[Prepared]) -> Tensor:
    """Of the first image, a row each."""
    record = extractor.extract(images)[0]
    assert isinstance(record, GridRecord)
    return torch.from_numpy(record.features).flatten(0, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", nargs="+", choices=list(LAYERS), default=list(LAYERS))
    parser.add_argument("--networks", nargs="*", choices=MODELS[:3], default=list(MODELS[1:3]))
    parser.add_argument("--rounds", type=positive, default=4)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    if amx.library() is None:
        raise SystemExit(f"there is no AMX to measure: {amx.missing() or 'this processor has none'}")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    head = ["layer", "AMX, ms", "oneDNN, ms", "factor", "AMX, GFLOP/s", "oneDNN, GFLOP/s"]
    head += ["error of AMX: mean, largest", "of oneDNN", "of bf16 x 3"]
    rows = [measure(name, args.rounds) for name in args.layers]
    about = f"{hardware()}, one core, {args.rounds} rounds. {asked()}"
    networks = [measure_network(model) for model in args.networks]
    errors = table(["network", "error by AMX: mean, largest", "by oneDNN"], networks)
    tables = f"{table(head, rows)}\n\n{errors}\n"
    report = f"# float32 convolutions by AMX, {time.strftime('%Y-%m-%d')}\n\n{about}\n\n{tables}"
    print(report)
    facts = {"layers": [dict(zip(head, each, strict=True)) for each in rows], "networks": networks}
    write_results(args.out, "amx", report, facts)


if __name__ == "__main__":
    main()
