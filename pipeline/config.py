"""A job's settings, validated where they are built. Field comments are the help texts of the command line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from extractors import ConfigError, ExtractorConfig
from pipeline.sources import SourceConfig


@dataclass(frozen=True)
class EngineConfig:
    """Where a job writes and how it runs. Nothing here changes what is extracted."""

    out: str
    """Store to write, a folder or s3://bucket/prefix; the same command again goes on where it stopped."""
    format: Literal["arrow", "hdf5"] = "arrow"
    """Kind of shard file: Arrow IPC, or HDF5 for h5py."""
    engine: Literal["local", "ray"] = "local"
    """local: this process. ray: a pool of actors on a Ray cluster, or on this machine where there is none."""
    batch_size: int = 1
    """Neighbouring images of equal resized size that the network takes at once."""
    decode_workers: int = 2
    """Threads (of each actor) that read, decode and resize ahead of the network."""
    workers: int | None = None
    """ray: number of actors. Default: one a GPU of the cluster, or one a CPU."""
    address: str | None = None
    """ray: address of a cluster, or "local" for a fresh one here. Default: the cluster this runs on, if any."""
    limit: int | None = None
    """Take the source's first so many images only."""
    images_per_shard: int | None = None
    """Images in a unit of work. Default: what makes about 256 MiB; on a CPU at most 64."""
    max_errors: str | None = None
    """Exit with status 3 where more images failed than this: a number, or a share such as 5%."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "decode_workers", "workers", "limit", "images_per_shard"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"--{name.replace('_', '-')} {value} must be at least 1.")
        if self.engine == "local" and (self.workers is not None or self.address is not None):
            raise ConfigError("--workers and --address go with --engine ray; the local engine is one process.")
        self.errors_allowed(1)

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


@dataclass(frozen=True)
class ExtractJob:
    """Everything a job is: where images come from, what is extracted, where it goes and how it runs."""

    source: SourceConfig
    extractor: ExtractorConfig
    engine: EngineConfig
