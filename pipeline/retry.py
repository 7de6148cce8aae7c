"""Trying failed images of a store again, with the settings they were extracted with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from extractors import ConfigError
from pipeline.config import EngineConfig, ExtractJob
from pipeline.job import JobResult, Progress, run_job
from pipeline.settings import job_from
from pipeline.sources import ImageRef, open_source
from storage import ErrorRow, open_store
from storage.secrets import shown

ALL = "all"


def failed_with(rows: Sequence[ErrorRow], statuses: Sequence[str]) -> list[ErrorRow]:
    """Rows whose reason is named (`timeout`), or their stage (`decode_error`), or all.

    Raises:
        ConfigError: a status is of no row: nothing would be done, and nobody would know why.
    """
    known = Counter(name for row in rows for name in (row.reason, f"{row.stage}_error"))
    strange = [status for status in statuses if status != ALL and status not in known]
    if strange:
        have = ", ".join(f"{name} ({count})" for name, count in sorted(known.items())) or "no failed image"
        raise ConfigError(f"no image failed with {strange[0]!r}; this store has {have}.")
    wanted = set(statuses)
    return [row for row in rows if ALL in wanted or wanted & {row.reason, f"{row.stage}_error"}]


def retry(engine: EngineConfig, statuses: Sequence[str], progress: Progress) -> JobResult:
    """Redo exactly those failed images of the store at `engine.out`; the others, and all records, stay as they are.

    Raises:
        TriptychError: no such status, or the store does not tell how it was made, or the job is wrong by now.
    """
    store = open_store(engine.out)
    rows = failed_with(store.errors(), statuses)
    job = job_from(store.run.get("settings"), engine.out, store.spec.view, engine)
    return run_job(job, progress, _refs(job, rows))


def _refs(job: ExtractJob, rows: Sequence[ErrorRow]) -> list[ImageRef]:
    """Where the images are: as their rows say, or the source, if a signature was cut from a row's address.

    Raises:
        TriptychError: the source cannot be listed any more, or has other images by now.
    """
    if not any(row.uri.endswith("?...") for row in rows):
        return [ImageRef(row.key, row.uri) for row in rows]
    wanted = {row.key for row in rows}
    found = [ref for ref in open_source(job.source).list().refs if ref.key in wanted]
    if len(found) < len(wanted):
        lost = min(wanted - {ref.key for ref in found})
        raise ConfigError(f"{shown(job.source.images)} no longer names {lost!r}; extract it from a list that does.")
    return found
