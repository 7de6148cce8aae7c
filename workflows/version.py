"""What `triptych --version` says: the version, and the facts of the installation that a report of a bug needs."""

from __future__ import annotations

import importlib.util
import json
import platform
import re
import subprocess
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

PACKAGES = ("torch", "torchvision", "transformers", "timm", "pyarrow", "ray")


def version_lines() -> Iterator[str]:
    """The version, then a fact a line. No package is imported for it: that would take seconds."""
    yield f"triptych {version('triptych')}"
    yield f"commit {commit() or 'not known'}"
    yield f"Python {platform.python_version()}, {platform.platform()}"
    for name in PACKAGES:
        yield f"{name} {_installed(name)}"
    yield f"CUDA of torch {torch_cuda()}"


def commit() -> str | None:
    """The commit of a checkout, `+` behind it where files were changed; or that of an installation from git."""
    root = Path(__file__).parents[1]
    if (root / ".git").exists():
        command = ["git", "-C", str(root), "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:  # no git here
            return None
        return done.stdout.strip() or None
    origin = json.loads(distribution("triptych").read_text("direct_url.json") or "{}")
    found: str | None = origin.get("vcs_info", {}).get("commit_id")
    return found


def torch_cuda() -> str:
    """The CUDA that torch was built for, as its file of versions says."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return "none"
    text = (Path(spec.origin).parent / "version.py").read_text(encoding="utf-8")
    found = re.search(r"""^cuda\b.*=\s*['"](.+)['"]""", text, re.MULTILINE)
    return found[1] if found else "none"


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
