"""`triptych extract`: an extraction job from flags or a YAML file, run and summed up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from extractors import ConfigError, ExtractorConfig, GridConfig, PatchConfig, PixelConfig, RegionConfig, view_of
from pipeline.config import EngineConfig, ExtractJob
from pipeline.sources import SourceConfig
from workflows.output import Command, emit
from workflows.progress import plan_facts, plan_lines, told

_Flat = tyro.conf.arg(name="")


@dataclass(frozen=True)
class _Extract(Command):
    source: Annotated[SourceConfig, _Flat]
    engine: Annotated[EngineConfig, _Flat]
    config: str | None = None
    """YAML file with any of these settings, by the same names; flags win over it."""
    views: str | None = None
    """Views to cache from one decode, each in a folder of its own below --out, such as regions,grid,pixels: a grid
    beside regions comes from the same network, others have their own defaults."""

    def run(self) -> int:
        """Run the job; returns the exit status."""
        from pipeline.job import run_job

        return told(lambda progress: run_job(self.job, progress), self.json).status

    @property
    def job(self) -> ExtractJob:
        """What the flags ask for.

        Raises:
            ConfigError: the views do not go together.
        """
        main: ExtractorConfig = self.network  # type: ignore[attr-defined]
        if self.views is None:
            return ExtractJob(self.source, main, self.engine)
        from extractors.views import configs_beside

        wanted = list(dict.fromkeys(part.strip() for part in self.views.split(",") if part.strip()))
        if view_of(main) not in wanted:
            raise ConfigError(f"--views {self.views} must name {view_of(main)}, too, which this command extracts.")
        configs = configs_beside(main, wanted)
        beside = {view: config for view, config in configs.items() if view != view_of(main)}
        return ExtractJob(self.source, main, self.engine, beside)


@dataclass(frozen=True)
class ExtractRegions(_Extract):
    """Cache region features: boxes with a feature and a class each, by the bottom-up attention detector.

    triptych extract regions --images photos --out features/regions --weights butd-r101
    """

    network: Annotated[RegionConfig, _Flat] = RegionConfig()  # noqa: RUF009


@dataclass(frozen=True)
class ExtractGrid(_Extract):
    """Cache grid features: one feature for each cell of 32 x 32 pixels, by a ResNet or ResNeXt.

    triptych extract grid --images photos --out features/grid --model x101
    """

    network: Annotated[GridConfig, _Flat] = GridConfig()  # noqa: RUF009


@dataclass(frozen=True)
class ExtractPatches(_Extract):
    """Cache patch features: the tokens of a frozen tower: CLIP, Swin, ViT, DINOv2 or SigLIP, any of its layers.

    triptych extract patches --images photos --out features/patches --model hf:openai/clip-vit-base-patch16
    """

    network: Annotated[PatchConfig, _Flat] = PatchConfig()  # noqa: RUF009


@dataclass(frozen=True)
class ExtractPixels(_Extract):
    """Cache plain pixels: images decoded, turned upright and resized, for end-to-end training without JPEGs.

    triptych extract pixels --images photos --out features/pixels
    """

    network: Annotated[PixelConfig, _Flat] = PixelConfig()  # noqa: RUF009


@dataclass(frozen=True)
class _Plan(Command):
    probe: int = 16
    """Images to try, for an estimate of time and bytes; 0: none."""

    def run(self) -> int:
        """Say what the job would do; returns the exit status."""
        job: ExtractJob = self.job  # type: ignore[attr-defined]
        if self.probe < 0:
            raise ConfigError(f"--probe {self.probe} must not be negative.")
        from pipeline.job import plan_job

        start, tried = plan_job(job, self.probe)
        emit(plan_facts(start, tried, job.engine.workers or 1))
        print("\n".join(plan_lines(start, tried, job.engine.workers or 1)))
        return 0


@dataclass(frozen=True)
class PlanRegions(_Plan, ExtractRegions):
    """Say what `extract regions` would do, and what it would cost: images found and done, time and bytes from a probe.

    triptych plan regions --images photos --out features/regions --weights butd-r101
    """


@dataclass(frozen=True)
class PlanGrid(_Plan, ExtractGrid):
    """Say what `extract grid` would do, and what it would cost: images found and done, time and bytes from a probe.

    triptych plan grid --images photos --out features/grid --model x101
    """


@dataclass(frozen=True)
class PlanPatches(_Plan, ExtractPatches):
    """Say what `extract patches` would do, and what it would cost: images found and done, time and bytes from a probe.

    triptych plan patches --images photos --out features/patches --model hf:openai/clip-vit-base-patch16
    """


@dataclass(frozen=True)
class PlanPixels(_Plan, ExtractPixels):
    """Say what `extract pixels` would do, and what it would cost: images found and done, time and bytes from a probe.

    triptych plan pixels --images photos --out features/pixels
    """
