"""`triptych train-detector`: the detectors behind regions and grids, trained or fine-tuned on boxes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from extractors import ConfigError
from extractors.configs import GRID_PREFIX
from workflows.output import Command, emit

if TYPE_CHECKING:
    from trainers.config import TrainConfig
    from trainers.detection.building import Plan
    from trainers.loop import RunSummary
    from workflows.detector_job import Job

INTERRUPTED = 130
LOADERS = 8  # threads: decoding and resizing leave Python alone most of the time
CLIP = 10.0  # a random network's first gradients are large


@dataclass(frozen=True)
class TrainDetector(Command):
    """Train a detector on boxes, and write it as weights for `triptych extract`.

    triptych train-detector --data scenes/annotations/visual_genome --images scenes/images/visual_genome --out RUN

    triptych train-detector --data VOC/Annotations --images VOC/JPEGImages --start butd-r101-py --out RUN
    """

    data: str
    """Boxes: a folder with Visual Genome's objects.json and attributes.json, a COCO file of instances, a folder of
    Pascal VOC's XML files, or one of text files with a line an object: class left top right bottom."""
    out: str
    """The run's folder, or an address that fsspec knows."""
    images: str | None = None
    """The folder of the images. Default: that of --data."""
    test: str | None = None
    """Boxes of other images, to score the detector on. Default: a tenth of the images of --data is kept for that."""
    kind: Literal["regions", "grid"] = "regions"
    """regions: the bottom-up attention Faster R-CNN; grid: a grid network with the heads of a detector."""
    start: str | None = None
    """Weights to start from: a file, or a published name (butd-r101-py, grid-r50). Default: random ones."""
    classes: str | None = None
    """A list of the classes, one a line with its synonyms. Default: the 1,600 most frequent names."""
    attributes: str | None = None
    """A list of the attributes. Default: the 400 most frequent ones."""
    depth: Literal[50, 101, 152] | None = None
    """Layers of a network with random weights; of grids 101 and 152 are ResNeXts. Default: 50."""
    width_divisor: int = 1
    """Divide all widths of a network with random weights by this."""
    shorter: int = 600
    """Resize the shorter side to this many pixels ..."""
    longer: int = 1000
    """... unless the longer side would pass this many."""
    steps: int = 10_000
    """End after so many updates."""
    batch_size: int = 16
    """Images an update."""
    lr: float | None = None
    """Largest learning rate. Default: 0.001 with random weights (AdamW), 0.00125 an image with others (SGD)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number type of matrix products."""
    device: str = "auto"
    """cpu, cuda, cuda:N or auto."""
    seed: int = 0
    """Of all chance."""
    save_every: int = 1000
    """Updates between checkpoints."""
    evaluate_every: int | None = None
    """Updates between evaluations. Default: at the end."""
    engine: Literal["local", "ray"] = "local"
    """This process, or several on a Ray cluster."""
    workers: int = 1
    """Processes on Ray."""
    address: str | None = None
    """Ray: the cluster's address. Default: the one at hand, or a local one."""
    resume: bool = False
    """Go on with the run in --out."""

    def run(self) -> int:
        """Train; returns the exit status."""
        from trainers.detection.scores import require_metrics
        from trainers.loop import require_new
        from workflows.detector_job import prepared

        require_metrics()
        if not 1 <= self.shorter <= self.longer:
            raise ConfigError(f"--shorter {self.shorter} must be at least 1 and not above --longer {self.longer}.")
        settings = self.settings  # what is wrong with them is told before anything is built
        if not self.resume:
            require_new(settings.out)
        job = prepared(self)
        print("\n".join(job.told()), flush=True)
        summary = self._on_ray() if self.engine == "ray" else self._here(job)
        emit({"event": "end", **asdict(summary)})
        print("\n".join(self._ended(job, summary)))
        return INTERRUPTED if summary.interrupted else 0

    @property
    def plan(self) -> Plan:
        """The detector to build."""
        from trainers.detection.building import Plan

        return Plan(self.kind, self.depth, self.width_divisor, self.start, self.shorter, self.seed)

    @property
    def settings(self) -> TrainConfig:
        """Of the loop: AdamW for random weights; for others SGD with detectron2's rate, momentum, decay and steps."""
        from trainers.config import TrainConfig

        given: dict[str, Any] = {
            name: getattr(self, name)
            for name in ("out", "steps", "batch_size", "dtype", "device", "seed", "save_every", "evaluate_every")
        }
        given |= {"weight_decay": 1e-4, "clip": CLIP, "workers": LOADERS}
        if self.start is None:
            return TrainConfig(lr=self.lr or 1e-3, schedule="cosine", **given)
        given |= {"optimiser": "sgd", "schedule": "milestones", "milestones": (2 / 3, 8 / 9)}
        return TrainConfig(lr=self.lr or 0.02 / 16 * self.batch_size, **given)

    @property
    def about(self) -> dict[str, Any]:
        """What the run's folder keeps of the flags."""
        return {"detector": {name: each for name, each in asdict(self).items() if name not in ("json", "quiet")}}

    def _here(self, job: Job) -> RunSummary:
        from trainers.loop import resume, train

        go = resume if self.resume else train
        return go(self.settings, *job.parts(), self.about)

    def _on_ray(self) -> RunSummary:
        from pipeline.train import RayTraining, train_on_ray
        from workflows.detector_job import parts
        from workflows.runs import whole_path

        names = ("data", "images", "test", "start", "classes", "attributes")
        paths: dict[str, Any] = {name: whole_path(getattr(self, name)) for name in names}
        known = replace(self, **paths)  # other nodes are elsewhere
        engine = RayTraining(self.workers, address=self.address)
        return train_on_ray(self.settings, partial(parts, known), engine, self.resume, self.about)

    def _ended(self, job: Job, summary: RunSummary) -> Iterator[str]:
        """Write the weights, and say how it went and what to do with them."""
        losses = "  ".join(f"{name} {value:.4f}" for name, value in summary.losses.items())
        yield f"step {summary.step} of {summary.total}  {losses}"
        if summary.scores:
            yield "scores  " + "  ".join(f"{name} {value:.2f}" for name, value in summary.scores.items())
        if summary.interrupted:
            return
        from trainers.checkpoint import load_weights
        from trainers.detection.saving import save_detector

        load_weights(job.built.detector, self.out)
        path = save_detector(job.built.detector, job.built.vocabulary, self.out)
        emit({"event": "weights", "weights": str(path)})
        yield f"weights {path}"
        model = job.built.model.removeprefix(GRID_PREFIX)
        size = f"--shorter {self.shorter} --longer {self.longer}"
        yield f"next    triptych extract {self.kind} --model {model} --weights {path} {size} --images DIR --out STORE"
