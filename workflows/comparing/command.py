"""What `triptych compare` does with its flags: cells, features, runs, tables and the page."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from extractors import ConfigError
from extractors.base import pick_device
from extractors.configs import SHIPPED
from pipeline.config import EngineConfig
from pipeline.processes import side_by_side
from trainers.comparison.lines import duration, markdown
from trainers.comparison.report import Report, facts_of, render
from trainers.comparison.result import CellResult, write_table
from workflows.comparing.cells import Cell, Common, Matrix, cells_of, in_order, of_recipes
from workflows.comparing.data import Data, file_digest
from workflows.comparing.examples import disagreements
from workflows.comparing.features import features_of
from workflows.comparing.named import named
from workflows.comparing.running import Setting, extract_all, failed, run_cell
from workflows.output import complain, emit
from workflows.recipes import recipe_of
from workflows.recipes.tiny import sees_by_network
from workflows.runs import whole_path
from workflows.train import Train

FAILED = 1
RunCell = Callable[..., CellResult]  # as `run_cell`

if TYPE_CHECKING:
    from workflows.compare import Compare


@dataclass(frozen=True)
class Comparison:
    """A comparison as the flags ask for it.

    asked     the flags
    run_one   gives a cell its row, in any process
    command   that the report names. Default: that of this process
    """

    asked: Compare
    run_one: RunCell = run_cell
    command: str | None = None

    def run(self) -> int:
        """Compare; returns the exit status, 1 where a cell failed."""
        matrix, cells, setting = self.planned()
        lost = self.finish(matrix, cells, setting)
        return FAILED if lost else 0

    def planned(self) -> tuple[Matrix, Sequence[Cell], Setting]:
        """What is compared, its cells, and where they run; a vocabulary is written.

        Raises:
            ConfigError: flags do not go together, or there is no data.
        """
        asked = self.asked
        if asked.data is None or asked.out is None:
            raise ConfigError("a comparison needs data and a folder; name them with --data and --out.")
        if asked.processes < 1 or (asked.processes > 1 and asked.engine == "ray"):
            raise ConfigError(
                f"--processes {asked.processes} does not do; take 1 or more of this machine, with --engine ray none."
            )
        lines = (asked.recipes, asked.visuals)
        if asked.name and lines != (type(asked).recipes, type(asked).visuals):
            raise ConfigError(f"--name {asked.name} has its own lines; leave out --recipes and --visuals, or --name.")
        data, out = Data(str(Path(asked.data).absolute())), str(Path(asked.out).absolute())
        _check_out(Path(out))
        matrix = named(asked.name) if asked.name else of_recipes(asked.recipes, asked.visuals)
        matrix = matrix.at_hand(data.has, print)
        flags = self._flags(data, out)
        setting = Setting(out, str(data.images), str(data.annotations), flags.tokenizer, str(flags.device))
        return matrix, self._cells(matrix, data, flags), setting

    def finish(self, matrix: Matrix, cells: Sequence[Cell], setting: Setting) -> list[str]:
        """Extract what is lacking, run the cells, write the report; returns a line for each cell that failed."""
        befores, todo = in_order(cells)
        lacking = extract_all([*befores, *todo], setting, self._extraction(setting.out))
        results = dict[str, CellResult]()
        for part in [[*befores, *todo]] if self.asked.engine == "local" else [befores, todo]:
            results |= self._run(part, partial(self.run_one, setting=setting), setting.device, lacking)
        self._write(matrix, cells, [replace(results[cell.id], label=cell.label) for cell in cells], setting)
        lost = [f"{each.called}: {each.error}" for each in results.values() if each.error]
        if lost:
            complain("\n".join([f"{len(lost)} of {len(results)} cells failed:", *lost]))
        return lost

    def _run(
        self, cells: Sequence[Cell], run: Callable[[Cell], CellResult], device: str, lacking: Mapping[str, str]
    ) -> dict[str, CellResult]:
        """Every cell's row, by its id, told as they come.

        Args:
            lacking: features that are not there, by name, and why.
        """
        found, left, began = dict[str, CellResult](), list[Cell](), time.monotonic()

        def tell(cell: Cell, result: CellResult) -> None:
            found[cell.id] = result
            emit({"event": "cell", **asdict(result)})
            after = duration((time.monotonic() - began) / 3600)
            print(f"{len(found)} of {len(cells)}  {result.called}: {told(result)}; after {after}", flush=True)

        for cell in cells:
            features = features_of(cell.recipe)
            if features is not None and features.name in lacking:
                tell(cell, failed(cell, lacking[features.name]))
            else:
                left.append(cell)
        for number, result in self._results(left, run, device):
            tell(left[number], result if isinstance(result, CellResult) else failed(left[number], result))
        return found

    def _results(
        self, cells: Sequence[Cell], run: Callable[[Cell], CellResult], device: str
    ) -> Iterator[tuple[int, CellResult | str]]:
        """Their rows by number, or why there is none."""
        if self.asked.engine == "ray":
            from pipeline.spread import spread

            return spread(run, cells, device, self.asked.address)
        if self.asked.processes == 1:
            return enumerate(map(run, cells))
        numbers = {cell.id: number for number, cell in enumerate(cells)}
        befores = {number: cell.before.id for number, cell in enumerate(cells) if cell.before}
        after = {number: numbers[before] for number, before in befores.items() if before in numbers}
        return side_by_side(run, cells, self.asked.processes, after)

    def _write(self, matrix: Matrix, cells: Sequence[Cell], results: Sequence[CellResult], setting: Setting) -> None:
        """The table, the Markdown and the page."""
        out, command = Path(setting.out), self.command or shlex.join(["triptych", *sys.argv[1:]])
        write_table(results, out / "results.parquet")
        facts, processes = facts_of(results), self.asked.processes
        about = [f"Command: `{command}`"]
        if facts["date"]:
            shared = f", {processes} runs at once" if processes > 1 else ""
            about.insert(0, f"Measured {', '.join(facts['date'])} on {'; '.join(facts['hardware'])}{shared}.")
        (out / "results.md").write_text(markdown(matrix.title, results, about), encoding="utf-8")
        examples = disagreements(cells, results, setting)
        report = Report(matrix.title, results, command, matrix.source, examples, processes, bool(self.asked.starts))
        (out / "report.html").write_text(render(report), encoding="utf-8")
        files = {kind: str(out / f"results.{kind}") for kind in ("parquet", "md")} | {"html": str(out / "report.html")}
        emit({"event": "end", **files})
        print(f"open {out / 'report.html'} in a browser; its numbers are in results.parquet and results.md beside it")

    def _flags(self, data: Data, out: str) -> Train:
        """What all runs share, as `triptych train` has it."""
        tokenizer = whole_path(self.asked.tokenizer)
        if self.asked.tiny and tokenizer is None:
            tokenizer = str(Path(out) / "vocab.txt")
            data.write_words(Path(tokenizer))
        settled = Train(tiny=self.asked.tiny, tokenizer=tokenizer, device=self._device())
        return replace(settled, steps=self.asked.steps, batch_size=self.asked.batch_size)

    def _device(self) -> str:
        """The device of all cells: of this machine, or of the cluster's nodes."""
        if self.asked.engine == "local":
            return str(pick_device(self.asked.device))
        from pipeline.cluster import cluster_device, connect

        connect(self.asked.address)
        return cluster_device(self.asked.device)

    def _extraction(self, out: str) -> EngineConfig:
        """How stores are filled: by one device, whose time is then what it costs."""
        if self.asked.engine == "local":
            return EngineConfig(out)
        return EngineConfig(out, engine="ray", address=self.asked.address, workers=1)

    def _cells(self, matrix: Matrix, data: Data, flags: Train) -> Sequence[Cell]:
        words = file_digest(flags.tokenizer)

        @cache
        def digest(names: tuple[str, ...]) -> str:
            return f"{data.digest(names)} {words}"

        starts, networks = (_by_recipe(each) for each in (self.asked.starts, self.asked.networks))
        if self.asked.tiny and networks:
            raise ConfigError("tiny twins see by the network that comes along; leave out --networks, or --tiny.")
        if self.asked.tiny and matrix.sees:
            networks = {row.name: SHIPPED for row in matrix.rows if sees_by_network(row.recipe)}
        common = Common(flags, self.asked.seeds, starts, networks)
        return [cell for row in matrix.rows for cell in cells_of(row, common, digest)]


def _check_out(out: Path) -> None:
    """Whether a comparison may write there.

    Raises:
        ConfigError: it holds something else.
    """
    there = {each.name for each in out.iterdir()} if out.is_dir() else set()
    if there and not there & {"cells", "stores", "vocab.txt"}:
        raise ConfigError(f"--out {out} holds {min(there)!r} and no comparison; choose an empty folder, or a new one.")


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
