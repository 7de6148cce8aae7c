"""Makes the small detectors that come with the package: scenes, both trainings, and their scores on unseen scenes.

    uv run python -m benchmarks.train_demo_detector --out demo_detectors

Protocol. --images scenes of seed 0 with the bundled photographs; `triptych train-detector` of each kind on those of the
training split, 70 %, from random weights (ResNet-50, widths divided by 4, 320/533 pixels, AdamW, seed 0), --steps
updates of 32 images at a rate of 0.002, fewer where a few that are made first show that --seconds would not do;
bfloat16 on a GPU. Weights of layers are rounded to float16 and written; what was written is read again and scored in
float32 on the scenes of the test split, 15 %: mAP and mAP50 by torchmetrics, and how many of the true boxes that were
found are given one of their attributes.

Into --out go `scenes-regions.safetensors`, `scenes-grid.safetensors` (both belong in `extractors/shipped`), the runs,
and demo_detectors_<hardware>_<date>.md and .json. Weights that lie there are not trained again: where torchmetrics is
missing, the same command scores them elsewhere.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import tempfile
import time
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from benchmarks.machine import hardware, table, write_results
from extractors import ConfigError
from storage.places import open_place
from trainers.config import TrainConfig
from trainers.detection.building import build
from trainers.detection.saving import read_detector, save_detector
from trainers.detection.scores import require_metrics
from trainers.detection.task import DetectionTask
from trainers.evaluate import evaluate
from trainers.loop import train
from trainers.progress import read_metrics
from trainers.scenes.making import make_scenes, splits
from trainers.scenes.scene import make_scene
from trainers.scenes.visual_genome_files import write_visual_genome
from workflows.detector_job import Job, prepared
from workflows.train_detector import TrainDetector

KINDS: tuple[Literal["regions", "grid"], ...] = ("regions", "grid")
FOLDER = Path(__file__).parents[1] / "workflows" / "photos"
PHOTOS = [FOLDER / name for name in ("astronaut.jpg", "chelsea.jpg", "rocket.jpg")]  # those of `triptych scenes make`
SEED = 0
TRIED = 40  # updates


def make_data(out: Path, images: int) -> None:
    """Scenes, and Visual Genome's files of those of the test split."""
    began = time.perf_counter()
    make_scenes(out / "scenes", images, SEED, PHOTOS, os.cpu_count() or 1)
    tested = [make_scene(SEED, number) for number in splits(images)["test"]]
    write_visual_genome(tested, [[] for _ in tested], out / "tested")
    say(f"{images:,} scenes in {time.perf_counter() - began:.0f} s")


def flags_of(kind: Literal["regions", "grid"], out: Path, steps: int) -> TrainDetector:
    return TrainDetector(
        data=str(out / "scenes/annotations/visual_genome"),
        test=str(out / "tested"),
        images=str(out / "scenes/images/visual_genome"),
        out=str(out / f"run-{kind}"),
        kind=kind,
        width_divisor=4,
        shorter=320,
        longer=533,
        steps=steps,
        batch_size=32,
        lr=2e-3,
        dtype="bfloat16" if torch.cuda.is_available() else "float32",
        seed=SEED,
    )


def affordable(flags: TrainDetector, job: Job, seconds: float) -> int:
    """So many of the updates that are wanted as fit into the time, by the last ten of a few that are thrown away."""
    with tempfile.TemporaryDirectory() as out:
        tried = replace(flags, out=out, steps=min(TRIED, flags.steps))
        detector, task, _ = replace(job, built=build(flags.plan, job.train.vocabulary)).parts()
        train(tried.settings, detector, task)
        rate = read_metrics(open_place(out))[-1]["images_per_s"] / flags.batch_size
    say(f"{flags.kind}: {rate:.1f} updates a second; {rate * seconds:.0f} fit into {seconds:.0f} s")
    return max(1, min(flags.steps, int(rate * seconds)))


def learn(flags: TrainDetector, job: Job, weights: Path) -> dict[str, Any]:
    """Train one kind and write its weights; returns what is to be known of it."""
    detector, task, _ = job.parts()
    began = time.perf_counter()
    summary = train(flags.settings, detector, task)
    save_detector(job.built.detector, job.built.vocabulary, str(weights.parent), weights.name, half=True)
    facts = {
        "kind": flags.kind,
        "images": len(job.train),
        "steps": summary.step,
        "batch": flags.batch_size,
        "losses": summary.losses,
        "seconds": time.perf_counter() - began,
        "waiting": summary.data_wait,
        "parameters": sum(each.numel() for each in detector.parameters()),
        "trained_on": hardware(),
    }
    weights.with_suffix(".json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
    return facts


def score(flags: TrainDetector, job: Job, weights: Path) -> dict[str, float]:
    """Scores of the weights as they were written."""
    detector = read_detector(weights, job.built.model)
    task = DetectionTask(job.test, job.images, job.built.colours)
    return evaluate(detector, task, TrainConfig(out=flags.out, steps=1, batch_size=16, workers=8)).scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("demo_detectors"))
    parser.add_argument("--steps", type=int, default=2500, help="updates of each kind")
    parser.add_argument("--seconds", type=float, default=120, help="for the updates of each kind")
    parser.add_argument("--images", type=int, default=4000, help="scenes, of which 70 %% are trained on")
    args = parser.parse_args()
    say(hardware())
    try:
        require_metrics()
    except ConfigError as error:
        say(f"nothing will be scored here: {error}")
    make_data(args.out, args.images)
    found = [run(kind, args) for kind in KINDS]
    text = report(found, args)
    write_results(args.out, "demo_detectors", text, found)
    say(text)
    if not all(each["scores"] for each in found):
        raise SystemExit("not everything was scored; the weights are written")


def run(kind: Literal["regions", "grid"], args: argparse.Namespace) -> dict[str, Any]:
    """One kind, trained unless its weights are there, and scored if that can be."""
    flags, weights = flags_of(kind, args.out, args.steps), args.out / f"scenes-{kind}.safetensors"
    job = prepared(flags)
    for line in job.told():
        say(line)
    known = weights.with_suffix(".json")
    if known.is_file() and weights.is_file():
        facts = json.loads(known.read_text(encoding="utf-8"))
    else:
        flags = replace(flags, steps=affordable(flags, job, args.seconds))
        facts = learn(flags, job, weights)
    data = weights.read_bytes()
    facts |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), "scores": {}}
    say(f"{weights}: {len(data):,} bytes after {facts['seconds']:.0f} s")
    try:
        facts["scores"] = score(flags, job, weights)
    except Exception:  # whatever it is, the weights are written and the other kind has its turn
        traceback.print_exc()
    say(f"scores of {kind}: {facts['scores']}")
    return dict(facts)


def report(found: list[dict[str, Any]], args: argparse.Namespace) -> str:
    """The results as Markdown."""
    names = ("mAP", "mAP50", "attributes")
    rows = [
        [
            f"`scenes-{each['kind']}`",
            f"{each['bytes'] / 1e6:.2f}",
            f"{each['steps']:,} x {each['batch']}",
            f"{each['seconds']:.0f}",
            f"{100 * each['waiting']:.0f} %",
            *(f"{each['scores'][name]:.1f}" if name in each["scores"] else "" for name in names),
            f"`{each['sha256'][:16]}`",
        ]
        for each in found
    ]
    header = ["weights", "MB", "updates, images", "seconds", "waiting for data", *names, "SHA-256 of the file"]
    command = f"python -m benchmarks.train_demo_detector --images {args.images} --steps {args.steps}"
    about = f"Trained on {found[0]['trained_on']}. Command: `{command}`; its docstring is the protocol."
    return f"# The detectors that come along, {time.strftime('%Y-%m-%d')}\n\n{about}\n\n{table(header, rows)}\n"


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    main()
