"""Makes the small network that comes with the package: scenes, its training, and its scores on unseen scenes.

    uv run python -m benchmarks.train_demo_detector --out demo_detector

Protocol. --images scenes of seed 0 with the bundled photographs; `triptych train-detector --kind grid` on those of the
training split, 70 %, from random weights (ResNet-50, widths divided by 8, images of 224/373 pixels, AdamW at 0.0015,
seed 0), --steps updates of 8 images in float32: an hour on two cores. Weights of layers are rounded to float16 and
written; what was written is read again and scored on the scenes of the test split, 15 %: mAP and mAP50 by torchmetrics,
and how many of the true boxes that were found are given one of their attributes.

Into --out go `scenes-grid.safetensors`, which belongs in `extractors/shipped`, the run, and
demo_detector_<hardware>_<date>.md and .json. A run that was stopped goes on by the same command; one that is finished
is scored only.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import asked, hardware, table, write_results
from extractors.configs import SHIPPED, SHIPPED_SIZE
from storage.places import open_place
from trainers.config import TrainConfig
from trainers.detection.saving import read_detector, save_detector
from trainers.detection.scores import require_metrics
from trainers.detection.task import DetectionTask
from trainers.evaluate import evaluate
from trainers.loop import resume
from trainers.progress import read_metrics
from trainers.scenes.making import make_scenes, splits
from trainers.scenes.scene import make_scene
from trainers.scenes.visual_genome_files import write_visual_genome
from workflows.detector_job import prepared
from workflows.scenes import BUNDLED
from workflows.train_detector import TrainDetector

SEED = 0


def make_data(out: Path, images: int) -> None:
    """Scenes, and Visual Genome's files of those of the test split."""
    began = time.perf_counter()
    make_scenes(out / "scenes", images, SEED, BUNDLED, os.cpu_count() or 1)
    tested = [make_scene(SEED, number) for number in splits(images)["test"]]
    write_visual_genome(tested, [[] for _ in tested], out / "tested")
    print(f"{images:,} scenes in {time.perf_counter() - began:.0f} s", flush=True)


def flags_of(out: Path, steps: int) -> TrainDetector:
    shorter, longer = SHIPPED_SIZE
    return TrainDetector(
        data=str(out / "scenes/annotations/visual_genome"),
        test=str(out / "tested"),
        images=str(out / "scenes/images/visual_genome"),
        out=str(out / "run"),
        kind="grid",
        width_divisor=8,
        shorter=shorter,
        longer=longer,
        steps=steps,
        batch_size=8,
        lr=1.5e-3,
        seed=SEED,
        save_every=500,
    )


def made(flags: TrainDetector, weights: Path) -> dict[str, Any]:
    """Train to the end, write the weights, and score them; returns what is to be known of them."""
    job = prepared(flags)
    print("\n".join(job.told()), flush=True)
    detector, task, _ = job.parts()
    summary = resume(flags.settings, detector, task)
    save_detector(job.built.detector, job.built.vocabulary, str(weights.parent), weights.name, half=True)
    read = read_detector(weights, job.built.model)
    scored = DetectionTask(job.test, job.images, job.built.colours)
    rates = [line["images_per_s"] for line in read_metrics(open_place(flags.out)) if "images_per_s" in line]
    data = weights.read_bytes()
    return {
        "images": len(job.train),
        "updates": summary.step,
        "batch": flags.batch_size,
        "hours": sum(1 / rate for rate in rates) / len(rates) * summary.step * flags.batch_size / 3600,
        "parameters": sum(each.numel() for each in detector.parameters()),
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "scores": evaluate(read, scored, TrainConfig(out=flags.out, steps=1, batch_size=16, workers=2)).scores,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("demo_detector"))
    parser.add_argument("--steps", type=int, default=5000, help="updates")
    parser.add_argument("--images", type=int, default=6000, help="scenes, of which 70 %% are trained on")
    args = parser.parse_args()
    require_metrics()
    make_data(args.out, args.images)
    facts = made(flags_of(args.out, args.steps), args.out / f"{SHIPPED}.safetensors")
    text = report(facts, args)
    write_results(args.out, "demo_detector", text, [facts])
    print(text)


def report(facts: dict[str, Any], args: argparse.Namespace) -> str:
    """The results as Markdown."""
    scores = facts["scores"]
    header = ["weights", "KB", "parameters", "scenes", "updates, images", "hours", *scores, "SHA-256 of the file"]
    row = [
        f"`{SHIPPED}`",
        f"{facts['bytes'] / 1e3:,.0f}",
        f"{facts['parameters']:,}",
        f"{facts['images']:,}",
        f"{facts['updates']:,} x {facts['batch']}",
        f"{facts['hours']:.1f}",
        *(f"{each:.1f}" for each in scores.values()),
        f"`{facts['sha256'][:16]}`",
    ]
    about = f"{hardware()}. {asked()}"
    title = f"# The network that comes along, {time.strftime('%Y-%m-%d')}"
    return f"{title}\n\n{about}\n\n{table(header, [row])}\n"


if __name__ == "__main__":
    main()
