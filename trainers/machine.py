"""The machine that something is measured on: its name, its clock, and how much memory was taken.

torch is loaded where it is used only: what measures memory of its own must not load it.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def processor() -> str:
    """Its name, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    if info.exists() and (match := re.search(r"model name\s*:\s*(.+)", info.read_text())):
        return match[1]
    return platform.processor() or platform.machine()


def hardware() -> str:
    """Processor, threads, memory and versions."""
    import torch

    threads = "1 thread" if torch.get_num_threads() == 1 else f"{torch.get_num_threads()} threads"
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{processor()}, {threads}, {memory:.0f} GiB{gpu}, torch {torch.__version__}"


def wait(device: torch.device) -> None:
    """Until a GPU has done all that it was given."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def reset_peak(device: torch.device) -> None:
    """Let `peak_gib` start again from what is held now."""
    import torch

    if device.type == "cuda":
        if torch.cuda.is_initialized():  # else nothing is held, and torch has no numbers to reset
            torch.cuda.reset_peak_memory_stats(device)
    elif Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")


def peak_gib(device: torch.device) -> float:
    """The most memory held since `reset_peak`: of a GPU what torch allocated, else resident of this process."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return _status_gib("VmHWM")


def give_back(device: torch.device) -> None:
    """Return what the C library, or torch on a GPU, keeps of freed memory, so that what is held is what is in use."""
    if device.type == "cuda":
        import torch

        torch.cuda.empty_cache()
    elif platform.libc_ver()[0] == "glibc":
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def held_gib(device: torch.device) -> float:
    """The memory held now, as of `peak_gib`."""
    import torch

    return torch.cuda.memory_allocated(device) / 2**30 if device.type == "cuda" else _status_gib("VmRSS")


def _status_gib(name: str) -> float:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(next(line for line in status.splitlines() if line.startswith(name)).split()[1]) / 2**20
