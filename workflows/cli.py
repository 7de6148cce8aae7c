"""The `triptych` command: one subcommand a job, exit statuses, and errors as one line."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import tyro

from storage import FeatureStore, TriptychError, open_store, verify_store
from workflows.demo import Demo
from workflows.extract import ExtractGrid, ExtractRegions, value_of, with_config_file
from workflows.progress import size

WRONG_JOB, INTERRUPTED = 2, 130


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
                print(f"{row.uri}\n    {row.stage}: {row.reason}: {row.message}")
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
            state = f"{len(found.problems)} problems" if found.problems else "sound"
            print(f"{state}: {found.records} records in {found.shards} shards, {size(found.bytes)}")
        return 1 if found.problems else 0


def store_facts(store: FeatureStore) -> dict[str, Any]:
    """What `triptych info --json` prints."""
    errors = store.errors()
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
        "complete": bool(store.run.get("complete", False)),
        "run": store.run,
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
    if run.get("images_per_second"):
        speed = f"{run['images_per_second']:.2f} images/s"
        lines.append(f"  last run  {speed}, {run['engine']} engine, {run['hardware']}, {run['finished_at']}")
    return "\n".join(lines)


@dataclass(frozen=True)
class _ExtractCommand:
    view: Annotated[
        Annotated[ExtractRegions, tyro.conf.subcommand("regions")]
        | Annotated[ExtractGrid, tyro.conf.subcommand("grid")],
        tyro.conf.arg(name=""),
    ]

    def run(self) -> int:
        return self.view.run()


Command = (
    Annotated[Demo, tyro.conf.subcommand("demo")]
    | Annotated[_ExtractCommand, tyro.conf.subcommand("extract", description="Cache visual features of images.")]
    | Annotated[Info, tyro.conf.subcommand("info")]
    | Annotated[Errors, tyro.conf.subcommand("errors")]
    | Annotated[Verify, tyro.conf.subcommand("verify")]
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status: 0, 1 (damage found), 2 (wrong job), 3 (too many errors), 130."""
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        if args[:1] == ["extract"] and len(args) > 1:
            args = [*args[:2], *with_config_file(args[2:])]
        command: Any = tyro.cli(
            Command,
            prog="triptych",
            description="Visual features at scale: extract once, cache, compare.",
            args=args,
            config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff, tyro.conf.OmitSubcommandPrefixes),
        )
        return int(command.run())
    except TriptychError as error:
        print(f"triptych: {error}", file=sys.stderr)
        return WRONG_JOB
    except KeyboardInterrupt:
        print("triptych: interrupted; what is committed is kept", file=sys.stderr)
        return INTERRUPTED


def script(view: str) -> int:
    """What the workflow scripts run: the subcommand of this view, on Ray unless --engine says otherwise."""
    args = sys.argv[1:]
    return main(["extract", view, *([] if value_of(args, "--engine") else ["--engine", "ray"]), *args])


if __name__ == "__main__":
    sys.exit(main())
