"""Wrong command lines, in a line that names the nearest command or option."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import is_dataclass
from typing import Any, get_type_hints

import tyro

from storage.errors import TriptychError, did_you_mean

FLAT = (tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes)
CHOICE = re.compile(r"invalid choice '(.*)' for argument '(.*)'\. Expected one of \((.*)\)")
RULES = ("───", "---", "╰─")  # below them tyro says more than what is wrong


class UsageError(TriptychError):
    """The command line is wrong."""


def unknown_command(words: Sequence[str], names: Iterable[str]) -> UsageError:
    """Of a command line whose first words are no command."""
    pairs = [name.partition(" ") for name in names]
    first = list(dict.fromkeys(one for one, _, _ in pairs))
    if words[0] not in first:
        hint = did_you_mean(words[0], first)
        return UsageError(f"there is no command {words[0]!r}{hint} `triptych --help` lists all.")
    second = [other for one, _, other in pairs if one == words[0]]
    given = words[1] if len(words) > 1 else ""
    hint = did_you_mean(given, second)
    return UsageError(f"{words[0]} needs one of {', '.join(second)}, and not {given!r}{hint}")


def wrong_options(name: str, kind: type[Any], args: Sequence[str], printed: str) -> UsageError:
    """Of arguments that a command does not take.

    Args:
        printed: what tyro printed about them.
    """
    flags = options_of(kind)
    given = [arg.partition("=")[0].replace("_", "-") for arg in args if arg.startswith("--")]
    strange = next((flag for flag in given if flag not in flags), None)
    what = plain(printed) if strange is None else f"there is no option {strange}{did_you_mean(strange, flags)}"
    return UsageError(f"{what} `triptych {name} --help` shows all.")


def options_of(kind: type[Any]) -> list[str]:
    """All options of a command's class, as they are written: its fields, and those of the settings in it."""
    found = ["--help"]
    for name, hint in get_type_hints(kind).items():
        flag = name.strip("_").replace("_", "-")
        found += options_of(hint) if is_dataclass(hint) and isinstance(hint, type) else [f"--{flag}"]
        found += [f"--no-{flag}"] * (hint is bool)
    return found


def plain(box: str) -> str:
    """The sentence in a box that tyro draws around an error."""
    framed = [line.strip("│ ") for line in box.splitlines() if line.strip()]
    lines = framed[1:] if box.startswith("╭") else framed[2:]  # without its title; that of ASCII has a rule
    rule = next((at for at, line in enumerate(lines) if line.startswith(RULES)), len(lines))
    text = re.sub(r"\s+", " ", " ".join(lines[:rule])).strip().rstrip(".")
    choice = CHOICE.fullmatch(text)
    if choice:
        given, name, listed = choice.groups()
        known = [each for each in re.findall(r"'([^']*)'", listed) if each != "None"]
        return f"{name} {given!r} is not known; choose one of {', '.join(sorted(known))}{did_you_mean(given, known)}"
    return f"{text[:1].lower()}{text[1:]}."
