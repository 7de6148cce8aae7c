"""What a machine offers for extraction, what is set up badly on it, and how fast each network is there."""

from __future__ import annotations

import importlib.util
import os
import platform
import resource
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import PIL
import torch
from PIL import features

from extractors import ExtractorConfig, amx
from extractors.kernels import has_triton
from extractors.views import make_views
from pipeline.config import EngineConfig, ExtractJob
from pipeline.cores import usable_cores
from pipeline.plan import make_plan
from pipeline.probe import Probe, probe_job
from pipeline.sources import SourceConfig, open_source
from trainers.machine import processor

WRITTEN = 256 << 20  # bytes that the disk is tried with
MIB = 1 << 20
FILES_WANTED = 1024  # open at once: shards are mapped
TEMPORARY_WANTED = 4 << 30  # bytes: shards for object stores are made there, and plans
BUSY, TAKEN = 10, 0.1  # percent of the time, and a share of the memory, that other work on a GPU may take unnoticed


def facts() -> Iterator[tuple[str, str]]:
    """What there is, a name and a text each."""
    cores, threads = usable_cores(), torch.get_num_threads()
    to_use = f"{cores:g} core{'s' * (cores != 1)} to use, {threads} thread{'s' * (threads != 1)}"
    yield "processor", f"{processor()}, {to_use}"
    yield (
        "load",
        f"{os.getloadavg()[0]:.1f} processes in the last minute: while others work, the speeds below are lower",
    )
    yield "memory", f"{_memory() / 2**30:.0f} GiB"
    for number in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(number)
        yield f"GPU {number}", f"{about.name}, {about.total_memory / 2**30:.0f} GiB, sm_{about.major}{about.minor}"
    if not torch.cuda.is_available():
        yield "GPU", "none that torch sees"
    yield "number types", ", ".join(dtypes())
    jpeg, name = ("libjpeg-turbo", "libjpeg_turbo") if features.check("libjpeg_turbo") else ("plain libjpeg", "jpg")
    yield "decoder", f"Pillow {PIL.__version__} with {jpeg} {features.version(name) or ''}".rstrip()
    yield "torch", f"{torch.__version__}, CUDA {torch.version.cuda or 'none'}"
    yield "Ray", "installed" if importlib.util.find_spec("ray") else "not installed: the local engine only"
    there = importlib.util.find_spec("detectron2")
    yield "detectron2", "installed" if there else "not installed (optional): --model detectron2:... needs it"


def dtypes() -> list[str]:
    """The number types that networks can compute in here, with how well."""
    if torch.cuda.is_available():
        bfloat16 = ["bfloat16"] if torch.cuda.is_bf16_supported(including_emulation=False) else []
        return ["float32", "float16", *bfloat16]
    fast = [name for name in ("amx_bf16", "avx512_bf16") if name in amx.processor_flags()]
    told = f"bfloat16 ({fast[0]})" if fast else "bfloat16 (emulated: slower than float32)"
    return ["float32 (by amx_bf16, in three parts)" if amx.library() else "float32", told]


def write_rate(folder: Path) -> float:
    """Bytes a second that reach the disk of a folder.

    Raises:
        OSError: it cannot be written.
    """
    block = os.urandom(MIB)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".triptych-doctor-") as file:
        began = time.perf_counter()
        for _ in range(WRITTEN // MIB):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        return WRITTEN / (time.perf_counter() - began)


def try_model(config: ExtractorConfig, photos: Path, images: int) -> Probe:
    """Run a network on photographs as a job would, the way `triptych plan` does.

    Args:
        photos: a folder; its images are taken again and again.
        images: how many, some of them to warm up.

    Raises:
        TriptychError: the network cannot run here.
    """
    files = sorted(path.absolute() for path in photos.glob("*.jpg"))
    with tempfile.TemporaryDirectory(prefix="triptych-doctor-") as folder:
        listed = Path(folder) / "images.tsv"
        listed.write_text("".join(f"{number}\t{files[number % len(files)]}\n" for number in range(images)))
        job = ExtractJob(SourceConfig(str(listed)), config, EngineConfig(f"{folder}/store"))
        listing = open_source(job.source).list()
        plan = make_plan(listing, lambda keys: [False] * len(keys), images)
        return probe_job(job, make_views(job.views), plan, images)


def images_to_try() -> int:
    """As many as give a figure within seconds: two a core, beside the one that warms up."""
    return 512 if torch.cuda.is_available() else int(2 * usable_cores()) + 1


def troubles() -> Iterator[str]:
    """What is set up badly, and what to do, a line each."""
    cores = usable_cores()
    if not torch.cuda.is_available() and (Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi")):
        build = "has no CUDA" if torch.version.cuda is None else "sees none"
        yield f"there is an NVIDIA GPU, and torch {torch.__version__} {build}: install a CUDA build, or mend the driver"
    if torch.cuda.is_available() and not has_triton():
        yield "there is a GPU, and Triton or a C compiler is missing: a GPU resizes no images then; install gcc"
    yield from _taken_gpus()
    if torch.get_num_threads() < int(cores):
        yield (
            f"torch uses {torch.get_num_threads()} of {cores:g} cores: OMP_NUM_THREADS is "
            f"{os.environ.get('OMP_NUM_THREADS', 'not set')}; unset it, or set it to {int(cores)}"
        )
    if torch.get_num_threads() > max(1, cores):
        yield (
            f"torch would use {torch.get_num_threads()} threads, and this container may use {cores:g} cores: set "
            f"OMP_NUM_THREADS={max(1, int(cores))}"
        )
    if lacking := amx.missing():
        yield f"this processor's AMX would make float32 faster, and cannot be used: {lacking}"
    if not torch.backends.mkldnn.is_available() and platform.machine() in ("x86_64", "AMD64"):
        yield "torch was built without oneDNN: convolutions are many times slower; install torch's own wheel"
    if not features.check("libjpeg_turbo"):
        yield "Pillow has no libjpeg-turbo: decoding takes twice the time; install Pillow's own wheel"
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if files < FILES_WANTED:
        yield f"{files} files may be open at once, and a store may map more: raise it with `ulimit -n {FILES_WANTED}`"
    temporary = Path(tempfile.gettempdir())
    if shutil.disk_usage(temporary).free < TEMPORARY_WANTED:
        free = shutil.disk_usage(temporary).free / 2**30
        yield f"{temporary} has {free:.1f} GiB free, and what goes to object storage is made there: set TMPDIR"


def _taken_gpus() -> Iterator[str]:
    """GPUs that other work uses, asked before anything of ours runs there."""
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        if total - free > TAKEN * total:
            taken = f"{(total - free) / 2**30:.0f} of {total / 2**30:.0f} GiB"
            yield f"of GPU {number} others hold {taken}: batches will be smaller; choose another one by --device"
        try:
            busy = torch.cuda.utilization(number)
        except ModuleNotFoundError:
            continue  # without triptych[gpu]
        if busy > BUSY:
            yield f"GPU {number} is {busy} % busy with other work: the speeds below are not those of a free one"


def bound(probe: Probe, disk: float | None) -> str:
    """What limits a network's speed here, as far as a probe tells.

    Args:
        disk: bytes a second that it takes; None where it is not known.
    """
    decode_workers = EngineConfig("").decode_threads(torch.cuda.is_available())
    if disk is not None and probe.bytes / probe.seconds > 0.8 * disk:
        return "the disk: --store-dtype uint8 halves what is written"
    spent = probe.stages.get("read", 0.0) + probe.stages.get("decode", 0.0)
    if spent > 0.8 * decode_workers * probe.seconds:
        return f"decoding: raise --decode-workers above {decode_workers}"
    return "the network"


def _memory() -> int:
    """Bytes that this process may use, a container's limit taken into account."""
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(there, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):
        return there
