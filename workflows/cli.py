"""The `triptych` command: one subcommand a job, exit statuses, and errors as one line."""

from __future__ import annotations

import importlib.metadata
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import tyro

from storage import TriptychError
from workflows.stores import Compact, Diff, Errors, Info, Repair, Verify

WRONG_JOB, INTERRUPTED, PIPE_CLOSED = 2, 130, 141

StoreCommand = (
    Annotated[Info, tyro.conf.subcommand("info")]
    | Annotated[Errors, tyro.conf.subcommand("errors")]
    | Annotated[Verify, tyro.conf.subcommand("verify")]
    | Annotated[Repair, tyro.conf.subcommand("repair")]
    | Annotated[Compact, tyro.conf.subcommand("compact")]
    | Annotated[Diff, tyro.conf.subcommand("diff")]
)
STORE_COMMANDS = ("info", "errors", "verify", "repair", "compact", "diff")
TRANSFER_COMMANDS = ("convert", "import", "export")
LOOKING_COMMANDS = ("view", "report")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status: 0, 1 (damage found), 2 (wrong job), 3 (too many errors), 130."""
    args = list(sys.argv[1:] if argv is None else argv)
    if args == ["--version"]:
        print(f"triptych {importlib.metadata.version('triptych')}")
        return 0
    try:
        status = int(_parse(args).run())
        sys.stdout.flush()
        return status
    except TriptychError as error:
        print(f"triptych: {error}", file=sys.stderr)
        return WRONG_JOB
    except KeyboardInterrupt:
        print("triptych: interrupted; what is committed is kept", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has gone, as `| head` does; Python would complain once more when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except OSError as error:
        print(f"triptych: {error}. What is committed is kept; the same command goes on from there.", file=sys.stderr)
        return WRONG_JOB


def _parse(args: list[str]) -> Any:
    if args[:1] and args[0] in STORE_COMMANDS:  # these start in a fraction of a second: they need no network
        return _tyro(StoreCommand, args)
    from workflows.report import Report
    from workflows.view import View

    looking = Annotated[View, tyro.conf.subcommand("view")] | Annotated[Report, tyro.conf.subcommand("report")]
    if args[:1] and args[0] in LOOKING_COMMANDS:
        return _tyro(looking, args)
    from workflows.transfer import Convert, Export, Import

    transfer = (
        Annotated[Convert, tyro.conf.subcommand("convert")]
        | Annotated[Import, tyro.conf.subcommand("import")]
        | Annotated[Export, tyro.conf.subcommand("export")]
    )
    if args[:1] and args[0] in TRANSFER_COMMANDS:
        return _tyro(transfer, args)
    from workflows.compare import Compare
    from workflows.data import Data
    from workflows.demo import Demo
    from workflows.doctor import Doctor
    from workflows.explain import Explain
    from workflows.extract import Extract, PlanExtract, with_config_file
    from workflows.retry import Retry
    from workflows.scenes import Scenes
    from workflows.train import Evaluate, Train
    from workflows.train_detector import TrainDetector

    command = (
        Annotated[Demo, tyro.conf.subcommand("demo")]
        | Annotated[Extract, tyro.conf.subcommand("extract", description="Cache visual features of images.")]
        | Annotated[PlanExtract, tyro.conf.subcommand("plan", description="Say what an extraction would do and cost.")]
        | Annotated[Retry, tyro.conf.subcommand("retry")]
        | Annotated[Doctor, tyro.conf.subcommand("doctor")]
        | Annotated[Data, tyro.conf.subcommand("data")]
        | Annotated[Scenes, tyro.conf.subcommand("scenes")]
        | Annotated[Train, tyro.conf.subcommand("train")]
        | Annotated[TrainDetector, tyro.conf.subcommand("train-detector")]
        | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
        | Annotated[Explain, tyro.conf.subcommand("explain")]
        | Annotated[Compare, tyro.conf.subcommand("compare")]
        | StoreCommand
        | looking
        | transfer
    )
    if args[:1] in (["extract"], ["plan"]) and len(args) > 1:
        args = [*args[:2], *with_config_file(args[2:])]
    if args[:1] == ["compare"]:
        args = ["compare", *with_config_file(args[1:], lists=True)]
    return _tyro(command, args)


def _tyro(command: Any, args: list[str]) -> Any:
    return tyro.cli(
        command,
        prog="triptych",
        description="Visual features at scale: extract once, cache, compare.",
        args=args,
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes),
    )


def script(view: str) -> int:
    """What the workflow scripts run: the subcommand of this view, on Ray unless --engine says otherwise."""
    args = sys.argv[1:]
    names_engine = any(arg.split("=")[0] == "--engine" for arg in args)
    return main(["extract", view, *([] if names_engine else ["--engine", "ray"]), *args])


if __name__ == "__main__":
    sys.exit(main())
