"""What machine a benchmark ran on, and where its results go."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import re
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # a benchmark of memory must not load it
    import torch


def hardware() -> str:
    """Processor, threads, memory and versions."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists() and (match := re.search(r"model name\s*:\s*(.+)", info.read_text())):
        cpu = match[1]
    import torch

    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{cpu}, {torch.get_num_threads()} threads, {memory:.0f} GiB{gpu}, torch {torch.__version__}"


def wait(device: torch.device) -> None:
    """Until a GPU has done all that it was given."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize()


def matmul_flops(dtype: torch.dtype, device: torch.device) -> float:
    """Operations a second of the product of two large square matrices, the best of eight: what counts as the peak."""
    import torch

    side = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(8):
        began = time.perf_counter()
        a @ b
        wait(device)
        best = min(best, time.perf_counter() - began)
    return 2 * side**3 / best


def reset_peak(device: torch.device) -> None:
    """Let `peak_gib` start again from what is held now."""
    import torch

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    elif Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")


def peak_gib(device: torch.device) -> float:
    """The most memory held since `reset_peak`: of a GPU what torch allocated, else resident of this process."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return _status_gib("VmHWM")


def give_back(device: torch.device) -> None:
    """Return what the C library keeps of freed memory, so that resident memory is what is in use; nothing on a GPU."""
    if device.type == "cpu" and platform.libc_ver()[0] == "glibc":
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def held_gib(device: torch.device) -> float:
    """The memory held now, as of `peak_gib`."""
    import torch

    return torch.cuda.memory_allocated() / 2**30 if device.type == "cuda" else _status_gib("VmRSS")


def _status_gib(name: str) -> float:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(next(line for line in status.splitlines() if line.startswith(name)).split()[1]) / 2**20


def write_results(folder: Path, what: str, report: str, facts: Any) -> Path:
    """Write <what>_cpu<threads>_<date>.md, or <what>_<GPU>_<date>.md, and .json beside it; returns the first."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{what}_{_short_name()}_{datetime.now(UTC):%Y-%m-%d}.md"
    path.write_text(report, encoding="utf-8")
    plain = json.dumps({"hardware": hardware(), "facts": facts}, indent=1)
    path.with_suffix(".json").write_text(plain, encoding="utf-8")
    return path


def _short_name() -> str:
    """The GPU where there is one, else how many cores."""
    import torch

    if not torch.cuda.is_available():
        return f"cpu{os.cpu_count()}"
    return re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower().removeprefix("nvidia "))


class Facts:
    """Results by recipe: printed as they come and, with a file, kept there a line each, so that none is found again."""

    def __init__(self, path: Path | None) -> None:
        lines = path.read_text().splitlines() if path and path.exists() else []
        self._path = path
        self.known: dict[str, dict[str, Any]] = {each["recipe"]: each for each in map(json.loads, lines)}

    def add(self, found: dict[str, Any]) -> None:
        self.known[found["recipe"]] = found
        print(json.dumps(found), flush=True)
        if self._path:
            with self._path.open("a") as file:
                print(json.dumps(found), file=file)

    def of(self, recipes: Sequence[str]) -> list[dict[str, Any]]:
        """What is known of them, in their order."""
        return [self.known[name] for name in recipes if name in self.known]


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
