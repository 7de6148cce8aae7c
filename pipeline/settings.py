"""A job's settings as a store keeps them, so that failed images can be tried again as they were the first time."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from extractors import CONFIGS, ExtractorConfig
from pipeline.config import EngineConfig, ExtractJob
from pipeline.sources import SourceConfig
from storage.errors import StoreError
from storage.secrets import shown


def settings_of(job: ExtractJob) -> dict[str, Any]:
    """Plain JSON values: where images come from and what is extracted of them, by view, without secrets.

    Paths are absolute, since another process may have another current folder. How it ran is left out, and so are the
    settings of extractors that are not of this package: whoever reads them could not build these.
    """
    job = job.with_absolute_paths()
    source = {name: shown(value) if isinstance(value, str) else value for name, value in vars(job.source).items()}
    return {
        "source": source,
        "views": {view: asdict(config) for view, config in job.views.items() if type(config) is CONFIGS[view]},
        "max_pixels": job.engine.max_pixels,
    }


def job_from(settings: Any, store: str, view: str, engine: EngineConfig) -> ExtractJob:
    """The job of one view's settings, to run by `engine` into that view's store.

    Raises:
        StoreError: the store's note of its job is of another version, or none.
    """
    try:
        source = SourceConfig(**settings["source"])
        config: ExtractorConfig = CONFIGS[view](**settings["views"][view])
        return ExtractJob(source, config, replace(engine, max_pixels=settings["max_pixels"]))
    except (TypeError, KeyError) as error:
        raise StoreError(
            f"{store} does not tell how it was made ({type(error).__name__}: {error}): it was imported, converted, or "
            "made by another version or an extractor of one's own. Extract them (--keys) into a new --out instead."
        ) from error
