"""Makes what the models of the example of `docs/` begin with: each has answered questions about other scenes, and
judged sentences.

    uv run python -m benchmarks.pretrain_example --scratch scratch --out benchmarks/starts

Protocol. --images scenes of seed 0 and of one or two things; the example has those of seed 1 and up to three. Each of
the five models, as the example has it, goes through STAGES from cached features with seed 0, with as many examples as
all others, in the batches and by the rates of LEARNING: with few updates of large batches no text finds its patch.
First it learns VQA, but only of what a thing looks like, its kind, colour and texture: a text finds its patch after
3,000 such questions, and among all others after some 12,000. From there it learns all VQA. Then it judges sentences of
NLVR2, first those of what is there, of which METER learns after 10,000, and of all of them not after 40,000, then all.
ViLT and METER begin with the ViTs of `benchmarks.train_example_vits`. --processes models at a time, a thread each. What
is written, of the stages that say so, are the weights, rounded to float16, and `vocab.txt`, the words; the heads of
answers stay behind, whose order is that of their data. What --out has already, with what is known of it as .json, is
not made again. Scores are those of the validation split, before rounding. Into --result goes
example_starts_<hardware>_<date>.md and .json. A run that was stopped goes on by the same command.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.example_comparison import VILT_START, Training, filled, scenes_of, trained
from benchmarks.machine import hardware, table, write_results
from pipeline.processes import side_by_side
from storage.errors import TriptychError
from trainers.data.files import write_json, write_json_lines
from workflows.compare import Compare

if TYPE_CHECKING:
    from workflows.comparing.cells import Cell
    from workflows.comparing.running import Setting

SEED = 0
THINGS = (1, 2)  # of a scene: where there is one, a text has only to find it
LOOKS = ("What color is", "What is the", "plain, ")  # is in what is asked about colours, kinds and textures
THERE = "There is "  # begin sentences of what one picture shows
LEARNING = {  # batch and rate; the slowest first, so that the last ones fill what time is left
    "ViLT, cached pixels": (16, 2.5e-4),
    "METER, cached patches": (16, 3e-5),
    "PixelBERT, cached grid": (32, 2.5e-4),
    "Grid-VLP, cached grid": (32, 2.5e-4),
    "VL-BERT, cached regions": (64, 1e-3),
}


@dataclass(frozen=True)
class Stage:
    """What a model learns next: of all that is asked and said, or of looks only; and whether the example begins with
    it."""

    called: str
    task: str
    examples: int
    looks: bool = False
    kept: bool = True


STAGES = (
    Stage("looks", "vqa", 64_000, looks=True, kept=False),
    Stage("all questions", "vqa", 48_000),
    Stage("what is there", "nlvr2", 24_000, looks=True, kept=False),
    Stage("all sentences", "nlvr2", 24_000),
)


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
        [each["label"], each["stage"], f"{each['examples']:,}", f"{each['minutes']:.0f}", f"{each['score']:.1f}",
         f"{each['blind']:.1f}", f"{each['bytes'] / 1e6:.2f} MB"]
        for each in facts
    ]  # fmt: skip
    text = f"# What the example's models begin with, {time.strftime('%Y-%m-%d')}\n\n{hardware()}. {asked()}\n\n"
    text += table(
        ["model", "stage", "examples", "minutes", "right of other scenes, %", "without looking", "file"], rows
    )
    write_results(asked.result, "example_starts", text + "\n", facts)
    print(text)


def made(asked: argparse.Namespace) -> list[dict[str, Any]]:
    """Train what is not trained yet, write all weights; what is known of each."""
    data = scenes_of(asked.scratch, asked.images, SEED, asked.processes, THINGS)
    for stage in (each for each in STAGES if not each.looks):  # the others have the same images, and fewer words
        cells, setting = stage_of(stage, asked, data)
        filled(cells, setting, asked.processes)
        asked.out.mkdir(parents=True, exist_ok=True)
        if not (asked.out / "vocab.txt").exists():
            shutil.copy(str(setting.tokenizer), asked.out / "vocab.txt")
    facts: list[dict[str, Any]] = []
    for number, found in side_by_side(partial(taught, asked=asked, data=data), asked.labels, asked.processes, {}):
        if isinstance(found, str):
            raise SystemExit(f"{asked.labels[number]}: {found}")
        facts += found
    return sorted(facts, key=lambda each: each["label"])


def stage_of(
    stage: Stage, asked: argparse.Namespace, data: Path, starts: tuple[str, ...] = ()
) -> tuple[list[Cell], Setting]:
    """The cells of all lines that are asked for, which begin with these weights."""
    from workflows.comparing.command import Comparison

    words = asked.out / "vocab.txt"
    flags = Compare(
        data=str(looks_of(data) if stage.looks else data),
        out=str(asked.scratch / "comparison"),
        name="visual_inputs",
        starts=starts,
        tokenizer=str(words) if words.exists() else None,
        seeds=(SEED,),
        device=asked.device,
        tiny=True,
    )
    _, planned, setting = Comparison(flags).planned()
    learning = {label: LEARNING[label] for label in asked.labels}
    lines = {label: {stage.task: Training(stage.examples // size, size, lr)} for label, (size, lr) in learning.items()}
    return sorted(trained(planned, asked.share, lines), key=lambda cell: list(lines).index(cell.label)), setting


def taught(label: str, asked: argparse.Namespace, data: Path) -> list[dict[str, Any]]:
    """Take one line through all stages; what is known of each that was learnt."""
    from workflows.comparing.named import named
    from workflows.comparing.running import run_cell

    lines = named("visual_inputs").rows
    facts, start = [], VILT_START if label.startswith("ViLT") else None
    for stage in STAGES:
        [name] = {row.name for row in lines if (row.label, row.recipe.task) == (label, stage.task)}
        cells, setting = stage_of(stage, asked, data, (f"{name}={start}",) if start else ())
        [cell] = [cell for cell in cells if cell.label == label]
        target = (asked.out if stage.kept else asked.scratch / "between") / f"{name}.safetensors"
        start = str(target)
        known = target.with_suffix(".json")
        if not known.exists():
            found = run_cell(cell, setting)
            if found.error:
                raise TriptychError(found.error)
            written(setting.folder(cell) / "run", target, "heads.nlvr2.")
            learnt = {"label": label, "stage": stage.called, "examples": found.steps * found.batch_size}
            learnt |= {"batch_size": found.batch_size, "lr": cell.recipe.train.lr}
            learnt |= {"minutes": 60 * (found.training_hours or 0), "score": found.score, "blind": found.blind}
            write_json(known, learnt | {"bytes": target.stat().st_size})
        facts.append(json.loads(known.read_bytes()))
    return facts


def looks_of(data: Path) -> Path:
    """The same scenes, of which only looks are asked and only what is there is said."""
    folder = data.with_name("looks")
    if not folder.exists():
        begun = folder.with_name("looks.begun")
        shutil.rmtree(begun, ignore_errors=True)
        shutil.copytree(data / "annotations", begun / "annotations")
        (begun / "images").symlink_to((data / "images").resolve())
        asked_of_looks(begun / "annotations/vqav2")
        said_of_looks(begun / "annotations/nlvr2")
        begun.rename(folder)
    return folder


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


def said_of_looks(folder: Path) -> None:
    """Leave out all other sentences of training and validation."""
    for path in (folder / "train.json", folder / "dev.json"):
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        write_json_lines(path, [row for row in rows if row["sentence"].startswith(THERE)])


def written(run: Path, target: Path, head: str) -> None:
    """A run's newest weights in float16, without heads but this one: answers have the order of their data."""
    from safetensors.torch import save_file

    from trainers.checkpoint import PARTS, Checkpoints

    kept = Checkpoints(str(run))
    weights = kept.read(kept.steps()[-1], PARTS[:1]).model
    target.parent.mkdir(parents=True, exist_ok=True)
    left = {name: each for name, each in weights.items() if name.startswith(head) or not name.startswith("heads.")}
    save_file({name: each.half().contiguous() for name, each in left.items()}, target)


if __name__ == "__main__":
    main()
