"""Running notebooks in the process of a test: a kernel for each would import torch anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat

FOLDER = Path(__file__).parents[1] / "examples" / "notebooks"


def code_of(name: str) -> list[str]:
    """The code cells of a notebook."""
    return [cell.source for cell in nbformat.read(FOLDER / f"{name}.ipynb", 4).cells if cell.cell_type == "code"]


def run_cells(name: str) -> dict[str, Any]:
    """Run a notebook's cells in the current folder, one after the other; returns the names that they leave."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, source in enumerate(code_of(name), 1):
        exec(compile(source, f"{name}.ipynb, code cell {number}", "exec"), names)
    return names
