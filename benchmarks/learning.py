"""Does every recipe learn? Its tiny twin, some hundred updates on tiny official-format data, scored on held-out data.

    uv run python -m benchmarks.learning --out benchmarks/results

Protocol. `tests/recipe_data.py` writes the data: pictures of plain shapes, from which every answer can be learnt, and
stores of features that are their colours, 256 wide. Each recipe of `triptych train --list` runs as its tiny twin
(--tiny: small, random weights, on a CPU) through the command line, with batches of 32 and a rate of 1e-3, for --steps
updates, where `STEPS` below does not say otherwise; METER's tasks at 1e-4, since their heads learn 10 to 50 times as
fast as the rest. VCR starts from what `vl_bert_pretrain` has learnt, at 3e-4 and from stores: a random network does not
find its pictures' colours. Retrieval has fewer pictures, since all pairs are scored.

"loss" is the mean over the first and over the last tenth of the updates. The score is the task's own on its validation
split, of other pictures; "blind" is what the same predictions score when they are dealt out anew among the examples
that ask the same, the mean of 20 deals: what can be known without looking. Pre-training has losses only.
Writes learning_<hardware>_<date>.md and .json.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.machine import Facts, asked, hardware, table, write_results
from tests.recipe_data import Data, Size
from trainers.comparison.blind import DEALS, deal
from workflows.cli import main as triptych
from workflows.recipes import RECIPES
from workflows.runs import kept

SETTINGS = ("--batch-size", "32", "--log-every", "1")
PAIRS = 24  # pictures of a split, for retrieval
AFTER = {"vl_bert_vcr_answer": "vl_bert_pretrain", "vl_bert_vcr_rationale": "vl_bert_pretrain"}
RATE = "1e-3"
RATES = dict.fromkeys((name for name in RECIPES if re.match("meter_(?!pretrain|probe)", name)), "1e-4")
RATES |= dict.fromkeys(AFTER, "3e-4")
STEPS = dict.fromkeys((name for name in RECIPES if name.startswith("meter_pretrain")), 60)
STEPS |= dict.fromkeys(("vl_bert_pretrain", "vl_bert_refcoco", "pixel_bert_vqa", *AFTER), 600)
STEPS["meter_pretrain_swin"] = 30


def learn(name: str, steps: int, images: int) -> dict[str, Any]:
    """One recipe's losses and scores."""
    torch.set_num_threads(1)
    steps, images = STEPS.get(name, steps), PAIRS if "retrieval" in name else images
    rate = ("--lr", RATES.get(name, RATE))
    with tempfile.TemporaryDirectory() as work:
        root = Path(work)
        data, began = Data(root / "data", Size(images=images, dim=256, boxes=2)), time.perf_counter()
        if name in AFTER:
            train(data.arguments(AFTER[name], root / "before"), steps)
            more = ["--start", str(root / "before" / "run")]
            train([*data.arguments(name, root / "own", "store"), *more, *rate], steps)
        else:
            train([*data.arguments(name, root / "own"), *rate], steps)
        run = root / "own" / "run"
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        losses = [line["loss"] for line in lines if "loss" in line]
        tenth = max(1, len(losses) // 10)
        found = {
            "recipe": name,
            "steps": steps,
            "images": images,
            "seconds": time.perf_counter() - began,
            "first": float(np.mean(losses[:tenth])),
            "last": float(np.mean(losses[-tenth:])),
        }
        return {**found, **scored(run)}


def train(args: Sequence[str], steps: int) -> None:
    """A tiny twin's run by the command line."""
    said = StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        status = triptych(["train", *args, "--tiny", "--steps", str(steps), *SETTINGS])
    if status:
        raise SystemExit(f"{args[0]} ended with {status}: {said.getvalue()[-500:]}")


def scored(run: Path) -> dict[str, Any]:
    """The held-out score of a run, and of its predictions dealt out anew; nothing for pre-training."""
    if not (run / "predictions.json").is_file():
        return {}
    recipe = kept(str(run))
    task: Any
    _, task = recipe.build_for(recipe.recipe.validation)
    predictions = json.loads((run / "predictions.json").read_text())
    dealt = [task.score(deal(task, predictions, seed))[task.metric] for seed in range(DEALS)]
    return {"metric": task.metric, "score": task.score(predictions)[task.metric], "blind": float(np.mean(dealt))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--images", type=int, default=200, help="of each split")
    parser.add_argument("--processes", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--facts", type=Path, help="lines of results, kept here as they come; what it has is not run")
    args = parser.parse_args()
    facts = Facts(args.facts)
    with ProcessPoolExecutor(args.processes, mp_context=get_context("spawn")) as processes:
        wanted = [name for name in args.recipes if name not in facts.known]
        runs = {processes.submit(learn, name, args.steps, args.images): name for name in wanted}
        for each in as_completed(runs):
            if error := each.exception():  # the others go on
                print(f"{runs[each]}: {error}", file=sys.stderr, flush=True)
                continue
            facts.add(each.result())
    found = facts.of(args.recipes)
    text = report(found)
    write_results(args.out, "learning", text, found)
    print(text)
    if len(found) < len(args.recipes):
        raise SystemExit("not all recipes were run to their end")


def report(facts: Sequence[dict[str, Any]]) -> str:
    """The results as Markdown."""
    rows = [
        [
            each["recipe"],
            f"{each['steps']} of {each['images']}",
            f"{each['first']:.2f} to {each['last']:.2f}",
            each.get("metric", ""),
            f"{each['score']:.1f}" if "score" in each else "",
            f"{each['blind']:.1f}" if "blind" in each else "",
            f"{each['seconds']:.0f}",
        ]
        for each in facts
    ]
    header = ["recipe, tiny", "updates, pictures", "loss", "metric", "held-out score", "blind", "seconds"]
    about = f"{hardware()}. {asked()}"
    return f"# What the recipes learn, {time.strftime('%Y-%m-%d')}\n\n{about}\n\n{table(header, rows)}\n"


if __name__ == "__main__":
    main()
