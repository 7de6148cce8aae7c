"""`triptych completion`: a script that completes commands and options in a shell."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, make_dataclass
from pkgutil import resolve_name
from typing import Annotated, Any, Literal, Union

import tyro

from workflows.cli import COMMANDS
from workflows.output import Command, emit
from workflows.usage import FLAT


@dataclass(frozen=True)
class Completion(Command):
    """Print a script that completes commands and options in a shell.

    triptych completion bash > ~/.local/share/bash-completion/completions/triptych

    triptych completion zsh > ~/.zfunc/_triptych

    triptych completion fish > ~/.config/fish/completions/triptych.fish
    """

    shell: tyro.conf.Positional[Literal["bash", "zsh", "fish"]]
    """Whose script."""

    def run(self) -> int:
        printed = io.StringIO()
        kinds = {name: resolve_name(f"workflows.{place}") for name, (place, _) in COMMANDS.items()}
        with suppress(SystemExit), redirect_stdout(printed):  # tyro prints it, and ends the program
            tyro.cli(together(kinds), prog="triptych", args=["--tyro-write-completion", self.shell, "-"], config=FLAT)
        # Shells take each line that is printed for a completion: help texts of several lines become one.
        script = re.sub(
            r"^COMPLETION_SPEC = .*", lambda spec: re.sub(r"\\+n", " ", spec[0]), printed.getvalue(), flags=re.M
        )
        emit({"shell": self.shell, "script": script})
        print(script, end="")
        return 0


def together(kinds: Mapping[str, type[Any]]) -> Any:
    """All commands as one type that tyro chooses from; those of two words are below the first one."""
    tree: dict[str, Any] = {}
    for name, kind in kinds.items():
        first, _, second = name.partition(" ")
        if second:
            tree.setdefault(first, {})[second] = kind
        else:
            tree[first] = kind
    return _choice({name: _group(name, each) if isinstance(each, dict) else each for name, each in tree.items()})


def _choice(kinds: Mapping[str, Any]) -> Any:
    return Union[tuple(Annotated[kind, tyro.conf.subcommand(name)] for name, kind in kinds.items())]  # noqa: UP007


def _group(name: str, kinds: Mapping[str, Any]) -> Any:
    return make_dataclass(name, [("command", Annotated[_choice(kinds), tyro.conf.arg(name="")])])
