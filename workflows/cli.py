"""The `triptych` command: a line a command in `COMMANDS`, exit statuses, and errors as one line."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr
from pkgutil import resolve_name
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from workflows.output import Command

WRONG_JOB, INTERRUPTED, PIPE_CLOSED = 2, 130, 141

# Where each command's class lies in this folder, and what it does, in the words that the class's docstring begins with.
# A command's module is imported when it is asked for, and no other, so that each starts as fast as it can.
COMMANDS = {
    "demo": ("demo:Demo", "Draw scenes, extract their regions and grids, show them, and compare three models."),
    "extract regions": ("extract:ExtractRegions", "Cache region features: boxes with a feature and a class each."),
    "extract grid": ("extract:ExtractGrid", "Cache grid features: one feature for each cell of 32 x 32 pixels."),
    "extract patches": ("extract:ExtractPatches", "Cache patch features: the tokens of a frozen tower."),
    "extract pixels": ("extract:ExtractPixels", "Cache plain pixels: images decoded, turned upright and resized."),
    "plan regions": ("extract:PlanRegions", "Say what `extract regions` would do, and what it would cost."),
    "plan grid": ("extract:PlanGrid", "Say what `extract grid` would do, and what it would cost."),
    "plan patches": ("extract:PlanPatches", "Say what `extract patches` would do, and what it would cost."),
    "plan pixels": ("extract:PlanPixels", "Say what `extract pixels` would do, and what it would cost."),
    "retry": ("retry:Retry", "Try the failed images of a store again, with the settings they had."),
    "info": ("stores:Info", "Counts, spec, size and speed of a store."),
    "errors": ("stores:Errors", "The images of a store that failed, one row each."),
    "verify": ("stores:Verify", "Check every byte of a store: checksums, schema, counts, keys."),
    "repair": ("stores:Repair", "Drop what is damaged, so that running the extract command again redoes exactly that."),
    "compact": ("stores:Compact", "Merge small shards and fold the manifest into its index."),
    "diff": ("stores:Diff", "How far two stores are apart, field by field, and which keys differ."),
    "view": ("view:View", "Look at stores in the browser."),
    "report": ("report:Report", "Write the page of `triptych view` over some images of a store as one HTML file."),
    "card": ("card:Card", "Write a store's dataset card."),
    "convert": ("transfer:Convert", "Copy a store into another shard format or number type, and compare."),
    "import": ("transfer:Import", "Take other projects' feature files into a store."),
    "export": ("transfer:Export", "Write a store as another project's feature file."),
    "doctor": ("doctor:Doctor", "Say what this machine offers, what is set up badly, and how fast each network is."),
    "data check": ("data:DataCheck", "Say what is there of a data set and what is missing."),
    "data list": ("data:DataList", "The data sets that are known, and how each should look."),
    "scenes make": ("scenes:Scenes", "Draw scenes and write their truth."),
    "train": ("train:Train", "Train a published run, or go on with one."),
    "train-detector": ("train_detector:TrainDetector", "Train a detector on boxes, and write it as weights."),
    "evaluate": ("train:Evaluate", "Score a run on a split, and write its predictions."),
    "explain": ("explain:Explain", "Show what a run looks at when it reads a word."),
    "compare": ("compare:Compare", "Compare models and visual inputs: extract, train, score, measure, report."),
    "completion": ("completion:Completion", "Print a script that completes commands and options in a shell."),
}
HELP = ("-h", "--help")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status: 0, 1 (damage found), 2 (wrong job), 3 (too many errors), 130."""
    return _guarded(list(sys.argv[1:] if argv is None else argv))


def overview(group: str) -> str:
    """What `triptych --help` prints, or `triptych GROUP --help`: of commands with this first word, "" all of them."""
    listed = {name: text for name, (_, text) in COMMANDS.items() if not group or name.startswith(f"{group} ")}
    width = max(map(len, listed)) + 2
    return "\n".join(
        [
            f"usage: triptych {group} COMMAND [options]".replace("  ", " "),
            "\nVisual features at scale: extract once, cache, compare.\n",
            *(f"  {name:<{width}}{text}" for name, text in listed.items()),
            "\n`triptych COMMAND --help` shows options and examples; every command has --json and --quiet.",
        ]
    )


def _group_to_list(args: list[str]) -> str | None:
    """The first word of the commands to list, "" for all of them; None where a command is asked for."""
    words = [arg for arg in args if arg not in HELP]
    is_group = len(words) == 1 and any(name.startswith(f"{words[0]} ") for name in COMMANDS)
    return "" if not words else words[0] if is_group else None


def _guarded(args: list[str]) -> int:
    """Run a command; what stops it becomes a line and an exit status."""
    from storage.errors import TriptychError

    try:
        return _run(args)
    except TriptychError as error:
        print(f"triptych: {error}", file=sys.stderr)
        return WRONG_JOB
    except KeyboardInterrupt:
        print("triptych: interrupted; what is committed is kept, and the same command goes on", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has gone, as `| head` does; Python would complain once more when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except OSError as error:
        print(f"triptych: {error}. What is committed is kept; the same command goes on from there.", file=sys.stderr)
        return WRONG_JOB


def _run(args: list[str]) -> int:
    group = _group_to_list(args)
    if args == ["--version"]:
        from workflows.version import version_lines

        print("\n".join(version_lines()), flush=True)
        return 0
    if group is not None:
        print(overview(group), flush=True)
        return 0 if args and args[-1] in HELP else WRONG_JOB
    return _run_command(args)


def _run_command(args: list[str]) -> int:
    from workflows.output import speaking

    command = parse(args)
    if command is None:
        return 0
    with speaking(command.json, command.quiet):
        status = int(command.run())
        sys.stdout.flush()
    return status


def parse(args: Sequence[str]) -> Command | None:
    """The command that a command line asks for; None where it asked for help, which is printed then.

    Raises:
        TriptychError: there is no such command, or it does not take these arguments.
    """
    import tyro

    from workflows.config_file import with_config_file
    from workflows.usage import FLAT, unknown_command, wrong_options

    name = next((each for each in (" ".join(args[:2]), *args[:1]) if each in COMMANDS), None)
    if name is None:
        raise unknown_command(args, COMMANDS)
    kind, given = resolve_name(f"workflows.{COMMANDS[name][0]}"), list(args[len(name.split()) :])
    if "config" in kind.__dataclass_fields__:
        given = with_config_file(given, lists=name == "compare")
    printed = io.StringIO()
    try:
        with redirect_stderr(printed):
            command: Command = tyro.cli(kind, prog=f"triptych {name}", args=given, config=FLAT)
    except SystemExit as stopped:
        if stopped.code:
            raise wrong_options(name, kind, given, printed.getvalue()) from None
        return None
    return command


def script(view: str) -> int:
    """What the workflow scripts run: the subcommand of this view, on Ray unless --engine says otherwise."""
    args = sys.argv[1:]
    names_engine = any(arg.split("=")[0] == "--engine" for arg in args)
    return main(["extract", view, *([] if names_engine else ["--engine", "ray"]), *args])


if __name__ == "__main__":
    sys.exit(main())
