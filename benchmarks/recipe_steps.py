"""One training step of every recipe at its full size, with random weights: that it fits together, and what it costs.

    uv run python -m benchmarks.recipe_steps --out benchmarks/results

Protocol. Data of `tests/recipe_data.py` at full width: 36 boxes or 19 x 32 cells of 2048 numbers, BERT's 30,522 words;
pictures are resized as the recipe says. Each recipe has a process of its own, takes --batch examples (of retrieval,
where an example is a picture with 16 texts, one), and runs its losses, the way back and its optimisers once, after one
step that warms up. What goes wrong does not keep the others from running. Encoders that a recipe takes from a hub
start random. float32 on a CPU, the recipe's number type on a GPU. Memory is the process's largest (CPU), or what
tensors took (GPU). Writes recipe_steps_<hardware>_<date>.md and .json.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import Facts, asked, hardware, table, wait, write_results
from tests.recipe_data import FULL, Data
from trainers.device import Mover
from trainers.evaluate import autocast
from trainers.models.meter import MeterConfig
from trainers.optim import Optimisers
from workflows.recipes import RECIPES
from workflows.recipes.building import Run
from workflows.train import Train

RANDOM = "random:0"


def described(name: str, root: Path, batch: int, device: str) -> Run:
    """A recipe on the generated data, its encoders random."""
    given = Data(root / "data", FULL).arguments(name, root / "own")[1:]
    flags = {key.removeprefix("--"): value for key, value in zip(given[::2], given[1::2], strict=True)}
    dtype: Any = "float32" if device == "cpu" else None
    run = Train(recipe=name, batch_size=batch, steps=1, device=device, dtype=dtype, **flags).described()  # type: ignore[arg-type]
    model = run.recipe.model
    if isinstance(model, MeterConfig):
        image = None if model.image is None else replace(model.image, weights=RANDOM)
        model = replace(model, text=replace(model.text, weights=RANDOM), image=image)
    codebook = run.recipe.codebook and replace(run.recipe.codebook, weights=RANDOM)
    return replace(run, recipe=replace(run.recipe, model=model, codebook=codebook), least=1)


def step(name: str, batch: int, device_name: str) -> dict[str, Any]:
    """What one recipe's step costs."""
    with tempfile.TemporaryDirectory() as work:
        run, device = described(name, Path(work), batch, device_name), torch.device(device_name)
        model, task, _ = run.build()
        model.to(device).train()
        optimisers, move, config = Optimisers(model, run.recipe.train), Mover(device), run.recipe.train
        for number in range(2):
            batches = move(task.collate(list(range(batch)), number))
            began = time.perf_counter()
            with autocast(config, device):
                losses = task.losses(model, batches)
            total = torch.stack([each.float() for each in losses.values()]).sum()
            total.backward()
            optimisers.step(1.0)
            wait(device)
            seconds = time.perf_counter() - began
    if not bool(torch.isfinite(total)):
        raise SystemExit(f"{name}: a loss is not finite: {losses}")
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else 1024 * rss()
    count = sum(each.numel() for each in model.parameters())
    of = {key: float(value.detach()) for key, value in losses.items()}
    return {"recipe": name, "parameters": count, "losses": of, "seconds": seconds, "gib": peak / 2**30}


def rss() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--facts", type=Path, help="lines of results, kept here as they come; what it has is not run")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(step(args.one, args.batch, args.device)))
        return
    facts = Facts(args.facts)
    for name in args.recipes:
        if name not in facts.known:
            batch = 1 if "retrieval" in name else args.batch
            command = [sys.executable, "-m", "benchmarks.recipe_steps", "--one", name, "--batch", str(batch)]
            told = subprocess.run([*command, "--device", args.device], stdout=subprocess.PIPE, text=True)
            if told.returncode:
                print(f"{name} ended with {told.returncode}", file=sys.stderr, flush=True)
                continue
            facts.add({**json.loads(told.stdout.splitlines()[-1]), "examples": batch})
    found = facts.of(args.recipes)
    text = report(found)
    write_results(args.out, "recipe_steps", text, found)
    print(text)
    if len(found) < len(args.recipes):
        raise SystemExit("not all recipes took their step")


def report(facts: Sequence[dict[str, Any]]) -> str:
    """The results as Markdown."""
    rows = [
        [
            each["recipe"],
            str(each["examples"]),
            f"{each['parameters'] / 1e6:.1f}",
            ", ".join(f"{name} {value:.2f}" for name, value in each["losses"].items()),
            f"{each['seconds']:.1f}",
            f"{each['gib']:.1f}",
        ]
        for each in facts
    ]
    header = ["recipe", "examples", "million parameters", "losses", "seconds", "GiB"]
    about = f"{hardware()}. "
    command = asked()
    return f"# A step of every recipe, {time.strftime('%Y-%m-%d')}\n\n{about}{command}\n\n{table(header, rows)}\n"


if __name__ == "__main__":
    main()
