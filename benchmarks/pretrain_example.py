"""Makes what the models of the example of `docs/` begin with: each has answered questions about other scenes.

    uv run python -m benchmarks.pretrain_example --scratch scratch --out benchmarks/starts

Protocol. --images scenes of seed 0 and of one or two things; the example has those of seed 1 and up to three. Each of
the five models, as the example has it, learns VQA from cached features with seed 0, from QUESTIONS questions in all,
in the batches and by the rates of LEARNING: with few updates of large batches no text finds its patch. Only what a
thing looks like is asked, its kind, colour and texture: a text finds its patch after 3,000 such questions, and among
all others after some 12,000. ViLT and METER begin with the ViTs of `benchmarks.train_example_vits`. --processes models
at a time, a thread each. What is written are the weights without the head of answers, rounded to float16, and
`vocab.txt`, the words; scores are those of the validation split, before rounding. Into --result goes
example_starts_<hardware>_<date>.md and .json. A run that was stopped goes on by the same command.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.example_comparison import VILT_START, Training, filled, scenes_of, trained
from benchmarks.machine import hardware, table, write_results
from pipeline.processes import side_by_side
from trainers.data.files import write_json
from workflows.compare import Compare

SEED, QUESTIONS = 0, 64_000
THINGS = (1, 2)  # of a scene: where there is one, a text has only to find it
LOOKS = ("What color is", "What is the", "plain, ")  # is in what is asked about colours, kinds and textures
LEARNING = {  # the slowest first, so that the last ones fill what time is left
    "ViLT, cached pixels": (16, 2.5e-4),
    "METER, cached patches": (32, 5e-5),
    "PixelBERT, cached grid": (32, 2.5e-4),
    "Grid-VLP, cached grid": (32, 2.5e-4),
    "VL-BERT, cached regions": (64, 1e-3),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=Path, required=True, help="folder for scenes, stores and runs")
    parser.add_argument("--out", type=Path, required=True, help="folder for the weights")
    parser.add_argument("--images", type=int, default=8000)
    parser.add_argument("--labels", nargs="+", default=list(LEARNING), choices=list(LEARNING), help="lines")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--share", type=float, default=1.0, help="of the updates, and of the examples of each: a trial")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--result", type=Path, default=Path("benchmarks/results"))
    asked = parser.parse_args()
    facts = made(asked)
    rows = [
        [each["label"], f"{each['questions']:,}", f"{each['minutes']:.0f}", f"{each['score']:.1f}",
         f"{each['blind']:.1f}", f"{each['bytes'] / 1e6:.2f} MB"]
        for each in facts
    ]  # fmt: skip
    text = f"# What the example's models begin with, {time.strftime('%Y-%m-%d')}\n\n{hardware()}. "
    text += "Command: `python -m benchmarks.pretrain_example`; its docstring is the protocol.\n\n"
    text += table(["model", "questions", "minutes", "their looks, % of other scenes", "without looking", "file"], rows)
    write_results(asked.result, "example_starts", text + "\n", facts)
    print(text)


def made(asked: argparse.Namespace) -> list[dict[str, Any]]:
    """Train what is not trained yet, write all weights; what is known of each."""
    from trainers.comparison.result import CellResult
    from workflows.comparing.command import Comparison
    from workflows.comparing.running import run_cell

    data, out = scenes_of(asked.scratch, asked.images, SEED, asked.processes, THINGS), asked.scratch / "comparison"
    asked_of_looks(data / "annotations/vqav2")
    flags = Compare(
        data=str(data),
        out=str(out),
        name="visual_inputs",
        starts=(f"vilt_vqa={VILT_START}",),
        seeds=(SEED,),
        device=asked.device,
        tiny=True,
    )
    _, planned, setting = Comparison(flags).planned()
    learning = {label: LEARNING[label] for label in asked.labels}
    lines = {label: {"vqa": Training(QUESTIONS // size, size, lr)} for label, (size, lr) in learning.items()}
    cells = sorted(trained(planned, asked.share, lines), key=lambda cell: list(lines).index(cell.label))
    filled(cells, setting, asked.processes)
    facts = []
    for number, found in side_by_side(partial(run_cell, setting=setting), cells, asked.processes, {}):
        cell = cells[number]
        if not isinstance(found, CellResult) or found.error:
            raise SystemExit(f"{cell.label}: {found.error if isinstance(found, CellResult) else found}")
        target = asked.out / f"{cell.name}.safetensors"
        written(setting.folder(cell) / "run", target)
        learnt = {"label": cell.label, "questions": found.steps * found.batch_size, "bytes": target.stat().st_size}
        facts.append(learnt | {"minutes": 60 * (found.training_hours or 0), "score": found.score, "blind": found.blind})
        print(facts[-1], flush=True)
    shutil.copy(str(setting.tokenizer), asked.out / "vocab.txt")
    return sorted(facts, key=lambda each: each["label"])


def asked_of_looks(folder: Path) -> None:
    """Leave out all other questions of training and validation, and their answers."""
    for split in ("train2014", "val2014"):
        questions = folder / f"v2_OpenEnded_mscoco_{split}_questions.json"
        answers = folder / f"v2_mscoco_{split}_annotations.json"
        content, given = (json.loads(each.read_bytes()) for each in (questions, answers))
        content["questions"] = [each for each in content["questions"] if any(of in each["question"] for of in LOOKS)]
        left = {each["question_id"] for each in content["questions"]}
        given["annotations"] = [each for each in given["annotations"] if each["question_id"] in left]
        write_json(questions, content)
        write_json(answers, given)


def written(run: Path, target: Path) -> None:
    """A run's newest weights but for the head, whose answers have the order of their data, in float16."""
    from safetensors.torch import save_file

    from trainers.checkpoint import PARTS, Checkpoints

    kept = Checkpoints(str(run))
    weights = kept.read(kept.steps()[-1], PARTS[:1]).model
    target.parent.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: each.half().contiguous() for name, each in weights.items() if not name.startswith("heads.")}, target
    )


if __name__ == "__main__":
    main()
