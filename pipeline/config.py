"""A job's settings, validated where they are built. Field comments are the help texts of the command line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from extractors import ConfigError, ExtractorConfig, PatchConfig, RegionConfig, view_of
from extractors.configs import NetworkConfig
from extractors.images import MAX_PIXELS
from pipeline.cores import usable_cores
from pipeline.sources import SourceConfig, with_absolute_paths
from pipeline.sources.files import absolute

FEWEST_DECODERS, MOST_DECODERS = 2, 16


@dataclass(frozen=True)
class EngineConfig:
    """Where a job writes and how it runs. Nothing here changes what is extracted."""

    out: str
    """Store to write, a folder or s3://bucket/prefix; the same command again goes on where it stopped."""
    format: Literal["arrow", "hdf5"] = "arrow"
    """Kind of shard file: Arrow IPC, or HDF5 for h5py."""
    engine: Literal["local", "ray"] = "local"
    """local: this process. ray: a pool of actors on a Ray cluster, or on this machine where there is none."""
    batch_size: int | Literal["auto"] = "auto"
    """Images that the network takes at once, of like sizes where it can choose. auto: on a GPU as many as its memory
    holds, on a CPU one for each core."""
    decode_workers: int | Literal["auto"] = "auto"
    """Threads (of each actor) that read, decode and resize ahead of the network. auto: with a GPU one a core, at most
    16; on a CPU 2, since the network needs its cores."""
    max_pixels: int = MAX_PIXELS
    """An image of more pixels is noted as an error, by its header, before it can fill the memory."""
    read_timeout: float = 60.0
    """Seconds after which reading an image's bytes is given up; it is tried once more, then noted as an error."""
    workers: int | None = None
    """ray: number of actors at most. Default: one a GPU of the cluster, or one a CPU."""
    min_workers: int | None = None
    """ray: begin when so many actors run, and grow as the cluster does. Default: all of --workers."""
    gpus_per_worker: float = 1.0
    """ray: GPUs of an actor; 0.5 lets two share one."""
    cpus_per_worker: float = 1.0
    """ray: CPUs of an actor."""
    decode_on: Literal["actors", "nodes"] = "actors"
    """ray: read and decode in the actors' threads, or as tasks on any node with a free CPU."""
    address: str | None = None
    """ray: address of a cluster, or "local" for a fresh one here. Default: the cluster this runs on, if any."""
    limit: int | None = None
    """Take the source's first so many images only."""
    images_per_shard: int | None = None
    """Images in a unit of work. Default: what makes about 256 MiB; on a CPU at most 64."""
    max_errors: str | None = None
    """Exit with status 3 where more images failed than this: a number, or a share such as 5%."""

    def __post_init__(self) -> None:
        for name in (
            "batch_size",
            "decode_workers",
            "workers",
            "min_workers",
            "limit",
            "images_per_shard",
            "max_pixels",
        ):
            value = getattr(self, name)
            if isinstance(value, int) and value < 1:
                raise ConfigError(f"--{name.replace('_', '-')} {value} must be at least 1.")
        if self.max_pixels > MAX_PIXELS:
            raise ConfigError(f"--max-pixels {self.max_pixels} must not be above {MAX_PIXELS}, the decoder's limit.")
        for name in ("read_timeout", "gpus_per_worker", "cpus_per_worker"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"--{name.replace('_', '-')} {getattr(self, name)} must be above 0.")
        strangers = [name for name, default in RAY_DEFAULTS.items() if getattr(self, name) != default]
        if self.engine == "local" and strangers:
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in strangers)
            raise ConfigError(f"{flags} go with --engine ray; the local engine is one process.")
        if self.min_workers and self.workers and self.min_workers > self.workers:
            raise ConfigError(f"--min-workers {self.min_workers} must not be above --workers {self.workers}.")
        self.errors_allowed(1)

    def decode_threads(self, on_gpu: bool) -> int:
        """How many threads decode."""
        if self.decode_workers != "auto":
            return self.decode_workers
        cores = self.cpus_per_worker if self.engine == "ray" else usable_cores()
        return max(FEWEST_DECODERS, min(MOST_DECODERS, int(cores))) if on_gpu else FEWEST_DECODERS

    def errors_allowed(self, images: int) -> float:
        """How many of `images` may fail before the job counts as failed.

        Raises:
            ConfigError: the setting is neither a number nor a percentage.
        """
        if self.max_errors is None:
            return float("inf")
        text = self.max_errors.strip()
        try:
            value = float(text.removesuffix("%")) if text.endswith("%") else int(text)
        except ValueError:
            value = -1
        if not value >= 0:
            raise ConfigError(f"--max-errors {self.max_errors!r} is neither a number nor a percentage such as 5%.")
        return value * images / 100 if text.endswith("%") else value


_RAY_ONLY = ("workers", "min_workers", "address", "gpus_per_worker", "cpus_per_worker", "decode_on")
RAY_DEFAULTS: dict[str, Any] = {each.name: each.default for each in fields(EngineConfig) if each.name in _RAY_ONLY}


@dataclass(frozen=True)
class ExtractJob:
    """Everything a job is: where images come from, what is extracted, where it goes and how it runs.

    beside  settings of other views that are extracted from the same decoded images, by view
    """

    source: SourceConfig
    extractor: ExtractorConfig
    engine: EngineConfig
    beside: Mapping[str, ExtractorConfig] = field(default_factory=dict)

    @property
    def views(self) -> dict[str, ExtractorConfig]:
        """Settings by view, the main one first."""
        return {view_of(self.extractor): self.extractor, **self.beside}

    @property
    def outs(self) -> dict[str, str]:
        """Where each view's store is: --out itself, or a folder below it for each of several."""
        out = self.engine.out
        return {view: f"{out.rstrip('/')}/{view}" if self.beside else out for view in self.views}

    def with_views(self, change: Callable[[ExtractorConfig], ExtractorConfig]) -> ExtractJob:
        """The same job with each view's settings changed."""
        beside = {view: change(config) for view, config in self.beside.items()}
        return replace(self, extractor=change(self.extractor), beside=beside)

    def with_absolute_paths(self) -> ExtractJob:
        """The same job for a process whose current folder may be another."""
        job = self.with_views(_with_absolute_files)
        source, engine = with_absolute_paths(self.source), replace(self.engine, out=_absolute(self.engine.out))
        return replace(job, source=source, engine=engine)


def _with_absolute_files(config: ExtractorConfig) -> ExtractorConfig:
    if isinstance(config, NetworkConfig) and config.weights:
        config = replace(config, weights=_absolute_weights(config.weights))
    if isinstance(config, RegionConfig) and config.boxes:
        config = replace(config, boxes=str(absolute(Path(config.boxes).expanduser())))
    if isinstance(config, RegionConfig | PatchConfig):
        config = replace(config, model=_absolute_behind_colon(config.model))
    return config


def _absolute_weights(weights: str) -> str:
    """A file's path, or the folder's of a reference; names and seeds as they are."""
    file = Path(weights).expanduser()
    return str(absolute(file)) if file.exists() else _absolute_behind_colon(weights)


def _absolute_behind_colon(name: str) -> str:
    """`reference:FOLDER`, `hf:FOLDER`, `detectron2:FILE` with the whole path; whatever names nothing here as it is."""
    kind, colon, path = name.partition(":")
    there = colon and path and Path(path).expanduser().exists()
    return f"{kind}:{absolute(Path(path).expanduser())}" if there else name


def _absolute(path: str) -> str:
    return path if "://" in path else str(absolute(path))
