"""Does every recipe learn? Its tiny twin, some hundred updates on tiny official-format data, scored on held-out data.

    uv run python -m benchmarks.learning --out benchmarks/results

Protocol. `tests/recipe_data.py` writes the data: pictures of plain shapes, from which every answer can be learnt, and
stores of features that are their colours. Each recipe of `triptych train --list` runs as its tiny twin (--tiny: small,
random weights, on a CPU) for --steps updates at a rate of 2e-3, through the command line. "loss" is the mean over the
first and over the last tenth of the updates. The score is the task's own on its validation split, of other pictures;
"blind" is what the same predictions score when they are dealt out anew among the examples that ask the same, the mean
of 20 deals: what can be known without looking. Pre-training has losses only. Writes learning_<hardware>_<date>.md and
.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.machine import hardware, table, write_results
from tests.recipe_data import Data, Size
from trainers.tasks.base import Prediction, Task
from workflows.cli import main as triptych
from workflows.recipes import RECIPES
from workflows.train import kept

DEALS, LR = 20, "2e-3"


def learn(name: str, steps: int, images: int) -> dict[str, Any]:
    """One recipe's losses and scores."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as work:
        root = Path(work)
        args = Data(root / "data", Size(images=images)).arguments(name, root / "own")
        began, said = time.perf_counter(), StringIO()
        with redirect_stdout(said), redirect_stderr(said):
            status = triptych(["train", *args, "--tiny", "--steps", str(steps), "--lr", LR, "--log-every", "1"])
        if status:
            raise SystemExit(f"{name} ended with {status}: {said.getvalue()[-500:]}")
        run = root / "own" / "run"
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        losses = [line["loss"] for line in lines if "loss" in line]
        tenth = max(1, len(losses) // 10)
        found = {
            "recipe": name,
            "seconds": time.perf_counter() - began,
            "first": float(np.mean(losses[:tenth])),
            "last": float(np.mean(losses[-tenth:])),
        }
        return {**found, **scored(run)}


def scored(run: Path) -> dict[str, Any]:
    """The held-out score of a run, and of its predictions dealt out anew; nothing for pre-training."""
    if not (run / "predictions.json").is_file():
        return {}
    recipe = kept(str(run))
    _, task = recipe.build_for(recipe.recipe.validation)
    predictions = json.loads((run / "predictions.json").read_text())
    dealt = [task.score(deal(task, predictions, seed))[task.metric] for seed in range(DEALS)]
    return {"metric": task.metric, "score": task.score(predictions)[task.metric], "blind": float(np.mean(dealt))}


def deal(task: Task, predictions: Sequence[Prediction], seed: int) -> list[Prediction]:
    """Each example another one's prediction, out of those that ask the same question."""
    groups: dict[str, list[int]] = defaultdict(list)
    examples = getattr(task, "split").examples  # noqa: B009  the protocol does not ask for it
    asked = getattr(task, "kind", "") in ("vqa", "gqa")
    for number, example in enumerate(examples):
        groups[example.texts[0] if asked else ""].append(number)
    rng, found = np.random.default_rng(seed), list(predictions)
    for members in groups.values():
        for number, other in zip(members, rng.permutation(members), strict=True):
            found[number] = {**predictions[other], "id": predictions[number]["id"]}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--images", type=int, default=48, help="of each split")
    parser.add_argument("--processes", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    with ProcessPoolExecutor(args.processes, mp_context=get_context("spawn")) as processes:
        coming = {name: processes.submit(learn, name, args.steps, args.images) for name in args.recipes}
        facts = []
        for name, each in coming.items():
            facts.append(each.result())
            print(name, facts[-1], flush=True)
    text = report(facts, args)
    write_results(args.out, "learning", text, facts)
    print(text)


def report(facts: Sequence[dict[str, Any]], args: argparse.Namespace) -> str:
    """The results as Markdown."""
    rows = [
        [
            each["recipe"],
            f"{each['first']:.2f} to {each['last']:.2f}",
            each.get("metric", ""),
            f"{each['score']:.1f}" if "score" in each else "",
            f"{each['blind']:.1f}" if "blind" in each else "",
            f"{each['seconds']:.0f}",
        ]
        for each in facts
    ]
    header = ["recipe, tiny", "loss", "metric", "held-out score", "blind", "seconds"]
    about = f"{hardware()}. {args.steps} updates, {args.images} pictures a split. "
    command = "Command: `uv run python -m benchmarks.learning`; its docstring is the protocol."
    return f"# What the recipes learn, {time.strftime('%Y-%m-%d')}\n\n{about}{command}\n\n{table(header, rows)}\n"


if __name__ == "__main__":
    main()
