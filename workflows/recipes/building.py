"""From a recipe and the places of its data to what the loop trains: model, task, and what is evaluated on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from extractors import ConfigError
from storage.places import open_place
from trainers.batch import Regions
from trainers.codebook import Codebook
from trainers.data import AnswerVocabulary, Example, Split, load
from trainers.data.answers import gqa_vocabulary, vqa_vocabulary
from trainers.data.corpus import Corpus
from trainers.data.karpathy import one_a_text
from trainers.data.keys import present
from trainers.data.probes import read_glue, read_image_folder
from trainers.data.sets import Joined
from trainers.models.checkpoints import LoadReport
from trainers.models.grid_vlp import GridVLPConfig
from trainers.models.image_towers import ImageTower
from trainers.models.meter import MeterConfig
from trainers.models.text_towers import TextTower
from trainers.models.vilt import ViLTConfig
from trainers.models.vl_bert import WAVES, VLBert, VLBertConfig
from trainers.ranks import device_of
from trainers.several import Several
from trainers.tasks.answers import Answers
from trainers.tasks.base import Task
from trainers.tasks.captions import Captioning, CaptionTraining
from trainers.tasks.commonsense import Commonsense
from trainers.tasks.entailment import Entailment
from trainers.tasks.expressions import Expressions
from trainers.tasks.families import Family, VLBertFamily, build_model, family_of
from trainers.tasks.papers import Details, passes_of
from trainers.tasks.pretraining import Pretraining
from trainers.tasks.probes import ImageClasses, ImageProbe, TextClasses, TextProbe
from trainers.tasks.reasoning import Reasoning
from trainers.tasks.retrieval import Retrieval, RetrievalTraining
from trainers.text import Tokenizer, load_tokenizer
from trainers.visual import Visual, require
from workflows.recipes.base import RANDOM, Recipe, with_network
from workflows.recipes.beginning import ANSWERING, begin_centred, begin_rare, begin_translated
from workflows.recipes.sources import Places, find_store, group_of, known_keys, visual_of

CORPUS, ANSWERS = "corpus", "answers.json"
DYING = ("conceptual_captions", "sbu")  # lists of addresses, many of them dead: pairs without an image are left out
LEAST = 9  # times that an answer is given, for a vocabulary that is built
TRANSLATED, AT_ONCE = 512, 32  # images, all together and in a batch, that features are fitted on


@dataclass(frozen=True)
class Run:
    """What is trained, and where its data lies.

    least       times that an answer is given, where a vocabulary is built from annotations
    vocabulary  the answers of a run that is gone on with or evaluated, in its order
    """

    recipe: Recipe
    places: Places
    least: int = LEAST
    vocabulary: tuple[str, ...] | None = None

    def build(
        self, start: Callable[[nn.Module, Sequence[str]], LoadReport | None] | None = None
    ) -> tuple[nn.Module, Task, Task | None]:
        """Model, task, and the split that is evaluated on; of pre-training none. Made anew in each process.

        Args:
            start: puts weights into the model, whose answers are given, and tells of them; before anything is written,
                so that what it raises leaves nothing.

        Raises:
            TriptychError: data, images or features are missing or do not fit; nothing was trained.
        """
        parts = Parts(self)
        task = parts.task(self.recipe.split, training=True)
        validation = None if self.recipe.task == "pretraining" else parts.task(self.recipe.validation, training=False)
        model = parts.model()
        if start is not None:
            report = start(model, parts.answers.answers if parts.answers else ())
            if report is not None and report.other:
                parts.translate(model, report)
            if self.recipe.starts == RANDOM:
                begin_centred(model, task)
        if parts.answers is not None:
            keep_answers(self.recipe.train.out, parts.answers)
        return model, task, validation

    def build_for(self, split: str) -> tuple[nn.Module, Task]:
        """Model, and the task on another split, to be evaluated."""
        parts = Parts(self)
        return parts.model(), parts.task(split, training=False)


def keep_answers(out: str, answers: AnswerVocabulary) -> None:
    """Write the answers to a run's folder: their order goes with the weights."""
    place = open_place(out)
    place.make([""])
    place.write(ANSWERS, json.dumps(list(answers.answers), ensure_ascii=False).encode())


def kept_answers(out: str) -> tuple[str, ...] | None:
    """The answers of a run, in the order of its head; None where it has none."""
    try:
        return tuple(json.loads(open_place(out).read(ANSWERS)))
    except FileNotFoundError:
        return None


class Parts:
    """What a run is made of, each part once."""

    def __init__(self, run: Run) -> None:
        self.run, self._read = run, dict[tuple[str, str], Split]()
        self.recipe, self.places, self.least, self.kept = run.recipe, run.places, run.least, run.vocabulary

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return load_tokenizer(self.places.tokenizer or self.recipe.tokenizer)

    @property
    def annotations(self) -> Path:
        if self.places.annotations is None:
            raise ConfigError("this run reads annotations; name their folder with --annotations.")
        return Path(self.places.annotations)

    @property
    def names(self) -> list[str]:
        """The recipe's data sets, plain text left out."""
        return [name for name in self.recipe.data if name != CORPUS]

    @cached_property
    def answers(self) -> AnswerVocabulary | None:
        """The classes of answers, where the task has any: those kept, of a file, or built from the annotations."""
        if self.kept is not None:
            return AnswerVocabulary(self.kept)
        if self.places.answers is not None:
            return AnswerVocabulary.load(Path(self.places.answers))
        if self.recipe.task not in ("vqa", "gqa") and "qa" not in self.recipe.objectives:
            return None
        return built_answers(self.read, self.names, self.least)

    @cached_property
    def config(self) -> Any:
        """The model's config, fitted to words, features and answers."""
        return fitted(self)

    @property
    def fields(self) -> tuple[str, ...]:
        """What is read of regions beside their features."""
        return ("class_probs",) if "mvrc" in self.recipe.objectives else ()

    def model(self) -> nn.Module:
        """With random weights, which the seed decides wherever it is built, but for a METER's encoders."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.recipe.train.seed)
            return self._model()

    def _model(self) -> nn.Module:
        if self.recipe.task == "image-classes":
            return ImageProbe(ImageTower(self.config.image), self.recipe.classes)
        if self.recipe.task == "text-classes":
            return TextProbe(TextTower(self.config.text), self.recipe.classes)
        model = build_model(self.config)
        if self.answers is not None and self.recipe.starts == RANDOM:
            begin_rare(model.heads, len(self.answers))
        return model

    def family(self, training: bool) -> Family:
        found = family_of(self.config, self.tokenizer, training, self.recipe.longest)
        if self.recipe.task == "pretraining" and isinstance(found, VLBertFamily):
            found.total = self.recipe.longest
        return found

    def task(self, split: str, training: bool) -> Task:
        """The task on a split, with all its images there.

        Raises:
            VisualError: some are not.
        """
        data = self.split(split)
        visual = self.visual(data)
        if self.recipe.task != "text-classes":
            require(visual, data.images(), f"{data.name} {data.split}")
        shape = SHAPES[self.recipe.task]
        return shape(self, data, self.family(training), visual, training)

    def split(self, split: str) -> Split:
        """The examples of a split; of several data sets end to end, their keys behind the name of their group."""
        [name, *others] = self.names
        if name == "image-folder":
            return read_image_folder(self.annotations, split)
        if name.startswith("glue-"):
            return read_glue(self.annotations, name.removeprefix("glue-"), split)
        if not others:
            return self._alive(self.read(name, split))
        parts = [self._alive(self.read(each, split)) for each in self.names]
        joined = Joined([_Grouped(each.examples, group_of(each.name)) for each in parts])
        return Split(" and ".join(self.names), split, joined)

    def read(self, name: str, split: str) -> Split:
        """A split of a data set, from its files once: a vocabulary of answers asks for the same."""
        if (name, split) not in self._read:
            self._read[name, split] = load(name, split, self.annotations)
        return self._read[name, split]

    def _alive(self, split: Split) -> Split:
        """Without the pairs whose image is lost, where that is usual."""
        if split.name not in DYING:
            return split
        return present(split, known_keys(self.recipe, self.places, group_of(split.name)))

    def translate(self, model: nn.Module, report: LoadReport) -> None:
        """Fit what the model makes of features to what its start made of others, where the store that has its boxes has
        those; of some images, evenly taken."""
        if self.recipe.task.startswith("vcr"):
            return  # its boxes are not the store's, but come with its images
        assert isinstance(model, VLBert), "another's features have the width that its network gives"
        cached = Parts(replace(self.run, recipe=replace(self.recipe, visual="store")))
        if _layout(cached).dim != report.other["appearance.weight"].shape[1] - 8 * WAVES:
            return
        data = self.split(self.recipe.split)
        keys = data.images()
        keys = keys[:: -(-len(keys) // TRANSLATED)]
        sources = [parts.visual(data) for parts in (self, cached)]

        def pairs() -> Iterator[tuple[Regions, Regions]]:
            for at in range(0, len(keys), AT_ONCE):
                ours, theirs = (source.look(keys[at : at + AT_ONCE]).visual for source in sources)
                assert isinstance(ours, Regions) and isinstance(theirs, Regions)
                yield ours, theirs

        share = begin_translated(model, pairs(), report.other, device_of(self.recipe.train.device))
        print(f"appearance is fitted to the start's, on {len(keys):,} images of the store: {share:.0%} of it is met")

    def visual(self, split: Split) -> Visual:
        """Where the images of a split come from."""
        if self.recipe.task == "text-classes":
            return Several({})
        if len(self.names) == 1:
            return visual_of(self.recipe, self.places, group_of(self.names[0]), split.images(), self.fields)
        keys: dict[str, list[str]] = {}
        for key in split.images():
            group, _, own = key.partition("/")
            keys.setdefault(group, []).append(own)
        return Several(
            {group: visual_of(self.recipe, self.places, group, own, self.fields) for group, own in keys.items()}
        )


class _Grouped(Sequence[Example]):
    """Examples whose keys stand behind the name of their group."""

    def __init__(self, examples: Sequence[Example], group: str) -> None:
        self.examples, self.group = examples, group

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, at: Any) -> Any:
        return self._named(self.examples[at])

    def __iter__(self) -> Iterator[Example]:
        return map(self._named, self.examples)

    def _named(self, example: Example) -> Example:
        return replace(example, images=tuple(f"{self.group}/{key}" for key in example.images))


def fitted(parts: Parts) -> Any:
    """A model's config with the numbers that its data decides: words, width of features, answers."""
    recipe, words = parts.recipe, parts.tokenizer.words
    config = with_network(recipe)
    answers: dict[str, Any] = {} if parts.answers is None else {"answers": len(parts.answers)}
    if isinstance(config, ViLTConfig):
        return replace(config, vocabulary=words, text_positions=max(config.text_positions, recipe.longest), **answers)
    if isinstance(config, MeterConfig):
        return _fitted_meter(parts, config, answers)
    changes: dict[str, Any] = {"vocabulary": words}
    cached = recipe.visual != "pixels"
    if isinstance(config, VLBertConfig):
        changes |= {"mask_id": parts.tokenizer.mask, "body": None if cached else config.body, **answers}
    if isinstance(config, GridVLPConfig):
        own = [ANSWERING[name] for name in config.heads if name in ANSWERING]
        changes |= {name: len(parts.answers) for name in own if parts.answers}
        if cached and config.body is not None and _layout(parts) is not None:
            changes |= {"body": None, "pool": 1}
    return replace(config, **changes, **_of_features(parts))


def _fitted_meter(parts: Parts, config: MeterConfig, answers: dict[str, Any]) -> MeterConfig:
    text = config.text
    if text.settings:
        text = replace(text, settings={**text.settings, "vocab_size": parts.tokenizer.words})
    changes: dict[str, Any] = {"text": text, **answers}
    layout = _layout(parts)
    if layout is not None:
        changes |= {"image": None, "image_dim": layout.dim}
    return replace(config, **changes)


def _of_features(parts: Parts) -> dict[str, Any]:
    """Width of cached features; and of the class distributions, which come from a store with pixels, too."""
    layout, found = _layout(parts), dict[str, Any]()
    if layout is not None:
        found["feature_dim"] = layout.dim
    if "class_probs" in parts.fields:
        boxes = layout or find_store(parts.places, group_of(parts.names[0])).spec.layout
        found["region_classes"] = boxes.class_probs
    return found


def _layout(parts: Parts) -> Any:
    """How cached features lie; None where the model sees pixels."""
    recipe = parts.recipe
    if recipe.visual == "pixels" or recipe.task in ("text-classes", "image-classes"):
        return None
    if recipe.visual == "cache-through":
        from extractors import make_extractor

        assert recipe.extractor is not None
        spec = make_extractor(recipe.extractor).spec
    else:
        spec = find_store(parts.places, group_of(parts.names[0])).spec
    return None if spec.view == "pixels" else spec.layout


def built_answers(read: Callable[[str, str], Split], names: Sequence[str], least: int) -> AnswerVocabulary:
    """The answers of data sets with questions: VQA's by its official rule, GQA's all, Visual Genome's likewise at least
    so many times; of several, end to end, each answer once.

    Args:
        read: a data set's split, by their names.
    """
    found: list[str] = []
    for name in names:
        if name == "vqav2":
            splits = [read(name, split) for split in ("train", "val")]
            most = (each.truth["multiple_choice_answer"] for split in splits for each in split.examples)
            found += vqa_vocabulary(most, least).answers
        elif name == "gqa":
            splits = [read(name, split) for split in ("train", "val")]
            found += gqa_vocabulary(each.truth["answer"] for split in splits for each in split.examples).answers
        elif name == "visual_genome_qa":
            given = (each.truth["answer"] for each in read(name, "train").examples)
            found += vqa_vocabulary(given, least).answers
    return AnswerVocabulary(tuple(dict.fromkeys(found)))


def _pretraining(parts: Parts, data: Split, family: Family, visual: Visual, training: bool) -> Task:
    recipe, corpus = parts.recipe, None
    if CORPUS in recipe.data:
        if parts.places.corpus is None:
            raise ConfigError("this run reads plain text beside its pairs; name the files with --corpus a.doc,b.doc.")
        corpus = Corpus(*parts.places.corpus.split(","))
    side, codebook = None if _layout(parts) else recipe.patch, None
    if recipe.codebook is not None:
        if side is None:
            raise ConfigError("discrete codes are told from pixels; choose --visual pixels, or a store of pixels.")
        codebook = Codebook(recipe.codebook)
    passes = passes_of(parts.config, recipe.objectives, Details(recipe.longest, True, parts.answers, side, codebook))
    return Pretraining(data, family, visual, passes, corpus, recipe.train.seed, training)


def _answers(parts: Parts, data: Split, family: Family, visual: Visual, training: bool) -> Task:
    kind: Literal["vqa", "gqa"] = "gqa" if parts.recipe.task == "gqa" else "vqa"
    assert parts.answers is not None
    return Answers(data, family, visual, parts.answers, kind, parts.recipe.train.seed, training)


def _commonsense(parts: Parts, data: Split, family: Family, visual: Visual, training: bool) -> Task:
    kind: Literal["answer", "rationale"] = "rationale" if parts.recipe.task == "vcr-rationale" else "answer"
    return Commonsense(data, family, visual, kind, parts.recipe.train.seed, training)


def _plain(kind: Any) -> Shape:
    return lambda parts, data, family, visual, training: kind(data, family, visual, parts.recipe.train.seed, training)


def _with_texts(learnt: Any, scored: Any) -> Shape:
    """A task that learns from each text, and is scored on images with all of theirs."""

    def shape(parts: Parts, data: Split, family: Family, visual: Visual, training: bool) -> Task:
        seed = parts.recipe.train.seed
        task: Task = (
            learnt(one_a_text(data), family, visual, seed, True) if training else scored(data, family, visual, seed)
        )
        return task

    return shape


Shape = Callable[[Parts, Split, Family, Visual, bool], Task]
SHAPES: dict[str, Shape] = {
    "pretraining": _pretraining,
    "vqa": _answers,
    "gqa": _answers,
    "nlvr2": _plain(Reasoning),
    "snli-ve": _plain(Entailment),
    "vcr-answer": _commonsense,
    "vcr-rationale": _commonsense,
    "refcoco": _plain(Expressions),
    "retrieval": _with_texts(RetrievalTraining, Retrieval),
    "captions": _with_texts(CaptionTraining, Captioning),
    "image-classes": _plain(ImageClasses),
    "text-classes": _plain(TextClasses),
}
