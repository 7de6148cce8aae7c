"""`triptych train` and `triptych evaluate`: a published run by its name, from what lies at hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from extractors import ConfigError
from extractors.configs import SHIPPED
from storage.errors import did_you_mean
from workflows.output import Command, emit

if TYPE_CHECKING:
    from torch import nn

    from trainers.config import TrainConfig
    from trainers.loop import RunSummary
    from trainers.tasks.base import Task
    from workflows.recipes import Recipe
    from workflows.recipes.building import Run

INTERRUPTED = 130


@dataclass(frozen=True)
class Train(Command):
    """Train a published run, or go on with one.

    triptych train --list

    triptych train vilt_vqa --images COCO --annotations DIR --out RUN --start vilt_200k_mlm_itm.ckpt

    triptych train grid_vlp_vqa --store features/grid --annotations DIR --out RUN --tiny
    """

    recipe: tyro.conf.Positional[str] = ""
    """The run, by its name."""
    list: bool = False
    """Show all runs, and what their papers report."""
    store: str | None = None
    """Cached features, a store; of several data sets a folder with a store each."""
    images: str | None = None
    """Images, as of extract; of several data sets a folder with a folder each."""
    annotations: str | None = None
    """The data set's official files; `triptych data check` says which."""
    out: str | None = None
    """The run's folder, or an address that fsspec knows."""
    visual: str | None = None
    """Where what the model sees comes from: store, pixels, or cache-through, which extracts what the store lacks. Also
    store:PATH. Default: the recipe's."""
    start: str | None = None
    """Weights to start from: a checkpoint of what the recipe starts from, or a run. Default: random weights."""
    start_network: str | None = None
    """Weights of the convolutional network that sees the pixels: a file, or a published name (grid-r50, butd-r101).
    Default: those that --start has, else random ones. With cache-through, of the network that fills the store;
    default: its published ones. With --tiny also scenes-grid, the small network of scenes that comes along."""
    tokenizer: str | None = None
    """A name on the Hugging Face hub, a folder, or a vocab.txt. Default: the recipe's."""
    answers: str | None = None
    """The answers that questions may have, a published list. Default: built from the annotations."""
    corpus: str | None = None
    """Files of plain text, a document a line, comma-separated: VL-BERT's pre-training."""
    steps: int | None = None
    """End after so many updates. Default: the recipe's."""
    batch_size: int | None = None
    """Examples an update. Default: the recipe's."""
    micro_batch: int | None = None
    """Examples that a process runs through the model at once. Default: all of its share."""
    lr: float | None = None
    """Largest learning rate. Default: the recipe's."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Number type of matrix products. Default: the recipe's."""
    device: str | None = None
    """cpu, cuda, cuda:N or auto. Default: auto."""
    seed: int = 0
    """Of all chance."""
    compile: bool = False
    """Compile the model."""
    checkpoint_activations: bool = False
    """Keep no activations inside layers: less memory, a third more time."""
    save_every: int | None = None
    """Updates between checkpoints."""
    evaluate_every: int | None = None
    """Updates between evaluations. Default: at the end."""
    log_every: int | None = None
    """Updates between lines of metrics."""
    tiny: bool = False
    """The recipe's tiny twin: a small model with random weights, a few steps on a CPU."""
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
        from trainers.loop import require_new
        from workflows.recipes.building import kept_answers
        from workflows.runs import about_of, ended, listed

        if self.list or not self.recipe:
            for name, recipe in listed():
                emit({"recipe": name, "summary": recipe.summary, "expected": recipe.expected})
                print(f"{name:<26} {recipe.summary}\n{'':<26} {recipe.expected}")
            return 0
        if self.out is None:
            raise ConfigError("a run needs a folder; name it with --out.")
        run = self.described()
        if self.resume:
            run = replace(run, vocabulary=kept_answers(self.out))
        else:
            require_new(self.out)
        about = about_of(self.recipe, run, self)
        summary = self._on_ray(run, about) if self.engine == "ray" else self._here(run, about)
        emit({**asdict(summary), "recipe": self.recipe, "expected": run.recipe.expected})
        print(ended(summary, run.recipe))
        return INTERRUPTED if summary.interrupted else 0

    def described(self) -> Run:
        """What the flags ask for."""
        from workflows.recipes import recipe_of
        from workflows.recipes.building import LEAST, Run
        from workflows.recipes.sources import Places

        recipe = self.settled(recipe_of(self.recipe))
        store = (self.visual or "").partition(":")[2] or self.store
        places = Places(store, self.images, self.annotations, self.tokenizer, self.answers, self.corpus)
        return Run(recipe, places, 1 if self.tiny else LEAST)

    def settled(self, recipe: Recipe) -> Recipe:
        """A recipe as the flags change it."""
        from workflows.recipes.base import extracting_with
        from workflows.recipes.sources import VISUALS
        from workflows.recipes.tiny import tiny

        visual = (self.visual or recipe.visual).partition(":")[0]
        if visual not in VISUALS:
            near = did_you_mean(visual, VISUALS)
            raise ConfigError(f"--visual {self.visual!r} is not known; choose one of {', '.join(VISUALS)}{near}")
        recipe = replace(recipe, visual=visual)
        recipe = tiny(recipe, self.steps or 20, self.start_network == SHIPPED) if self.tiny else recipe
        recipe = extracting_with(recipe, self.start_network)
        return replace(recipe, train=self._settings(recipe.train))

    def _settings(self, config: TrainConfig) -> TrainConfig:
        given = ("batch_size", "micro_batch", "lr", "dtype", "device", "save_every", "evaluate_every", "log_every")
        changes: dict[str, Any] = {name: getattr(self, name) for name in given if getattr(self, name) is not None}
        if self.steps is not None:
            changes |= {"steps": self.steps, "epochs": None}
        same = {name: getattr(self, name) for name in ("seed", "compile", "checkpoint_activations")}
        return replace(config, out=str(self.out), **changes, **same)

    def _here(self, run: Run, about: Mapping[str, Any]) -> RunSummary:
        from trainers.loop import resume, train
        from workflows.runs import threads_for

        with threads_for(self.tiny):
            model, task, validation = self._build(run)()
            go = resume if self.resume else train
            return go(run.recipe.train, model, task, validation, about)

    def _build(self, run: Run) -> Callable[[], tuple[nn.Module, Task, Task | None]]:
        """Makes model and tasks: a run that goes on has its weights from its checkpoint."""
        from trainers.checkpoint import Checkpoints
        from workflows.runs import built

        if self.resume and Checkpoints(str(self.out)).steps():
            return run.build
        network = None if run.recipe.visual == "cache-through" else self.start_network
        return partial(built, run, self.start, network)

    def _on_ray(self, run: Run, about: Mapping[str, Any]) -> RunSummary:
        from pipeline.train import RayTraining, train_on_ray

        engine = RayTraining(self.workers, address=self.address)
        return train_on_ray(run.recipe.train, self._build(run), engine, self.resume, about)


@dataclass(frozen=True)
class Evaluate(Command):
    """Score a run on a split, and write its predictions in the official form.

    triptych evaluate RUN --split val
    """

    out: tyro.conf.Positional[str]
    """The run."""
    split: str | None = None
    """The split. Default: the recipe's."""
    step: int | None = None
    """The checkpoint after this many updates. Default: the newest."""
    beside: str | None = None
    """VCR's rationales: the run of the answers, whose newest predictions are of the same split; both are scored."""
    device: str | None = None
    """cpu, cuda, cuda:N or auto. Default: that of the run."""

    def run(self) -> int:
        """Evaluate; returns the exit status."""
        from trainers.checkpoint import load_weights
        from trainers.evaluate import evaluate
        from trainers.metrics import vcr_accuracy
        from trainers.tasks.commonsense import together
        from workflows.runs import answers_of, kept, scored

        run = kept(self.out)
        answers = None if self.beside is None else answers_of(self.beside, run.recipe)
        config = replace(run.recipe.train, device=self.device or run.recipe.train.device)
        model, task = run.build_for(self.split or run.recipe.validation)
        step = load_weights(model, self.out, self.step)
        found = evaluate(model, task, config)
        predictions, scores = list(found.predictions), found.scores
        if answers is not None:
            predictions = together(answers, predictions)
            scores = vcr_accuracy(predictions, task.split.examples)  # type: ignore[attr-defined]
        path = Path(self.out) / "submission"
        task.write(predictions, path)
        emit(scores)
        print(scored(step, scores, run.recipe))
        return 0
