"""`triptych card`: what a store holds and what made it, as a dataset card in the Hugging Face form."""

from __future__ import annotations

import re
from bisect import bisect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

import tyro

from storage import FeatureStore, StoreError, open_store
from storage.atomic import write_whole
from storage.places import local_path
from storage.secrets import shown
from workflows.output import Command, emit
from workflows.stores import store_facts
from workflows.text import size

LICENCE = re.compile(r"[a-z0-9][a-z0-9.-]*")  # how the hub writes them: apache-2.0, cc-by-4.0, other
SIZES = ("1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T")  # the hub's `size_categories`
SHAPES = {"regions": "(boxes, {dim})", "grid": "(H, W, {dim})", "patches": "(H, W, {dim})", "pixels": "(H, W, 3)"}
ABOUT = {
    "regions": "Features of image regions: for each image its boxes, and one feature a box.",
    "grid": "Grid features: for each image the last feature map of a network, one feature a cell.",
    "patches": "Patch features: for each image the tokens of a vision transformer, one a patch.",
    "pixels": "Images, upright and resized, as pixels.",
}


@dataclass(frozen=True)
class Card(Command):
    """Write a store's dataset card: counts, spec, vocabulary, errors, where it comes from, how to read it.

    triptych card features/regions

    triptych export features/regions --to parquet --out share

    triptych card features/regions --out share/README.md --licence cc-by-4.0
    """

    store: tyro.conf.Positional[str]
    """The store, a folder or an address such as s3://bucket/features."""
    out: str | None = None
    """The file to write; a Parquet export of the store beside it becomes what the hub reads. Default: print it."""
    licence: str | None = None
    """The licence's name on the hub, such as cc-by-4.0 or other. Default: unknown, and the card says so."""

    def run(self) -> int:
        if self.licence is not None and not LICENCE.fullmatch(self.licence):
            raise StoreError(
                f"--licence {self.licence!r} is no name of the hub's; take one such as cc-by-4.0, mit or other."
            )
        from storage.interop.parquet import exported
        from storage.interop.text import refuse_existing

        store = open_store(self.store)
        if self.out is None:
            text = card(store, self.licence, has_parquet=False)
            emit({"card": text})
            print(text, end="")
            return 0
        out = local_path(self.out)
        refuse_existing(out)
        has_parquet = exported(store, out.absolute().parent)
        out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(out, card(store, self.licence, has_parquet).encode())
        emit({"out": shown(self.out), "records": len(store), "licence": self.licence, "parquet": has_parquet})
        print(f"{shown(self.out)}: {len(store)} records{'' if self.licence else ', no licence given'}")
        return 0


def card(store: FeatureStore, licence: str | None, has_parquet: bool) -> str:
    """The card, Markdown behind YAML.

    Args:
        licence: its name on the hub; None where none was given.
        has_parquet: whether a Parquet export of this store lies in `data/` beside the card.
    """
    import jinja2

    from storage.interop.features import features_of

    facts = store_facts(store)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), trim_blocks=True, lstrip_blocks=True, autoescape=False
    )
    text = environment.get_template("card.md").render(
        front=_front(store, facts, licence, has_parquet),
        title=_title(facts),
        about=ABOUT[facts["view"]],
        facts=facts,
        licence=licence,
        random=random_weights(facts),
        narrowed=facts["spec"]["model"].get("width_divisor", 1),
        counts=_counts(store, facts),
        columns=[(name, described(feature)) for name, feature in features_of(store).items()] if has_parquet else [],
        vocabulary=[(kind, [_cell(name) for name in names]) for kind, names in store.vocabulary.items() if names],
        settings=[(name, _cell(value)) for name, value in _flat(facts["spec"])],
        provenance=[(name, _cell(value)) for name, value in _provenance(store, facts["run"])],
        shape=SHAPES[facts["view"]].format(dim=store.spec.layout.dim),
    )
    return re.sub(r"\n{3,}", "\n\n", text.strip()) + "\n"


def _front(store: FeatureStore, facts: dict[str, Any], licence: str | None, has_parquet: bool) -> str:
    """The YAML that the hub reads (huggingface/huggingface_hub `src/huggingface_hub/repocard_data.py`)."""
    import yaml

    from storage.interop.parquet import FOLDER, SPLIT

    found: dict[str, Any] = {"license": licence or "unknown", "pretty_name": _title(facts)}
    if facts["view"] != "pixels":
        found["task_categories"] = ["image-feature-extraction"]
    model = facts["spec"]["model"].get("name")
    random = ["random-weights"] if random_weights(facts) else []
    found["tags"] = ["triptych", facts["view"], *([_tag(model)] if model else []), *random]
    found["size_categories"] = [size_category(len(store))]
    if has_parquet:
        files = [{"split": SPLIT, "path": f"{FOLDER}/{SPLIT}-*.parquet"}]
        found["configs"] = [{"config_name": "default", "data_files": files}]
    return str(yaml.safe_dump(found, sort_keys=False, allow_unicode=True))


def size_category(records: int) -> str:
    """The hub's name for so many records."""
    at = bisect([10**power for power in range(3, 13)], records)
    if at == 0:
        return f"n<{SIZES[0]}"
    return f"{SIZES[at - 1]}<n<{SIZES[at]}" if at < len(SIZES) else f"n>{SIZES[-1]}"


def random_weights(facts: dict[str, Any]) -> str:
    """The origin of the network's weights where that is chance, else nothing."""
    weights = facts["spec"]["model"].get("weights")
    origin = str(weights.get("origin", "") if isinstance(weights, dict) else weights)
    return origin if origin.startswith("random:") else ""


def _title(facts: dict[str, Any]) -> str:
    model = facts["spec"]["model"].get("name")
    return _cell(facts["view"].capitalize() + (f": {model}" if model else ""))


def _tag(name: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")


def _counts(store: FeatureStore, facts: dict[str, Any]) -> list[tuple[str, str]]:
    layout, records = store.spec.layout, facts["records"]
    rows = {"regions": "boxes", "grid": "cells", "patches": "patches", "pixels": "pixels"}[facts["view"]]
    found = [("images", f"{records:,}"), ("images that failed", f"{facts['errors']:,}")]
    if records:
        found.append((rows, f"{facts['rows']:,}, {facts['rows'] / records:,.1f} an image"))
    if facts["view"] != "pixels":
        found.append(("features", f"{layout.dim} numbers each, stored as {layout.dtype}"))
    if store.spec.carried:
        found.append(("also", ", ".join(store.spec.carried)))
    if facts["view"] == "regions":
        found.append(("boxes are", f"x1 y1 x2 y2, in {layout.box_units} of the upright original image"))
    found.append(("shards", f"{facts['shards']:,}, {' and '.join(facts['formats']) or 'none yet'}"))
    return [*found, ("size of the store", size(facts["bytes"]))]


def _provenance(store: FeatureStore, run: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What the store tells of how it came about. Of addresses of images only the last part, which is no secret."""
    times = [unit.facts["committed_at"] for unit in store.units if "committed_at" in unit.facts]
    if times:
        first, last = (datetime.fromtimestamp(time, UTC).date().isoformat() for time in (min(times), max(times)))
        yield "written", first if first == last else f"{first} to {last}"
    if "source" in run:
        yield "images", f"{run['images']:,} of the {run['source_images']:,} in `{PurePosixPath(run['source']).name}`"
    if "imported_from" in run:
        yield "imported from", f"`{PurePosixPath(run['imported_from']).name}`, {run['format']}"
    if run.get("images_per_second"):
        speed = f"{run['images_this_run']:,} images, {run['images_per_second']:.2f} a second"
        yield "last run", f"{speed}, {run['engine']} engine, {run['finished_at']}"
        yield "hardware", run["hardware"]
    if "version" in run:
        yield "Triptych", run["version"]


def described(feature: Mapping[str, Any]) -> str:
    """A feature of `datasets` in words: list of lists of 2048 float16."""
    if feature["_type"] == "Sequence":
        inner, length = feature["feature"], feature["length"]
        words = described(inner) if inner["_type"] != "Sequence" else described(inner).replace("list", "lists", 1)
        return f"list of {f'{length} ' if length > 0 else ''}{words}"
    if feature["_type"] == "ClassLabel":
        return f"labels, {len(feature['names'])} names"
    return str(feature["dtype"]) if feature["_type"] == "Value" else "PNG image"


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """A spec's settings by dotted name, those that say nothing left out."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif value is not None and value != []:
            yield prefix + name, value


def _cell(value: Any) -> str:
    """Text that stays in its cell of a table."""
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return " ".join(text.split()).replace("|", "\\|")
