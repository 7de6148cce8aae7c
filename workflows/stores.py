"""Commands on a store as it is: what it holds, what failed, whether it is sound, putting it right. Light to start."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import tyro

from storage import FeatureStore, StoreError, open_store, verify_store
from storage.compact import compact
from storage.repair import repair_store
from storage.secrets import shown
from storage.verify import Verification
from workflows.output import Command, emit
from workflows.text import byte_progress, size

if TYPE_CHECKING:
    from storage.against import Coverage
    from storage.diff import Difference

REMEDY = "remedy: `triptych repair {store}` drops what is damaged; the extract command then redoes it"


@dataclass(frozen=True)
class Info(Command):
    """Counts, spec, size and speed of a store.

    triptych info features/regions --json
    """

    store: tyro.conf.Positional[str]
    """Folder of the store."""

    def run(self) -> int:
        facts = store_facts(open_store(self.store))
        emit(facts)
        print(_info_text(shown(self.store), facts))
        return 0


@dataclass(frozen=True)
class Errors(Command):
    """The images of a store that failed, one row each.

    triptych errors features/regions
    """

    store: tyro.conf.Positional[str]
    """Folder of the store."""

    def run(self) -> int:
        rows = open_store(self.store).errors()
        for row in rows:
            emit(asdict(row))
            print(f"{row.key}  {row.uri}\n    {row.stage}: {row.reason}: {row.message}")
        print(f"{len(rows)} failed images")
        return 0


@dataclass(frozen=True)
class Verify(Command):
    """Check every byte of a store: checksums, schema, counts, keys. Exit status 1 where anything is damaged.

    triptych verify features/regions --against annotations/captions_val2017.json
    """

    store: tyro.conf.Positional[str]
    """The store, a folder or an address such as s3://bucket/features."""
    quick: bool = False
    """Check the manifest and the lengths of files only."""
    against: str | None = None
    """Annotation file of a data set (COCO, VQA, GQA, Karpathy, ...): list the images it needs and the store lacks."""

    def run(self) -> int:
        with byte_progress("verifying") as on_bytes:
            found = verify_store(self.store, self.quick, on_bytes)
        covered = None
        if self.against and not found.problems:
            from storage.against import coverage

            covered = coverage(open_store(self.store), self.against)
        emit({**asdict(found), **({"against": asdict(covered)} if covered else {})})
        self._tell(found)
        if covered:
            _tell_coverage(covered)
        return 1 if found.problems or (covered and (covered.missing or covered.failed)) else 0

    def _tell(self, found: Verification) -> None:
        for problem in found.problems:
            images = "" if problem.images is None else f" ({problem.images} images{_some(problem.keys)})"
            print(f"DAMAGED  {problem.file}: {problem.what}{images}")
        for note in found.notes:
            print(f"note: {note}")
        if found.problems:
            print(REMEDY.format(store=shown(self.store)))
        state = f"{len(found.problems)} damaged" if found.problems else "sound"
        how = ", by lengths only" if self.quick else ""
        print(f"{state}{how}: {found.records} records in {found.shards} shards, {size(found.bytes)}")


@dataclass(frozen=True)
class Repair(Command):
    """Drop what is damaged, so that running the extract command again redoes exactly that.

    triptych repair features/regions
    """

    store: tyro.conf.Positional[str]
    """The store, a folder or an address such as s3://bucket/features."""

    def run(self) -> int:
        with byte_progress("verifying") as on_bytes:
            found = verify_store(self.store, on_bytes=on_bytes)
        done = repair_store(self.store, found)
        emit(asdict(done))
        for note in done.notes:
            print(f"note: {note}")
        print(f"{len(done.units)} damaged units dropped, with {len(done.keys)} images{_some(done.keys)}")
        if done.units:
            print("run the command that made the store again to redo them")
        return 0


@dataclass(frozen=True)
class Compact(Command):
    """Merge small shards and fold the manifest into its index. Readers and writers may go on meanwhile.

    triptych compact features/regions --shard-mb 512
    """

    store: tyro.conf.Positional[str]
    """The store, a folder or an address such as s3://bucket/features."""
    shard_mb: int = 256
    """Size to merge shards to; those of half of it and more stay as they are."""

    def run(self) -> int:
        if self.shard_mb < 1:
            raise StoreError(f"--shard-mb {self.shard_mb} must be at least 1.")
        done = compact(self.store, self.shard_mb << 20)
        emit(asdict(done))
        print(f"{done.units_before} units became {done.units_after}; {size(done.bytes_written)} written anew")
        return 0


@dataclass(frozen=True)
class Diff(Command):
    """How far two stores are apart, field by field, and which keys differ. Exit status 1 where they differ.

    triptych diff features/regions features/published
    """

    first: tyro.conf.Positional[str]
    """A store, folder or address."""
    second: tyro.conf.Positional[str]
    """Another one of the same view."""

    def run(self) -> int:
        from storage.diff import diff_stores, open_both

        found = diff_stores(*open_both(self.first, self.second))
        emit(difference_facts(found))
        print(difference_text(found))
        return 0 if found.same else 1


def difference_facts(found: Difference) -> dict[str, Any]:
    """What `triptych diff --json` prints."""
    plain = {name: value for name, value in vars(found).items() if name != "fields"}
    return {"same": found.same, **plain, "fields": {name: each.to_dict() for name, each in found.fields.items()}}


def difference_text(found: Difference) -> str:
    """A difference as people read it."""
    lines = [f"spec: {line}" for line in found.spec]
    for what, keys in {
        "only in the first": found.only_in_first,
        "only in the second": found.only_in_second,
        "of another image size": found.resized,
        "with other boxes or shapes": found.reshaped,
    }.items():
        if keys:
            lines.append(f"{len(keys)} {what}{_some(keys)}")
    matched, first, second = found.boxes
    if found.reshaped and first:
        lines.append(f"{matched} boxes are in both, by IoU of at least 0.5, of {first} and {second}")
    if found.fields:
        lines.append(f"{'field':<18}{'records':>9}{'identical':>11}{'largest':>12}{'mean':>12}{'lowest cos':>12}")
    for name, each in found.fields.items():
        cosine = f"{each.lowest_cosine:>12.6f}" if name in ("features", "whole_image") else ""
        lines.append(f"{name:<18}{each.records:>9}{each.equal:>11}{each.largest:>12.4g}{each.mean:>12.4g}{cosine}")
    lines.append(f"{found.identical} of {found.records} records identical to the last bit")
    return "\n".join(lines)


def _tell_coverage(found: Coverage) -> None:
    for what, ids in {"MISSING": found.missing, "FAILED": found.failed}.items():
        for each in ids:
            print(f"{what}  {each}")
    there = found.needed - len(found.missing) - len(found.failed)
    words = f"{there} of {found.needed} images that the data set needs are there"
    print(f"{words}, {len(found.missing)} are missing, {len(found.failed)} failed")


def _some(keys: list[str]) -> str:
    """The first keys, to recognise them by."""
    return f": {', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''}" if keys else ""


def store_facts(store: FeatureStore) -> dict[str, Any]:
    """What `triptych info --json` prints."""
    errors = store.errors()
    try:
        run = store.run
    except StoreError as error:  # it only tells how the last job went: the rest is worth showing
        run = {"damaged": str(error)}
    reasons = sorted({row.reason for row in errors})
    shards = [unit.shard for unit in store.units if unit.shard]
    return {
        "view": store.spec.view,
        "spec_id": store.spec.id,
        "spec": store.spec.to_dict(),
        "records": len(store),
        "errors": len(errors),
        "errors_by_reason": {reason: sum(row.reason == reason for row in errors) for reason in reasons},
        "rows": sum(shard.rows for shard in shards),
        "shards": len(shards),
        "formats": sorted({shard.format for shard in shards}),
        "bytes": sum(shard.bytes for shard in shards),
        "complete": bool(run.get("complete", False)),
        "run": run,
    }


def _weights_text(weights: Any) -> str:
    """Of any spec: what an extractor of somebody else's says of its weights may be of another form."""
    if not weights:
        return ""
    told = [weights.get("origin"), weights.get("sha256", "")[:16]] if isinstance(weights, dict) else [weights]
    return ", weights " + " ".join(str(each) for each in told if each)


def _info_text(path: str, facts: dict[str, Any]) -> str:
    spec, run = facts["spec"], facts["run"]
    lines = [
        f"{path}: {facts['view']}, {'complete' if facts['complete'] else 'not complete'}",
        f"  records   {facts['records']} ({facts['rows']} rows of {spec['layout']['dim']} {spec['layout']['dtype']})",
        f"  errors    {facts['errors']}",
        *(f"    {count:>6}  {reason}" for reason, count in facts["errors_by_reason"].items()),
        f"  shards    {facts['shards']}, {size(facts['bytes'])}, {' and '.join(facts['formats']) or 'none yet'}",
        f"  spec      {facts['spec_id'][:16]}",
        f"  model     {spec['model'].get('name', 'not known')}" + _weights_text(spec["model"].get("weights")),
    ]
    if spec["model"].get("width_divisor", 1) > 1:
        lines.append(f"  narrowed  all widths divided by {spec['model']['width_divisor']}: not the published network")
    if spec["layout"].get("without"):
        lines.append(f"  without   {', '.join(spec['layout']['without'])}")
    if "source" in run:
        lines.append(f"  source    {run['images']} of {run['source_images']} images of {run['source']}")
    if "damaged" in run:
        lines.append(f"  last run  {run['damaged']}")
    if run.get("images_per_second"):
        speed = f"{run['images_per_second']:.2f} images/s"
        lines.append(f"  last run  {speed}, {run['engine']} engine, {run['hardware']}, {run['finished_at']}")
    return "\n".join(lines)
