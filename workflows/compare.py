"""`triptych compare`: models and visual inputs side by side, extracted, trained, scored and measured alike."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Literal

from extractors import ConfigError
from extractors.base import pick_device
from pipeline.config import EngineConfig
from trainers.comparison.lines import markdown
from trainers.comparison.report import Report, facts_of, render
from trainers.comparison.result import CellResult, write_table
from workflows.comparing.cells import Cell, Common, Matrix, cells_of, in_order, of_recipes
from workflows.comparing.data import Data, file_digest
from workflows.comparing.examples import disagreements
from workflows.comparing.features import features_of
from workflows.comparing.named import listed, named
from workflows.comparing.running import Setting, extract_all, failed, run_cell
from workflows.recipes import recipe_of
from workflows.train import Train, whole_path

FAILED = 1
FIVE = ("vl_bert_vqa", "grid_vlp_vqa", "pixel_bert_vqa", "vilt_vqa", "meter_vqa")


@dataclass(frozen=True)
class Compare:
    """Compare models and visual inputs: extract, train, score, measure, report.

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
    starts: tuple[str, ...] = ()
    """Weights to start from, RECIPE=WEIGHTS, as of `triptych train --start`. Default: what was pre-trained here, or
    random ones."""
    networks: tuple[str, ...] = ()
    """Weights of the convolutional network that sees the pixels or fills the store, RECIPE=WEIGHTS. Default: published
    ones for a store, random ones for pixels."""
    engine: Literal["local", "ray"] = "local"
    """One cell after the other in this process, or spread over a Ray cluster, a GPU or a CPU each."""
    address: str | None = None
    """Ray: the cluster's address. Default: the one at hand, or a local one."""
    config: str | None = None
    """YAML file with any of these settings, by the same names; flags win over it."""
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
        setting = Setting(out, str(data.images), str(data.annotations), flags.tokenizer, str(flags.device))
        cells = self._cells(matrix, data, flags)
        befores, todo = in_order(cells)
        lacking = extract_all([*befores, *todo], setting, self._extraction(out))
        results = self._run(befores, setting, lacking) | self._run(todo, setting, lacking)
        self._write(matrix, cells, [replace(results[cell.id], label=cell.label) for cell in cells], setting)
        lost = [f"{each.label}, seed {each.seed}: {each.error}" for each in results.values() if each.error]
        if lost:
            print("\n".join([f"{len(lost)} of {len(results)} cells failed:", *lost]), file=sys.stderr)
        return FAILED if lost else 0

    def _run(self, cells: Sequence[Cell], setting: Setting, lacking: Mapping[str, str]) -> dict[str, CellResult]:
        """Every cell's row, by its id, told as they come.

        Args:
            lacking: features that are not there, by name, and why.
        """
        found = {}
        for cell, result in self._results(cells, setting, lacking):
            found[cell.id] = result
            print(f"{len(found)} of {len(cells)}  {cell.label}, seed {result.seed}: {told(result)}", flush=True)
        return found

    def _results(
        self, cells: Sequence[Cell], setting: Setting, lacking: Mapping[str, str]
    ) -> Iterator[tuple[Cell, CellResult]]:
        left = []
        for cell in cells:
            features = features_of(cell.recipe)
            if features is not None and features.name in lacking:
                yield cell, failed(cell, lacking[features.name])
            else:
                left.append(cell)
        if self.engine == "local":
            yield from ((cell, run_cell(cell, setting)) for cell in left)
            return
        from pipeline.spread import spread

        for number, result in spread(partial(run_cell, setting=setting), left, setting.device, self.address):
            yield left[number], result if isinstance(result, CellResult) else failed(left[number], result)

    def _write(self, matrix: Matrix, cells: Sequence[Cell], results: Sequence[CellResult], setting: Setting) -> None:
        """The table, the Markdown and the page."""
        out, command = Path(setting.out), shlex.join(["triptych", *sys.argv[1:]])
        write_table(results, out / "results.parquet")
        facts = facts_of(results)
        where = [f"Measured {', '.join(facts['date'])} on {'; '.join(facts['hardware'])}."] if facts["date"] else []
        about = [*where, f"Command: `{command}`"]
        (out / "results.md").write_text(markdown(matrix.title, results, about), encoding="utf-8")
        report = Report(matrix.title, results, command, matrix.source, disagreements(cells, results, setting))
        (out / "report.html").write_text(render(report), encoding="utf-8")
        print(f"open {out / 'report.html'} in a browser; its numbers are in results.parquet and results.md beside it")

    def _flags(self, data: Data, out: str) -> Train:
        """What all runs share, as `triptych train` has it."""
        tokenizer = whole_path(self.tokenizer)
        if self.tiny and tokenizer is None:
            tokenizer = str(Path(out) / "vocab.txt")
            data.write_words(Path(tokenizer))
        settled = Train(tiny=self.tiny, tokenizer=tokenizer, device=self._device())
        return replace(settled, steps=self.steps, batch_size=self.batch_size)

    def _device(self) -> str:
        """The device of all cells: of this machine, or of the cluster's nodes."""
        if self.engine == "local":
            return str(pick_device(self.device))
        from pipeline.cluster import cluster_device, connect

        connect(self.address)
        return cluster_device(self.device)

    def _extraction(self, out: str) -> EngineConfig:
        """How stores are filled: by one device, whose time is then what it costs."""
        if self.engine == "local":
            return EngineConfig(out)
        return EngineConfig(out, engine="ray", address=self.address, workers=1)

    def _cells(self, matrix: Matrix, data: Data, flags: Train) -> Sequence[Cell]:
        words = file_digest(flags.tokenizer)

        @cache
        def digest(names: tuple[str, ...]) -> str:
            return f"{data.digest(names)} {words}"

        starts, networks = (_by_recipe(each) for each in (self.starts, self.networks))
        if self.tiny and networks:
            raise ConfigError("tiny twins see by small random networks of their own; leave out --networks, or --tiny.")
        common = Common(flags, self.seeds, starts, networks)
        return [cell for row in matrix.rows for cell in cells_of(row, common, digest)]


def _by_recipe(given: Sequence[str]) -> dict[str, str]:
    """What flags say of recipes: NAME=SOURCE.

    Raises:
        ConfigError: one says something else, or there is no such recipe.
    """
    found = {}
    for each in given:
        name, equals, source = each.partition("=")
        if not equals or not source:
            raise ConfigError(f"{each!r} names no weights of a recipe; write RECIPE=WEIGHTS.")
        recipe_of(name)
        found[name] = str(whole_path(source))
    return found


def told(result: CellResult) -> str:
    """How a cell ended, in a line."""
    if result.error:
        return f"failed: {result.error}"
    if result.metric is None:
        return "pre-trained"
    return f"{result.metric} {result.score:.2f}, without looking {result.blind:.2f}"
