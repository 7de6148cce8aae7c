"""Modules run as commands, in processes that are there at once: forked from one that has imported what takes long."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import runpy
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

LONGEST = 300  # seconds
PROCESSES = multiprocessing.get_context("forkserver")
# None of them starts threads when it is imported, which a fork would lose.
PROCESSES.set_forkserver_preload(
    [
        "torchvision",
        "workflows.extract",
        "workflows.runs",
        "pipeline.job",
        "pipeline.local",
        "extractors.grid",
        "extractors.regions",
        "trainers.models.grid_vlp",
        "tests.unit.storage.workers",
    ]
)


class Command:
    """`python -m MODULE ARGUMENTS`, as a shell would start it; `out` and `err` are what it has said."""

    def __init__(self, module: str, arguments: Sequence[str], said: Path, environment: Mapping[str, str] | None = None):
        said.mkdir(parents=True, exist_ok=True)
        self._said = (said / "stdout", said / "stderr")
        for path in self._said:
            path.write_text("")
        self._process = PROCESSES.Process(
            target=_run, args=(module, list(arguments), [str(path) for path in self._said], dict(environment or {}))
        )
        self._process.start()

    @property
    def out(self) -> str:
        return self._said[0].read_text()

    @property
    def err(self) -> str:
        return self._said[1].read_text()

    def poll(self) -> int | None:
        """Its exit status, minus the signal that ended it, or None while it runs."""
        return self._process.exitcode

    def wait(self) -> int:
        self._process.join(LONGEST)
        status = self._process.exitcode
        assert status is not None, f"still running after {LONGEST} s: {self.err[-500:]}"
        return status

    def send_signal(self, number: signal.Signals) -> None:
        assert self._process.pid is not None
        with contextlib.suppress(ProcessLookupError):  # it has ended already
            os.kill(self._process.pid, number)


def _run(module: str, arguments: list[str], said: list[str], environment: dict[str, str]) -> None:
    # Shells start what runs in the background with SIGINT ignored, and so would be all that the tests start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.update(environment)
    for number, path in enumerate(said, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), number)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
