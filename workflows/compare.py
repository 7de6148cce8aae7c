"""`triptych compare`: models and visual inputs side by side, extracted, trained, scored and measured alike."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from extractors import ConfigError
from extractors.base import pick_device
from trainers.comparison.lines import markdown
from trainers.comparison.report import Report, facts_of, render
from trainers.comparison.result import CellResult, write_table
from workflows.comparing.cells import Cell, Matrix, cells_of, in_order, of_recipes
from workflows.comparing.data import Data, texts_digest
from workflows.comparing.examples import disagreements
from workflows.comparing.named import listed, named
from workflows.comparing.running import Setting, extract_all, run_cell
from workflows.train import Train, _absolute

FAILED = 1
FIVE = ("vl_bert_vqa", "grid_vlp_vqa", "pixel_bert_vqa", "vilt_vqa", "meter_vqa")


@dataclass(frozen=True)
class Compare:
    """Compare models and visual inputs: extract what is missing, train, score, measure, and write a report.

    triptych compare --data scenes --out comparison --tiny

    triptych compare --data scenes --out comparison --recipes grid_vlp_vqa vilt_vqa --visuals store pixels --seeds 0 1 2
    """

    data: str | None = None
    """Folder with images and annotations, as `triptych scenes make` writes it."""
    out: str | None = None
    """Folder for stores, runs and the report; the same command goes on where it stopped."""
    list: bool = False
    """Show the papers' analyses that can be run by their names."""
    name: str | None = None
    """One of these, instead of --recipes and --visuals."""
    recipes: tuple[str, ...] = FIVE
    """Runs, as of `triptych train --list`."""
    visuals: tuple[str, ...] = ("store", "pixels")
    """Where images come from: store, pixels, or both, one after the other."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Each line of the tables is run once with each."""
    tokenizer: str | None = None
    """As of `triptych train`. Default: the recipe's; of tiny twins the words of the data."""
    steps: int | None = None
    """End each run after so many updates. Default: the recipe's."""
    batch_size: int | None = None
    """Examples an update. Default: the recipe's."""
    device: str = "auto"
    """cpu, cuda, cuda:N or auto."""
    tiny: bool = False
    """The recipes' tiny twins, with random weights, and tiny extractors: minutes on a CPU."""

    def run(self) -> int:
        """Compare; returns the exit status, 1 where a cell failed."""
        if self.list:
            print("\n".join(listed()))
            return 0
        if self.data is None or self.out is None:
            raise ConfigError("a comparison needs data and a folder; name them with --data and --out.")
        data, out = Data(str(Path(self.data).absolute())), str(Path(self.out).absolute())
        matrix = named(self.name) if self.name else of_recipes(self.recipes, self.visuals)
        matrix = matrix.at_hand(data.has, print)
        flags = self._flags(data, out)
        cells = self._cells(matrix, data, flags)
        setting = Setting(out, str(data.images), str(data.annotations), flags.tokenizer)
        todo = in_order(cells)
        extract_all(todo, setting, str(flags.device))
        results = self._run(todo, setting)
        self._write(matrix, cells, [replace(results[cell.id], label=cell.label) for cell in cells], setting)
        failed = [f"{each.label}, seed {each.seed}: {each.error}" for each in results.values() if each.error]
        print("\n".join([f"{len(failed)} of {len(todo)} cells failed:", *failed] if failed else [f"{len(todo)} cells"]))
        return FAILED if failed else 0

    def _run(self, cells: Sequence[Cell], setting: Setting) -> dict[str, CellResult]:
        """Every cell's row, by its id."""
        found = {}
        for number, cell in enumerate(cells, 1):
            print(f"--- {number} of {len(cells)}: {cell.label}, seed {cell.recipe.train.seed}", flush=True)
            found[cell.id] = run_cell(cell, setting)
            print(told(found[cell.id]), flush=True)
        return found

    def _write(self, matrix: Matrix, cells: Sequence[Cell], results: Sequence[CellResult], setting: Setting) -> None:
        """The table, the Markdown and the page."""
        out, command = Path(setting.out), shlex.join(["triptych", *sys.argv[1:]])
        write_table(results, out / "results.parquet")
        facts = facts_of(results)
        about = [f"Measured {', '.join(facts['date'])} on {'; '.join(facts['hardware'])}.", f"Command: `{command}`"]
        (out / "results.md").write_text(markdown(matrix.title, results, about), encoding="utf-8")
        report = Report(matrix.title, results, command, matrix.source, disagreements(cells, results, setting))
        (out / "report.html").write_text(render(report), encoding="utf-8")
        print(f"open {out / 'report.html'} in a browser; its numbers are in results.parquet and results.md beside it")

    def _flags(self, data: Data, out: str) -> Train:
        """What all runs share, as `triptych train` has it."""
        tokenizer = _absolute(self.tokenizer)
        if self.tiny and tokenizer is None:
            tokenizer = str(Path(out) / "vocab.txt")
            data.write_words(Path(tokenizer))
        device = str(pick_device(self.device))
        return Train(tiny=self.tiny, steps=self.steps, batch_size=self.batch_size, device=device, tokenizer=tokenizer)

    def _cells(self, matrix: Matrix, data: Data, flags: Train) -> Sequence[Cell]:
        words = texts_digest(flags.tokenizer)

        @cache
        def digest(names: tuple[str, ...]) -> str:
            return f"{data.digest(names)} {words}"

        return [cell for row in matrix.rows for cell in cells_of(row, self.seeds, flags, digest)]


def told(result: CellResult) -> str:
    """How a cell ended, in a line."""
    if result.error:
        return f"failed: {result.error}"
    if result.metric is None:
        return "pre-trained"
    return f"{result.metric} {result.score:.2f}, without looking {result.blind:.2f}"
