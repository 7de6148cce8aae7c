"""`triptych extract`: an extraction job from flags or a YAML file, run and summed up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
import yaml

from extractors import ConfigError, ExtractorConfig, GridConfig, PatchConfig, PixelConfig, RegionConfig, view_of
from extractors.views import configs_beside
from pipeline.config import EngineConfig, ExtractJob
from pipeline.job import plan_job, run_job
from pipeline.sources import SourceConfig
from workflows.progress import JsonProgress, TerminalProgress, plan_lines, summary

_Flat = tyro.conf.arg(name="")


@dataclass(frozen=True)
class _Extract:
    source: Annotated[SourceConfig, _Flat]
    engine: Annotated[EngineConfig, _Flat]
    config: str | None = None
    """YAML file with any of these settings, by the same names; flags win over it."""
    views: str | None = None
    """Views to cache from one decode, each in a folder of its own below --out, such as regions,grid,pixels: a grid
    beside regions comes from the same network, others have their own defaults."""
    json: bool = False
    """Tell of progress and the end in JSON lines on stdout."""

    def run(self) -> int:
        """Run the job; returns the exit status."""
        if self.json:
            progress = JsonProgress()
            result = run_job(self.job, progress)
            progress.ended(result)
        else:
            result = run_job(self.job, TerminalProgress())
            print(summary(result))
        return result.status

    @property
    def job(self) -> ExtractJob:
        """What the flags ask for.

        Raises:
            ConfigError: the views do not go together.
        """
        main: ExtractorConfig = self.network  # type: ignore[attr-defined]
        if self.views is None:
            return ExtractJob(self.source, main, self.engine)
        wanted = list(dict.fromkeys(part.strip() for part in self.views.split(",") if part.strip()))
        if view_of(main) not in wanted:
            raise ConfigError(f"--views {self.views} must name {view_of(main)}, too, which this command extracts.")
        configs = configs_beside(main, wanted)
        beside = {view: config for view, config in configs.items() if view != view_of(main)}
        return ExtractJob(self.source, main, self.engine, beside)


@dataclass(frozen=True)
class ExtractRegions(_Extract):
    """Cache region features: boxes with a feature, class and attribute each, by the bottom-up attention detector.

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
    """Cache patch features: the tokens of a frozen CLIP, Swin, ViT, DINOv2 or SigLIP tower, of any of its layers.

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
class Extract:
    """Cache visual features of images."""

    view: Annotated[
        Annotated[ExtractRegions, tyro.conf.subcommand("regions")]
        | Annotated[ExtractGrid, tyro.conf.subcommand("grid")]
        | Annotated[ExtractPatches, tyro.conf.subcommand("patches")]
        | Annotated[ExtractPixels, tyro.conf.subcommand("pixels")],
        tyro.conf.arg(name=""),
    ]

    def run(self) -> int:
        """Run the chosen job; returns the exit status."""
        return self.view.run()


@dataclass(frozen=True)
class _Plan:
    probe: int = 16
    """Images to try, for an estimate of time and bytes; 0: none."""

    def run(self) -> int:
        """Say what the job would do; returns the exit status."""
        job: ExtractJob = self.job  # type: ignore[attr-defined]
        if self.probe < 0:
            raise ConfigError(f"--probe {self.probe} must not be negative.")
        start, tried = plan_job(job, self.probe)
        print("\n".join(plan_lines(start, tried, job.engine.workers or 1)))
        return 0


@dataclass(frozen=True)
class PlanRegions(_Plan, ExtractRegions):
    """As `extract regions`, without extracting."""


@dataclass(frozen=True)
class PlanGrid(_Plan, ExtractGrid):
    """As `extract grid`, without extracting."""


@dataclass(frozen=True)
class PlanPatches(_Plan, ExtractPatches):
    """As `extract patches`, without extracting."""


@dataclass(frozen=True)
class PlanPixels(_Plan, ExtractPixels):
    """As `extract pixels`, without extracting."""


@dataclass(frozen=True)
class PlanExtract:
    """Say what an extraction would do: images found and done, time and bytes from a short probe."""

    view: Annotated[
        Annotated[PlanRegions, tyro.conf.subcommand("regions")]
        | Annotated[PlanGrid, tyro.conf.subcommand("grid")]
        | Annotated[PlanPatches, tyro.conf.subcommand("patches")]
        | Annotated[PlanPixels, tyro.conf.subcommand("pixels")],
        tyro.conf.arg(name=""),
    ]

    def run(self) -> int:
        """Print the plan."""
        return self.view.run()


def with_config_file(args: Sequence[str], lists: bool = False) -> list[str]:
    """Put the settings of `--config FILE` in front of the flags, except those that a flag sets.

    Args:
        lists: whether a setting may have several values.

    Raises:
        ConfigError: the file is not a flat YAML mapping of settings.
    """
    path = _value_of(args, "--config")
    if path is None:
        return list(args)
    given = {arg.split("=")[0].removeprefix("--").removeprefix("no-") for arg in args if arg.startswith("--")}
    from_file: list[str] = []
    for name, value in _read_yaml(path, lists).items():
        flag = str(name).replace("_", "-")
        if flag in given or value is None:
            continue
        if isinstance(value, list):
            from_file += [f"--{flag}", *map(str, value)]
        elif isinstance(value, bool):
            from_file.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            from_file.append(f"--{flag}={value}")
    return [*from_file, *args]


def _value_of(args: Sequence[str], flag: str) -> str | None:
    """What follows a flag in `args`, in either spelling; None where it is not there."""
    for index, arg in enumerate(args):
        if arg.startswith(f"{flag}="):
            return arg.partition("=")[2]
        if arg == flag and index + 1 < len(args):
            return args[index + 1]
    return None


def _read_yaml(path: str, lists: bool) -> dict[str, object]:
    try:
        content = yaml.safe_load(Path(path).expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--config {path} cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {path} is not YAML: {' '.join(str(error).split())}.") from error
    nested = dict if lists else dict | list
    plain = isinstance(content, dict) and not any(isinstance(value, nested) for value in content.values())
    if not plain or {"config", "help", "h"} & set(content):
        raise ConfigError(f"--config {path} must be a flat mapping of settings, such as `images: photos`.")
    assert isinstance(content, dict)
    return content
