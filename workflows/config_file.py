"""`--config FILE`: settings from a YAML file, put in front of the flags."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml

from extractors import ConfigError


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
