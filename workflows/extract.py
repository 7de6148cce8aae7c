"""`triptych extract`: an extraction job from flags or a YAML file, run and summed up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
import yaml

from extractors import ConfigError, ExtractorConfig, GridConfig, RegionConfig
from pipeline.config import EngineConfig, ExtractJob
from pipeline.job import run_job
from pipeline.sources import SourceConfig
from workflows.progress import TerminalProgress, summary

_Flat = tyro.conf.arg(name="")


@dataclass(frozen=True)
class _Extract:
    source: Annotated[SourceConfig, _Flat]
    engine: Annotated[EngineConfig, _Flat]
    config: str | None = None
    """YAML file with any of these settings, by the same names; flags win over it."""

    def run(self) -> int:
        """Run the job; returns the exit status."""
        result = run_job(ExtractJob(self.source, self.extractor, self.engine), TerminalProgress())
        print(summary(result))
        return result.status

    @property
    def extractor(self) -> ExtractorConfig:
        network: ExtractorConfig = self.network  # type: ignore[attr-defined]
        return network


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
class Extract:
    """Cache visual features of images."""

    view: Annotated[
        Annotated[ExtractRegions, tyro.conf.subcommand("regions")]
        | Annotated[ExtractGrid, tyro.conf.subcommand("grid")],
        tyro.conf.arg(name=""),
    ]

    def run(self) -> int:
        """Run the chosen job; returns the exit status."""
        return self.view.run()


def with_config_file(args: Sequence[str]) -> list[str]:
    """Put the settings of `--config FILE` in front of the flags, except those that a flag sets.

    Raises:
        ConfigError: the file is not a flat YAML mapping of settings.
    """
    path = _value_of(args, "--config")
    if path is None:
        return list(args)
    given = {arg.split("=")[0].removeprefix("--").removeprefix("no-") for arg in args if arg.startswith("--")}
    from_file: list[str] = []
    for name, value in _read_yaml(path).items():
        flag = str(name).replace("_", "-")
        if flag in given or value is None:
            continue
        if isinstance(value, bool):
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


def _read_yaml(path: str) -> dict[str, object]:
    try:
        content = yaml.safe_load(Path(path).expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--config {path} cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {path} is not YAML: {' '.join(str(error).split())}.") from error
    plain = isinstance(content, dict) and not any(isinstance(value, dict | list) for value in content.values())
    if not plain or {"config", "help", "h"} & set(content):
        raise ConfigError(f"--config {path} must be a flat mapping of settings, such as `images: photos`.")
    assert isinstance(content, dict)
    return content
