"""float32 convolutions by the matrix unit of processors that have AMX, which itself only knows bfloat16.

Three bfloat16 numbers hold a float32 number, and six products of them make one of float32: that takes the matrix unit
half the time that the processor's own float32 takes, and rounds no more (`benchmarks/amx.py` measures both). `amx.cpp`
is built when it is first needed, by the machine's C++ compiler, and kept in $TRIPTYCH_CACHE; without a compiler oneDNN
does the same, slower, and `triptych doctor` says so.

Shapes in this file: B images, C input and K output channels, h x w cells.
"""

from __future__ import annotations

import ctypes
import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from extractors.output_memory import OutputMemory
from storage.atomic import cache_folder, write_whole
from storage.errors import StoreError

SOURCE = Path(__file__).with_name("amx.cpp")
NEEDED = ("avx512f", "avx512bw", "avx512vl", "avx512_bf16", "amx_tile", "amx_bf16")  # as Linux names them
COMPILERS = ("c++", "g++", "clang++")
KERNELS = (1, 3)  # sizes; with a larger one most of a tile would be border
FEWEST_CHANNELS = 32  # in: what a tile is wide

_building = Lock()
_outputs = OutputMemory()


class _NotBuilt(Exception):
    """Says why there is no library."""


def takes(x: Tensor, conv: nn.Conv2d) -> bool:
    """Whether this machine and `convolve` can do a layer."""
    return (
        x.dtype == conv.weight.dtype == torch.float32
        and (conv.bias is None or conv.bias.dtype == torch.float32)
        and x.dim() == 4
        and x.shape[1] == conv.in_channels
        and conv.kernel_size in [(size, size) for size in KERNELS]
        and conv.in_channels >= FEWEST_CHANNELS
        and all(isinstance(each, tuple) and each[0] == each[1] for each in (conv.stride, conv.padding, conv.dilation))
        and conv.padding_mode == "zeros"
        and library() is not None
    )


def convolve(x: Tensor, conv: nn.Conv2d, residual: Tensor | None, relu: bool) -> Tensor:
    """conv(x), plus `residual`, through a ReLU where asked, for a layer that `takes` agrees to; no gradients.

    Args:
        x: (B, C, h, w) float32. Where a value is no number, or infinite, more of its cell's channels may become none
            than by a convolution: narrow groups are one product, with zeros between.
        residual: (B, K, h', w'), or what broadcasts to it.

    Returns:
        (B, K, h', w') float32, channels_last; the same values on any number of threads, and beside any other images.

    Raises:
        MemoryError: there is no room for it.
        RuntimeError: the residual has another shape.
    """
    (size, _), (stride, _), (dilation, _) = conv.kernel_size, conv.stride, conv.dilation
    padding = int(conv.padding[0])
    batch, _, height, width = x.shape
    high, wide = ((side + 2 * padding - dilation * (size - 1) - 1) // stride + 1 for side in (height, width))
    y = _outputs.empty(batch, high, wide, conv.out_channels).permute(0, 3, 1, 2)
    residual = None if residual is None else residual.to(y.dtype).expand_as(y)
    channels = (conv.in_channels, conv.out_channels)
    sizes = (batch, height, width, *channels, size, stride, padding, dilation, conv.groups)
    _compute([x, _packed(conv.weight, conv.groups), conv.bias, residual], y, sizes, relu)
    return y


def multiply(x: Tensor, weight: Tensor) -> Tensor:
    """P products x @ weight.mT at once: (P, M, C) and (P, K, C) to (P, M, K), all float32; no gradients."""
    (count, rows, inputs), outputs = x.shape, weight.shape[1]
    y = _outputs.empty(count, rows, outputs)
    packed = _packed(weight)
    for each in range(count):  # a convolution of 1x1
        _compute([x[each], packed[each], None, None], y[each], (1, rows, 1, inputs, outputs, 1, 1, 0, 1, 1), relu=False)
    return y


class _Packed(NamedTuple):
    """Weights as the unit wants them, and what they were made from: its memory, which no other weights can have
    meanwhile, and how often torch had counted a change in it."""

    parts: Tensor
    memory: Tensor
    version: int
    groups: int

    def of(self, weight: Tensor, groups: int) -> bool:
        same = weight.data_ptr() == self.memory.data_ptr() and weight._version == self.version
        return same and groups == self.groups


_kept: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # of frozen weights, as long as these live
_keeping = Lock()


def _packed(weight: Tensor, groups: int = 1) -> Tensor:
    """Weights for `triptych_amx_convolve`, one layer's (K, C / groups, size, size) or many's (P, K, C), in three parts:
    a row of bytes each.

    Those of frozen weights are kept, for one and a half times their memory, until the weights change: packing takes a
    tenth of an image's time. Written through `.data` or numpy, of which torch knows nothing, weights would keep what
    they were.
    """
    if weight.requires_grad or weight.is_inference():  # trained, or made on the fly: they may change with every image
        return _pack(weight, groups)
    with _keeping:
        found = _kept.get(weight)
        if found is None or not found.of(weight, groups):
            _kept[weight] = found = _Packed(_pack(weight, groups), weight.detach(), weight._version, groups)
    return found.parts


def _pack(weight: Tensor, groups: int) -> Tensor:
    built, rows = _built(), _in_rows(weight)
    many = weight.dim() == 3
    layers = len(weight) if many else 1
    outputs, inputs, size = (*weight.shape[1:], 1) if many else weight.shape[:3]
    shape = (inputs * groups, outputs, size, groups)
    packed = torch.empty(layers, built.triptych_amx_packed(*shape), dtype=torch.uint8)
    for each in range(layers):
        place = rows.data_ptr() + each * rows.nbytes // layers
        built.triptych_amx_pack(place, packed[each].data_ptr(), *shape, torch.get_num_threads())
    return packed


def _compute(given: Sequence[Tensor | None], y: Tensor, sizes: tuple[int, ...], relu: bool) -> None:
    """Call `triptych_amx_convolve`, which says what is what."""
    built = _built()
    in_rows = [each if each is None else _in_rows(each) for each in given]
    places = [each if each is None else each.data_ptr() for each in [*in_rows, y]]
    if y.numel() and built.triptych_amx_convolve(*places, *sizes, relu, torch.get_num_threads()):
        raise MemoryError("there is no memory for the parts of a convolution")


def _built() -> ctypes.CDLL:
    built = library()
    assert built is not None, "nobody asked whether this machine can"
    return built


def _in_rows(x: Tensor) -> Tensor:
    """Channels of a cell side by side, without gaps; no copy where they are."""
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x.contiguous()


@cache
def processor_flags() -> frozenset[str]:
    """What the processor can, as Linux names it; elsewhere nothing is known."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), []))


def on_processor() -> bool:
    return processor_flags().issuperset(NEEDED)


def library() -> ctypes.CDLL | None:
    """The functions of `amx.cpp`, built if need be; None where the processor has no AMX or `missing` says why not."""
    return _library()[0] if on_processor() else None


def missing() -> str | None:
    """What keeps a processor that has AMX from being used by `convolve`; None where nothing does."""
    return _library()[1] if on_processor() else None


def _library() -> tuple[ctypes.CDLL | None, str | None]:
    with _building:  # threads that come meanwhile wait
        return _opened()


@cache
def _opened() -> tuple[ctypes.CDLL | None, str | None]:
    try:
        found = _load()
    except _NotBuilt as error:
        return None, str(error)
    if not found.triptych_amx_allowed():
        return None, "the system does not let a process use it"
    pointer, number, switch = ctypes.c_void_p, ctypes.c_long, ctypes.c_int
    found.triptych_amx_packed.argtypes, found.triptych_amx_packed.restype = [number] * 4, number
    found.triptych_amx_pack.argtypes, found.triptych_amx_pack.restype = [*[pointer] * 2, *[number] * 4, switch], None
    found.triptych_amx_convolve.argtypes = [*[pointer] * 5, *[number] * 10, switch, switch]
    return found, None


def _load() -> ctypes.CDLL:
    """From the cache, or built and put there."""
    flags = [f"-m{each.replace('_', '-') if each.startswith('amx') else each.replace('_', '')}" for each in NEEDED]
    command = ["-O3", "-std=c++17", "-shared", "-fPIC", "-pthread", *flags]
    name = hashlib.sha256(SOURCE.read_bytes() + " ".join(command).encode()).hexdigest()[:16]
    kept = cache_folder("kernels") / f"amx-{name}.so"
    with suppress(OSError):
        return ctypes.CDLL(str(kept))
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        raise _NotBuilt("there is no C++ compiler: install g++")
    with tempfile.TemporaryDirectory(prefix="triptych-") as folder:
        draft = Path(folder) / "amx.so"
        done = subprocess.run([compiler, *command, "-o", draft, SOURCE], capture_output=True, text=True, check=False)
        if done.returncode:
            told = (done.stderr.strip().splitlines() or ["it says nothing"])[0]
            raise _NotBuilt(f"{compiler} cannot build {SOURCE.name} ({told}): install a newer g++")
        with suppress(OSError, StoreError):  # a full or read-only disk only makes the next start slower
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_whole(kept, draft.read_bytes())
        try:
            return ctypes.CDLL(str(draft))
        except OSError as error:
            raise _NotBuilt(f"what {compiler} built cannot be loaded ({error})") from error
