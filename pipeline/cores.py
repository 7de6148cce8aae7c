"""How many cores there are for this process."""

from __future__ import annotations

import os
from pathlib import Path


def usable_cores() -> float:
    """Cores that this process may use, a container's share taken into account."""
    cores = float(len(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else float(os.cpu_count() or 1)
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return min(cores, float(quota) / float(period))
    except (OSError, ValueError):
        return cores
