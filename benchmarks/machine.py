"""What machine a benchmark ran on, and where its results go."""

from __future__ import annotations

import json
import os
import platform
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


def hardware() -> str:
    """Processor, threads, memory and versions."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists() and (match := re.search(r"model name\s*:\s*(.+)", info.read_text())):
        cpu = match[1]
    import torch  # here: a benchmark of memory must not load it

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{cpu}, {torch.get_num_threads()} threads, {memory:.0f} GiB, torch {torch.__version__}"


def write_results(folder: Path, what: str, report: str, facts: Any) -> Path:
    """Write <what>_cpu<threads>_<date>.md, and .json beside it; returns the first."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{what}_cpu{os.cpu_count()}_{datetime.now(UTC):%Y-%m-%d}.md"
    path.write_text(report, encoding="utf-8")
    plain = json.dumps({"hardware": hardware(), "facts": facts}, indent=1)
    path.with_suffix(".json").write_text(plain, encoding="utf-8")
    return path


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
