"""`triptych info`, `errors` and `verify`: what a store holds, what failed, and whether it is sound. Light to start."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

import tyro

from storage import FeatureStore, StoreError, open_store, verify_store
from workflows.text import size

REMEDY = "remedy: move the damaged units' files out of manifest/ and shards/, then run the extract command again"


@dataclass(frozen=True)
class Info:
    """Counts, spec, size and speed of a store."""

    store: tyro.conf.Positional[str]
    """Folder of the store."""
    json: bool = False
    """Print one JSON object."""

    def run(self) -> int:
        facts = store_facts(open_store(self.store))
        print(json.dumps(facts, indent=2) if self.json else _info_text(self.store, facts))
        return 0


@dataclass(frozen=True)
class Errors:
    """The images of a store that failed, one row each."""

    store: tyro.conf.Positional[str]
    """Folder of the store."""
    json: bool = False
    """Print one JSON array."""

    def run(self) -> int:
        rows = open_store(self.store).errors()
        if self.json:
            print(json.dumps([asdict(row) for row in rows], indent=2))
        else:
            for row in rows:
                print(f"{row.key}  {row.uri}\n    {row.stage}: {row.reason}: {row.message}")
            print(f"{len(rows)} failed images")
        return 0


@dataclass(frozen=True)
class Verify:
    """Check every byte of a store: checksums, schema, counts, keys. Exit status 1 where anything is damaged."""

    store: tyro.conf.Positional[str]
    """Folder of the store."""
    json: bool = False
    """Print one JSON object."""

    def run(self) -> int:
        found = verify_store(self.store)
        if self.json:
            print(json.dumps(asdict(found), indent=2))
        else:
            for problem in found.problems:
                images = "" if problem.images is None else f" ({problem.images} images)"
                print(f"DAMAGED  {problem.file}: {problem.what}{images}")
            for note in found.notes:
                print(f"note: {note}")
            if found.problems:
                print(REMEDY)
            state = f"{len(found.problems)} damaged" if found.problems else "sound"
            print(f"{state}: {found.records} records in {found.shards} shards, {size(found.bytes)}")
        return 1 if found.problems else 0


def store_facts(store: FeatureStore) -> dict[str, Any]:
    """What `triptych info --json` prints."""
    errors = store.errors()
    try:
        run = store.run
    except StoreError as error:  # it only tells how the last job went: the rest is worth showing
        run = {"damaged": str(error)}
    reasons = sorted({row.reason for row in errors})
    shards = [entry.shard for entry in store.entries if entry.shard]
    return {
        "view": store.spec.view,
        "spec_id": store.spec.id,
        "spec": store.spec.to_dict(),
        "records": len(store),
        "errors": len(errors),
        "errors_by_reason": {reason: sum(row.reason == reason for row in errors) for reason in reasons},
        "rows": sum(shard.rows for shard in shards),
        "shards": len(shards),
        "bytes": sum(shard.bytes for shard in shards),
        "complete": bool(run.get("complete", False)),
        "run": run,
    }


def _info_text(path: str, facts: dict[str, Any]) -> str:
    spec, run = facts["spec"], facts["run"]
    weights = spec["model"]["weights"]
    lines = [
        f"{path}: {facts['view']}, {'complete' if facts['complete'] else 'not complete'}",
        f"  records   {facts['records']} ({facts['rows']} rows of {spec['layout']['dim']} {spec['layout']['dtype']})",
        f"  errors    {facts['errors']}",
        *(f"    {count:>6}  {reason}" for reason, count in facts["errors_by_reason"].items()),
        f"  shards    {facts['shards']}, {size(facts['bytes'])}",
        f"  spec      {facts['spec_id'][:16]}",
        f"  model     {spec['model']['name']}, weights {weights['origin']} {weights['sha256'][:16]}",
    ]
    if spec["model"]["width_divisor"] > 1:
        lines.append(f"  narrowed  all widths divided by {spec['model']['width_divisor']}: not the published network")
    if "source" in run:
        lines.append(f"  source    {run['images']} of {run['source_images']} images of {run['source']}")
    if "damaged" in run:
        lines.append(f"  last run  {run['damaged']}")
    if run.get("images_per_second"):
        speed = f"{run['images_per_second']:.2f} images/s"
        lines.append(f"  last run  {speed}, {run['engine']} engine, {run['hardware']}, {run['finished_at']}")
    return "\n".join(lines)
