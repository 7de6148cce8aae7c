"""The cells of a comparison: each line of its table once a seed, known by a hash of all that decides what comes out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import cached_property
from typing import Any

from extractors import ConfigError
from extractors.configs import ConvConfig
from storage.spec import canonical_json
from trainers.models.grid_vlp import GridVLPConfig
from trainers.models.meter import MeterConfig
from trainers.models.vilt import ViLTConfig
from trainers.models.vl_bert import VLBertConfig
from workflows.comparing.data import file_digest
from workflows.comparing.features import features_of
from workflows.recipes import Recipe, recipe_of
from workflows.recipes.tiny import sees_by_network
from workflows.train import Train

FORMAT = 4  # of what is measured, and how, and of how models begin; another one makes all cells new
MODELS: dict[type, str] = {VLBertConfig: "VL-BERT", GridVLPConfig: "Grid-VLP", ViLTConfig: "ViLT", MeterConfig: "METER"}
# What a recipe only says of itself, and settings that change no number.
SAID = {"summary", "expected", "source", "starts"}
HOW = {"out", "device", "log_every", "save_every", "evaluate_every", "keep", "workers"}


@dataclass(frozen=True)
class Row:
    """One line of a comparison's table.

    label   as the tables call it
    name    of the recipe that it comes from
    recipe  with what the comparison changes; `visual` says where images come from
    before  what is pre-trained first, for the recipe to start from; None: nothing
    """

    label: str
    name: str
    recipe: Recipe
    before: Recipe | None = None

    @property
    def data(self) -> tuple[str, ...]:
        """All data sets that it reads."""
        return tuple(dict.fromkeys([*self.recipe.data, *(self.before.data if self.before else ())]))

    def without(self, lost: Sequence[str], whole: bool) -> Row | None:
        """The same, pre-trained on less; None where that will not do."""
        if not lost:
            return self
        left = tuple(name for name in self.before.data if name not in lost) if self.before else ()
        if whole or not left or set(lost) & set(self.recipe.data) or self.before is None:
            return None
        return replace(self, before=replace(self.before, data=left))


@dataclass(frozen=True)
class Matrix:
    """What is compared.

    title   in a few words
    source  the paper's table, for a published comparison
    rows    the lines of the tables
    whole   whether a line is pre-trained on all of its data sets or not at all; else on those that are at hand
    sees    whether tiny twins see by the network that comes along; not where it is networks that are compared
    """

    title: str
    rows: tuple[Row, ...]
    source: str = ""
    whole: bool = False
    sees: bool = False

    def at_hand(self, there: Callable[[str], bool], tell: Callable[[str], None]) -> Matrix:
        """The same with what can be run on the data sets that are there; what is left out is told.

        Raises:
            ConfigError: nothing is left.
        """
        rows, known = [], dict[tuple[str, ...], None]()
        for row in self.rows:
            lost = tuple(name for name in row.data if not there(name))
            kept = row.without(lost, self.whole)
            if lost:
                known[lost] = None
            if kept is None:
                tell(f"{row.label} is left out: {', '.join(lost)} not at hand")
            else:
                rows.append(kept)
        for lost in known:
            if not self.whole:
                tell(f"pre-training goes without {', '.join(lost)}: not at hand")
        if not rows:
            raise ConfigError("no line of the comparison has its data; `triptych data list` shows how it should lie.")
        return replace(self, rows=tuple(rows))


@dataclass(frozen=True)
class Cell:
    """One run of a comparison, to be trained, scored and measured.

    label   of its row
    name    of the recipe
    recipe  as it is run: twin, seed and settings chosen
    tiny    whether it is the tiny twin
    data    hash of the data sets, and of the words of the texts
    device  "cpu" or "cuda"
    start   weights to start from, as of `triptych train --start`
    network  weights of the network that sees the pixels, or fills the store
    weights  hash of the two
    before  the cell that is pre-trained first, and whose weights this one starts from
    """

    label: str
    name: str
    recipe: Recipe
    tiny: bool
    data: str
    device: str
    start: str | None = None
    network: str | None = None
    weights: str = ""
    before: Cell | None = None

    @cached_property
    def id(self) -> str:
        """16 hex digits: equal ones mean equal results, on machines alike."""
        before = self.before and self.before.id
        facts = [FORMAT, plain(self.recipe), self.tiny, self.data, self.device, self.weights, before]
        return hashlib.sha256(canonical_json(facts)).hexdigest()[:16]

    @property
    def model(self) -> str:
        return model_name(self.recipe)

    @property
    def lineage(self) -> list[Cell]:
        """The cell, what it starts from, what that started from, and so on."""
        return [self, *(self.before.lineage if self.before else [])]


def model_name(recipe: Recipe) -> str:
    """What a recipe's model is called. PixelBERT is a Grid-VLP whose network learns, too."""
    return "PixelBERT" if getattr(recipe.model, "tuned", False) else MODELS[type(recipe.model)]


def plain(value: Any) -> Any:
    """A recipe, or a part of one, as JSON values, without what decides nothing; weights by the bytes of their file."""
    if is_dataclass(value) and not isinstance(value, type):
        skipped = SAID if isinstance(value, Recipe) else HOW
        content = {each.name: plain(getattr(value, each.name)) for each in fields(value) if each.name not in skipped}
        if isinstance(content.get("weights"), str):
            content["weights"] = file_digest(content["weights"])
        return {"": type(value).__name__, **content}
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, tuple | list) else value


def of_recipes(names: Sequence[str], visuals: Sequence[str]) -> Matrix:
    """Recipes by name, each with every source of images.

    Raises:
        ConfigError: there is no such recipe, or its images cannot come from there.
    """
    unknown = [each for each in visuals if each not in ("store", "pixels")]
    if unknown:
        raise ConfigError(f"--visuals {unknown[0]} is not known; choose store, pixels, or both.")
    rows = []
    for name in names:
        recipe = recipe_of(name)
        if recipe.task in ("pretraining", "text-classes", "image-classes", "captions"):
            raise ConfigError(f"{name} ({recipe.task}) has no score to be compared by; choose a recipe that answers.")
        for visual in visuals:
            seen = replace(recipe, visual=visual)
            rows.append(Row(label_of(seen), name, seen))
    return Matrix("Recipes side by side", tuple(rows), sees=True)


def label_of(recipe: Recipe) -> str:
    """A model and what it sees."""
    features = features_of(recipe)
    seen = "pixels" if recipe.visual == "pixels" else f"cached {features.view if features else 'features'}"
    return f"{model_name(recipe)}, {seen}"


@dataclass(frozen=True)
class Common:
    """What all cells of a comparison share.

    flags     settings of all runs, as of `triptych train`; `device` is one that is there
    seeds     of each row; what is pre-trained first has the first one
    starts    weights to start from, by recipe
    networks  weights of the networks that see, by recipe
    """

    flags: Train
    seeds: tuple[int, ...]
    starts: Mapping[str, str] = field(default_factory=dict)
    networks: Mapping[str, str] = field(default_factory=dict)


def cells_of(row: Row, common: Common, digest: Callable[[tuple[str, ...]], str]) -> list[Cell]:
    """A row's cells, a seed each.

    Args:
        digest: hash of the data sets of a run, by their names.

    Raises:
        ConfigError: the recipe has no network for the weights that are given for it.
    """
    start, network = common.starts.get(row.name), common.networks.get(row.name)
    if network is not None:
        common = replace(common, flags=replace(common.flags, start_network=network))
        before = row.before and seeing_with(row.before, network)
        row = replace(row, recipe=seeing_with(row.recipe, network), before=before)
    recipe = row.recipe
    first = Cell(
        row.label,
        row.name,
        recipe,
        common.flags.tiny,
        digest(recipe.data),
        str(common.flags.device).partition(":")[0],
        start,
        network,
        f"{file_digest(start)} {file_digest(network)}",
    )
    found = []
    for seed in common.seeds:
        flags = replace(common.flags, recipe=row.name, seed=seed)
        cell = replace(first, recipe=flags.settled(held_out(recipe)))
        if row.before is not None:
            before = replace(flags, seed=common.seeds[0]).settled(row.before)
            cell = replace(cell, before=replace(cell, recipe=before, data=digest(before.data)))
        found.append(cell)
    return found


def held_out(recipe: Recipe) -> Recipe:
    """A recipe that does not train on what it is scored on, as METER does on VQA for the test server."""
    parts = [each for each in recipe.split.split("+") if each != recipe.validation]
    return replace(recipe, split="+".join(parts))


def seeing_with(recipe: Recipe, network: str) -> Recipe:
    """A recipe whose store is filled by a network with these weights; as it is where it sees pixels alone.

    Raises:
        ConfigError: it has no such network.
    """
    if not sees_by_network(recipe):
        raise ConfigError(f"--networks: {recipe.summary!r} sees by no convolutional network; leave out {network}.")
    if not isinstance(recipe.extractor, ConvConfig):
        return recipe
    return replace(recipe, extractor=replace(recipe.extractor, weights=network))


def in_order(cells: Sequence[Cell]) -> tuple[list[Cell], list[Cell]]:
    """What others start from, and all other cells, the first seed of all before the second of any; each once, whatever
    its labels."""
    befores = dict[str, Cell]()
    for each in cells:
        if each.before:
            befores.setdefault(each.before.id, each.before)
    by_seed = sorted(cells, key=lambda each: each.recipe.train.seed)
    own = {each.id: each for each in by_seed if each.id not in befores}
    return list(befores.values()), list(own.values())
