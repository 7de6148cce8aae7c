"""What every command prints: text for people, with --json JSON lines instead, with --quiet nothing but errors.

A command prints text with `print`, and hands facts to `emit`; which of them is seen is decided here, once for all.
"""

from __future__ import annotations

import json
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any, TextIO

_facts: TextIO | None = None  # where `emit` writes; None: text is asked for
_errors: TextIO | None = None  # where `complain` writes; None: stderr as it is


@dataclass(frozen=True, kw_only=True)
class Command(ABC):
    """What all commands have in common."""

    json: bool = False
    """Print JSON lines on stdout, and nothing else there."""
    quiet: bool = False
    """Print nothing but errors, and what --json prints; the exit status tells how it went."""

    @abstractmethod
    def run(self) -> int:
        """Do it; returns the exit status.

        Raises:
            TriptychError: the job is wrong.
        """


def emit(facts: Mapping[str, Any]) -> None:
    """Print facts as one line of JSON, where --json asks for it."""
    if _facts is not None:
        print(json.dumps(facts), file=_facts, flush=True)


def complain(text: str) -> None:
    """Print an error that does not end the command; --quiet leaves it."""
    print(text, file=_errors or sys.stderr, flush=True)


@contextmanager
def speaking(as_json: bool, quiet: bool) -> Iterator[None]:
    """Let through what the two flags leave of all that is printed inside, by whatever library."""
    global _facts, _errors
    before = _facts, _errors
    with ExitStack() as stack:
        nowhere = stack.enter_context(open(os.devnull, "w"))  # noqa: PTH123
        _facts, _errors = (sys.stdout if as_json else None), sys.stderr
        if as_json or quiet:
            stack.enter_context(redirect_stdout(nowhere))
        if quiet:
            stack.enter_context(redirect_stderr(nowhere))
        try:
            yield
        finally:
            _facts, _errors = before
